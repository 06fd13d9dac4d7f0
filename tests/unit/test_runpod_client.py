"""The client: each documented answer has its line and exit code; what may be repeated is, and a create is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from bringup.edge.runpod import LOOKS, ApiError, RunPod
from bringup.errors import Exit, UsageError

KEY = "rpa_0123456789abcdef"
Said = tuple[int, Any, dict[str, str]] | Exception


class Reply:
    """What requests would give."""

    def __init__(self, status: int, body: Any, headers: dict[str, str]) -> None:
        self.status_code, self.headers = status, headers
        self.data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def iter_content(self, _size: None) -> Iterator[bytes]:
        yield self.data

    def iter_lines(self) -> Iterator[bytes]:
        yield from self.data.splitlines()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Line:
    """The network: gives what it was told, in turn; the last for ever. Keeps what was asked and how long was slept."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.slept: list[float] = []

    def request(self, method: str, url: str, **given: Any) -> Reply:
        sent = given["auth"](requests.Request(method, url).prepare())
        assert sent.headers["Authorization"] == f"Bearer {KEY}"
        assert KEY not in url + json.dumps(given["json"])
        assert given["allow_redirects"] is False
        self.asked.append((method, url.removeprefix("https://api.runpod.io"), given["json"]))
        now = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(now, Exception):
            raise now
        return Reply(*now)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    made = Line()
    monkeypatch.setattr(requests, "request", made.request)
    return made


def client(line: Line, patience: float = 1e6) -> RunPod:
    return RunPod(KEY, patience=patience, sleep=line.slept.append)


def problem(status: int, detail: str = "no", **headers: str) -> Said:
    return status, {"title": "T", "status": status, "detail": detail}, headers


@pytest.mark.parametrize(
    ("status", "exit_code", "needle", "hint"),
    [
        (400, Exit.TARGET_UNAVAILABLE, "no capacity; the API does not say which", "--gpu-type"),
        (401, Exit.USAGE, "not known", "RUNPOD_API_KEY"),
        (402, Exit.TARGET_UNAVAILABLE, "credit", "add credit"),
        (403, Exit.USAGE, "may not", "permission"),
        (404, Exit.TARGET_UNAVAILABLE, "no such thing", "runpod ls"),
        (409, Exit.TARGET_UNAVAILABLE, "status does not allow", "again"),
        (422, Exit.USAGE, "does not take", "--dry-run"),
        (429, Exit.TARGET_UNAVAILABLE, "too many", "wait"),
        (500, Exit.TARGET_UNAVAILABLE, "in trouble", "status page"),
        (503, Exit.TARGET_UNAVAILABLE, "in trouble", "status page"),
        (301, Exit.TARGET_UNAVAILABLE, "in trouble", "status page"),
    ],
)
def test_each_documented_answer_has_one_line(line: Line, status: int, exit_code: Exit, needle: str, hint: str) -> None:
    line.said = [problem(status, f"because of {KEY}")]
    with pytest.raises(ApiError) as e:
        client(line, 0).pods()
    assert (e.value.exit_code, e.value.status, e.value.id) == (exit_code, status, f"runpod-{status}")
    assert needle in e.value.message
    assert hint in e.value.hint
    assert "\n" not in e.value.message
    assert "because of" in e.value.message
    assert KEY not in e.value.message


@pytest.mark.parametrize(
    "said",
    [
        requests.ConnectionError(f"no route, header Bearer {KEY}"),
        requests.ReadTimeout("late"),
        (200, b"<html>", {}),
        (200, [], {}),
        (200, {"pods": "many"}, {}),
        (200, {"pods": ["x"]}, {}),
    ],
)
def test_no_usable_answer(line: Line, said: Said) -> None:
    line.said = [said]
    with pytest.raises(ApiError, match="no usable answer") as e:
        client(line, 0).pods()
    assert (e.value.exit_code, e.value.status, e.value.settled) == (Exit.TARGET_UNAVAILABLE, None, False)
    assert KEY not in e.value.message


def test_validation_errors_are_told(line: Line) -> None:
    line.said = [(422, {"detail": "failed", "errors": ["$.disk: too small"]}, {})]
    with pytest.raises(ApiError, match=r"failed; \$.disk: too small"):
        client(line).create_template({"name": "t"})


def test_what_may_be_repeated_is_until_it_works(line: Line) -> None:
    line.said = [
        problem(503),
        problem(429, **{"Retry-After": "7"}),
        requests.ConnectionError("x"),
        (200, {"pods": []}, {}),
    ]
    assert client(line).pods() == []
    assert line.slept == [0.5, 7.0, 2.0]


def test_no_retry_after_is_obeyed_for_long(line: Line) -> None:
    line.said = [problem(429, **{"Retry-After": "86400"}), (200, {"pods": []}, {})]
    client(line).pods()
    assert line.slept == [30.0]


def test_a_refusal_is_not_repeated(line: Line) -> None:
    line.said = [problem(401)]
    with pytest.raises(ApiError):
        client(line).pods()
    assert len(line.asked) == 1


def test_a_pod_that_is_gone_is_deleted(line: Line) -> None:
    line.said = [problem(404)]
    client(line).delete_pod("p/1")
    assert line.asked == [("DELETE", "/v2/pods/p%2F1", None)]


BODY = {"name": "bringup-x"}
MADE: Said = (201, {"id": "p1", "name": "bringup-x"}, {})
LISTED: Said = (200, {"pods": [{"id": "p1", "name": "bringup-x", "status": "STARTING"}]}, {})
NONE: Said = (200, {"pods": [{"id": "p0", "name": "bringup-x", "status": "TERMINATED"}, {"id": "q", "name": "y"}]}, {})


@pytest.mark.parametrize(
    "first", [requests.ReadTimeout("late"), problem(502), (200, b"<html>", {}), (201, {"name": "bringup-x"}, {})]
)
def test_a_create_without_a_clear_answer_is_looked_for_and_not_sent_again(line: Line, first: Said) -> None:
    line.said = [first, NONE, LISTED]
    assert client(line).create_pod(BODY)["id"] == "p1"
    assert [m for m, _, _ in line.asked] == ["POST", "GET", "GET"]
    assert line.slept == list(LOOKS[:2])


def test_one_that_cannot_be_found_is_told_as_not_settled(line: Line) -> None:
    line.said = [requests.ReadTimeout("late"), NONE]
    with pytest.raises(ApiError) as e:
        client(line).create_pod(BODY)
    assert not e.value.settled
    assert [m for m, _, _ in line.asked] == ["POST", "GET", "GET", "GET"]


def test_pauses_end_with_the_patience(line: Line) -> None:
    assert client(line, 1.6).patient((0.5, 1.0, 2.0)) == (0.5, 1.0)
    assert client(line, 0.0).patient((0.5, 1.0, 2.0)) == (0.5,)


def test_too_many_requests_is_a_refusal_and_the_name_is_looked_for_before_the_next(line: Line) -> None:
    line.said = [problem(429, **{"Retry-After": "3"}), NONE, MADE]
    assert client(line).create_pod(BODY)["id"] == "p1"
    assert [m for m, _, _ in line.asked] == ["POST", "GET", "POST"]
    assert line.slept == [3.0]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_a_refused_create_is_settled(line: Line, status: int) -> None:
    line.said = [problem(status)]
    with pytest.raises(ApiError) as e:
        client(line).create_pod(BODY)
    assert e.value.settled
    assert len(line.asked) == 1


def test_the_key_goes_over_https_or_loopback_only() -> None:
    with pytest.raises(UsageError, match="https"):
        RunPod(KEY, "http://api.runpod.io")
    RunPod(KEY, "http://127.0.0.1:1")


def test_the_key_is_in_no_repr(line: Line) -> None:
    assert KEY not in repr(client(line))


def test_logs_are_the_lines_of_the_events(line: Line) -> None:
    events = b'id: 1\ndata: {"ts":"t","source":"container","line":"one"}\n\ndata: rubbish\n\ndata: {"line": "two"}\n\n'
    line.said = [(200, events, {})]
    assert client(line).logs("p", 20, 5.0) == [("t", "one"), ("-", "two")]
    line.said = [(404, b"", {})]
    assert client(line).logs("p", 20, 5.0) == []
    line.said = [requests.ReadTimeout("late")]
    assert client(line).logs("p", 20, 5.0) == []


CALLS: list[tuple[Callable[[RunPod], Any], str, str]] = [
    (lambda c: c.pod("p"), "GET", "/v2/pods/p"),
    (lambda c: c.stop_pod("p"), "POST", "/v2/pods/p/action"),
    (lambda c: c.template("t"), "GET", "/v2/templates/t"),
    (lambda c: c.update_template("t", {"name": "n"}), "PATCH", "/v2/templates/t"),
    (lambda c: c.delete_template("t"), "DELETE", "/v2/templates/t"),
]


@pytest.mark.parametrize(("call", "method", "path"), CALLS)
def test_where_each_call_goes(line: Line, call: Callable[[RunPod], Any], method: str, path: str) -> None:
    line.said = [(200, {"id": "x"}, {})]
    call(client(line))
    assert [(m, p) for m, p, _ in line.asked] == [(method, path)]


def test_the_price_list_is_by_id(line: Line) -> None:
    line.said = [(200, {"gpus": [{"id": "NVIDIA L4", "memory": 24}]}, {})]
    assert client(line).gpus() == {"NVIDIA L4": {"id": "NVIDIA L4", "memory": 24}}
