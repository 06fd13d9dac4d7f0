"""Many servers in one process, as cheap as they can be made: what the real one said (tests/stub), for every port anew.

`python -m benchmarks.farm 200 --token 0.01` prints an address a line, then an empty one, and serves until its standard
input ends. The stub of the tests takes a thread and some milliseconds for a request; with hundreds of servers on the
machine that asks, the figure would be of the stub.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bringup.artifacts import SAMPLE_PROMPT
from bringup.probes import counters
from tests.stub.recording import OWN, Ask, Exchange, load
from tests.stub.server import SAMPLE, Reply, usage_of

ID = "id-of-the-answer"
BACKLOG = 256
CALM = 0.02  # seconds before an answer


@dataclass(frozen=True)
class Known:
    """An answer, ready to be sent but for its id: a body or events; the tokens of its prompt, and made."""

    status: int
    content_type: str
    body: bytes
    events: tuple[bytes, ...]
    prompt: int
    made: int


@functools.cache
def known(method: str, path: str, content_type: str, body: bytes) -> Known:
    """What the real server answered."""
    ask = Ask(method, path, OWN, content_type, body)
    seen = load().get(ask.digest)
    if seen is None and ask.json.get("prompt") == SAMPLE_PROMPT:  # the bundle's; by chance, so it was not recorded
        seen = next(e for e in load().values() if e.status == 200 and "text_completion" in e.body)
    return _of(ask, seen or Exchange(method, path, OWN, "", "", 501, "text/plain", "not recorded"))


def _of(ask: Ask, seen: Exchange) -> Known:
    prompt, made = 0, 0
    generates = seen.method == "POST" and seen.status == 200
    if generates:
        prompt, made = usage_of(ask, Reply(200, "", seen.body.encode(), events=list(seen.events) or None))
    events = tuple(f"data: {_marked(e)}\n\n".encode() for e in seen.events)
    whole = _marked(seen.body) if generates and not events else seen.body
    return Known(seen.status, seen.content_type, whole.encode(), events, prompt, made)


def _marked(text: str) -> str:
    try:
        return json.dumps(json.loads(text) | {"id": ID})
    except (ValueError, TypeError):
        return text


@functools.cache
def pages() -> tuple[tuple[str, str, float], ...]:
    """/metrics in pieces: text, the counter that stands at its end (empty: none), and what it was."""
    pieces, text, found = [], "", set()
    for line in known("GET", "/metrics", "", b"").body.decode().splitlines(keepends=True):
        match = SAMPLE.match(line.rstrip())
        if match and match["name"] in counters.NAMES and match["name"] not in found:
            found.add(match["name"])
            was = 0.0 if match["name"] == counters.RUNNING else float(match["value"])
            pieces.append((f"{text}{match['name']}{match['labels'] or ''} ", match["name"], was))
            text = "\n"
        else:
            text += line
    return (*pieces, (text, "", 0.0))


class Node:
    """One server: its counters, and whether it is going on."""

    def __init__(self, token: float) -> None:
        self.token = token
        self.counts = dict.fromkeys(counters.NAMES, 0.0)
        self.answers = 0

    def metrics(self) -> bytes:
        """The text as it is now."""
        return "".join(f"{text}{was + self.counts[name] if name else ''}" for text, name, was in pages()).encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            method, path, _ = lines[0].split(" ")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            await self.answer(known(method, path, headers.get("content-type", ""), body), path, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # whoever asked has left
        finally:
            writer.close()

    async def answer(
        self, told: Known, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        """Send it, as slowly as its tokens come, and count."""
        self.answers += 1
        name = f"x-{id(self):x}-{self.answers}".encode()
        self.counts[counters.RUNNING] += bool(told.prompt)
        self.counts[counters.PROMPT] += told.prompt
        try:
            await asyncio.sleep(CALM)
            if told.events:
                await self.stream(told, name, reader, writer)
            else:
                await asyncio.sleep(told.made * self.token)
                body = self.metrics() if path == "/metrics" else told.body.replace(ID.encode(), name)
                writer.write(_head(told, f"Content-Length: {len(body)}") + body)
                await writer.drain()
                self.counts[counters.MADE] += told.made
            self.counts[counters.DONE] += bool(told.prompt)
        finally:
            self.counts[counters.RUNNING] -= bool(told.prompt)

    async def stream(
        self, told: Known, name: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        """One event a token, until the reader leaves."""
        writer.write(_head(told, "Transfer-Encoding: chunked"))
        for number, event in enumerate(told.events, 1):
            if reader.at_eof():
                raise ConnectionResetError
            piece = event.replace(ID.encode(), name)
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            self.counts[counters.MADE] += number <= told.made
            await asyncio.sleep(self.token)
        self.counts[counters.MADE] += max(told.made - len(told.events), 0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _head(told: Known, length: str) -> bytes:
    lines = (f"HTTP/1.1 {told.status} -", f"Content-Type: {told.content_type}", length, "Connection: close", "", "")
    return "\r\n".join(lines).encode()


async def farm(count: int, token: float, show: Callable[[str], object]) -> None:
    """So many servers, until standard input ends."""
    servers = [await asyncio.start_server(Node(token).serve, "127.0.0.1", 0, backlog=BACKLOG) for _ in range(count)]
    for server in servers:
        show(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    show("")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--token", type=float, default=0.01, help="seconds that a token takes")
    asked = parser.parse_args()
    pages()
    asyncio.run(farm(asked.count, asked.token, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
