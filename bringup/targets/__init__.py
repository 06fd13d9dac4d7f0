"""Where a server runs: each module is one target, with the interface of `server.Target`."""

from __future__ import annotations

from bringup.edge.docker import Engine
from bringup.server import Target
from bringup.settings import COMPOSE, LOCAL
from bringup.targets.compose import ComposeTarget
from bringup.targets.local import LocalTarget

NOUNS = {COMPOSE: "container", LOCAL: "process"}  # what a target starts


def of(name: str, project: str, engine: Engine, *files: tuple[str, ...]) -> Target:
    """A project on a target; `files`: the compose files, where that is one."""
    return LocalTarget(project) if name == LOCAL else ComposeTarget(engine, project, *files)
