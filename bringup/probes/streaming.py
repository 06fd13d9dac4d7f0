"""The streaming probe: tokens come one after another, end with [DONE], and say what the plain answer said."""

from __future__ import annotations

import itertools
import json
from typing import Any

from bringup.edge.http import Event
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
    """Stream the longest known answer (or the runbook's prompt) and compare it with the plain greedy answer."""
    wanted = "chunks one after another, [DONE], and the plain answer's text"
    canaries = server.expect.canaries
    prompt = max(canaries, key=lambda c: len(c.answer)).prompt if canaries else openai.PROMPTS[1]
    request = openai.greedy(server.expect.model, prompt)
    fault, text, times, waited = stream(server, request)
    if fault:
        return failed(wanted, fault)
    fault = openai.text_fault(text)
    if fault:
        return failed(wanted, fault)
    body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
    fault = fault or openai.completion_fault(body, "text_completion", server.expect.model)
    if fault:
        return failed(wanted, f"the plain answer to compare with: {fault}")
    if text != openai.text_of(body):
        return failed(wanted, f"streamed {text!r}, plain {openai.text_of(body)!r}")
    return rhythm(server, request, judge(wanted, times, waited))


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
        fault, _, times, waited = stream(server, request)
        if fault.startswith("HTTP 400"):  # more than its context holds
            break
        if fault:
            return failed(wanted, fault)
        seen = judge(wanted, times, waited)
        blocks += seen.status is Status.FAIL
    if seen.status is Status.FAIL and blocks < BLOCKS:
        return unknown(wanted, f"{seen.found}: {blocks} such blocks, too few to blame the server", **seen.data)
    return seen


def stream(server: Server, request: dict[str, Any]) -> tuple[str, str, list[float], float]:
    """Stream one request; see `read`. Last comes how long our reader waited for a CPU (seconds)."""
    asked = request | {"stream": True, "stream_options": {"include_usage": True}}
    answer, events = server.http.events("/v1/completions", asked, server.deadline)
    if answer.status != 200 or not answer.content_type.startswith("text/event-stream"):
        return f"HTTP {answer.status}, {answer.content_type or 'no content type'}: {answer.excerpt()}", "", [], 0.0
    return (*read(events, server.expect.model), answer.waited)


def read(events: list[Event], model: str | None) -> tuple[str, str, list[float]]:
    """Read a completion stream: what is wrong with it (or ""), the joined text, arrival times of its text chunks."""
    if not events or events[-1].data != "[DONE]":
        return f"the stream ended without [DONE] after {len(events)} events", "", []
    parts: list[str] = []
    times: list[float] = []
    finish, made, ids = None, None, set()
    for event in events[:-1]:
        try:
            chunk: Any = json.loads(event.data)
            ids.add(chunk["id"])
            if chunk.get("usage"):
                made = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                finish = choice["finish_reason"] or finish
                if not isinstance(choice["text"], str):
                    raise TypeError("text")
                if choice["text"]:
                    parts.append(choice["text"])
                    times.append(event.at)
            name = chunk["model"]
        except (ValueError, KeyError, TypeError) as e:
            return f"a chunk has not the API's shape ({e!r}): {event.data[:120]}", "", []
        if model is not None and name != model:
            return f"a chunk is from the model {name!r}", "", []
    if len(ids) != 1:
        return f"{len(ids)} different ids in one stream", "", []
    if finish not in openai.FINISH or not isinstance(made, int) or made < len(parts):
        return f"finish_reason {finish!r}, usage {made!r} tokens in {len(parts)} chunks", "", []
    return "", "".join(parts), times


def judge(wanted: str, times: list[float], waited: float = 0.0) -> Finding:
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
