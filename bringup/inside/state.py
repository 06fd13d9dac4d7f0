"""The state directory: caches that a later start reuses, and the log file of this one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bringup.inside import events, profile

DEFAULT = profile.DEFAULT


@dataclass(frozen=True)
class State:
    """Where this start may write; `problem` says why it is not where it was asked to be."""

    directory: Path
    log: Path
    environment: dict[str, str]
    problem: str = ""


def open_state(environ: Mapping[str, str]) -> State:
    """Make `run/` and a fresh server.jsonl in the state directory, or in a temporary one if it cannot be written.

    A volume of another owner must not keep the server from serving: then the caches are lost with the container,
    and every variable that points below the state directory is moved along.
    """
    wanted = Path(environ.get("BRINGUP_STATE_DIR") or DEFAULT)
    try:
        return State(wanted, _run_directory(wanted), {})
    except OSError as e:
        why = e.strerror or str(e)
    spare = Path(tempfile.mkdtemp(prefix="bringup-"))
    moved = {
        name: str(spare / Path(value).relative_to(wanted))
        for name, value in environ.items()
        if value.startswith("/") and Path(value).is_relative_to(wanted)
    }
    problem = (
        f"the state directory {wanted} cannot be written ({why}; uid {os.getuid()}, gid {os.getgid()}): "
        f"using {spare}, caches and logs end with this container; give the volume to uid 1000 or group 0"
    )
    return State(spare, _run_directory(spare), {"BRINGUP_STATE_DIR": str(spare), **moved}, problem)


def _run_directory(state: Path) -> Path:
    run = state / "run"
    run.mkdir(parents=True, exist_ok=True)
    profile.keep_last(run)
    log = run / "server.jsonl"
    events.start_file(log)
    return log
