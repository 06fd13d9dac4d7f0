"""The streaming probe: tokens come one after another, end with [DONE], and say what the plain answer said."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bringup.edge.http import Event
from bringup.plan import Expect
from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed, unknown
from bringup.records import Status
from bringup.server import Server

MIN_CHUNKS = 8  # fewer say nothing about the rhythm
SAME_TIME = 0.0005  # seconds; chunks closer than this arrived together
MIN_ARRIVALS = 4
MIN_SPREAD = 0.2  # of the whole time; a block that a proxy hands on piece by piece comes at the very end
TELLING = 3.0  # seconds; on a busy host tokens of a shorter stream can arrive together without anyone's fault
STARVED = 0.1  # of the whole time; a reader that waited longer for a CPU has seen its own host, not the server
BLOCKS = 3  # how many blocks make a server that sends blocks
# Tokens of further streams, asked for while none came as a stream; None is the same request once more.
AGAIN = (None, None, None, None, 400, 1500, 1500, 1500)


def streaming(server: Server) -> Finding:
    """Stream a long answer and compare it with the plain greedy one."""
    wanted = "chunks one after another, [DONE], and the plain answer's text"
    request = question(server.expect)
    streamed = stream(server, request)
    if fault := streamed.fault or openai.text_fault(streamed.text):
        return failed(wanted, fault)
    body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
    fault = fault or openai.completion_fault(body, "text_completion", server.expect.model)
    if fault:
        return failed(wanted, f"the plain answer to compare with: {fault}")
    if streamed.text != openai.text_of(body):
        found = f"streamed {streamed.text!r}, plain {openai.text_of(body)!r}"
        return failed(wanted, found) if repeats(server, request, body) else unknown(wanted, f"{found}, which varies")
    plain = body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]
    if streamed.usage != plain:
        return failed(wanted, f"the stream counts {streamed.usage} tokens, the same plain answer {plain}")
    return rhythm(server, request, judge(wanted, streamed.times, streamed.waited))


def repeats(server: Server, request: dict[str, Any], body: Any) -> bool:
    """Whether the plain answer is known, or the same when it is asked for again: then a stream must be the same too."""
    if server.expect.canaries:
        return True
    again, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
    fault = fault or openai.completion_fault(again, "text_completion", server.expect.model)
    return not fault and openai.text_of(again) == openai.text_of(body)


def question(expect: Expect) -> dict[str, Any]:
    """What is streamed: the request with the longest known answer, or the runbook's."""
    known = expect.canaries
    prompt = max(known, key=lambda c: len(c.answer)).prompt if known else openai.PROMPTS[1]
    return openai.greedy(expect.model, prompt)


def rhythm(server: Server, request: dict[str, Any], seen: Finding) -> Finding:
    """The judgement of a stream, or of further ones when that did not tell.

    On a busy host some streams are held back on their way (seen with vLLM on two cores: its engine spins, and who
    hands on the bytes waits for seconds), but not all; whoever sends blocks sends nothing else. So one stream that is
    one passes, and a block is called one when there were `BLOCKS`.
    """
    wanted = seen.expected
    blocks = int(seen.status is Status.FAIL)
    for tokens in AGAIN:
        if seen.status is Status.PASS or blocks == BLOCKS:
            break
        if tokens is not None:
            request = request | {"max_tokens": tokens, "ignore_eos": True}
        streamed = stream(server, request)
        if streamed.fault.startswith("HTTP 400"):  # more than its context holds
            break
        if streamed.fault:
            return failed(wanted, streamed.fault)
        seen = judge(wanted, streamed.times, streamed.waited)
        blocks += seen.status is Status.FAIL
    if seen.status is Status.FAIL and blocks < BLOCKS:
        return unknown(wanted, f"{seen.found}: {blocks} such blocks, too few to blame the server", **seen.data)
    return seen


@dataclass(frozen=True)
class Stream:
    """One stream as it was read; `fault`: what is wrong with it, and then nothing else is told.

    `times`: arrivals of its chunks of text, seconds since the request. `usage`: prompt tokens and tokens made.
    `waited`: seconds that our reader had no CPU.
    """

    fault: str
    text: str = ""
    times: tuple[float, ...] = ()
    usage: tuple[int, int] = (0, 0)
    id: str = ""
    waited: float = 0.0


def stream(server: Server, request: dict[str, Any], route: str = "/v1/completions") -> Stream:
    """Stream one request, a completion or a chat."""
    asked = request | {"stream": True, "stream_options": {"include_usage": True}}
    answer, events = server.http.events(route, asked, server.deadline)
    if answer.status != 200 or not answer.content_type.startswith("text/event-stream"):
        return Stream(f"HTTP {answer.status}, {answer.content_type or 'no content type'}: {answer.excerpt()}")
    return dataclasses.replace(read(events, server.expect.model, request["max_tokens"]), waited=answer.waited)


def read(events: list[Event], model: str | None, limit: int = openai.MAX_TOKENS) -> Stream:
    """Read a stream of at most `limit` tokens. Pure."""
    if not events or events[-1].data != "[DONE]":
        return Stream(f"the stream ended without [DONE] after {len(events)} events")
    parts: list[str] = []
    times: list[float] = []
    finish, ids = None, set()
    usage: Any = None
    for event in events[:-1]:
        try:
            chunk: Any = json.loads(event.data)
            ids.add(chunk["id"])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                finish = choice["finish_reason"] or finish
                text = _piece(choice)
                if text:
                    parts.append(text)
                    times.append(event.at)
            name = chunk["model"]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            return Stream(f"a chunk has not the API's shape ({e!r}): {event.data[:120]}")
        if model is not None and name != model:
            return Stream(f"a chunk is from the model {name!r}")
    if len(ids) != 1:
        return Stream(f"{len(ids)} different ids in one stream")
    if finish not in openai.FINISH:
        return Stream(f"finish_reason {finish!r}")
    if fault := openai.usage_fault(usage, str(finish), limit):
        return Stream(fault)
    prompt, made = usage["prompt_tokens"], usage["completion_tokens"]
    if made < len(parts):
        return Stream(f"usage {made} tokens in {len(parts)} chunks")
    return Stream("", "".join(parts), tuple(times), (prompt, made), ids.pop())


def _piece(choice: dict[str, Any]) -> str:
    """The text of a completion's chunk or of a chat's, whose first and last have none.

    Raises:
        TypeError: it is no text; KeyError: there is none.
    """
    text = openai.said(choice["delta"]) or "" if "delta" in choice else choice["text"]
    if not isinstance(text, str):
        raise TypeError("text")
    return text


def judge(wanted: str, times: Sequence[float], waited: float = 0.0) -> Finding:
    """Did the chunks come progressively? `times`: arrivals in seconds since the request. Pure."""
    gaps = [b - a for a, b in itertools.pairwise(times)]
    data = {"first": times[0] if times else None, "gaps": [round(g, 6) for g in gaps]}
    if len(times) < MIN_CHUNKS:
        return unknown(wanted, f"only {len(times)} chunks: too few to tell a stream from a block", **data)
    arrivals = groups(gaps)
    spread = times[-1] - times[0]
    if len(arrivals) >= MIN_ARRIVALS and max(arrivals) <= len(times) / 2 and spread >= MIN_SPREAD * times[-1]:
        middle = sorted(gaps)[len(gaps) // 2]
        found = f"{len(times)} chunks in {len(arrivals)} arrivals, first after {times[0]:.3f} s, "
        return passed(wanted, found + f"median gap {middle * 1000:.1f} ms", **data)
    found = f"{len(times)} chunks in {len(arrivals)} arrivals, within {spread:.3f} s after {times[0]:.3f} s"
    if waited > STARVED * times[-1]:
        return unknown(wanted, f"{found}: but our reader got no CPU for {waited:.3f} s of it", **data)
    if times[-1] < TELLING:
        return unknown(wanted, found + ": too soon over to tell a stream from a block", **data)
    return failed(wanted, found, **data)


def groups(gaps: list[float]) -> list[int]:
    """How many chunks arrived together, for each arrival; `gaps` in seconds between the chunks."""
    sizes = [1]
    for gap in gaps:
        if gap > SAME_TIME:
            sizes.append(1)
        else:
            sizes[-1] += 1
    return sizes
