"""Bundles for the tests of the comparison: recorded ones, and what would be if something about them were otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bringup import artifacts, bundle
from bringup.comparison.runs import Run, from_bundle
from bringup.comparison.sides import Side

DATA = Path(__file__).resolve().parents[1] / "data" / "bundles"
Change = Callable[[dict[str, Any]], None]


def record(name: str) -> dict[str, Any]:
    """A recorded run by its directory, like compare-warm/1."""
    made: dict[str, Any] = json.loads((DATA / name / "record.json").read_text("utf-8"))
    return made


def run(name: str, change: Change = lambda _: None) -> Run:
    """The run, with its record changed."""
    kept = bundle.read(DATA / name)
    change(kept.record)
    return from_bundle(kept)


def side(kind: str = "warm", change: Change = lambda _: None, runs: int = 3) -> Side:
    """Recorded starts of one kind."""
    return Side(kind, tuple(run(f"compare-{kind}/{n + 1}", change) for n in range(runs)))


def written(directory: Path, changed: dict[str, Any]) -> Path:
    """A bundle of this record on the disk."""
    return artifacts.write(directory, {"record.json": json.dumps(changed)}, [])


def slower(factor: float, stage: str | None = None) -> Change:
    """The whole start, or one of its stages, takes so many times as long."""

    def change(record_: dict[str, Any]) -> None:
        if stage is None:
            record_["started_to_first_token"] *= factor
        for s in record_["timeline"]["stages"]:
            if s["id"] == stage:
                s["seconds"] *= factor

    return change


def probe_says(name: str, status: str) -> Change:
    """One probe found something else."""

    def change(record_: dict[str, Any]) -> None:
        for p in record_["probes"]:
            if p["name"] == name:
                p["status"] = status

    return change


def renamed(node: Side, name: str) -> Side:
    """The same runs under another name."""
    return replace(node, name=name)
