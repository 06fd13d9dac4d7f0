"""What the carrying process does with the hub's answers: the same commit and size, the right range, no secrets."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
import urllib3

from bringup.errors import BringupError, TargetUnavailable, UsageError, WeightsDiffer
from bringup.lock import LockedFile
from bringup.weights import carry
from bringup.weights.carry import Failure, Task
from bringup.weights.hub import Hub, reason, unsigned, wanted_pause
from tests.unit.models import COMMIT, HUB

FILE = next(f for f in HUB.files if f.path == "model.safetensors")
DATA = bytes(range(256)) * 40
RIGHT = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(DATA))}


class Fake(Hub):
    """Answers HEAD with headers and GET with a status, headers and a body."""

    def __init__(self, head: dict[str, str] | BringupError, status: int = 200, body: bytes = DATA, **headers: str):
        super().__init__("https://hub.example")
        self._head, self._status, self._body, self._headers = head, status, body, headers
        self.asked: list[dict[str, str]] = []

    def head(self, url: str) -> requests.Response:  # noqa: ARG002
        if isinstance(self._head, BringupError):
            self.retry_after = 7.0
            raise self._head
        answer = requests.Response()
        answer.headers.update(self._head)
        return answer

    def get(self, url: str, *, stream: bool = False, headers: Any = None) -> requests.Response:
        assert stream
        assert url.endswith("/model.safetensors")
        self.asked.append(dict(headers))
        if self._status >= 400:
            raise TargetUnavailable("no such bytes", id="hub-range-refused")
        answer = requests.Response()
        answer.status_code = self._status
        answer.headers.update({k.replace("_", "-"): v for k, v in self._headers.items()})
        length = {"content-length": str(len(DATA))} if self._status == 200 else {}
        answer.raw = urllib3.HTTPResponse(
            io.BytesIO(self._body), headers=length, preload_content=False, request_method="GET"
        )
        return answer


def attempt(hub: Hub, path: Path, by: str = "http", file: LockedFile = FILE, token: str | None = None) -> Any:
    said: list[int] = []
    task = Task(model=HUB, file=file, path=str(path), by=by)
    failure = carry.attempt(hub, token, task, said.append)
    if failure:
        assert isinstance(pickle.loads(pickle.dumps(failure)), Failure)  # noqa: S301 - it goes through a pipe
    return failure, said


def test_a_whole_file(tmp_path: Path) -> None:
    hub = Fake(RIGHT)
    failure, said = attempt(hub, tmp_path / "f")
    assert failure is None
    assert (tmp_path / "f").read_bytes() == DATA
    assert said[-1] == len(DATA)
    assert hub.asked == [{}]


def test_going_on(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA[:1000])
    hub = Fake(RIGHT, 206, DATA[1000:], Content_Range=f"bytes 1000-{len(DATA) - 1}/{len(DATA)}")
    assert attempt(hub, tmp_path / "f")[0] is None
    assert (tmp_path / "f").read_bytes() == DATA
    assert hub.asked == [{"Range": "bytes=1000-"}]


@pytest.mark.parametrize("before", [DATA[:1000], DATA + b"more", DATA])
def test_beginning_anew_where_the_hub_does_no_ranges(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "f").write_bytes(before)
    assert attempt(Fake(RIGHT), tmp_path / "f")[0] is None
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "body", "found", "range_"),
    [
        (200, DATA[:-1], "more expected", ""),
        (206, DATA[1000:], "the answer has 'bytes 999-10239/10240'", "bytes 999-10239/10240"),
        (206, DATA[1000:], "the answer has None", ""),
        (206, DATA[1000:-5], "10235 bytes came; 10240 are locked", "bytes 1000-10239/10240"),
        (206, DATA, "more than the locked 10240 bytes came", "bytes 1000-10239/10240"),
        (416, b"", "no such bytes", ""),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for(
    tmp_path: Path, status: int, body: bytes, found: str, range_: str
) -> None:
    (tmp_path / "f").write_bytes(DATA[:1000])
    hub = Fake(RIGHT, status, body, **({"Content_Range": range_} if range_ else {}))
    failure, _ = attempt(hub, tmp_path / "f")
    assert found in failure.error.message
    assert failure.again
    left = (tmp_path / "f").read_bytes()
    assert left == DATA[: len(left)]  # the next attempt goes on from right bytes


@pytest.mark.parametrize(
    ("head", "error", "id_", "again"),
    [
        ({}, TargetUnavailable, "hub-wrong-answer", True),
        ({"X-Repo-Commit": "a" * 40}, WeightsDiffer, "hub-wrong-commit", False),
        (RIGHT | {"X-Linked-Size": "5"}, WeightsDiffer, "weights-size", False),
        ({"X-Repo-Commit": COMMIT, "Content-Length": "5"}, WeightsDiffer, "weights-size", False),
        (UsageError("no", id="hub-gated"), UsageError, "hub-gated", False),
        (TargetUnavailable("no", id="hub-rate-limited"), TargetUnavailable, "hub-rate-limited", True),
    ],
)
def test_what_the_hub_has_is_not_what_is_locked(
    tmp_path: Path, head: Any, error: type[BringupError], id_: str, again: bool
) -> None:
    failure, _ = attempt(Fake(head), tmp_path / "f")
    assert isinstance(failure.error, error)
    assert (failure.error.id, failure.again) == (id_, again)
    assert failure.pause == (7.0 if id_ == "hub-rate-limited" else None)
    assert not (tmp_path / "f").exists()


def test_the_length_of_a_redirect_is_not_that_of_the_file(tmp_path: Path) -> None:
    head = {"X-Repo-Commit": COMMIT, "Content-Length": "5", "Location": "https://cdn.example/x"}
    assert attempt(Fake(head), tmp_path / "f")[0] is None


@pytest.fixture
def hf_transfer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for the package; `does` is called with the arguments of `download`."""
    fake = SimpleNamespace(seen=[], does=lambda *_a, **_k: None)

    def download(*args: Any, **given: Any) -> None:
        fake.seen.append((args, given))
        fake.does(*args, **given)

    monkeypatch.setitem(sys.modules, "hf_transfer", cast(Any, SimpleNamespace(download=download)))
    return fake


def test_by_hf_transfer(tmp_path: Path, hf_transfer: SimpleNamespace) -> None:
    def does(*_: Any, callback: Any, **__: Any) -> None:
        for n in (4000, 4000, 4000):  # it counts a little wrong
            callback(n)

    hf_transfer.does = does
    failure, said = attempt(Fake(RIGHT), tmp_path / "f", "hf_transfer", token="s3cret")
    assert failure is None
    assert said == [4000, 8000, 10240]
    args, given = hf_transfer.seen[0]
    assert args == (f"https://hub.example/org/m/resolve/{COMMIT}/model.safetensors", str(tmp_path / "f"), 8, 8 * 2**20)
    assert given["headers"] == {"user-agent": "bringup", "authorization": "Bearer s3cret"}
    assert given["parallel_failures"] <= args[2]


def test_what_hf_transfer_says_is_told_without_secrets(tmp_path: Path, hf_transfer: SimpleNamespace) -> None:
    def does(*_: Any, **__: Any) -> None:
        raise Exception("error for url (https://cdn.example/x?X-Amz-Signature=abc&y=1) Bearer s3cret")

    hf_transfer.does = does
    failure, _ = attempt(Fake(RIGHT), tmp_path / "f", "hf_transfer", token="s3cret")
    assert failure.error.id == "transfer-incomplete"
    assert "error for url (https://cdn.example/x) Bearer <token>" in failure.error.message
    assert "s3cret" not in repr(failure.error.__dict__)


@pytest.mark.parametrize("by", ["http", "hf_transfer"])
def test_a_full_disk(tmp_path: Path, by: str, hf_transfer: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def does(*_: Any, **__: Any) -> None:
        raise Exception("Io: No space left on device (os error 28)")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    hf_transfer.does = does
    monkeypatch.setattr("os.write", full)
    failure, _ = attempt(Fake(RIGHT), tmp_path / "f", by)
    monkeypatch.undo()
    assert (failure.error.id, failure.again) == ("disk-full", False)


@pytest.mark.parametrize(
    ("text", "pause"),
    [("120", 120.0), ("", None), ("soon", None), ("-5", None), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0)],
)
def test_retry_after(text: str, pause: float | None) -> None:
    assert wanted_pause({"Retry-After": text}) == pause


def test_retry_after_a_date_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    assert wanted_pause({"Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT"}) == 30.0


def test_reasons_have_no_signatures() -> None:
    assert unsigned("see https://a.b/c?sig=1&x=2 and 'http://d/e?f'") == "see https://a.b/c and 'http://d/e'"
    inner = ValueError("https://a.b/c?sig=1")
    outer = RuntimeError("outer")
    outer.__cause__ = inner
    assert reason(outer) == "ValueError: https://a.b/c"
