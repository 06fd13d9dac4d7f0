"""The state directory: caches that a later start reuses, and the log file of this one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bringup.inside import events, pod, profile

DEFAULT = profile.DEFAULT
ON_VOLUME = "bringup"  # below a pod's volume, which is the user's for other things too
LOCK = "run/in-use"


@dataclass(frozen=True)
class State:
    """Where this start may write; `problem` says why it is not where it was asked to be."""

    directory: Path
    log: Path
    environment: dict[str, str]
    problem: str = ""


def open_state(environ: Mapping[str, str]) -> State:
    """Make `run/` and a fresh server.jsonl in the state directory, or in a temporary one if it cannot be written.

    In a pod that has a volume, and no state directory of its own, it is on the volume, so that the next pod finds the
    caches. A volume of another owner, or one that another pod uses now, must not keep the server from serving: then the
    caches are lost with the container. Every variable that points below the state directory is moved along.
    """
    own = environ.get("BRINGUP_STATE_DIR")
    wanted = Path(own or DEFAULT)
    problem = ""
    for volume in () if own else pod.volumes(environ):
        place = volume / ON_VOLUME
        try:
            log = _run_directory(place, shared=True)
            return State(place, log, _moved(environ, wanted, place))
        except OSError as e:
            problem += f"{place} cannot be the state directory ({_why(e)}); "
    try:
        return State(
            wanted, _run_directory(wanted), {}, f"{problem}caches and logs end with this pod" if problem else ""
        )
    except OSError as e:
        spare = Path(tempfile.mkdtemp(prefix="bringup-"))
        problem += (
            f"the state directory {wanted} cannot be written ({_why(e)}; uid {os.getuid()}, gid {os.getgid()}): "
            f"using {spare}, caches and logs end with this container; give the volume to uid 1000 or group 0"
        )
    return State(spare, _run_directory(spare), _moved(environ, wanted, spare), problem)


def _why(error: OSError) -> str:
    return "another pod uses it" if isinstance(error, BlockingIOError) else error.strerror or str(error)


def _moved(environ: Mapping[str, str], wanted: Path, place: Path) -> dict[str, str]:
    """The variables that point below `wanted`, pointing below `place`."""
    moved = {
        name: str(place / Path(value).relative_to(wanted))
        for name, value in environ.items()
        if value.startswith("/") and Path(value).is_relative_to(wanted)
    }
    return {"BRINGUP_STATE_DIR": str(place), **moved}


def _run_directory(state: Path, *, shared: bool = False) -> Path:
    run = state / "run"
    run.mkdir(parents=True, exist_ok=True)
    if shared:
        _claim(state / LOCK)
    profile.keep_last(run)
    log = run / "server.jsonl"
    events.start_file(log)
    return log


def _claim(file: Path) -> None:
    """Hold the directory until this process ends, which is why nobody closes the file.

    A network volume may be mounted in several pods at once, and a log is of one start.

    Raises:
        OSError: another one holds it, or the file system cannot tell.
    """
    fcntl.flock(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664), fcntl.LOCK_EX | fcntl.LOCK_NB)
