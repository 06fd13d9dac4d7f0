"""What one probe found, before it gets its name and time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bringup.records import Status


@dataclass(frozen=True)
class Finding:
    """Status, what was expected, what was found, and measurements (seconds, bytes)."""

    status: Status
    expected: str
    found: str
    data: dict[str, Any] = field(default_factory=dict)


def failed(expected: str, found: str, **data: Any) -> Finding:
    """The server did something wrong."""
    return Finding(Status.FAIL, expected, found, data)


def passed(expected: str, found: str, **data: Any) -> Finding:
    """The signal was there and right."""
    return Finding(Status.PASS, expected, found, data)


def unknown(expected: str, found: str, **data: Any) -> Finding:
    """The signal should be there and could not be seen."""
    return Finding(Status.UNKNOWN, expected, found, data)


def skipped(expected: str, found: str) -> Finding:
    """This plan has no such signal."""
    return Finding(Status.SKIP, expected, found)
