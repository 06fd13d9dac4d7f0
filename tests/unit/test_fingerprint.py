"""Fingerprints: rounding is the same model, other values are another, and too little says nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import pytest

from bringup import catalog
from bringup.fingerprint import LEAST, Fingerprint, compare_fingerprints, fingerprint

KNOWN = cast("Fingerprint", catalog.load()["tiny-qwen2"].fingerprint)


def moved(by: float, *, given: int | None = None, tokens: tuple[str, ...] | None = None) -> Fingerprint:
    values = tuple(v and v - by for v in KNOWN.logprobs)
    return dataclasses.replace(
        KNOWN, logprobs=values, given=KNOWN.given if given is None else given, tokens=tokens or KNOWN.tokens
    )


def other_token(at: int) -> tuple[str, ...]:
    return (*KNOWN.tokens[:at], "other", *KNOWN.tokens[at + 1 :])


@pytest.mark.parametrize(
    ("other", "verdict", "compared"),
    [
        (KNOWN, "same", 58),
        (moved(0.049), "same", 58),
        (moved(0.051), "unknown", 58),
        (moved(0.2), "unknown", 58),
        (moved(0.31), "differs", 58),
        # Where a greedy answer takes another way, what lies before is compared.
        (moved(0.01, tokens=other_token(50)), "same", 49),
        (moved(0.5, tokens=other_token(50)), "differs", 49),
        # The given text is cut by the tokenizer: another cut is another model.
        (moved(0.0, tokens=other_token(7)), "differs", 0),
        (moved(0.0, given=KNOWN.given - 1), "differs", 0),
        (dataclasses.replace(KNOWN, prompt="another"), "unknown", 0),
        (moved(0.0, given=0), "unknown", 0),
    ],
)
def test_what_two_fingerprints_say(other: Fingerprint, verdict: str, compared: int) -> None:
    for pair in ((KNOWN, other), (other, KNOWN)):
        found = compare_fingerprints(*pair)
        assert (found.verdict, found.compared) == (verdict, compared), found


def test_one_value_far_off_is_not_the_same() -> None:
    values = (*KNOWN.logprobs[:9], (KNOWN.logprobs[9] or 0) - 1.5, *KNOWN.logprobs[10:])
    found = compare_fingerprints(KNOWN, dataclasses.replace(KNOWN, logprobs=values))
    assert (found.verdict, round(found.largest or 0, 6)) == ("unknown", 1.5)


def test_too_few_in_common_say_nothing_unless_they_differ() -> None:
    short = Fingerprint("p", 0, ("a",) * 16, (-0.5,) * 16)
    other = dataclasses.replace(short, tokens=("a",) * (LEAST - 1) + ("b",) * (17 - LEAST))
    assert compare_fingerprints(short, other).verdict == "unknown"
    far = dataclasses.replace(other, logprobs=(-2.0,) * 16)
    assert compare_fingerprints(short, far).verdict == "differs"
    nothing = dataclasses.replace(short, tokens=("b",) * 16)
    assert compare_fingerprints(short, nothing).verdict == "unknown"


def test_it_is_read_back_as_it_was_written() -> None:
    assert fingerprint(KNOWN.to_dict()) == KNOWN


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": None}, {"prompt": None, "given": None}, {"logprobs": [-1.0]}, {"logprobs": [], "tokens": []},
        {"logprobs": [None, *([math.nan] * 58)]}, {"logprobs": [None, *(["x"] * 58)]}, {"logprobs": [None] * 59},
    ],
)  # fmt: skip
def test_what_is_no_fingerprint_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fingerprint|probabilities"):
        fingerprint(KNOWN.to_dict() | change)
    with pytest.raises(ValueError, match="no fingerprint"):
        fingerprint({})
