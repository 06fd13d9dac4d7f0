"""A model's fingerprint: the log probabilities that it gives a fixed text. Pure.

Two runs of the same weights differ in the last digits (kernels, batches, number formats), and where two tokens are
nearly equally likely a greedy answer takes the one or the other. So fingerprints are compared by value, with tolerance,
over the tokens that both have from the start; never by exact text. docs/verify.md has the limits' measurements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST = 8  # values in common; fewer say nothing
MEAN, LARGEST = 0.05, 0.5  # natural logarithms; within both it is the same model
OTHER = 0.3  # a mean difference from here on is no matter of rounding


@dataclass(frozen=True)
class Fingerprint:
    """What a model gave a text: tokens as text, the natural logarithm of each one's probability.

    The first `given` tokens are the prompt's own, the others were generated; the very first has no probability (None)
    where the prompt was scored.
    """

    prompt: str
    given: int
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `fingerprint` reads it back."""
        return {
            "prompt": self.prompt, "given": self.given, "tokens": list(self.tokens), "logprobs": list(self.logprobs),
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What two fingerprints say about two models.

    `verdict`: same, differs, or unknown. `compared`: tokens in common that have a value on both sides; `mean` and
    `largest`: absolute differences of their log probabilities (natural logarithms), None where nothing was compared.
    `why`: one line.
    """

    verdict: str
    compared: int
    mean: float | None
    largest: float | None
    why: str


def fingerprint(data: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint in a probe's `data`, or in a reference file.

    Raises:
        ValueError: it holds none, or one that no model can give.
    """
    try:
        made = Fingerprint(str(data["prompt"]), int(data["given"]), tuple(data["tokens"]), tuple(data["logprobs"]))
    except (KeyError, TypeError) as e:
        raise ValueError(f"no fingerprint: {e!r}") from e
    values = made.logprobs[1:] if made.given else made.logprobs
    if len(made.tokens) != len(made.logprobs) or not values:
        raise ValueError(f"{len(made.tokens)} tokens and {len(made.logprobs)} log probabilities")
    if strange := [v for v in values if not isinstance(v, int | float) or not math.isfinite(v)]:
        raise ValueError(f"among the log probabilities is {strange[0]!r}")
    return made


def compare_fingerprints(a: Fingerprint, b: Fingerprint) -> Comparison:
    """Whether two fingerprints can be of the same weights."""
    if a.prompt != b.prompt or bool(a.given) != bool(b.given):
        return Comparison("unknown", 0, None, None, "they are of different questions")
    if a.tokens[: a.given] != b.tokens[: b.given]:
        return Comparison("differs", 0, None, None, "the same text is cut into other tokens")
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a.tokens, b.tokens, strict=False)))
    gaps = [
        abs(x - y)
        for x, y in zip(a.logprobs[:common], b.logprobs[:common], strict=True)
        if x is not None and y is not None
    ]
    if not gaps:
        return Comparison("unknown", 0, None, None, "they have no token in common from the start")
    mean, largest = sum(gaps) / len(gaps), max(gaps)
    seen = f"{len(gaps)} log probabilities differ by {mean:.4f} on average and {largest:.4f} at most"
    if mean > OTHER:
        return Comparison("differs", len(gaps), mean, largest, f"{seen}; other weights")
    if len(gaps) < LEAST:
        return Comparison("unknown", len(gaps), mean, largest, f"{seen}; {LEAST} are needed")
    if mean <= MEAN and largest <= LARGEST:
        return Comparison("same", len(gaps), mean, largest, seen)
    return Comparison("unknown", len(gaps), mean, largest, f"{seen}; too much for rounding, too little for others")
