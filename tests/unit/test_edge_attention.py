"""The reader's priority and its waiting time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bringup.edge import attention


def test_the_waiting_is_counted_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "schedstat"
    monkeypatch.setattr(attention, "SCHEDSTAT", stat)
    stat.write_text("5 2000000000 7\n")
    with attention.attention() as waited:
        stat.write_text("9 3500000000 8\n")
        assert waited.seconds == pytest.approx(1.5)


@pytest.mark.parametrize("content", [None, "", "5\n", "x y z\n"])
def test_a_kernel_that_does_not_say_is_no_waiting(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "schedstat").write_text(content)
    monkeypatch.setattr(attention, "SCHEDSTAT", tmp_path / "schedstat")
    with attention.attention() as waited:
        assert waited.seconds == 0.0


@pytest.mark.parametrize("allowed", [True, False])
def test_the_priority_is_given_back(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getscheduler(0)
    seen = []

    def schedule(_pid: int, policy: int, _param: os.sched_param) -> None:
        seen.append(policy)
        if not allowed:
            raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", schedule)
    with pytest.raises(KeyError), attention.attention():
        raise KeyError
    assert seen == [os.SCHED_RR, before]
