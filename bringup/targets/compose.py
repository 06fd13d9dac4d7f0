"""The compose target: one service of `compose.yaml` on a Docker Engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.edge import process
from bringup.edge.docker import START_ENGINE, ContainerState, Engine
from bringup.errors import NeverReady, TargetUnavailable, UsageError
from bringup.plan import SERVICE, Plan


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


def variables(plan: Plan, key_owner: int | None) -> dict[str, str]:
    """What compose.yaml interpolates. Pure.

    `key_owner`: numeric owner of the API key file; the container runs as that user, because a bind-mounted secret
    keeps its owner and mode.
    """
    values = {
        **plan.environment,
        "BRINGUP_IMAGE": plan.image,
        "BRINGUP_PORT": str(plan.port),
        "BRINGUP_BIND": plan.bind,
    }
    if key_owner is not None:
        values["BRINGUP_USER"] = f"{key_owner}:0"
    if key_file := values.get("BRINGUP_API_KEY_FILE"):  # compose would look for it beside compose.yaml
        values["BRINGUP_API_KEY_FILE"] = str(Path(key_file).absolute())
    return values


@dataclass(frozen=True)
class EngineContainer:
    """A container of this engine; see `server.Container`."""

    engine: Engine
    id: str

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

    def logs(self, tail: int | None = None) -> str:
        """Its console output."""
        return self.engine.logs(self.id, tail)

    def inspect(self) -> dict[str, Any]:
        """`docker inspect`."""
        return self.engine.inspect(self.id)


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
            NeverReady: the engine could not start it; the message is the engine's own.
            TargetUnavailable: no engine answers.
        """
        key_file = plan.environment.get("BRINGUP_API_KEY_FILE")
        owner = None
        if key_file:
            try:
                owner = Path(key_file).stat().st_uid
            except OSError as e:
                raise UsageError(f"the API key file {key_file} cannot be read: {e.strerror}") from e
        outcome = self._compose(["up", "--detach", "--no-build", "--pull", "never"], variables(plan, owner), on_line)
        container = self.container()
        if outcome.code or container is None:
            raise NeverReady(
                f"the engine did not start the container: {explain(outcome.tail)}",
                hint="`bringup doctor` looks for the usual causes",
                detail=outcome.tail,
            )
        return container

    def down(self, *, volumes: bool = False) -> None:
        """Stop and remove what the project has; with `volumes` its caches too."""
        flags = ["--volumes"] if volumes else []
        outcome = self._compose(["down", "--remove-orphans", "--timeout", "10", *flags], {}, None)
        if outcome.code:
            raise TargetUnavailable(
                f"compose could not take {self._project} down: {explain(outcome.tail)}",
                hint=START_ENGINE,
            )

    def _compose(
        self, argv: list[str], values: dict[str, str], on_line: Callable[[str], None] | None
    ) -> process.Outcome:
        root = project_root()
        files = [part for name in self._files for part in ("--file", str(root / name))]
        return process.run(
            ["docker", "compose", "--project-name", self._project, "--project-directory", str(root), *files, *argv],
            extra_env=values,
            on_line=on_line,
            timeout=300,
        )


def explain(output: str) -> str:
    """The line of compose's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return (marked or lines or ["no output"])[-1]
