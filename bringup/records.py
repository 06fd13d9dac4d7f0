"""Frozen answers: what a check, a step, a probe and a whole run found, and the verdict they add up to.

`record.json` is `RunRecord.to_dict()`, and data/record.schema.json says what each key is. `SCHEMA` changes when a key
changes its meaning, goes away or gets a new word; not when a key is added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bringup.errors import Exit

SCHEMA = 1


class Status(StrEnum):
    """What one check or probe says.

    `UNKNOWN` is a signal that should be there and is missing; `SKIP` is a signal that this plan does not have
    (a remote address has no container to look into). Neither is ever counted as a pass.
    """

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    SKIP = "skip"


class Verdict(StrEnum):
    """What a whole run says. Only `PASS` exits 0."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """One look at the host before anything starts; `source`: where the signal and the need come from."""

    name: str
    status: Status
    found: str
    needed: str
    remedy: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class ProbeRecord:
    """One question to the running server.

    `seconds` is the wall time of the probe; `data` holds what it measured (times in seconds, sizes in bytes).
    """

    name: str
    status: Status
    expected: str
    found: str
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of a run and how long it took (seconds, monotonic clock)."""

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A whole run: what was asked (`plan`), what was there (`host`, `image`), what was seen, and the verdict.

    Times are ISO 8601 in UTC. `started_to_first_token` is seconds from the container's own start time to the
    first generated token that the tool received, or None when the start was not observed. `timeline`, `ledger` and
    `caches` are what the bundle's files of these names hold, or None where they could not be made.
    """

    tool_version: str
    command: str
    started: str
    finished: str
    verdict: Verdict
    plan: dict[str, Any]
    host: dict[str, Any]
    image: dict[str, Any]
    container: dict[str, Any]
    checks: tuple[CheckRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    probes: tuple[ProbeRecord, ...] = ()
    started_to_first_token: float | None = None
    timeline: dict[str, Any] | None = None
    ledger: dict[str, Any] | None = None
    caches: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    locks: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    clocks: dict[str, Any] | None = None
    error: str = ""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types."""
        return dataclasses.asdict(self)


def verdict_of(probes: Iterable[ProbeRecord]) -> Verdict:
    """Fail beats unknown beats pass; no passing probe at all is unknown."""
    seen = {p.status for p in probes}
    if Status.FAIL in seen:
        return Verdict.FAIL
    if Status.UNKNOWN in seen or Status.PASS not in seen:
        return Verdict.UNKNOWN
    return Verdict.PASS


def exit_for(verdict: Verdict) -> Exit:
    """The exit code of a verdict about probes."""
    return {Verdict.PASS: Exit.PASS, Verdict.FAIL: Exit.PROBE_FAILED, Verdict.UNKNOWN: Exit.UNKNOWN}[verdict]
