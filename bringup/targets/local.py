"""The local target: the server is a process of this machine, in a pod or on a bare box, kept by `edge.keeper`.

It is started by the image's own entry point, with this interpreter. A project has a directory: what the server was
started with, its console, and the state directory that is a volume in the other target.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bringup import clock, gpus
from bringup.clock import Offset
from bringup.edge import gpu, keeper, objects, place, proc, process
from bringup.edge.docker import ContainerState
from bringup.errors import EvidenceMissing, NeverReady, TargetUnavailable, UsageError
from bringup.key import state_home
from bringup.plan import MODELS_DIR, WEIGHTS_DIR, Plan
from bringup.redact import shown_variables
from bringup.settings import BAKED, VOLUME, Settings, fields, variable
from bringup.targets.compose import IMAGE_STATE, absolute_files
from bringup.weights.verify import sha256_of

IN_IMAGE = Path("/opt/bringup/wheels.lock")
FETCHED = Path("weights")  # below the current directory, where `bringup weights fetch` puts a model's files
REQUEST, FAULTS, LOCK = "request.json", "keeper.log", "lock"
FILES = (REQUEST, FAULTS, keeper.STARTED, keeper.ENDED, keeper.CONSOLE, keeper.OLDER)
ENTRY = ("-m", "bringup.inside")
PATIENCE = 15.0  # seconds for the keeper to begin, and beyond its own grace to end
POLL = 0.05  # seconds
# The image's own variables (a test compares): each has this value unless it is set otherwise ...
DEFAULTS = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_ENABLE_HF_TRANSFER": "0", "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0",
}  # fmt: skip
# ... and of these each project has its own, below its directory.
CACHES = {
    "VLLM_CACHE_ROOT": "cache", "TORCHINDUCTOR_CACHE_DIR": "cache/inductor", "TRITON_CACHE_DIR": "cache/triton",
    "FLASHINFER_WORKSPACE_BASE": "cache", "CUDA_CACHE_PATH": "cache/cuda",
}  # fmt: skip
# What a container's host tells the container's own server: its key, health port, sshd, and to stay when it has ended.
# Of a server that somebody starts inside none of it is true.
OF_THE_CONTAINER = {
    "VLLM_API_KEY", "RUNPOD_API_KEY", "PORT_HEALTH", "HEALTH_CHECK_PATH", "PUBLIC_KEY", "SSH_PUBLIC_KEY",
    "BRINGUP_HOLD",
}  # fmt: skip


class ProcessState(ContainerState):
    """How the process is doing, in the engine's words; `exit_code` is -1 where nobody saw it end."""

    noun: ClassVar[str] = "process"


def home(environ: Mapping[str, str]) -> Path:
    """The directory of all projects: BRINGUP_STATE_DIR, in the image its state directory, else this user's state."""
    base = environ.get("BRINGUP_STATE_DIR") or (IMAGE_STATE if IN_IMAGE.is_file() else "")
    return (Path(base) if base else state_home(environ)) / "local"


def weights_place(settings: Settings, model: str) -> str | Path:
    """Where the model's files are on this machine, or would be: baked into the image, on its volume, or a directory.

    Raises:
        UsageError: a volume is asked for where there is no image.
    """
    if settings.weights == VOLUME and not Path(WEIGHTS_DIR).is_dir():
        raise UsageError(
            f"--weights volume is {WEIGHTS_DIR} of the image, which this machine does not have",
            hint=f"`bringup weights fetch --model {model}`, then --weights {FETCHED / model}",
        )
    if settings.weights == BAKED and not Path(MODELS_DIR, model).is_dir():
        return (FETCHED / model).absolute()
    return settings.weights


def is_there(weights: str | Path, model: str) -> bool:
    """Whether there is such a directory; a volume is filled by the first start."""
    if weights == VOLUME:
        return True
    return Path(MODELS_DIR, model).is_dir() if weights == BAKED else Path(weights).is_dir()


def environment(plan: Plan, directory: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The entry point's variables: the image's, this process's without our settings, and the plan's. Pure.

    The key is the plan's, or there is none; see OF_THE_CONTAINER.
    """
    own = {variable(name) for name in fields()} | OF_THE_CONTAINER
    made = {**DEFAULTS, **{name: value for name, value in environ.items() if name not in own}}
    made |= {name: str(directory / path) for name, path in CACHES.items()}
    made |= absolute_files(plan.environment)
    made |= {"BRINGUP_FLAVOUR": plan.flavour, "BRINGUP_STATE_DIR": str(directory), "PORT": str(plan.port)}
    if devices := gpus.visible(plan.gpus):
        made["CUDA_VISIBLE_DEVICES"] = devices
    return made


@dataclass(frozen=True)
class LocalServer:
    """One start of the project's server; see `server.Container`."""

    directory: Path
    request: dict[str, Any]

    @property
    def id(self) -> str:
        """One for each start."""
        return str(self.request["id"])

    @property
    def python(self) -> str:
        """The interpreter that runs the server."""
        return str(self.request["argv"][0])

    @property
    def state_dir(self) -> str:
        """The project's own directory."""
        return str(self.directory)

    @property
    def vram_before(self) -> int | None:
        """Bytes of GPU memory in use before the start."""
        return self.request.get("vram_before")

    def state(self) -> ProcessState:
        """How it is doing now.

        Raises:
            EvidenceMissing: it was taken down, or another start has its place.
        """
        if objects.read(self.directory / REQUEST).get("id") != self.id:
            raise EvidenceMissing(f"the process {self.id[:12]} is gone", hint="run `bringup up`")
        started, ended = self._told(keeper.STARTED), self._told(keeper.ENDED)
        status = "exited" if ended else "running" if self.keeper() else "dead" if started else "created"
        code = ended["code"] if ended else 0 if status in ("running", "created") else -1
        return ProcessState(
            id=self.id, name=f"{self.directory.name}-server", status=status, exit_code=code,
            oom_killed=ended.get("oom_kills", 0) > started.get("oom_kills", 0),
            started=started.get("started", ""), image_id="",
        )  # fmt: skip

    def keeper(self) -> proc.Identity | None:
        """The process that keeps it, if that runs; never another that has its number now."""
        told = self._told(keeper.STARTED)
        if not told:
            return None
        known = proc.Identity(told["pid"], told["start"], told["boot"])
        return known if proc.identity(known.pid) == known else None

    def _told(self, name: str) -> dict[str, Any]:
        """What the keeper of this start wrote; empty if there is nothing."""
        found = objects.read(self.directory / name)
        return found if found.get("id") == self.id else {}

    def image(self) -> dict[str, Any]:
        """The interpreter, as `LocalTarget.image` says it."""
        return dict(self.request["image"])

    def members(self) -> proc.Members:
        """Its processes."""
        told = self._told(keeper.STARTED)
        if not told or told["boot"] != proc.boot():  # a pipe of another boot is another pipe
            return proc.Members(lambda _: False)
        device, inode = told["pipe"]
        return proc.Members(proc.saying_to((device, inode)))

    def top(self) -> list[dict[str, str]]:
        """Its processes: id, parent and command."""
        above = proc.parents()
        return [
            {"PID": str(pid), "PPID": str(above.get(pid, "")), "COMMAND": proc.command(pid)}
            for pid in sorted(self.members().pids())
        ]

    def execute(self, argv: list[str]) -> tuple[int, str]:
        """Run a program as the server's caches and log are seen by the server."""
        names = {"BRINGUP_STATE_DIR": self.state_dir, **{n: str(self.directory / p) for n, p in CACHES.items()}}
        done = process.run(argv, extra_env=names, cwd=self.directory)
        return done.code, done.out or done.tail

    def copy_out(self, path: str) -> bytes:
        """One file."""
        try:
            return Path(path).read_bytes()
        except OSError as e:
            raise EvidenceMissing(f"{path} cannot be read: {e.strerror}") from e

    def logs(self, tail: int | None = None, since: int | None = None) -> str:
        """Its console, each line with its time; `since`: epoch seconds."""
        lines = [line for name in (keeper.OLDER, keeper.CONSOLE) for line in _lines(self.directory / name)]
        if since is not None:
            begin = keeper.iso(since * 10**9)
            lines = [line for line in lines if line.partition(" ")[0] >= begin]
        return "".join(f"{line}\n" for line in (lines if tail is None else lines[-tail:]))

    def inspect(self) -> dict[str, Any]:
        """What it was started with, in the engine's words."""
        argv, port = self.request["argv"], self.request["port"]
        return {
            "Path": argv[0],
            "Args": argv[1:],
            "Config": {"Env": [f"{name}={value}" for name, value in self.request["environment"].items()]},
            "NetworkSettings": {"Ports": {f"{port}/tcp": [{"HostIp": self.request["bind"], "HostPort": str(port)}]}},
            "HostConfig": {"DeviceRequests": gpus.inspected(self.request["gpus"])},
        }


class LocalTarget:
    """One project of this machine; see `server.Target`."""

    def __init__(self, project: str, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self.directory = home(environ) / project

    def container(self) -> LocalServer | None:
        """The project's server, running or not."""
        request = objects.read(self.directory / REQUEST)
        return LocalServer(self.directory, request) if request else None

    def up(self, plan: Plan, on_line: Callable[[str], None] | None = None) -> LocalServer:  # noqa: ARG002
        """Start it; one that runs with the same arguments and variables is left as it is.

        Raises:
            UsageError: the directory cannot be written.
            TargetUnavailable: another start of the project is under way.
            NeverReady: it could not be started.
        """
        argv = [sys.executable, *ENTRY, "--host", plan.bind]
        given = environment(plan, self.directory, self._environ)
        before = self.container()
        if before:
            if before.keeper() and before.request["digest"] == _digest(argv, given, plan):
                return before
            self.down()
        request = {
            "id": secrets.token_hex(32), "digest": _digest(argv, given, plan), "argv": argv,
            "environment": shown_variables(given), "bind": plan.bind, "port": plan.port, "gpus": plan.gpus,
            "image": self.image(plan) or {},
            "vram_before": gpu.memory_used(plan.gpus) if plan.expect.gpu else None,
        }  # fmt: skip
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.directory / LOCK).open("w") as lock:
                return self._start(LocalServer(self.directory, request), given, lock.fileno())
        except OSError as e:
            raise UsageError(
                f"the server's directory {self.directory} cannot be written: {e.strerror}",
                hint="set BRINGUP_STATE_DIR to a directory that you can write to",
            ) from e

    def _start(self, made: LocalServer, given: dict[str, str], lock: int) -> LocalServer:
        """Start the keeper, which has the lock from then on, and wait until it says that it begins."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise TargetUnavailable(
                f"another `bringup up` starts the server of {self.directory.name} at this moment",
                hint="wait for it, or give --project another name",
            ) from e
        keeper.write(self.directory / REQUEST, made.request)
        argv = [sys.executable, "-m", "bringup.edge.keeper", str(self.directory), made.id, *made.request["argv"]]
        child = process.detach(argv, given, self.directory, self.directory / FAULTS, lock)
        try:
            _wait(lambda: made.state().started != "" or child.poll() is not None, PATIENCE)
            if not made.state().started:
                said = " ".join(_lines(self.directory / FAULTS)[-1:]) or "no answer"
                raise NeverReady(f"the server's process could not be started: {said}")
        except BaseException:
            process.stop(child)
            raise
        return made

    def down(self, *, volumes: bool = False) -> None:
        """End all of its processes, SIGTERM first, and remove what belongs to the start; with `volumes` the caches too.

        Raises:
            TargetUnavailable: one of them cannot be ended, or is another user's.
        """
        server = self.container()
        if server:
            _end(server)
        for name in FILES:
            with suppress(OSError):
                (self.directory / name).unlink(missing_ok=True)
        if volumes:
            shutil.rmtree(self.directory, ignore_errors=True)

    def serving(self, port: int) -> ProcessState | None:
        """The project's server, if it runs and listens there."""
        server = self.container()
        return server.state() if server and server.keeper() and server.request["port"] == port else None

    def image(self, plan: Plan) -> dict[str, Any] | None:
        """The interpreter, in an image's words: what it has, and the lock that it was made from, if it says so."""
        found = place.interpreter()
        if found.vllm is None:
            return None
        known = {"flavour": found.flavour, "model": plan.baked_model, "vllm": found.vllm}
        if IN_IMAGE.is_file():
            known["wheels-lock-sha256"] = sha256_of(IN_IMAGE)
        return {"Config": {"Labels": {f"dev.bringup.{name}": value for name, value in known.items()}}}

    def has_caches(self) -> bool:
        """Whether an earlier start left some."""
        return (self.directory / "cache").is_dir()

    def clock(self) -> Offset:
        """This machine's own."""
        return clock.offset(time.time, "this machine's own clock")


def _end(server: LocalServer) -> None:
    keeping = server.keeper()
    if keeping:
        os.kill(keeping.pid, signal.SIGTERM)
        _wait(lambda: server.keeper() is None, keeper.GRACE + PATIENCE)
    # What a keeper leaves: nothing, unless somebody killed it.
    members = server.members()
    if (again := server.keeper()) is not None:
        os.kill(again.pid, signal.SIGKILL)
    for pid in members.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _wait(lambda: not _running(members), PATIENCE):
        left = ", ".join(map(str, _running(members)))
        raise TargetUnavailable(
            f"these processes of {server.directory.name} do not end: {left}",
            hint="they wait for a driver or a disk: `ps -o pid,stat,wchan,args -p PID`",
        )


def _running(members: proc.Members) -> list[int]:
    """Without those that have ended and wait for a parent to hear of it."""
    return [pid for pid in sorted(members.pids()) if proc.identity(pid)]


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def _digest(argv: list[str], given: Mapping[str, str], plan: Plan) -> str:
    """Of all that decides how the server is: a start with another one is another server."""
    own = (*plan.environment, "PORT", "CUDA_VISIBLE_DEVICES", "HF_HUB_ENABLE_HF_TRANSFER")
    decides = {name: value for name, value in given.items() if name in own or name.startswith("VLLM_")}
    return hashlib.sha256(json.dumps([argv, decides, plan.port], sort_keys=True).encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]  # a carriage return is part of a bar
    except OSError:
        return []
