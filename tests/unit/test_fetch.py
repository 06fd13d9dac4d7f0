"""Fetching by a worker that is made up here: who carries what, what is tried again, and what never gets a name."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import BringupError, CheckFailed, TargetUnavailable, UsageError, WeightsDiffer
from bringup.lock import LockedFile
from bringup.weights import lanes, place
from bringup.weights.carry import CHUNK, CHUNKS, Failure, Task
from bringup.weights.digest import Digests
from bringup.weights.fetch import How, completed, copy, fetch
from bringup.weights.lanes import carrier
from bringup.weights.progress import Progress
from bringup.weights.verify import verify_dir
from bringup.weights.worker import Stalled
from tests.unit.models import COMMIT, FILES, HUB, MODEL, flip, locked, put, sha

Deed = Callable[[Task], Failure | None]


def brings(data: bytes) -> Deed:
    def deed(task: Task) -> None:
        Path(task.path).write_bytes(data)

    return deed


def fails(error: BringupError | None = None, **given: Any) -> Deed:
    return lambda _: Failure(error or TargetUnavailable("no luck", id="hub-unavailable"), **given)


def stalls(_: Task) -> Failure:
    return Stalled(TargetUnavailable("stalled", id="transfer-stalled"))


class Workers:
    """Stands for the processes: does what a test says for the nth attempt at a path, else brings the right bytes."""

    def __init__(self) -> None:
        self.deeds: dict[str, list[Deed]] = {}
        self.content = dict(FILES)
        self.tasks: list[Task] = []
        self.made: list[Any] = []

    def make(self, endpoint: str, token: str | None, stall_timeout: float) -> Any:
        workers = self

        class Worker:
            alive = True
            seconds = 0.5
            given = (endpoint, token, stall_timeout)

            def carry(self, task: Task, watch: Callable[[int], None], check: Callable[[], None]) -> Failure | None:
                check()
                workers.tasks.append(task)
                deeds = workers.deeds.get(task.file.path)
                watch(1)
                return (deeds.pop(0) if deeds else brings(workers.content[task.file.path]))(task)

            def kill(self) -> None:
                self.alive = False

        self.made.append(Worker())
        return self.made[-1]

    def of(self, path: str) -> list[Task]:
        return [t for t in self.tasks if t.file.path == path]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    made = Workers()
    monkeypatch.setattr(lanes, "Worker", made.make)
    monkeypatch.setattr(lanes, "CHUNK", 1000)  # so that model.safetensors has several
    return made


def how(**given: Any) -> How:
    defaults: dict[str, Any] = {"endpoint": "https://hub.example", "timeout": 20.0, "backoff": 0.001}
    return How(**(defaults | given))


def names(directory: Path) -> set[str]:
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}


def test_a_fetch(tmp_path: Path, workers: Workers) -> None:
    seen: list[str] = []
    receipt = fetch(HUB, tmp_path / "a/b", how(token="s3cret", stall_timeout=7), lambda p: seen.append(p.line()))
    verify_dir(HUB, tmp_path / "a/b")
    by = {f.path: (f.by, f.attempts, f.sha256) for f in receipt.files}
    assert by == {
        path: ("hf_transfer" if path == "model.safetensors" else "http", 1, sha(data)) for path, data in FILES.items()
    }
    assert {w.given for w in workers.made} == {("https://hub.example", "s3cret", 7)}
    assert not any(w.alive for w in workers.made)
    assert "s3cret" not in json.dumps(receipt.to_dict())
    assert receipt.revision == COMMIT
    assert seen[-1] == "m: 4 of 4 files, 0 of 0 MB"
    assert not workers.of("empty.txt")
    verify_dir(completed(HUB, receipt), tmp_path / "a/b")


def test_what_is_right_stays_and_what_is_wrong_is_replaced(tmp_path: Path, workers: Workers) -> None:
    put(tmp_path)
    flip(tmp_path, 5)
    (tmp_path / "sub/tokenizer.json").unlink()
    inode = (tmp_path / "config.json").stat().st_ino
    receipt = fetch(HUB, tmp_path, how())
    verify_dir(HUB, tmp_path)
    assert {f.path for f in receipt.files if f.by == "present"} == {"config.json", "empty.txt"}
    assert {t.file.path for t in workers.tasks} == {"model.safetensors", "sub/tokenizer.json"}
    assert (tmp_path / "config.json").stat().st_ino == inode
    assert all(f.blake3 for f in receipt.files)


def test_nothing_to_do_asks_nobody(tmp_path: Path, workers: Workers) -> None:
    assert {f.by for f in fetch(HUB, put(tmp_path), how()).files} == {"present"}
    assert not workers.made


@pytest.mark.parametrize(
    ("change", "id_"),
    [
        (lambda d: (d / "mine.txt").write_text("mine"), "weights-extra"),
        (lambda d: (d / "config.json").symlink_to("mine"), "weights-not-a-file"),
        (lambda d: (d / "model.safetensors").mkdir(), "weights-not-a-file"),
        (lambda d: (d / "sub").symlink_to("elsewhere"), "weights-not-a-file"),
    ],
)
def test_what_is_foreign_is_never_touched(
    tmp_path: Path, workers: Workers, change: Callable[[Path], object], id_: str
) -> None:
    change(tmp_path)
    before = names(tmp_path)
    with pytest.raises(WeightsDiffer) as caught:
        fetch(HUB, tmp_path, how())
    assert caught.value.id == id_
    assert names(tmp_path) == before
    assert not workers.tasks


@pytest.mark.parametrize(
    "deed", [fails(), fails(pause=0.0), stalls, brings(b"short"), brings(FILES["config.json"][::-1])]
)
@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_second_attempt(tmp_path: Path, workers: Workers, deed: Deed, path: str) -> None:
    workers.deeds[path] = [deed]
    receipt = fetch(HUB, tmp_path, how())
    verify_dir(HUB, tmp_path)
    assert [f.attempts for f in receipt.files if f.path == path] == [2]
    first, second = workers.of(path)
    assert (first.path != second.path) == (path == "model.safetensors" or deed is not stalls) or first.by == "http"


def test_hf_transfer_never_meets_an_old_file(tmp_path: Path, workers: Workers) -> None:
    workers.deeds["model.safetensors"] = [brings(b"x" * 20_000), fails(), brings(FILES["model.safetensors"][:-1])]
    fetch(HUB, tmp_path, how())
    tasks = workers.of("model.safetensors")
    assert len({t.path for t in tasks}) == len(tasks) == 4
    assert {t.by for t in tasks} == {"hf_transfer"}


def test_http_goes_on_where_it_was(tmp_path: Path, workers: Workers) -> None:
    def part(task: Task) -> Failure:
        Path(task.path).write_bytes(FILES["model.safetensors"][:100])
        return Failure(TargetUnavailable("broke"))

    workers.deeds["model.safetensors"] = [part]
    receipt = fetch(HUB, tmp_path, how(transfer="http"))
    assert len({t.path for t in workers.of("model.safetensors")}) == 1
    carried = next(f for f in receipt.files if f.path == "model.safetensors")
    assert (carried.by, carried.attempts, carried.seconds) == ("http", 2, 1.0)


def test_after_a_stall_fewer_chunks_at_once(tmp_path: Path, workers: Workers) -> None:
    workers.deeds["model.safetensors"] = [stalls] * 4
    fetch(HUB, tmp_path, how())
    assert [t.chunks for t in workers.of("model.safetensors")] == [CHUNKS, CHUNKS // 2, CHUNKS // 4, CHUNKS // 8, 1]


def test_auto_turns_to_http_and_says_so(tmp_path: Path, workers: Workers) -> None:
    workers.deeds["model.safetensors"] = [fails(), fails(TargetUnavailable("no ranges"))]
    receipt = fetch(HUB, tmp_path, how(transfer="auto"))
    carried = next(f for f in receipt.files if f.path == "model.safetensors")
    assert [t.by for t in workers.of("model.safetensors")] == ["hf_transfer", "hf_transfer", "http"]
    assert (carried.by, carried.attempts, carried.note) == ("http", 3, "hf_transfer failed 2 times: no ranges")


def test_auto_turns_to_http_at_once_after_wrong_bytes(tmp_path: Path, workers: Workers) -> None:
    workers.deeds["model.safetensors"] = [brings(FILES["model.safetensors"][::-1])]
    receipt = fetch(HUB, tmp_path, how(transfer="auto"))
    carried = next(f for f in receipt.files if f.path == "model.safetensors")
    assert carried.by == "http"
    assert "hf_transfer brought other bytes" in carried.note


FATAL = [
    pytest.param("model.safetensors", [brings(FILES["model.safetensors"][::-1])] * 2, "weights-hash", 2, id="bytes"),
    pytest.param("model.safetensors", [brings(b"x")] * 5, "transfer-incomplete", 5, id="size"),
    pytest.param("sub/tokenizer.json", [fails()] * 5, "hub-unavailable", 5, id="down"),
    pytest.param("sub/tokenizer.json", [stalls] * 5, "transfer-stalled", 5, id="stalled"),
    pytest.param("config.json", [fails(UsageError("no", id="hub-gated"), again=False)], "hub-gated", 1, id="gated"),
    pytest.param(
        "model.safetensors", [fails(TargetUnavailable("slow down", id="hub-rate-limited"), pause=3600.0)],
        "hub-rate-limited", 1, id="a pause beyond the deadline",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "deeds", "id_", "attempts"), FATAL)
def test_the_end_of_patience(
    tmp_path: Path, workers: Workers, path: str, deeds: list[Deed], id_: str, attempts: int
) -> None:
    workers.deeds[path] = list(deeds)
    with pytest.raises(BringupError) as caught:
        fetch(HUB, tmp_path / "m", how(files_at_once=1))
    assert caught.value.id == id_
    assert len(workers.of(path)) == attempts
    assert not any(w.alive for w in workers.made)
    for name in names(tmp_path / "m"):  # what has a name is right
        assert (tmp_path / "m" / name).read_bytes() == FILES[name]
    assert not {path, "config.json"} & names(tmp_path / "m")
    assert not [t for t in threading.enumerate() if t.name == "bringup lane"]


def test_after_a_failure_the_next_fetch_needs_only_the_rest(tmp_path: Path, workers: Workers) -> None:
    def late(_: Task) -> Failure:
        while "model.safetensors" not in names(tmp_path):
            time.sleep(0.01)
        return Failure(UsageError("no"), again=False)

    workers.deeds["sub/tokenizer.json"] = [late]
    with pytest.raises(UsageError):
        fetch(HUB, tmp_path, how(files_at_once=1))
    before = len(workers.of("model.safetensors"))
    fetch(HUB, tmp_path, how())
    verify_dir(HUB, tmp_path)
    assert len(workers.of("model.safetensors")) == before


def test_config_json_comes_last(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    put_ = place.Place.put

    def watched(self: place.Place, temp: Path, path: str) -> None:
        order.append(path)
        put_(self, temp, path)

    monkeypatch.setattr(place.Place, "put", watched)
    files = tuple(sorted(HUB.files, key=lambda f: f.path != "config.json"))
    fetch(locked(source="hub", repo="org/m", revision=COMMIT, files=files), tmp_path, how(files_at_once=1))
    assert order[-1] == "config.json"
    assert len(order) == 4


def test_the_deadline(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(task: Task, watch: object, check: Callable[[], None]) -> None:
        while True:
            check()
            time.sleep(0.01)

    def make(*given: Any) -> Any:
        worker = workers.make(*given)
        worker.carry = hanging
        return worker

    monkeypatch.setattr(lanes, "Worker", make)
    with pytest.raises(TargetUnavailable, match="3 of 4 files to go") as caught:
        fetch(HUB, tmp_path / "m", how(timeout=0.5, files_at_once=9))
    assert caught.value.id == "fetch-deadline"
    assert names(tmp_path / "m") == {"empty.txt"}
    assert not any(w.alive for w in workers.made)


def test_interrupted(tmp_path: Path, workers: Workers) -> None:
    def interrupted(_: Progress) -> None:
        raise KeyboardInterrupt

    workers.deeds["model.safetensors"] = [fails(pause=5.0)]
    with pytest.raises(KeyboardInterrupt):
        fetch(HUB, tmp_path / "m", how(), interrupted)
    assert not any(w.alive for w in workers.made)
    assert not (tmp_path / "m/.bringup-fetch").exists()


def test_a_bug_in_a_thread_is_seen(tmp_path: Path, workers: Workers) -> None:
    def bug(_: Task) -> Failure:
        raise ZeroDivisionError

    workers.deeds["config.json"] = [bug]
    with pytest.raises(ZeroDivisionError):
        fetch(HUB, tmp_path, how())
    assert not any(w.alive for w in workers.made)


def test_hf_transfer_is_missing(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "hf_transfer" else real(name))
    with pytest.raises(CheckFailed) as caught:
        fetch(HUB, tmp_path / "m", how())
    assert caught.value.id == "hf-transfer-missing"
    assert not (tmp_path / "m").exists()
    receipt = fetch(HUB, tmp_path / "m", how(transfer="auto"))
    assert {(f.by, f.note) for f in receipt.files if f.size > 1000} == {("http", "hf_transfer is not installed")}
    assert {f.by for f in fetch(HUB, tmp_path / "n", how(transfer="http")).files} == {"http"}


@pytest.mark.parametrize(
    ("size", "transfer", "available", "expected"),
    [
        (CHUNK + 1, "hf_transfer", True, "hf_transfer"), (CHUNK, "hf_transfer", True, "http"),
        (CHUNK + 1, "auto", True, "hf_transfer"), (CHUNK + 1, "auto", False, "http"), (CHUNK + 1, "http", True, "http"),
    ],
)  # fmt: skip
def test_carrier(size: int, transfer: str, available: bool, expected: str) -> None:
    by, note = carrier(LockedFile("a", size, ""), transfer, available)
    assert by == expected
    assert bool(note) == (not available)


def test_space_is_counted_before(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.Place, "free", lambda _: 100)
    put(tmp_path, {"model.safetensors": FILES["model.safetensors"]})
    fetch(HUB, tmp_path, how())  # what is there needs no space
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckFailed, match="10240 bytes are needed for m, 100 are free") as caught:
        fetch(HUB, tmp_path, how())
    assert caught.value.id == "disk-space"


@pytest.mark.parametrize("deed", [stalls, fails(), brings(b"short")])
def test_a_disk_that_fills_up_meanwhile(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, deed: Deed
) -> None:
    def fills(task: Task) -> Failure | None:
        monkeypatch.setattr(place.Place, "free", lambda _: 5000)
        return deed(task)

    workers.deeds["model.safetensors"] = [fills]
    with pytest.raises(CheckFailed, match="the disk is full") as caught:
        fetch(HUB, tmp_path, how())
    assert caught.value.id == "disk-full"
    assert len(workers.of("model.safetensors")) == 1


def test_a_full_disk_at_the_end(tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lanes, "flush", full)
    with pytest.raises(CheckFailed, match="No space left") as caught:
        fetch(HUB, tmp_path, how())
    assert caught.value.id == "disk-full"
    assert names(tmp_path) == set()


def test_a_fetch_without_hashing_for_comparison(tmp_path: Path, workers: Workers) -> None:
    workers.content["model.safetensors"] = bytes(10240)
    right = {f.size: f.sha256 for f in HUB.files}
    fetch(HUB, tmp_path, how(), _digest=lambda p, _: Digests(right[p.stat().st_size], "b"))
    assert (tmp_path / "model.safetensors").read_bytes() == bytes(10240)


# ---- from a directory


def test_copy(tmp_path: Path) -> None:
    put(tmp_path / "source")
    (tmp_path / "source/README.md").write_text("not locked, so not copied")
    receipt = copy(MODEL, tmp_path / "source", tmp_path / "out")
    verify_dir(MODEL, tmp_path / "out")
    assert {f.by for f in receipt.files} == {"copy"}
    assert {f.by for f in copy(MODEL, tmp_path / "source", tmp_path / "out").files} == {"present"}


@pytest.mark.parametrize(
    ("change", "id_"),
    [
        pytest.param(lambda d: flip(d, 7), "weights-hash", id="a byte differs"),
        pytest.param(lambda d: (d / "model.safetensors").write_bytes(b"x"), "weights-hash", id="a size differs"),
        pytest.param(lambda d: (d / "model.safetensors").unlink(), "weights-missing", id="missing"),
    ],
)
def test_a_copy_that_fails(tmp_path: Path, change: Callable[[Path], object], id_: str) -> None:
    change(put(tmp_path / "source"))
    with pytest.raises(WeightsDiffer) as caught:
        copy(MODEL, tmp_path / "source", tmp_path / "out")
    assert caught.value.id == id_
    assert not {"model.safetensors", "config.json"} & names(tmp_path / "out")
    assert not (tmp_path / "out/.bringup-fetch").exists()


def test_a_file_far_below(tmp_path: Path) -> None:
    model = locked(files=(LockedFile("a/b/c/x.json", 2, sha(b"{}")),))
    copy(model, put(tmp_path / "source", {"a/b/c/x.json": b"{}"}), tmp_path / "out")
    assert (tmp_path / "out/a/b/c/x.json").read_bytes() == b"{}"


def test_what_a_killed_fetch_left_is_cleared(tmp_path: Path, workers: Workers) -> None:
    put(tmp_path, {".bringup-fetch/1": b"half", ".bringup-fetch/lock": b"", ".bringup-fetch/x/y": b""})
    fetch(HUB, tmp_path, how())
    verify_dir(HUB, tmp_path)
