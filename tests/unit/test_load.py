"""The full suite's probes: streams that are not their own, readers that left, and a server that has no time."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest

from bringup.edge.http import Answer, Event, NoAnswer
from bringup.probes import counters, load
from bringup.probes.load import Asked, mixed
from bringup.probes.streaming import Stream
from bringup.records import Status
from tests.unit.fakes import SSE, FakeHttp, answer, canaries, chat, completion, make_server, usage

KNOWN = canaries(*((f"q{i}", f" the known answer number {i} is a sentence of ten words") for i in range(8)))
TEXTS = {c.prompt: c.answer for c in KNOWN}


def good(one: Asked, number: int) -> Stream:
    return Stream("", f" {one.text or 'x'}", (0.1,), one.counts or (5, 3), f"id-{number}")


ASKED = [
    Asked(load.COMPLETIONS, {}, text="one text"),
    Asked(load.CHATS, {}, text="another text"),
    Asked(load.COMPLETIONS, {}, counts=(5, 40)),
]
RIGHT = [good(one, n) for n, one in enumerate(ASKED)]


def test_each_ones_own_is_not_mixed() -> None:
    assert mixed(ASKED, RIGHT, known=True) == mixed(ASKED, RIGHT, known=False) == ""


@pytest.mark.parametrize(
    ("number", "change", "known", "words"),
    [
        (0, {"fault": "HTTP 429"}, True, "stream 1: HTTP 429"),
        (1, {"text": "one text"}, True, "'one text', not 'another text'"),
        (1, {"text": "one text"}, False, "'one text', not 'another text'"),
        (1, {"text": "another texT"}, True, "not 'another text'"),
        (1, {"text": "another texT"}, False, ""),  # a batch can do that
        (2, {"usage": (5, 39)}, True, "counts (5, 39)"),
        (2, {"usage": (8, 40)}, False, "asked were (5, 40)"),
    ],
)
def test_what_is_not_ones_own_is(number: int, change: dict[str, Any], known: bool, words: str) -> None:
    streams = [dataclasses.replace(s, **change) if n == number else s for n, s in enumerate(RIGHT)]
    found = mixed(ASKED, streams, known=known)
    assert words in found
    assert bool(found) is bool(words)


class Streams(FakeHttp):
    """Answers each stream with its own text or lengths; `gap` seconds between chunks, the first after `first`."""

    def __init__(self, gap: float = 0.02, first: float = 0.1, one_id: str = "", template: bool = True) -> None:
        self.ids = itertools.count()
        self.gap, self.first, self.one_id = gap, first, one_id
        refused = answer({"error": "default chat template is no longer allowed"}, status=400)
        told = answer(chat(TEXTS["q0"]))
        super().__init__({load.COMPLETIONS: answer(completion(TEXTS["q0"])), load.CHATS: told if template else refused})

    def events(self, path: str, payload: Any, _timeout: float) -> tuple[Answer, list[Event]]:
        self.asked.append((path, payload))
        id_ = self.one_id or f"id-{next(self.ids)}"
        prompt = payload["messages"][0]["content"] if path == load.CHATS else payload["prompt"]
        counted = isinstance(prompt, list)
        words = ["x"] * payload["max_tokens"] if counted else TEXTS.get(prompt, TEXTS["q0"]).split()
        pieces = [f" {w}" for w in words]
        said: list[str] = []
        for number, piece in enumerate(pieces, 1):
            text = {"delta": {"content": piece}} if path == load.CHATS else {"text": piece}
            finish = None if number < len(pieces) else "length" if counted else "stop"
            said.append(
                json.dumps({"id": id_, "model": "m", "choices": [text | {"index": 0, "finish_reason": finish}]})
            )
        counts = json.loads(usage(len(pieces))) | {"id": id_}
        if counted:
            counts["usage"] |= {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + len(pieces)}
        times = [self.first + self.gap * n for n in range(len(said) + 2)]
        data = [*said, json.dumps(counts), "[DONE]"]
        return SSE, [Event(at, d) for at, d in zip(times, data, strict=True)]


@pytest.mark.parametrize("known", [True, False])
def test_a_soak_of_an_honest_server_passes(known: bool) -> None:
    http = Streams()
    found = load.soak(make_server(http, canaries=KNOWN if known else ()))
    assert (found.status, found.data["rounds"]) == (Status.PASS, load.ROUNDS), found
    routes = [path for path, payload in http.asked if payload.get("stream")]
    assert set(routes) == {load.COMPLETIONS, load.CHATS}
    assert len(routes) == load.ROUNDS * found.data["streams"]


def test_without_a_chat_template_there_are_no_chats() -> None:
    http = Streams(template=False)
    found = load.soak(make_server(http, canaries=KNOWN))
    assert (found.status, found.data["streams"]) == (Status.PASS, 2 * load.TEXTS)


@pytest.mark.parametrize(
    ("http", "status", "words"),
    [
        (Streams(one_id="same"), Status.FAIL, "1 different ids in 18 streams"),
        (Streams(gap=0.0, first=4.0), Status.FAIL, "each came in blocks"),
        (Streams(gap=0.0), Status.UNKNOWN, "only 0 of 72 seen token by token"),
    ],
    ids=["one id", "blocks", "short blocks"],
)
def test_a_soak_that_does_not_pass(http: Streams, status: Status, words: str) -> None:
    found = load.soak(make_server(http, canaries=KNOWN))
    assert (found.status, words in found.found) == (status, True), found


def test_a_server_that_has_time_for_one_round_only_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SHARE", 0.0)
    found = load.soak(make_server(Streams(), canaries=KNOWN))
    assert (found.status, found.data["rounds"]) == (Status.UNKNOWN, 1)


@pytest.mark.parametrize(
    ("running", "made", "seconds", "status"),
    [
        (0, 21, 0.1, Status.PASS), (0, 2160, 0.1, Status.PASS), (0, 2161, 0.1, Status.UNKNOWN),
        (0, 2400, 0.1, Status.FAIL), (0, 2400, 1.5, Status.UNKNOWN), (1, 21, 0.1, Status.FAIL),
        (0, 0, 0.1, Status.FAIL),
    ],
)  # fmt: skip
def test_what_was_dropped(running: float, made: float, seconds: float, status: Status) -> None:
    assert counters.dropped("x", running, made, 2400, seconds).status is status


class Leaving(FakeHttp):
    """A server that counts; `made` tokens for each stream that was left, `still` requests that go on."""

    def __init__(self, made: int = 4, still: int = 0, after: Answer | None = None, length: int = 2048) -> None:
        self.counts = dict.fromkeys(counters.NAMES, 0.0)
        self.made, self.still = made, still
        super().__init__({
            "/v1/models": answer({"data": [{"id": "m", "max_model_len": length}]}),
            "/v1/completions": after or answer(completion()),
            "/metrics": lambda *_: answer("".join(f"{k} {v}\n" for k, v in self.counts.items()).encode()),
        })  # fmt: skip

    def abandon(self, _path: str, _payload: Any, _timeout: float, events: int) -> tuple[int, float]:
        self.counts[counters.MADE] += self.made
        self.counts[counters.RUNNING] = self.still
        return events, 0.1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "PAUSE", 0.001)
    monkeypatch.setattr(counters, "LAG", 0.02)


@pytest.mark.parametrize(
    ("http", "status", "words"),
    [
        (Leaving(), Status.PASS, "dropped after 24 of 2400"),
        (Leaving(made=400), Status.FAIL, "all 2400 tokens"),
        (Leaving(still=1), Status.FAIL, "1 requests are still running"),
        (Leaving(after=answer({}, status=500)), Status.FAIL, "after them: HTTP 500"),
        (Leaving(length=300), Status.SKIP, "a context of 300 tokens"),
    ],
    ids=["dropped", "goes on", "still running", "sick", "short"],
)
def test_readers_that_leave_in_numbers(http: Leaving, status: Status, words: str) -> None:
    found = load.cancels(make_server(http, deadline=0.2))
    assert (found.status, words in found.found) == (status, True), found


def test_without_metrics_nobody_knows_what_was_dropped() -> None:
    http = Leaving()
    http.replies["/metrics"] = answer({}, status=404)
    assert load.cancels(make_server(http)).status is Status.SKIP
    http.replies["/metrics"] = NoAnswer("connection refused")
    with pytest.raises(NoAnswer):
        load.cancels(make_server(http))
