"""What a client sees of a vLLM server: when it answers, its first token, and how fast it decodes.

Only the standard library, in a process of its own beside the server: the same client for every candidate.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

HOST = "127.0.0.1"
PROMPT = "What is a GPU?"
LENGTH = 32  # tokens of a prompt that nobody was asked before
VOCABULARY = range(300, 1000)  # tokens that any of the models has, none of them special
# What a burst says that is worth comparing, and how that is called. After the first: 1 / TPOT of `vllm bench serve`.
FIGURES = {"tok_s": "tokens/s", "tok_s_after": "tokens/s after the first", "first_token_ms": "ms to the first"}


@dataclass(frozen=True)
class Answer:
    """One streamed completion; `sent`, and when its `first` and `last` piece came, in epoch seconds."""

    sent: float
    first: float
    last: float
    text: str
    tokens: int


def health(port: int, timeout: float = 2.0) -> int:
    """Status of GET /health, 0 when nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def wait_healthy(port: int, alive: Callable[[], bool], deadline: float) -> tuple[float, float]:
    """Epoch seconds of the first accepted connection and of the first 200; zeros when the server ended before.

    Asks again every 10 ms: that is the resolution.
    """
    bound = 0.0
    while alive() and time.time() < deadline:
        status = health(port)
        now = time.time()
        bound = bound or (now if status else 0.0)
        if status == http.client.OK:
            return bound, now
        time.sleep(0.01)
    return bound, 0.0


def unheard(label: str) -> list[int]:
    """A prompt by its tokens, drawn by `label`: all are equally long, and no two begin alike.

    A text that names what is asked would not do: its tokens are as many as its words make, and where two prompts have
    the same first block of 16, vLLM computes that once. So one arm would have less to do than another.
    """
    return random.Random(label).choices(VOCABULARY, k=LENGTH)  # noqa: S311 - a prompt


def body(model: str, prompt: str | list[int], tokens: int) -> dict[str, Any]:
    """A greedy completion of exactly so many tokens."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def complete(port: int, request: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> Answer:
    """One streamed completion.

    Raises:
        RuntimeError: the server answered something else.
    """
    text = json.dumps(request).encode()
    sent = time.time()
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
        % ("".join(f"{k}: {v}\r\n" for k, v in headers.items()).encode(), len(text), text)
    )
    await writer.drain()
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server answered {status.decode(errors='replace').strip()!r}")
    first = last = 0.0
    lines = []
    async for line in reader:
        if line.startswith(b"data: {"):
            last = time.time()
            first = first or last
            lines.append(line)
    writer.close()
    chunks = [json.loads(line[6:]) for line in lines]
    usage: dict[str, int] = next((c["usage"] for c in reversed(chunks) if c.get("usage")), {})
    said = "".join(choice["text"] for c in chunks for choice in c["choices"])
    return Answer(sent, first, last, said, usage.get("completion_tokens", 0))


def first_token(port: int, model: str, tokens: int = 32) -> Answer:
    """The first request of a server's life."""
    return asyncio.run(asyncio.wait_for(complete(port, body(model, PROMPT, tokens)), 120))


async def burst(
    port: int, model: str, streams: int, tokens: int, label: str, headers: Mapping[str, str] = MappingProxyType({})
) -> dict[str, float]:
    """So many completions at once, each `unheard` by the label and its number.

    Returns:
        tokens, seconds, and `FIGURES`: tokens a second, those after the first one of each answer (by the mean seconds
        for each), and the median time to the first.
    """
    requests = [body(model, unheard(f"{label}, {i}"), tokens) for i in range(streams)]
    begun = time.perf_counter()
    answers = await asyncio.gather(*(complete(port, r, headers) for r in requests))
    took = time.perf_counter() - begun
    waits = sorted(a.first - a.sent for a in answers)
    made = sum(a.tokens for a in answers)
    each = sum((a.last - a.first) / max(a.tokens - 1, 1) for a in answers) / streams
    return {
        "tokens": made,
        "seconds": took,
        "tok_s": made / took,
        "tok_s_after": streams / each,
        "first_token_ms": waits[len(waits) // 2] * 1000,
    }


def decode(port: int, model: str, streams: int, tokens: int = 256, repeats: int = 5) -> dict[str, Any]:
    """Tokens a second over `streams` requests at once, each of `tokens` tokens: every repeat after one that warms up.

    Each prompt is new, so that no repeat is answered from the prefix cache of the one before.
    """
    bursts = [asyncio.run(burst(port, model, streams, tokens, f"round {n}")) for n in range(repeats + 1)][1:]
    rates = sorted(b["tok_s"] for b in bursts)
    return {"streams": streams, "tokens_each": tokens, "tok_s_median": rates[len(rates) // 2], "bursts": bursts}
