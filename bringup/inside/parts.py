"""What BRINGUP_LAUNCH leaves on of the ways in which this project's start differs from vLLM's own."""

from __future__ import annotations

from collections.abc import Mapping

from bringup.errors import UsageError

VARIABLE = "BRINGUP_LAUNCH"
# gate: the server imports while the weights are checked; hugepages, interpreter, pack, prefetch: see there; the rest:
# `serve`.
PARTS = frozenset({"standby", "overlap", "gc", "inspect", "gate", "pack", "prefetch", "interpreter", "hugepages"})


def parts(environ: Mapping[str, str]) -> frozenset[str]:
    """All by default, none for `plain`, or the names given with a comma between.

    Raises:
        UsageError: there is no such part.
    """
    word = environ.get(VARIABLE, "").strip()
    if word in ("", "all"):
        return PARTS
    named = frozenset(w.strip() for w in word.split(",")) - {"", "plain"}
    if unknown := sorted(named - PARTS):
        raise UsageError(
            f"{VARIABLE} names {unknown[0]!r}, which is no part of the start",
            hint=f"use all, plain, or some of {', '.join(sorted(PARTS))} with a comma between",
        )
    return named
