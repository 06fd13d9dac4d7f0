"""Looks at the host before anything starts. `facts.gather` is the only I/O; every check is a pure function."""

from __future__ import annotations

from collections.abc import Callable

from bringup.checks import engine, host
from bringup.checks.facts import HostFacts, choose_flavour, gather, gather_engine_gpu
from bringup.plan import Plan
from bringup.records import CheckRecord

__all__ = ["CHECKS", "HostFacts", "choose_flavour", "examine", "gather", "gather_engine_gpu"]

# By name, causes before what they cause: the first failure is the one to act on.
CHECKS: dict[str, Callable[[HostFacts, Plan], CheckRecord]] = {
    "engine": engine.engine,
    "compose": engine.compose,
    "buildx": engine.buildx,
    "architecture": engine.architecture,
    "cpu": host.cpu,
    "gpu": host.gpu,
    "memory": host.memory,
    "disk": host.disk,
    "port": host.port,
    "image": engine.image,
}


def examine(facts: HostFacts, plan: Plan) -> tuple[CheckRecord, ...]:
    """All checks, in order."""
    return tuple(check(facts, plan) for check in CHECKS.values())
