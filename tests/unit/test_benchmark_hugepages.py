"""benchmarks/hugepages.py: what the machine does meanwhile is in all starts of a turn, and not in the ratio."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def program(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("hugepages")


def wave(draw: random.Random, ratio: float, starts: int = 4, rounds: int = 30) -> dict[str, list[list[float]]]:
    """Microseconds of a machine that slows down by up to four for all, of starts that differ by 1 %."""
    moods = [draw.uniform(1, 4) for _ in range(rounds)]
    made: dict[str, list[list[float]]] = {}
    for way, speed in (("as it is", 1.0), ("hugepages", ratio)):
        own = [draw.gauss(2000, 20) * speed for _ in range(starts)]
        made[way] = [[us * mood * draw.gauss(1, 0.02) for mood in moods] for us in own]
    return made


def test_the_ratio_is_found_and_its_interval_holds_it(program: Any) -> None:
    draw = random.Random(0)
    said = program.told([wave(draw, 0.95) for _ in range(3)])
    ratio, low, high = (float(number) for number in re.findall(r"\d\.\d{3}", said))
    assert ratio == pytest.approx(0.95, abs=0.01)
    assert low < ratio < high < 1
    assert "12 starts of each" in said


def test_a_start_counts_once_however_odd_some_of_its_rounds_are(program: Any) -> None:
    own = program.by_turn({"as it is": [[100.0] * 9], "hugepages": [[100.0] * 6 + [900.0] * 3]})
    assert own == {"as it is": [1.0], "hugepages": [1.0]}
