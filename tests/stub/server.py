"""The replaying server: looks up what the real one said, counts as it counts, and lets the lies change the reply."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bringup.artifacts import SAMPLE_PROMPT
from bringup.probes import counters
from tests.stub.recording import NONE, OWN, WRONG, Ask, Exchange, load

LIES = Callable[["Stub", Ask, "Reply"], None]
SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:]+)(?P<labels>\{.*\})? (?P<value>\S+)$")


@dataclass
class Reply:
    """An answer about to be sent. Times in seconds.

    `events`: data of a stream's events, None for a whole body. `before`: silence before the first byte of the body;
    `pause` between events (about: it is jittered); `together`: events a write; `drip`: seconds between single bytes.
    `claimed`: the Content-Length that is sent. `cut`: hang up when the body is out, without ending it; `hold`: never
    end it. `deaf`: go on when the client has left.
    """

    status: int
    content_type: str
    body: bytes = b""
    events: list[str] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    before: float = 0.0
    pause: float = 0.0
    together: int = 1
    drip: float = 0.0
    claimed: int | None = None
    cut: bool = False
    hold: bool = False
    deaf: bool = False

    @property
    def json(self) -> Any:
        """The body as JSON; an empty object where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}

    def set(self, value: Any) -> None:
        """Another JSON body."""
        self.body = json.dumps(value).encode()

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the JSON of a good answer, or of each event of a stream."""
        if self.events is not None:
            self.events = [_edited(e, change) if e != "[DONE]" else e for e in self.events]
        elif self.status == 200 and isinstance(self.json, dict):
            self.body = _edited(self.body, change).encode()


def _edited(text: str | bytes, change: Callable[[dict[str, Any]], object]) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text if isinstance(text, str) else text.decode("utf-8", "replace")
    change(value)
    return json.dumps(value)


@dataclass(frozen=True)
class Manner:
    """How an honest server may behave: seconds between events and before an answer, how writes are cut, its chance."""

    pause: float = 0.003
    before: float = 0.0
    split: bool = False
    seed: int = 0


class Stub:
    """What one stub knows: the recording, its lies, its counters."""

    def __init__(self, lies: Sequence[LIES] = (), key: str | None = None, manner: Manner = Manner()) -> None:
        self.recording = load()
        self.lies, self.key, self.manner = lies, key, manner
        self.random = random.Random(manner.seed)
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(counters.NAMES, 0.0)
        self.made = 0  # answers so far
        self.memory: dict[str, Any] = {}  # what a lie wants to remember
        self.over = threading.Event()

    def auth(self, header: str) -> str:
        """Whose key a request carries; where none is demanded, everyone is at home."""
        if self.key is None or header == f"Bearer {self.key}":
            return OWN
        return WRONG if header else NONE

    def find(self, ask: Ask) -> Exchange:
        """What the real server answered."""
        missing = f"not recorded: {ask.method} {ask.path} {ask.auth} {ask.body[:200]!r}"
        lost = Exchange(ask.method, ask.path, ask.auth, ask.content_type, "", 501, "text/plain", missing)
        return self.recording.get(ask.digest) or lost

    def another(self, reply: Reply, wanted: Callable[[Ask], bool]) -> None:
        """Answer with the first good plain answer to such a request."""
        seen = next(
            e for e in self.recording.values() if e.status == 200 and e.auth == OWN and e.body and wanted(e.ask)
        )
        reply.status, reply.content_type, reply.body = seen.status, seen.content_type, seen.body.encode()

    def as_own(self, ask: Ask, reply: Reply) -> None:
        """Answer as if the request carried the right key; what was never asked with it gets any good answer."""
        seen = self.find(dataclasses.replace(ask, auth=OWN))
        if seen.status == 200:
            reply.status, reply.content_type, reply.body = seen.status, seen.content_type, seen.body.encode()
        else:
            self.another(reply, lambda a: a.path == ask.path)

    def recorded_metrics(self) -> str:
        """The text of /metrics as it was."""
        return self.find(Ask("GET", "/metrics", OWN, "", b"")).body

    def reply(self, ask: Ask) -> Reply:
        """The real answer with an id of its own, then the lies."""
        with self.lock:
            self.made += 1
            number = self.made
        reply = self.honest(ask, number)
        for lie in self.lies:
            lie(self, ask, reply)
        return reply

    def honest(self, ask: Ask, number: int) -> Reply:
        """The recorded answer."""
        seen = self.find(ask)
        reply = Reply(seen.status, seen.content_type, seen.body.encode(), before=self.manner.before)
        reply.pause = self.manner.pause
        if seen.events:
            reply.events = list(seen.events)
        if ask.path == "/metrics" and seen.status == 200:
            reply.body = self.metrics(seen.body).encode()
        elif ask.method == "POST" and seen.status == 200:
            reply.edit(lambda body: body.update(id=f"{body['id'].partition('-')[0]}-{number:016x}"))
        return reply

    def metrics(self, template: str, counts: dict[str, float] | None = None) -> str:
        """The recorded text, its counters moved on by what was answered since."""
        left = dict(self.counts if counts is None else counts)
        lines = []
        for line in template.splitlines():
            match = None if line.startswith("#") else SAMPLE.match(line)
            if match and match["name"] in left:
                moved = left.pop(match["name"])
                value = moved if match["name"] == counters.RUNNING else float(match["value"]) + moved
                line = f"{match['name']}{match['labels'] or ''} {value}"  # noqa: PLW2901
            lines.append(line)
        return "\n".join(lines) + "\n"

    def count(self, **moves: float) -> None:
        """Move counters: `running`, `done`, `prompt`, `made`."""
        names = {"running": counters.RUNNING, "done": counters.DONE, "prompt": counters.PROMPT, "made": counters.MADE}
        with self.lock:
            for name, by in moves.items():
                self.counts[names[name]] += by

    @property
    def running(self) -> float:
        """Requests that are being answered."""
        return self.counts[counters.RUNNING]


class Sampled(Stub):
    """Answers the question of the bundle too; by chance, so that it was not recorded."""

    def find(self, ask: Ask) -> Exchange:
        found = super().find(ask)
        if found.status == 501 and ask.json.get("prompt") == SAMPLE_PROMPT:
            return next(e for e in self.recording.values() if e.status == 200 and "text_completion" in e.body)
        return found


def usage_of(ask: Ask, reply: Reply) -> tuple[int, int]:
    """Prompt tokens and tokens made, as the honest answer counts them; a stream need not say them."""
    texts = reply.events[:-1] if reply.events is not None else [reply.body.decode()]
    usage = json.loads(texts[-1]).get("usage")
    if usage:
        return usage["prompt_tokens"], usage["completion_tokens"]
    return len(ask.json["prompt"].split()), ask.json["max_tokens"]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    stub: Stub
    running = 0

    def log_message(self, *_: Any) -> None:
        """Nothing to the test's output."""

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        auth = self.stub.auth(self.headers.get("Authorization", ""))
        ask = Ask(self.command, self.path, auth, self.headers.get("Content-Type", ""), body)
        if ask.path in ("/health", "/metrics", "/version"):  # vLLM asks nobody for a key there
            ask = dataclasses.replace(ask, auth=OWN)
        generates = ask.method == "POST" and self.stub.find(ask).status == 200
        with suppress(OSError):
            if not generates:
                self._send(self.stub.reply(ask), (0, 0))
                return
            self._runs(1)
            try:
                counted = usage_of(ask, self.stub.honest(ask, 0))
                self._send(self.stub.reply(ask), counted)
            finally:
                self._runs(0)

    def _runs(self, now: int) -> None:
        """Whether this connection's request is being answered, 1 or 0."""
        self.stub.count(running=now - self.running)
        self.running = now

    def _send(self, reply: Reply, counted: tuple[int, int]) -> None:
        prompt, made = counted
        self.stub.count(prompt=prompt)
        if reply.events is not None:
            self._stream(reply, made)
        else:
            self._whole(reply)
            self.stub.count(made=made)
        self.stub.count(done=1 if prompt else 0)
        if reply.cut:
            self.close_connection = True
        if reply.hold:
            self.stub.over.wait(60)

    def _head(self, reply: Reply, **more: str) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.content_type, **reply.headers, **more}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _whole(self, reply: Reply) -> None:
        self.stub.over.wait(reply.before)
        self._runs(0)  # before the asker has it, who may ask again at once
        size = len(reply.body) if reply.claimed is None else reply.claimed
        self._head(reply, **{"Content-Length": str(size)})
        for piece in self._pieces(reply):
            self.wfile.write(piece)
            if reply.drip and self.stub.over.wait(reply.drip):
                break

    def _pieces(self, reply: Reply) -> Iterator[bytes]:
        """The body as the network might cut it."""
        if reply.drip:
            yield from (reply.body[i : i + 1] for i in range(len(reply.body)))
        elif self.stub.manner.split and len(reply.body) > 2:
            at = self.stub.random.randrange(1, len(reply.body))
            yield reply.body[:at]
            yield reply.body[at:]
        else:
            yield reply.body

    def _stream(self, reply: Reply, made: int) -> None:
        events = reply.events or []
        self._head(reply, **{"Transfer-Encoding": "chunked"})
        self.stub.over.wait(reply.before)
        waiting, counted, left = b"", 0, False
        for number, event in enumerate(events, 1):
            left = left or self._left()
            if left and not reply.deaf:
                raise ConnectionError
            waiting += f"data: {event}\n\n".encode()
            if number % reply.together == 0 or number == len(events):
                if not left:
                    self._chunk(waiting)
                waiting = b""
            now = made if number == len(events) else min(made, number)  # about a token an event, as vLLM sends them
            self.stub.count(made=now - counted)
            counted = now
            if reply.pause and self.stub.over.wait(reply.pause * self.stub.random.uniform(0.6, 1.4)):
                return
        if not reply.cut and not reply.hold:
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        at = self.stub.random.randrange(1, len(data)) if self.stub.manner.split and len(data) > 2 else len(data)
        for piece in (data[:at], data[at:]):
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def _left(self) -> bool:
        """Whether the client has hung up."""
        try:
            ready, _, _ = select.select([self.connection], [], [], 0)
            return bool(ready) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:  # reset: it left unread bytes behind
            return True


class Quiet(ThreadingHTTPServer):
    """Does not wait for answers that hang, and does not print what breaks off."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what half of these lies are about."""


@contextmanager
def serving(stub: Stub, bind: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The stub at an address, until the end of the block."""
    server = Quiet((bind, port), type("Bound", (Handler,), {"stub": stub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
