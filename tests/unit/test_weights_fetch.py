"""One file from the hub, by a child process that is made up here: what is wrong is refused and leaves nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import BuildFailed, WeightsDiffer
from bringup.lock import LockedFile
from bringup.weights import fetch as fetching
from bringup.weights.fetch import fetch


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Child:
    """A child that writes `data`, exits with `code`, or never ends (`code` None)."""

    def __init__(self, data: bytes | None, code: int | None, path: str) -> None:
        self.data, self.exitcode, self.path = data, code, Path(path)
        self.killed = False

    def start(self) -> None:
        if self.data is not None:
            self.path.write_bytes(self.data)

    def join(self, _timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return self.exitcode is None and not self.killed

    def kill(self) -> None:
        self.killed = True


class Context:
    """Stands for multiprocessing's spawn context."""

    def __init__(self, data: bytes | None, code: int | None, error: str = "") -> None:
        self.data, self.code, self.error = data, code, error
        self.children: list[Child] = []

    def SimpleQueue(self) -> Any:  # noqa: N802
        context = self

        class Queue:
            def empty(self) -> bool:
                return not context.error

            def get(self) -> str:
                return context.error

        return Queue()

    def Process(self, target: Any, args: tuple[Any, ...], daemon: bool) -> Child:  # noqa: N802
        assert target is fetching._download
        assert daemon
        self.children.append(Child(self.data, self.code, args[1]))
        return self.children[-1]


DATA = b"the very bytes"
FILE = LockedFile("a.json", len(DATA), sha(DATA))


def use(monkeypatch: pytest.MonkeyPatch, context: Context) -> Context:
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: {"spawn": context}[kind])
    return context


def test_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Context(DATA, 0))
    fetch("u", tmp_path / "a.json", FILE, None)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.json", DATA)]


@pytest.mark.parametrize(
    ("context", "error", "found"),
    [
        pytest.param(Context(DATA[:-1], 0), WeightsDiffer, f"gave {len(DATA) - 1} bytes", id="cut short"),
        pytest.param(Context(DATA + b"x", 0), WeightsDiffer, f"gave {len(DATA) + 1} bytes", id="too long"),
        pytest.param(Context(DATA[::-1], 0), WeightsDiffer, "not the locked ones", id="same size, other bytes"),
        pytest.param(Context(DATA[:3], 1, "Exception: 401"), BuildFailed, "Exception: 401", id="refused"),
        pytest.param(Context(None, -9), BuildFailed, "exit -9", id="killed"),
        pytest.param(Context(DATA, None), BuildFailed, "not complete after 5 s", id="never ends"),
    ],
)
def test_a_bad_fetch_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: Context, error: type[Exception], found: str
) -> None:
    use(monkeypatch, context)
    with pytest.raises(error, match=found):
        fetch("https://hub/a.json", tmp_path / "a.json", FILE, "s3cret", deadline=5)
    assert list(tmp_path.iterdir()) == []
    assert not any(child.is_alive() for child in context.children)


def test_an_empty_file_is_not_asked_for(tmp_path: Path) -> None:
    fetch("u", tmp_path / "a.txt", LockedFile("a.txt", 0, sha(b"")), None)  # the guard would see a process
    assert (tmp_path / "a.txt").read_bytes() == b""
