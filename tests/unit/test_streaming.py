"""The judge of streams: one that comes token by token passes, blocks and broken ones do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bringup.edge.http import Answer, Event
from bringup.probes import streaming
from bringup.probes.finding import Finding
from bringup.records import Status
from tests.unit.fakes import TEXT, USAGE, FakeHttp, answer, canaries, chunk, completion, make_server, stream_of, usage

GOOD = [chunk("a"), chunk("b"), chunk("c", "stop"), USAGE, "[DONE]"]


def events(*data: str) -> list[Event]:
    return [Event(float(i), d) for i, d in enumerate(data)]


def test_a_good_stream_is_read() -> None:
    read = streaming.read(events(*GOOD), "m")
    assert read == streaming.Stream("", "abc", (0.0, 1.0, 2.0), (5, 3), "c")
    assert streaming.read(events(*GOOD), None).fault == ""


def test_a_chat_is_read_too() -> None:
    def piece(delta: Any, finish: str | None = None) -> str:
        return json.dumps({"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    thoughts = [piece({"reasoning": "hm"}), piece({"content": None}, "stop"), USAGE, "[DONE]"]
    assert streaming.read(events(*thoughts), "m").text == "hm"
    chat = [piece({"role": "assistant", "content": ""}), piece({"content": "a"}), piece({}, "stop"), USAGE, "[DONE]"]
    assert streaming.read(events(*chat), "m") == streaming.Stream("", "a", (1.0,), (5, 3), "c")
    assert "shape" in streaming.read(events(piece({"content": 5}), *chat), "m").fault
    assert "shape" in streaming.read(events(piece(None), *chat), "m").fault


def test_chunks_without_text_have_no_time() -> None:
    assert streaming.read(events(chunk(""), *GOOD), "m").times == (1.0, 2.0, 3.0)


STREAMS: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "without [DONE] after 0"),
    "no [DONE]": (GOOD[:-1], "without [DONE] after 4"),
    "something after [DONE]": ([*GOOD, chunk("d")], "without [DONE]"),
    "two [DONE]": ([*GOOD, "[DONE]"], "shape"),
    "only [DONE]": (["[DONE]"], "0 different ids"),
    "no JSON": (["x", *GOOD], "shape"),
    "a list": (["[1]", *GOOD], "shape"),
    "an error": ([*GOOD[:2], '{"error": {"message": "x"}}', "[DONE]"], "shape"),
    "null choices": ([json.dumps({"id": "c", "model": "m", "choices": None}), *GOOD], "shape"),
    "a number as text": ([chunk(5), *GOOD], "shape"),
    "null as text": ([chunk(None), *GOOD], "shape"),
    "an id that is a list": ([chunk("x", id_=[]), *GOOD], "shape"),  # type: ignore[arg-type]
    "two ids": ([chunk("x", id_="d"), *GOOD], "2 different ids"),
    "another model": ([chunk("x", model="n"), *GOOD], "from the model 'n'"),
    "unfinished": ([chunk("a"), USAGE, "[DONE]"], "finish_reason None"),
    "aborted": ([chunk("a", "abort"), USAGE, "[DONE]"], "finish_reason 'abort'"),
    "no usage": ([*GOOD[:3], "[DONE]"], "no usage"),
    "more tokens than were asked for": ([*GOOD[:3], usage(97), "[DONE]"], "impossible"),
    "a sum that is wrong": ([*GOOD[:3], USAGE.replace("8", "9"), "[DONE]"], "does not add up"),
    "fewer tokens than chunks": ([chunk("x"), *GOOD], "usage 3 tokens in 4 chunks"),
    "usage without a count": ([*GOOD[:3], USAGE.replace("completion_tokens", "x"), "[DONE]"], "three whole numbers"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_each_defect_of_a_stream_is_found(name: str) -> None:
    data, words = STREAMS[name]
    read = streaming.read(events(*data), "m")
    assert words in read.fault
    assert (read.text, read.times) == ("", ())


def times(count: int, gap: float, first: float = 0.1) -> list[float]:
    return [first + gap * i for i in range(count)]


JUDGED: dict[str, tuple[list[float], Status]] = {
    "one after another": (times(50, 0.02), Status.PASS),
    "as few as tell": (times(streaming.MIN_CHUNKS, 0.02), Status.PASS),
    "in pairs": ([t for t in times(20, 0.02) for _ in range(2)], Status.PASS),
    "very fast": (times(96, 0.001, 0.02), Status.PASS),
    "nothing": ([], Status.UNKNOWN),
    "one too few": (times(streaming.MIN_CHUNKS - 1, 0.02), Status.UNKNOWN),
    "at once, soon": ([0.1] * 50, Status.UNKNOWN),
    "at once, late": ([3.5] * 50, Status.FAIL),
    "at once, just too soon": ([streaming.TELLING - 0.001] * 50, Status.UNKNOWN),
    "at once, just late": ([streaming.TELLING] * 50, Status.FAIL),
    "a block handed on in pieces": (times(50, 0.001, 5.0), Status.FAIL),
    "a block handed on in pieces, soon": (times(50, 0.001, 1.0), Status.UNKNOWN),
    "one early chunk, then a block": ([0.1, *[4.0] * 49], Status.FAIL),
    "a few early chunks, then a block": ([0.1, 0.2, 0.3, 0.4, *[4.0] * 46], Status.FAIL),
    "just closer than one moment": (times(50, 0.9 * streaming.SAME_TIME, 0.0001), Status.UNKNOWN),
}


@pytest.mark.parametrize("name", JUDGED)
def test_the_rhythm_of_a_stream(name: str) -> None:
    arrivals, status = JUDGED[name]
    found = streaming.judge("x", arrivals)
    assert found.status is status, found.found
    assert len(found.data["gaps"]) == max(0, len(arrivals) - 1), "the gaps are recorded"


def test_how_many_arrived_together() -> None:
    assert streaming.groups([]) == [1]
    assert streaming.groups([0.0, 0.1, 0.0, 0.0]) == [2, 3]


def ask_streaming(*streams: tuple[Answer, list[Event]], plain: Any = None) -> tuple[Finding, FakeHttp]:
    http = FakeHttp({"/v1/completions": answer(plain or completion())}, list(streams))
    return streaming.streaming(make_server(http)), http


def test_a_stream_that_says_what_the_plain_answer_says_passes() -> None:
    found, http = ask_streaming(stream_of(TEXT, 0.02))
    assert found.status is Status.PASS, found.found
    assert http.asked[0][1]["stream"] is True
    assert http.asked[0][1]["temperature"] == 0


@pytest.mark.parametrize(
    ("stream", "plain", "words"),
    [
        (stream_of(TEXT + " More.", 0.02), None, "streamed"),
        (stream_of("! " * 20, 0.02), None, "no letter"),
        (stream_of(TEXT, 0.02), completion(made=13), "the stream counts (5, 12) tokens, the same plain answer (5, 13)"),
        (stream_of(TEXT, 0.02), completion(model="n"), "the plain answer to compare with"),
        ((answer({"error": "x"}, status=400), []), None, "HTTP 400"),
        ((answer(completion()), []), None, "application/json"),
    ],
)
def test_streams_that_fail(stream: tuple[Answer, list[Event]], plain: Any, words: str) -> None:
    found, _ = ask_streaming(stream, plain=plain)
    assert found.status is Status.FAIL
    assert words in found.found


def test_a_server_whose_plain_answers_vary_is_not_blamed_for_a_stream_that_does() -> None:
    plain = iter([completion(), completion(TEXT + " Or not.")])
    http = FakeHttp({"/v1/completions": lambda *_: answer(next(plain))}, [stream_of(TEXT + " More.", 0.02)])
    found = streaming.streaming(make_server(http))
    assert (found.status, "which varies" in found.found) == (Status.UNKNOWN, True)
    known = make_server(FakeHttp({"/v1/completions": answer(completion())}, [stream_of(TEXT + " More.", 0.02)]),
                        canaries=canaries(("q", TEXT)))  # fmt: skip
    assert streaming.streaming(known).status is Status.FAIL


def test_too_soon_over_asks_for_longer_streams_and_takes_their_rhythm() -> None:
    burst, stream = stream_of(TEXT, 0.0), stream_of(TEXT, 0.02)
    for bursts in range(1, 9):
        found, http = ask_streaming(*[burst] * bursts, stream)
        assert found.status is Status.PASS
        tokens = [p["max_tokens"] for _, p in http.asked if "stream" in p]
        assert tokens == [96, 96, 96, 96, 96, 400, 1500, 1500, 1500][: bursts + 1]
    assert ask_streaming(*[burst] * 9)[0].status is Status.UNKNOWN


def test_a_block_is_called_one_when_it_comes_again() -> None:
    block, stream = stream_of(TEXT, 0.0, 4.0), stream_of(TEXT, 0.02)
    found, http = ask_streaming(block, block, block)
    assert found.status is Status.FAIL
    first, second, third = (p for _, p in http.asked if "stream" in p)
    assert first == second == third
    assert ask_streaming(block, block, stream)[0].status is Status.PASS
    burst = stream_of(TEXT, 0.0)
    assert ask_streaming(burst, block, burst, block, burst, block)[0].status is Status.FAIL
    # Two are too few to blame the server, and too many to pass.
    assert ask_streaming(*[burst] * 7, block, block)[0].status is Status.UNKNOWN


def test_a_reader_without_a_cpu_blames_nobody() -> None:
    block = [4.0] * 50
    assert streaming.judge("x", block, 0.4).status is Status.FAIL
    starved = streaming.judge("x", block, 0.41)
    assert starved.status is Status.UNKNOWN
    assert "no CPU for 0.410 s" in starved.found
    # What did come as a stream is one, however long the reader had to wait.
    assert streaming.judge("x", [n / 10 for n in range(1, 50)], 3.0).status is Status.PASS


def test_a_context_too_short_for_longer_streams_is_not_the_servers_fault() -> None:
    found, _ = ask_streaming(*[stream_of(TEXT, 0.0)] * 5, (answer({"error": "too long"}, status=400), []))
    assert found.status is Status.UNKNOWN
