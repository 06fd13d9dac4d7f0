"""benchmarks/gpu/spread.py: the intervals that the documentation quotes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def spread(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("spread")


def test_interval_of_the_median_is_of_two_of_the_values(spread: Any) -> None:
    assert spread.interval([6, 1, 5, 2, 4, 3]) == (1, 6)  # 2 / 2**6 = 3 % lie outside, the next two would leave 22 %
    assert spread.interval(range(1, 21)) == (6, 15)  # the tables of the sign test say so
    with pytest.raises(ValueError, match="needed are 6"):
        spread.interval([1, 2, 3, 4, 5])


def test_a_ratio_is_the_mean_of_ratios_of_means(spread: Any) -> None:
    assert spread.ratio([([1.0, 3.0], [4.0]), ([3.0, 6.0, 9.0], [3.0, 5.0])]) == 1.0  # 0.5 and 1.5


def test_bootstrap_of_ratios_of_means(spread: Any) -> None:
    assert spread.bootstrap([([2.0, 2.0], [4.0, 4.0]), ([6.0, 6.0], [4.0, 4.0])]) == (1.0, 1.0)
    draw = random.Random(0)
    held = 0
    for _ in range(100):
        drifts = [draw.uniform(0.5, 2) for _ in range(5)]  # of the machine, which both sides share
        pairs = [[[draw.gauss(mean, 3) * drift for _ in range(4)] for mean in (98, 100)] for drift in drifts]
        low, high = spread.bootstrap(pairs, 400)
        assert low < high < low + 0.06
        held += low <= 0.98 <= high
    assert 88 <= held <= 99  # 95 % by its name, a little less with 20 values
