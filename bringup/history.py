"""What the artifacts directory knows of earlier starts of the same: how long one is expected to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bringup import image
from bringup.bundle import RECORD
from bringup.edge import objects
from bringup.plan import Plan
from bringup.server import Target
from bringup.timeline import Anchors
from bringup.timeline.live import Expected, expected

COLD, WARM = "cold", "warm"
LOOKED_AT = 20  # of the newest bundles


def last_start(directory: Path, plan: Plan, target: Target) -> Expected | None:
    """The newest start that passed, of the same project, model and flavour; None where there is none.

    A cold start is not held against a warm one, nor the other way round, where both can be told.
    """
    kind = kind_now(plan, target)
    for record in sorted(directory.glob(f"*/{RECORD}"), reverse=True)[:LOOKED_AT]:
        found = objects.read(record)
        if not _same(found, plan) or {kind, kind_of(found)} == {COLD, WARM}:
            continue
        try:
            console = (record.parent / "server.log").read_bytes().decode("utf-8", "replace")
            anchors = Anchors(**objects.read(record.parent / "timeline.json")["anchors"])
            made = expected(console, anchors, record.parent.name)
        except (OSError, KeyError, TypeError):  # what is no bundle of ours says nothing
            continue
        if made:
            return made
    return None


def kind_now(plan: Plan, target: Target) -> str:
    """Warm if the project has caches, cold if not; empty if the image brings caches of its own."""
    if target.has_caches():
        return WARM
    baked = image.summary(target.image(plan) or {})["labels"]
    return "" if image.WARM_LABEL in baked else COLD


def _same(record: dict[str, Any], plan: Plan) -> bool:
    asked = record.get("plan")
    seen = record.get("verdict") == "pass" and record.get("started_to_first_token") is not None
    return seen and isinstance(asked, dict) and all(
        asked.get(name) == getattr(plan, name) for name in ("project", "model", "flavour")
    )  # fmt: skip


def kind_of(record: dict[str, Any]) -> str:
    """Cold or warm by the verdicts on the compile caches; empty where no cache was used."""
    caches = record.get("caches")
    listed = caches.get("caches") if isinstance(caches, dict) else None
    verdicts = {c.get("verdict") for c in listed or [] if isinstance(c, dict)}
    return COLD if "miss" in verdicts else WARM if "hit" in verdicts else ""
