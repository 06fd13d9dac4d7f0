"""Probes of the server's own counters: they move by what was sent, and a reader that hangs up stops its request.

Names after vLLM's metrics: `vllm:num_requests_running`, `vllm:request_success_total`, `vllm:prompt_tokens_total`,
`vllm:generation_tokens_total`; the text is Prometheus' exposition format, one sample a line.
"""

from __future__ import annotations

import re
import time
from typing import Any

from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed, skipped, unknown
from bringup.probes.limits import context_length
from bringup.records import Status
from bringup.server import Server

RUNNING = "vllm:num_requests_running"
DONE = "vllm:request_success_total"
PROMPT = "vllm:prompt_tokens_total"
MADE = "vllm:generation_tokens_total"
NAMES = (RUNNING, DONE, PROMPT, MADE)
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{.*\})? ([^ ]+)(?: [0-9]+)?")
LAG = 3.0  # seconds; counters are written after the answer was sent
PAUSE = 0.05
SENT, TOKENS = 3, 5  # requests that must be counted, and tokens of each
TRIES = 3
LONG = 1500  # tokens of the request that is abandoned, or half the context
SHORT = 200  # fewer are over before a reader that hangs up is noticed
LEFT_AFTER = 3  # events
LATE = 1.0  # seconds
ENDING = 0.9  # of the tokens; what stopped later was hardly stopped
SHARE = 0.5  # of the probe's deadline, for waiting until nothing runs


class Missing(Exception):
    """There are no such counters; `there` is false where the route itself is missing."""

    def __init__(self, why: str, *, there: bool) -> None:
        super().__init__(why)
        self.there = there


def read(server: Server) -> dict[str, float]:
    """The four counters, each summed over its labels.

    Raises:
        Missing: the route or one of them is not there.
    """
    answer = server.http.get("/metrics", server.deadline)
    if answer.status != 200:
        raise Missing(f"GET /metrics: HTTP {answer.status}", there=answer.status not in (401, 403, 404))
    lines = answer.body.decode("utf-8", "replace").splitlines()
    sums = parse("\n".join(line for line in lines if line.lstrip().startswith(NAMES)))  # 4 of some 600 samples
    if lacking := [name for name in NAMES if name not in sums]:
        raise Missing(f"/metrics has no {', '.join(lacking)}", there=True)
    return {name: sums[name] for name in NAMES}


def parse(text: str) -> dict[str, float]:
    """Sums of the samples by name; lines that are none are passed over. Pure."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else SAMPLE.fullmatch(line.strip())
        if match:
            try:
                sums[match[1]] = sums.get(match[1], 0.0) + float(match[2])
            except ValueError:
                continue
    return sums


def absent(server: Server, wanted: str, e: Missing) -> Finding:
    """What it means that there are no such counters."""
    # Behind a proxy this route is often closed, and then it is no part of what was offered.
    return skipped(wanted, str(e)) if server.container is None and not e.there else unknown(wanted, str(e))


def settle(server: Server) -> dict[str, float]:
    """The counters once they have stopped moving, or after `LAG`: what was answered a moment ago is counted late."""
    until = time.monotonic() + LAG
    last, now = read(server), None
    while (last != now or last[RUNNING]) and time.monotonic() < until:
        time.sleep(PAUSE)
        last, now = now or last, read(server)
    return now or last


def metrics(server: Server) -> Finding:
    """Requests move the counters by as many, and by their tokens. Who else asks moves them too: then it is repeated."""
    wanted = f"counters moved by {SENT} requests and {SENT * TOKENS} tokens"
    try:
        for _ in range(TRIES):
            found = _moved(server, wanted)
            if found.status is not Status.UNKNOWN:
                break
    except Missing as e:
        return absent(server, wanted, e)
    return found


def _moved(server: Server, wanted: str) -> Finding:
    request = openai.greedy(server.expect.model, openai.PROMPTS[0]) | {"max_tokens": TOKENS, "ignore_eos": True}
    before = settle(server)
    prompts = 0
    for _ in range(SENT):
        body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
        if fault:
            return failed(wanted, fault)
        prompts += _prompt_tokens(body)
    due = {DONE: SENT, PROMPT: prompts, MADE: SENT * TOKENS}
    now = settle(server)
    moved = {name: now[name] - before[name] for name in due}
    found = f"{moved[DONE]:g} requests, {moved[PROMPT]:g} prompt tokens of {prompts}, {moved[MADE]:g} tokens made"
    if any(moved[name] < count for name, count in due.items()):
        return failed(wanted, found)
    if any(moved[name] > count for name, count in due.items()):
        return unknown(wanted, f"{found}: others ask this server too")
    return passed(wanted, found)


def _prompt_tokens(body: Any) -> int:
    usage = body.get("usage") if isinstance(body, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def cancel(server: Server) -> Finding:
    """A stream is left in the middle; the server's count of tokens says whether it went on without a reader."""
    length, _ = context_length(server)
    tokens = min(LONG, (length or 2 * LONG) // 2)
    wanted = f"a request of {tokens} tokens, left after the first ones, is dropped"
    if tokens < SHORT:
        return skipped(wanted, f"a context of {length} tokens is full before anyone hangs up")
    try:
        before = settle(server)
        if before[RUNNING]:
            return unknown(wanted, f"{before[RUNNING]:g} other requests are running")
        events, seconds = leave(server, tokens, LEFT_AFTER)
        if events < LEFT_AFTER:
            return failed(wanted, f"the stream ended after {events} events")
        now = idle(server, before)
    except Missing as e:
        return absent(server, wanted, e)
    return dropped(wanted, now[RUNNING], now[MADE] - before[MADE], tokens, seconds)


def leave(server: Server, tokens: int, events: int) -> tuple[int, float]:
    """Ask for a stream of so many tokens and hang up after some events: how many came, after how many seconds."""
    request = openai.greedy(server.expect.model, openai.PROMPTS[0])
    request |= {"max_tokens": tokens, "ignore_eos": True, "stream": True}
    return server.http.abandon("/v1/completions", request, server.deadline, events)


def dropped(wanted: str, running: float, made: float, tokens: int, seconds: float) -> Finding:
    """Were requests of `tokens` tokens in all dropped when their readers left after `seconds`? Pure."""
    if running:
        return failed(wanted, f"{running:g} requests are still running, {made:g} tokens made", made=made)
    if made <= 0:
        return failed(wanted, "the counters did not move")
    if made >= tokens and seconds > LATE:  # held back on its way to us, the whole answer was made meanwhile
        return unknown(wanted, f"the first events came after {seconds:.1f} s, {made:g} tokens were made by then")
    if made >= tokens:
        return failed(wanted, f"all {made:g} tokens were made without a reader", made=made)
    found = f"dropped after {made:g} of {tokens} tokens"
    if made > ENDING * tokens:
        return unknown(wanted, f"{found}: it may have been at its end", made=made)
    return passed(wanted, found, made=made)


def idle(server: Server, before: dict[str, float]) -> dict[str, float]:
    """The counters when nothing runs any more, or at the deadline; a count that lags must have seen the request."""
    until = time.monotonic() + server.deadline * SHARE
    now = read(server)
    while (now[RUNNING] or now[MADE] == before[MADE]) and time.monotonic() < until:
        time.sleep(PAUSE)
        now = read(server)
    return settle(server)
