"""What measured values add up to. Pure; nothing here says that two figures differ."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ENOUGH = 5  # values; quartiles of fewer say nothing that minimum and maximum do not


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of one kind, in their own unit: how many, median, ends, and from 5 values on the quartiles' distance.

    The quartiles are those of `statistics.quantiles(method="inclusive")`, numpy's default.
    """

    n: int
    p50: float
    low: float
    high: float
    iqr: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, to the millisecond where the unit is a second."""
        figures = {"p50": self.p50, "min": self.low, "max": self.high, "iqr": self.iqr}
        return {"n": self.n, **{k: None if v is None else round(v, 3) for k, v in figures.items()}}


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of some values; None of none."""
    found = sorted(values)
    if not found:
        return None
    iqr = None
    if len(found) >= ENOUGH:
        first, _, third = statistics.quantiles(found, n=4, method="inclusive")
        iqr = third - first
    return Spread(n=len(found), p50=statistics.median(found), low=found[0], high=found[-1], iqr=iqr)


def cpu_model(cpuinfo: str) -> str | None:
    """The name of the CPU in the text of /proc/cpuinfo (x86 says "model name"); None where it does not say."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware") and value.strip():
            return " ".join(value.split())
    return None


def server_settings(environment: Sequence[str]) -> dict[str, str]:
    """The BRINGUP_* variables of a container's environment (`NAME=value`), without any that could hold a secret."""
    pairs = (entry.partition("=")[::2] for entry in environment)
    secret = ("BRINGUP_API_KEY", "BRINGUP_HF_TOKEN")
    return {name: value for name, value in sorted(pairs) if name.startswith("BRINGUP_") and name not in secret}


def verdicts(caches: Any) -> dict[str, str]:
    """Cache -> hit, miss, off or unknown, of a record's `caches`; empty where there is nothing to tell by.

    Takes a mapping or a list of entries with a `verdict` (and a `name`), at the top or under `caches`.
    """
    found = caches.get("caches", caches) if isinstance(caches, dict) else caches
    if isinstance(found, list):
        found = {e.get("name", ""): e for e in found if isinstance(e, dict)}
    if not isinstance(found, dict):
        return {}
    return {str(n): str(e["verdict"]) for n, e in found.items() if isinstance(e, dict) and "verdict" in e}
