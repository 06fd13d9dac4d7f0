"""The compose target: one service of `compose.yaml` on a Docker Engine."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup import clock
from bringup.clock import Offset
from bringup.edge import proc, process
from bringup.edge.docker import START_ENGINE, ContainerState, Engine
from bringup.errors import BringupError, NeverReady, TargetUnavailable, UsageError
from bringup.plan import SERVICE, Plan
from bringup.settings import BAKED, VOLUME
from bringup.targets import refusals

IMAGE_USER = 1000  # of the Dockerfile
IMAGE_PYTHON, IMAGE_STATE = "/opt/venv/bin/python", "/var/lib/bringup"  # of the Dockerfile


def project_root() -> Path:
    """The directory that holds compose.yaml and the Dockerfile.

    Raises:
        UsageError: this is no checkout of bringup.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "compose.yaml").is_file():
        raise UsageError(
            f"{root} has no compose.yaml", hint="run bringup from a checkout: git clone, then scripts/quickstart"
        )
    return root


def variables(plan: Plan, owner: int | None) -> dict[str, str]:
    """What compose.yaml interpolates. Pure.

    `owner`: numeric owner of the files with secrets; the container runs as that user, because a bind-mounted secret
    keeps its owner and mode.
    """
    values = {
        **plan.environment,
        "BRINGUP_IMAGE": plan.image,
        "BRINGUP_PORT": str(plan.port),
        "BRINGUP_BIND": plan.bind,
    }
    if owner is not None:
        values["BRINGUP_USER"] = f"{owner}:0"
    return absolute_files(values)  # compose would look for them beside compose.yaml


def absolute_files(values: Mapping[str, str]) -> dict[str, str]:
    """The variables, with the files of secrets named from the root: who reads them runs in another directory."""
    files = ("BRINGUP_API_KEY_FILE", "BRINGUP_HF_TOKEN_FILE")
    return {name: str(Path(value).absolute()) if name in files and value else value for name, value in values.items()}


def secrets_owner(plan: Plan) -> int | None:
    """Numeric owner of the files with secrets that the server is given; None when there are none.

    Raises:
        UsageError: one cannot be read, or two have two owners.
    """
    given = {"API key": plan.environment.get("BRINGUP_API_KEY_FILE")}
    if plan.weights == VOLUME:
        given["Hub token"] = plan.environment.get("BRINGUP_HF_TOKEN_FILE")
    owners = {}
    for what, file in given.items():
        if file:
            try:
                owners[what] = Path(file).stat().st_uid
            except OSError as e:
                raise UsageError(f"the {what} file {file} cannot be read: {e.strerror}") from e
    if len(set(owners.values())) > 1:
        raise UsageError(
            f"the files of API key and Hub token belong to the users {' and '.join(map(str, owners.values()))}",
            hint="give both to one user: the container runs as the owner of its secrets",
        )
    return next(iter(owners.values()), None)


def require_weights(plan: Plan) -> None:
    """The host's directory of weights, when the plan names one, is there and can be read in the container.

    Raises:
        UsageError: it is not, or cannot.
    """
    if plan.weights in (BAKED, VOLUME):
        return
    directory = Path(plan.weights)
    if not directory.is_dir():
        raise UsageError(
            f"--weights {directory} is no directory of this host (nor {BAKED} or {VOLUME})",
            hint="name the directory that holds the model's files",
        )
    owner = secrets_owner(plan)
    user = IMAGE_USER if owner is None else owner
    for path in (directory, *sorted(directory.rglob("*"))):
        found = path.lstat()
        need = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
        shift = 6 if found.st_uid == user else 3 if found.st_gid == 0 else 0
        if user != 0 and (found.st_mode >> shift) & need != need:
            raise UsageError(
                f"{path} (mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}:{found.st_gid}) cannot be read "
                f"by the container's user {user}:0",
                hint=f"chmod -R u+rX,g+rX,o+rX {directory}",
            )


@dataclass(frozen=True)
class EngineContainer:
    """A container of this engine; see `server.Container`."""

    engine: Engine
    id: str
    python: str = IMAGE_PYTHON
    state_dir: str = IMAGE_STATE
    vram_before: int | None = None  # an engine does not keep it

    def state(self) -> ContainerState:
        """How it is doing now."""
        return self.engine.state(self.id)

    def top(self) -> list[dict[str, str]]:
        """Its processes."""
        return self.engine.top(self.id)

    def execute(self, argv: list[str]) -> tuple[int, str]:
        """Run a program inside."""
        return self.engine.execute(self.id, argv)

    def copy_out(self, path: str) -> bytes:
        """One file from inside."""
        return self.engine.copy_out(self.id, path)

    def logs(self, tail: int | None = None, since: int | None = None) -> str:
        """Its console output."""
        return self.engine.logs(self.id, tail, since)

    def inspect(self) -> dict[str, Any]:
        """`docker inspect`."""
        return self.engine.inspect(self.id)

    def image(self) -> dict[str, Any]:
        """The image that it was made from."""
        return self.engine.image(self.state().image_id) or {}

    def members(self) -> proc.Members:
        """Its processes; the engine must run on this host."""
        return proc.Members(proc.in_container(self.id))


class ComposeTarget:
    """One compose project. Everything it starts, `down` stops."""

    def __init__(self, engine: Engine, project: str, files: tuple[str, ...] = ("compose.yaml",)) -> None:
        self._engine = engine
        self._project = project
        self._files = files

    def container(self) -> EngineContainer | None:
        """The project's server container, running or not."""
        state = self._engine.find(self._project, SERVICE)
        return EngineContainer(self._engine, state.id) if state else None

    def up(self, plan: Plan, on_line: Callable[[str], None] | None = None) -> EngineContainer:
        """Create and start the container.

        Raises:
            TargetUnavailable: no engine answers, or it cannot start the container for a reason that is known.
            NeverReady: it could not start it; the message is the engine's own.
        """
        values = variables(plan, secrets_owner(plan))
        up = ["up", "--detach", "--no-build", "--pull", "never"]
        outcome = self._compose(up, values, on_line, more=plan.reservation or "")
        if outcome.code:
            raise refused(outcome.tail)
        container = self.container()
        if container is None:
            raise NeverReady(f"compose says that it started {self._project}, and the engine has no such container")
        return container

    def down(self, *, volumes: bool = False) -> None:
        """Stop and remove what the project has; with `volumes` its caches and fetched weights too."""
        flags = ["--volumes"] if volumes else []
        # Compose removes only the volumes that its files name; which image they are for is without effect here.
        files = ("compose.yaml", "compose.weights-volume.yaml") if volumes else ("compose.yaml",)
        argv = ["down", "--remove-orphans", "--timeout", "10", *flags]
        outcome = self._compose(argv, {"BRINGUP_IMAGE": "any"}, None, files)
        if outcome.code:
            raise TargetUnavailable(
                f"compose could not take {self._project} down: {explain(outcome.tail)}",
                hint=START_ENGINE,
            )

    def image(self, plan: Plan) -> dict[str, Any] | None:
        """The plan's image."""
        return self._engine.image(plan.image)

    def has_caches(self) -> bool:
        """Whether the project has its state volume."""
        return self._engine.has_volume(f"{self._project}_state")

    def clock(self) -> Offset:
        """The engine's."""
        return clock.offset(self._engine.clock, "SystemTime of the engine's /info")

    def _compose(
        self,
        argv: list[str],
        values: dict[str, str],
        on_line: Callable[[str], None] | None,
        names: tuple[str, ...] | None = None,
        more: str = "",
    ) -> process.Outcome:
        """Run compose; `more`: one more compose file, which it reads from its standard input."""
        root = project_root()
        files = [part for name in names or self._files for part in ("--file", str(root / name))]
        files += ["--file", "-"] if more else []
        return process.run(
            ["docker", "compose", "--project-name", self._project, "--project-directory", str(root), *files, *argv],
            extra_env=values,
            on_line=on_line,
            timeout=300,
            feed=more,
        )


def refused(output: str) -> BringupError:
    """Why the engine did not start a container, by what compose says."""
    known = refusals.find(output)
    if known is None:
        return NeverReady(
            f"the engine did not start the container: {explain(output)}",
            hint="`bringup doctor` looks for the usual causes",
            detail=output,
        )
    return TargetUnavailable(
        f"the engine did not start the container: {known.found}; needed: {known.needed}",
        hint=known.remedy,
        detail=explain(output),
        id=known.id,
    )


def explain(output: str) -> str:
    """The line of compose's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return (marked or lines or ["no output"])[-1]
