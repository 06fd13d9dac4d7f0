"""What BRINGUP_LAUNCH leaves on of the ways in which this project's start differs from vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "BRINGUP_LAUNCH"
# gate: the server imports while the weights are checked; pack, prefetch: see there; the others: see `serve`.
PARTS = frozenset({"standby", "overlap", "gc", "inspect", "gate", "pack", "prefetch"})


def parts(environ: Mapping[str, str]) -> frozenset[str]:
    """All by default, none for `plain`, or the names given with a comma between."""
    word = environ.get(VARIABLE, "")
    return PARTS if word in ("", "all") else PARTS & set(word.split(","))
