"""Does the server answer? What a look makes of what it sees, and what is told of it."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, cast

import pytest

from bringup.edge.http import Answer, Http, NoAnswer
from bringup.inside import gate, pulse, tell
from bringup.inside.pulse import DEADLINE, Asker, Pulse, Refused

LOG = logging.getLogger("test.pulse")
LOADING, OK, BAD = HTTPStatus.NO_CONTENT, HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE


class Server:
    """A vLLM that counts its tokens; `answers`: how it answers a completion, one after the other."""

    def __init__(self) -> None:
        self.made: float | None = 0
        self.answers: list[int | Exception] = []
        self.during = 0  # tokens for others while it is asked
        self.asked: list[Any] = []

    def get(self, path: str, timeout: float) -> Answer:
        assert (path, timeout) == ("/metrics", pulse.COUNTING)
        if self.made is None:
            raise NoAnswer("connection refused")
        other = 'vllm:generation_tokens_created{engine="0"} 1.7e9\nvllm:prompt_tokens_total{engine="0"} 9.0\n'
        text = f'{other}vllm:generation_tokens_total{{engine="0",model_name="m"}} {self.made}\n'
        return Answer(200, "text/plain", text.encode(), 0.0)

    def post(self, path: str, payload: Any, timeout: float) -> Answer:
        self.asked.append((path, payload, timeout))
        what = self.answers.pop(0)
        if self.made is not None:
            self.made += self.during
        if isinstance(what, Exception):
            raise what
        if self.made is not None and what == 200:
            self.made += 1
        return Answer(what, "application/json", b"{}", 0.0)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def asker(server: Server) -> Asker:
    return Asker(cast("Http", server), "m")


def test_an_idle_server_is_asked_for_one_token_each_time(server: Server, asker: Asker) -> None:
    server.answers = [200, 200, 200]
    assert [asker.fault() for _ in range(3)] == ["", "", ""]
    request = {"model": "m", "prompt": "1", "max_tokens": 1, "temperature": 0}
    assert server.asked == [("/v1/completions", request, DEADLINE)] * 3


def test_a_busy_server_is_not_asked(server: Server, asker: Asker) -> None:
    server.answers = [200]
    assert asker.fault() == ""
    for _ in range(3):
        server.made = (server.made or 0) + 5
        assert asker.fault() == ""
    assert len(server.asked) == 1


def test_a_long_queue_is_no_hang(server: Server, asker: Asker) -> None:
    server.answers, server.during = [NoAnswer("late")], 3
    assert asker.fault() == ""


def test_a_hang_is_no_token_for_anybody(server: Server, asker: Asker) -> None:
    """Though the counters answer, as they do while the engine hangs."""
    server.made, server.answers = 100, [200, NoAnswer("connected, but no answer within 20 s"), 500]
    assert asker.fault() == ""
    assert asker.fault() == "connected, but no answer within 20 s"
    assert asker.fault() == "HTTP 500"


def test_without_counters_every_look_asks(server: Server, asker: Asker) -> None:
    server.made, server.answers = None, [200, 200, NoAnswer("refused")]
    assert [asker.fault() for _ in range(3)] == ["", "", "refused"]


def test_what_will_never_be_answered(server: Server, asker: Asker) -> None:
    server.answers = [404]
    with pytest.raises(Refused, match="404"):
        asker.fault()


class Faults:
    """An asker that finds what it is told to find."""

    def __init__(self, *faults: str | Exception) -> None:
        self.faults = list(faults)

    def fault(self) -> str:
        fault = self.faults.pop(0)
        if isinstance(fault, Exception):
            raise fault
        return fault


def seen(*faults: str | Exception) -> tuple[Pulse, list[HTTPStatus]]:
    made, states = Pulse(LOG), []
    asker = cast("Asker", Faults(*faults))
    for _ in faults:
        made.look(asker)
        states.append(made.status)
    return made, states


def test_it_loads_until_it_has_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _, states = seen("refused", "late", "", "", "late", "late", "")
    assert states == [LOADING, LOADING, OK, OK, BAD, BAD, OK]
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "health: 200 from now on: the server answers"),
        ("ERROR", "health: 503 from now on: late"),
        ("INFO", "health: 200 from now on: the server answers"),
    ]


def test_a_server_that_refuses_is_not_loading() -> None:
    assert seen("refused", Refused("HTTP 404"))[1] == [LOADING, BAD]


def test_what_is_over_stays_over() -> None:
    made, _ = seen("")
    made.over()
    made.look(cast("Asker", Faults("")))
    assert made.status is BAD


def test_looks_are_rare_once_it_has_answered() -> None:
    made, pauses = Pulse(LOG), list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            made.over()

    made._watch(cast("Asker", Faults("refused", "", "late", "")), pause)
    assert pauses == [pulse.WHILE_LOADING, pulse.EVERY, pulse.EVERY, pulse.EVERY]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /alive HTTP/1.1", 200), (b"HEAD /alive HTTP/1.0", 200), (b"POST /alive HTTP/1.1", 404),
        (b"GET /alive/ HTTP/1.1", 404), (b"GET /alive?x=1 HTTP/1.1", 404), (b"GET / HTTP/1.1", 404), (b"", 404),
        (b"GET", 404), (b"\xff\x00", 404),
    ],
)  # fmt: skip
def test_one_path_and_two_methods(line: bytes, status: int) -> None:
    answer = tell.reply(line + b"\r\nHost: x\r\n\r\n", "/alive", OK).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "server" not in answer.lower()
    assert "\r\nContent-Length: 0\r\n" in answer
    assert answer.endswith("\r\n\r\n")


def test_no_content_has_no_length() -> None:
    answer = tell.reply(b"GET /ping HTTP/1.1\r\n\r\n", "/ping", LOADING)
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"Content-Length" not in answer


def test_the_server_is_the_one_that_was_started() -> None:
    argv = ("python", "--served-model-name", "m", "--port", "8000", "--port", "9000")
    http = pulse.asker(argv, {"VLLM_API_KEY": "k", gate.ASKER: "ours"})._http
    assert (http.base_url, http.has_key, http._fixed) == ("http://127.0.0.1:9000", True, {"X-Request-Id": "ours"})
