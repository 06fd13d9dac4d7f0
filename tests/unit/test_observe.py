"""The sampler: it sees what there is, says None where there is nothing, keeps the peak, and always ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from bringup import observe
from bringup.edge import gpu, proc
from bringup.errors import TargetUnavailable
from bringup.ledger import Sample
from tests.unit.fakes import FakeContainer, state

ID = "ab" * 32
PAGE = proc._PAGE


# ---- /proc


def process(root: Path, pid: int, container: str = ID, pages: int = 10) -> None:
    (root / str(pid)).mkdir(parents=True)
    (root / str(pid) / "cgroup").write_text(f"0::/system.slice/docker-{container}.scope\n")
    (root / str(pid) / "statm").write_text(f"99 {pages} 1 1 0 1 0\n")
    (root / str(pid) / "smaps_rollup").write_text(f"0-1 ---p 0 00:00 0 [rollup]\nRss: {pages * 4} kB\nPss:   7 kB\n")


def gone(root: Path, pid: int) -> None:
    for file in (root / str(pid)).iterdir():
        file.unlink()
    (root / str(pid)).rmdir()


def test_members_are_the_containers_processes_as_they_come_and_go(tmp_path: Path) -> None:
    process(tmp_path, 1, "cd" * 32)
    process(tmp_path, 7)
    (tmp_path / "meminfo").touch()
    members = proc.Members(proc.in_container(ID), tmp_path)
    assert members.pids() == {7}
    process(tmp_path, 8)
    assert members.pids() == {7, 8}
    gone(tmp_path, 7)
    assert members.pids() == {8}
    process(tmp_path, 7, "cd" * 32)
    assert members.pids() == {8}, "a number that comes back is another process"


@pytest.mark.parametrize(
    "line",
    [
        f"4:memory:/docker/{ID}",
        f"0::/docker/{ID}/init",
        f"0::/../{ID}",
        f"1:name=systemd:/system.slice/docker-{ID}.scope",
    ],
)
def test_members_by_every_layout_of_control_groups(tmp_path: Path, line: str) -> None:
    process(tmp_path, 7)
    (tmp_path / "7" / "cgroup").write_text(f"9:pids:/\n{line}\n")
    assert proc.Members(proc.in_container(ID), tmp_path).pids() == {7}


def test_a_process_without_files_is_no_zero(tmp_path: Path) -> None:
    process(tmp_path, 7, pages=3)
    assert (proc.rss(7, tmp_path), proc.pss(7, tmp_path)) == (3 * PAGE, 7 * 1024)
    assert (proc.rss(8, tmp_path), proc.pss(8, tmp_path)) == (None, None)
    (tmp_path / "7" / "statm").write_text("")
    (tmp_path / "7" / "smaps_rollup").write_text("")
    assert (proc.rss(7, tmp_path), proc.pss(7, tmp_path)) == (None, None)
    assert proc.Members(proc.in_container(ID), tmp_path / "none").pids() == set()


# ---- one look


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    real, rss, pss = proc.Members, proc.rss, proc.pss
    monkeypatch.setattr(proc, "Members", lambda belongs: real(belongs, tmp_path))
    monkeypatch.setattr(proc, "rss", lambda pid: rss(pid, tmp_path))
    monkeypatch.setattr(proc, "pss", lambda pid: pss(pid, tmp_path))
    return tmp_path


def meters(monkeypatch: pytest.MonkeyPatch, *readings: gpu.Reading | None) -> list[str]:
    """A GPU that says these, the last one for ever; what is opened and closed."""
    left, acts = list(readings), []

    @contextmanager
    def meter(_asked: str | None) -> Iterator[Callable[[], gpu.Reading | None]]:
        acts.append("open")
        yield lambda: left.pop(0) if len(left) > 1 else left[0]
        acts.append("close")

    monkeypatch.setattr(gpu, "meter", meter)
    return acts


def container(**given: Any) -> FakeContainer:
    return FakeContainer(states=[state(id=ID)], **given)


def test_a_look_at_gpu_and_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meters(monkeypatch, gpu.Reading((5, 6), {7: 3, 99: 8}))
    process(root, 7, pages=1)
    process(root, 8, pages=2)
    with observe.eye(on_gpu=True, local=True) as eye:
        before = eye.look()
        assert (before.used, before.rss, before.held(eye.pids)) == ((5, 6), None, 0)
        eye.follow(container())
        now = eye.look(closely=True)
    assert (now.rss, now.pss, now.held(eye.pids)) == (3 * PAGE, 14 * 1024, 3)


def test_what_is_not_seen_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meters(monkeypatch, None)
    with observe.eye(on_gpu=True, local=True) as eye:
        eye.follow(container())
        now = eye.look(closely=True)
    assert (now.used, now.by_pid, now.rss, now.pss, now.held(frozenset({7}))) == (None,) * 5


def test_an_engine_elsewhere_is_asked_and_the_gpu_here_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    acts = meters(monkeypatch, gpu.Reading((5,), {}))
    rows = [{"PID": "7", "RSS": "10"}, {"PID": "8", "RSS": "2"}]
    with observe.eye(on_gpu=True, local=False) as eye:
        eye.follow(container(rows=rows))
        now = eye.look(closely=True)
        assert (now.used, now.by_pid, now.rss, now.pss) == (None, None, 12 * 1024, None)
        for broken in (TargetUnavailable("no engine"), [], [{"PID": "7"}], [{"PID": "7", "RSS": "-"}]):
            eye.follow(container(rows=broken))
            assert eye.look().rss is None
    assert acts == []


# ---- the thread


def until(true: Callable[[], bool]) -> None:
    for _ in range(5000):
        if true():
            return
        time.sleep(0.001)
    pytest.fail("it never came true")


def test_the_sampler_samples_from_before_the_container_to_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = meters(monkeypatch, gpu.Reading((1,), {}), gpu.Reading((9,), {7: 8}))
    process(root, 7)
    sampler = observe.Sampler(on_gpu=True, local=True, period=0.001)
    with sampler:
        sampler.follow(cast("Any", container()))
        until(lambda: bool(sampler.seen().pids))
    seen = sampler.seen()
    assert seen.samples[0].used == (1,)
    assert (seen.samples[-1].held(seen.pids), seen.pids, seen.fault) == (8, frozenset({7}), "")
    assert [s.t for s in seen.samples] == sorted(s.t for s in seen.samples)
    assert acts == ["open", "close"]


def test_an_error_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    meters(monkeypatch, gpu.Reading((1,), {}))
    sampler = observe.Sampler(on_gpu=True, local=True, period=1000.0)
    with pytest.raises(KeyboardInterrupt), sampler:
        raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name == "sampler"]
    assert len(sampler.seen().samples) == 1


def test_a_thread_that_fails_says_so() -> None:
    sampler = observe.Sampler(on_gpu=False, local=True, period=0.001)
    with sampler:
        sampler.follow(cast("Any", FakeContainer(states=[TargetUnavailable("the engine is gone")])))
        until(lambda: bool(sampler.seen().fault))
    assert sampler.seen().fault == "TargetUnavailable: the engine is gone"


def test_thinning_keeps_the_peak_and_bounds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample(float(n), (n % 7,), None, None) for n in range(9)]
    kept = observe.thinned(samples)
    assert [s.t for s in kept] == [1.0, 3.0, 5.0, 6.0, 8.0]
    sampler = observe.Sampler(on_gpu=False, local=True, period=1.0, most=8)
    peak = 57
    for n in range(100):
        sampler._keep(Sample(float(n), None, None, 1000 if n == peak else n))
    assert len(sampler.seen().samples) <= 8
    assert peak in [s.t for s in sampler.seen().samples]
    assert sampler._period > 1.0


# ---- after the end


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "PERIOD", 0.0)


def test_all_is_released(root: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    process(root, 7)
    meters(monkeypatch, gpu.Reading((9,), {7: 8}), gpu.Reading((9,), {7: 8}), gpu.Reading((1,), {}))
    held = observe.held(cast("Any", container()), local=True)
    assert (held.pids, held.gpu) == (frozenset({7}), 8)
    gone(root, 7)
    seen = observe.release(held)
    assert (seen.verdict, seen.gpu_before, seen.gpu_left, seen.pids_left) == ("released", 8, 0, ())


@pytest.mark.parametrize(
    ("stays", "reading", "left"),
    [(False, gpu.Reading((9,), {7: 8}), (8, ())), (True, gpu.Reading((1,), {}), (0, (7,)))],
)
def test_what_is_left_is_a_leak(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None, stays: bool, reading: gpu.Reading, left: Any
) -> None:
    process(root, 7)
    meters(monkeypatch, gpu.Reading((9,), {7: 8}), reading)
    held = observe.held(cast("Any", container()), local=True)
    if not stays:
        gone(root, 7)
    seen = observe.release(held, within=0.01)
    assert (seen.verdict, (seen.gpu_left, seen.pids_left)) == ("leaked", left)


def test_a_dead_container_holds_nothing_but_what_its_processes_left(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    meters(monkeypatch, gpu.Reading((1,), {}))
    assert observe.release(observe.held(cast("Any", container()), local=True)).verdict == "released"
    meters(monkeypatch, gpu.Reading((9,), {7: 8}))
    held = observe.held(cast("Any", container()), local=True, known=frozenset({7}))
    assert observe.release(held, within=0.01).verdict == "leaked"


def test_without_a_gpu_the_processes_are_what_is_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(root, 7)
    meters(monkeypatch, None)
    held = observe.held(cast("Any", container()), local=True)
    gone(root, 7)
    seen = observe.release(held)
    assert (seen.verdict, seen.gpu_before, seen.gpu_left) == ("released", None, None)


def test_what_cannot_be_seen_is_unknown(root: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    assert observe.release(observe.held(None, local=True)).verdict == "unknown"
    assert observe.release(observe.held(cast("Any", container()), local=False)).verdict == "unknown"
    process(root, 7)
    meters(monkeypatch, gpu.Reading((9,), {7: 8}), None)
    held = observe.held(cast("Any", container()), local=True)
    gone(root, 7)
    assert observe.release(held).verdict == "unknown", "a driver that went away is no proof"
