"""When a difference may be claimed."""

from __future__ import annotations

import itertools
from statistics import median

import pytest

from bringup.comparison import noise
from bringup.comparison.noise import Call, judge, places, rank_test

BEFORE = [10.0, 10.1, 10.3]


@pytest.mark.parametrize(
    ("other", "call"),
    [
        ([12.0, 12.1, 12.4], Call.SLOWER),
        ([8.0, 8.1, 8.2], Call.FASTER),
        ([10.2, 10.4, 10.5], Call.SAME),  # past the noise, and not past the threshold
        ([10.2, 12.0, 12.1], Call.NOT_CLAIMED),  # they overlap
        ([12.0, 12.5, 16.0], Call.NOT_CLAIMED),  # apart, by less than they lie among themselves
        ([14.0, 14.0], Call.NOT_CLAIMED),
        ([], Call.NOT_COMPARED),
    ],
)
def test_calls(other: list[float], call: Call) -> None:
    assert judge(BEFORE, other, 10.0).call is call


def test_the_reason_is_told() -> None:
    assert judge(BEFORE, [20.0], 10.0).why == "needs 3 runs a side"
    assert "overlap" in judge(BEFORE, [10.2, 12.0, 12.1], 10.0).why
    assert "within the noise of 4.00 s" in judge(BEFORE, [12.0, 12.5, 16.0], 10.0).why
    assert judge([], [], 10.0).why == "neither side has it"
    assert judge([], BEFORE, 10.0).why == "one side has it"


def test_threshold_and_least_change() -> None:
    assert judge(BEFORE, [12.0, 12.1, 12.4], 25.0).call is Call.SAME
    assert judge(BEFORE, [12.0, 12.1, 12.4], 10.0, least=2.5).call is Call.SAME


def test_from_nothing_to_something_is_past_any_threshold() -> None:
    made = judge([0.0, 0.0, 0.0], [5.0, 5.0, 5.1], 10.0)
    assert (made.call, made.percent) == (Call.SLOWER, None)


def test_many_figures_need_twice_the_distance() -> None:
    other = [12.0, 12.5, 13.3]  # 2.4 s later, 1.3 s among themselves
    assert judge(BEFORE, other, 10.0).call is Call.SLOWER
    assert judge(BEFORE, other, 10.0, spreads=noise.MANY).call is Call.NOT_CLAIMED


def test_from_five_runs_on_one_straggler_does_not_hide_the_rest() -> None:
    before, after = [10.0, 10.1, 10.2, 10.3, 16.0], [12.0, 12.1, 12.2, 12.3, 18.0]
    assert judge(before[2:], after[2:], 10.0).call is Call.NOT_CLAIMED
    assert judge(before, after, 10.0).call is Call.SLOWER


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 3), (4, 2), (4, 4)])
def test_the_rank_test_counts_every_order(n: int, m: int) -> None:
    values = list(range(n + m))
    for high in itertools.combinations(values, m):
        low = [v for v in values if v not in high]
        seen = sum(h > v for h in high for v in low)
        ways = [
            sum(h > v for h in other for v in values if v not in other) for other in itertools.combinations(values, m)
        ]
        assert rank_test(low, high) == pytest.approx(sum(w >= seen for w in ways) / len(ways))


def test_ties_are_no_evidence() -> None:
    assert rank_test([1, 1, 1], [1, 1, 1]) == 1.0
    assert rank_test([1, 2, 3], [3, 4, 5]) > 0.05


def test_an_outlier_is_far_from_the_median_of_all() -> None:
    values = [10.0, 10.2, 9.9, 10.1, 25.0, 10.0, None]
    found = places(values, 10.0)
    assert [p.outlier for p in found] == [False, False, False, False, True, False, False]
    assert found[4].percent == pytest.approx(100 * (25 - median(v for v in values if v)) / 10.05, abs=0.1)
    assert found[6].percent is None


def test_no_outlier_where_all_are_different_or_few_or_near() -> None:
    assert not any(p.outlier for p in places([10.0, 14.0, 19.0, 25.0], 10.0))
    assert not any(p.outlier for p in places([10.0, 10.0, 25.0], 10.0))
    assert not any(p.outlier for p in places([10.0, 10.0, 10.0, 10.5], 10.0))
    assert not any(p.outlier for p in places([0.010, 0.010, 0.010, 0.020], 10.0, least=0.1))
    assert [p.outlier for p in places([10.0, 10.0, 10.0, 12.0], 10.0)] == [False, False, False, True]


def test_of_many_figures_one_must_be_twice_as_far_out() -> None:
    values = [10.0, 10.2, 9.8, 10.1, 9.9, 11.2]
    assert [p.outlier for p in places(values, 5.0)] == [False] * 5 + [True]
    assert not any(p.outlier for p in places(values, 5.0, spreads=noise.MANY))
