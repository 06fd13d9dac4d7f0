"""Which GPUs a check is about, and how the findings of several are one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bringup.checks.facts import HostFacts
from bringup.checks.finding import Finding, card, each, record, reserved
from bringup.edge.gpu import GpuFacts
from bringup.records import Status
from tests.unit.samples import FACTS, GPU, H100, plan

CARDS = tuple(replace(H100, index=n, uuid=f"GPU-{n}") for n in range(4))
FOUR = replace(FACTS, gpu=replace(GPU, gpus=CARDS, count=4))
PASS, WARN, FAIL, UNKNOWN, SKIP = Status


@pytest.mark.parametrize(
    ("asked", "indices"),
    [
        (None, {0}),
        ("1", {0}),
        ("3", {0, 1, 2}),
        ("9", {0, 1, 2, 3}),
        ("all", {0, 1, 2, 3}),
        ("device=2", {2}),
        ("device=GPU-1,3", {1, 3}),
        ("device=nvidia.com/gpu=2", {2}),
        ("device=MIG-abc", {0, 1, 2, 3}),
        ("device=7", {0, 1, 2, 3}),
    ],
)
def test_the_gpus_that_the_server_gets(asked: str | None, indices: set[int]) -> None:
    assert reserved(asked, CARDS) == indices


@pytest.mark.parametrize(("asked", "size"), [(None, 1), ("device=2", 3), ("device=GPU-3,1", 2), ("all", 1)])
def test_the_first_of_the_servers_gpus(asked: str | None, size: int) -> None:
    cards = tuple(replace(c, memory_total=c.index + 1) for c in CARDS)
    assert card(asked, cards) == size
    assert card(asked, ()) is None


def sick(index: int, status: Status) -> list[Finding]:
    def judge(card: GpuFacts) -> Finding:
        return Finding(status, "sick", "heal it") if card.index == index else Finding(PASS, "well")

    return each(FOUR, plan("gpu"), judge)


@pytest.mark.parametrize("status", [FAIL, UNKNOWN])
def test_a_fault_of_the_servers_gpu_counts_and_another_ones_warns(status: Status) -> None:
    mine, others = record("x", "n", sick(0, status)), record("x", "n", sick(2, status))
    assert (mine.status, mine.found, mine.remedy) == (status, "GPU 0: sick", "heal it")
    assert (others.status, others.found, others.remedy) == (WARN, "GPU 2, not reserved: sick", "heal it")


def test_only_the_servers_gpus_pass_aloud() -> None:
    made = record("x", "n", each(FOUR, plan("gpu"), lambda card: Finding(PASS, f"{card.index} C")))
    assert (made.status, made.found) == (PASS, "GPU 0: 0 C")


def test_what_all_share_counts_and_is_said_once() -> None:
    made = record("x", "n", each(FOUR, plan("gpu"), lambda _: Finding(FAIL, "hot", "cool it")))
    assert (made.status, made.found) == (FAIL, "hot")


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ((PASS, FAIL, UNKNOWN), FAIL),
        ((PASS, WARN, UNKNOWN), UNKNOWN),
        ((PASS, WARN, SKIP), WARN),
        ((PASS, SKIP), PASS),
        ((SKIP, SKIP), SKIP),
    ],
)
def test_the_worst_is_told(statuses: tuple[Status, ...], worst: Status) -> None:
    made = record("x", "n", [Finding(s, f"{s}", "do") for s in statuses])
    assert (made.status, made.found) == (worst, worst.value)
    assert made.needed == ("nothing" if worst is SKIP else "n")


def test_facts_are_not_changed_by_judging() -> None:
    before: HostFacts = replace(FOUR)
    sick(1, FAIL)
    assert before == FOUR
