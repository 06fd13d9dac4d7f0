"""Probes of the full suite: many streams at once, round after round, and readers that leave in numbers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bringup.probes import openai
from bringup.probes.counters import MADE, RUNNING, Missing, absent, dropped, idle, leave, settle
from bringup.probes.finding import Finding, failed, passed, skipped, unknown
from bringup.probes.limits import TOKEN, context_length
from bringup.probes.streaming import Stream, judge, stream
from bringup.records import Status
from bringup.server import Server

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
TEXTS = 6  # streams of text by each route; as many again have lengths of their own
ROUNDS, LEAST = 4, 2  # a slow server may have no time for more than the least
SHARE = 0.5  # of the deadline, after which no further round begins
PROGRESSIVE = 0.25  # of the streams; a busy reader does not see it of all (probes/streaming.py)
LEAVERS = 6
LEFT_TOKENS = 400  # of each abandoned request
TEXT_TOKENS = 64


@dataclass(frozen=True)
class Asked:
    """One stream to ask for, and how its answer is known: by its text, or by its counts of tokens."""

    route: str
    request: dict[str, Any]
    text: str | None = None
    counts: tuple[int, int] | None = None


def soak(server: Server) -> Finding:
    """Rounds of streams at once, completions, chats and counted ones: none cut, none mixed up, each one's own."""
    wanted = f"{LEAST} to {ROUNDS} rounds of streams at once, each with its own answer"
    until = time.monotonic() + SHARE * server.deadline
    asked, fault = _asked(server)
    if fault:
        return failed(wanted, fault)
    known = bool(server.expect.canaries)
    ids: set[str] = set()
    rounds, seen, slowest = 0, [], 0.0
    while rounds < ROUNDS and (not rounds or time.monotonic() < until):
        began = time.monotonic()
        streams = _at_once(server, asked)
        slowest = max(slowest, time.monotonic() - began)
        if fault := mixed(asked, streams, known=known):
            return failed(wanted, f"round {rounds + 1}: {fault}")
        ids |= {s.id for s in streams}
        if len(ids) < (rounds + 1) * len(asked):
            return failed(
                wanted, f"round {rounds + 1}: {len(ids)} different ids in {(rounds + 1) * len(asked)} streams"
            )
        seen += [judge(wanted, s.times, s.waited).status for s in streams]
        rounds += 1
    found = f"{rounds} rounds of {len(asked)} streams, the slowest round {slowest:.2f} s"
    data = {"rounds": rounds, "streams": len(asked), "slowest": slowest, "progressive": seen.count(Status.PASS)}
    if rounds < LEAST:
        return unknown(wanted, f"{found}: no time for more within --request-timeout", **data)
    if set(seen) == {Status.FAIL}:
        return failed(wanted, f"{found}: each came in blocks", **data)
    if data["progressive"] < PROGRESSIVE * len(seen):
        return unknown(wanted, f"{found}: only {data['progressive']} of {len(seen)} seen token by token", **data)
    return passed(wanted, f"{found}, {data['progressive']} of {len(seen)} seen token by token", **data)


def _asked(server: Server) -> tuple[list[Asked], str]:
    """What to stream, or why that cannot be known; texts that nobody knows are first asked for alone."""
    model, asked = server.expect.model, []
    known = {c.prompt: c.answer for c in server.expect.canaries[:TEXTS]}
    for route, make in ((COMPLETIONS, openai.greedy), (CHATS, openai.chat)):
        for prompt in known or openai.PROMPTS:
            request = make(model, prompt) | ({} if known else {"max_tokens": TEXT_TOKENS})
            if prompt not in known or route == CHATS:
                plain = server.http.post(route, request, server.deadline)
                if openai.no_template(plain):
                    break
                body, fault = openai.decode(plain)
                if fault:
                    return [], f"{prompt!r}: {fault}"
            text = known.get(prompt) or openai.text_of(body) or ""
            asked.append(Asked(route, request, text=text.strip()))
    for i in range(TEXTS):
        prompt_tokens, made = 5 + 3 * i, 40 + 7 * i
        request = openai.greedy(model, "") | {"prompt": [TOKEN + i] * prompt_tokens}
        asked.append(
            Asked(COMPLETIONS, request | {"max_tokens": made, "ignore_eos": True}, counts=(prompt_tokens, made))
        )
    return asked, ""


def _at_once(server: Server, asked: Sequence[Asked]) -> list[Stream]:
    until = time.monotonic() + server.deadline

    def ask(one: Asked) -> Stream:
        left = dataclasses.replace(server, deadline=max(0.1, until - time.monotonic()))
        return stream(left, one.request, one.route)

    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(ask, asked))


def mixed(asked: Sequence[Asked], streams: Sequence[Stream], *, known: bool) -> str:
    """Which stream is not the answer to its request; empty when each is. Pure.

    Texts that are `known` must be the same to the letter. Others may differ from what was said alone, which a batch can
    do, but not by being what was said to another.
    """
    alone = {a.text for a in asked if a.text}
    for number, (one, got) in enumerate(zip(asked, streams, strict=True), 1):
        text = got.text.strip()
        if got.fault:
            return f"stream {number}: {got.fault}"
        if one.counts is not None and got.usage != one.counts:
            return f"stream {number} counts {got.usage} tokens, asked were {one.counts}"
        if one.text is not None and text != one.text and (known or text in alone):
            return f"stream {number} is {text!r}, not {one.text!r}"
    return ""


def cancels(server: Server) -> Finding:
    """Several streams at once are left after different numbers of events; nothing of them is left running."""
    length, _ = context_length(server)
    wanted = f"{LEAVERS} requests of {LEFT_TOKENS} tokens, left by their readers, are dropped, and the next is answered"
    if length is not None and length < 2 * LEFT_TOKENS:
        return skipped(wanted, f"a context of {length} tokens is full before anyone hangs up")
    try:
        before = settle(server)
        if before[RUNNING]:
            return unknown(wanted, f"{before[RUNNING]:g} other requests are running")
        with ThreadPoolExecutor(LEAVERS) as pool:
            left = list(pool.map(lambda i: leave(server, LEFT_TOKENS, 1 + i), range(LEAVERS)))
        if short := [f"{events} of {1 + i}" for i, (events, _) in enumerate(left) if events < 1 + i]:
            return failed(wanted, f"a stream ended after {short[0]} events")
        now = idle(server, before)
    except Missing as e:
        return absent(server, wanted, e)
    found = dropped(wanted, now[RUNNING], now[MADE] - before[MADE], LEAVERS * LEFT_TOKENS, max(s for _, s in left))
    request = openai.greedy(server.expect.model, openai.PROMPTS[0])
    body, fault = openai.decode(server.http.post(COMPLETIONS, request, server.deadline))
    fault = fault or openai.completion_fault(body, "text_completion", server.expect.model)
    if fault:
        return failed(wanted, f"after them: {fault}")
    return found
