"""Servers that are not what they seem. An honest one passes; each of the others lies once, and none may pass."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.integration.support import bringup, statuses

pytestmark = pytest.mark.integration

DEADLINE = 2.0
TEXT = " a fake server that says one sensible sentence of some length word after word to whoever asks it"
WORDS = TEXT.split()


class Honest(BaseHTTPRequestHandler):
    """As much of the API as the probes need, with the right answers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing to the test's output."""

    def do_GET(self) -> None:
        with suppress(ConnectionError):
            {"/health": self.health, "/v1/models": self.models, "/version": self.version}[self.path]()

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with suppress(ConnectionError):
            if self.path == "/v1/chat/completions":
                self.chat()
            elif self.asked.get("stream"):
                self.stream()
            else:
                self.completion()

    def health(self) -> None:
        self.send(b"")

    def version(self) -> None:
        self.send_object({"version": "0.32.0"})

    def models(self) -> None:
        self.send_object({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    def completion(self) -> None:
        self.send_object(self.body("text_completion", {"text": self.text()}))

    def chat(self) -> None:
        self.send_object(self.body("chat.completion", {"message": {"role": "assistant", "content": self.text()}}))

    def text(self) -> str:
        return WORDS[0] if self.asked["max_tokens"] == 1 else TEXT

    def body(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        made = 1 if self.asked["max_tokens"] == 1 else len(WORDS)
        finish = "length" if made == 1 else "stop"
        return {
            "id": "x-1", "object": kind, "model": "fake",
            "choices": [{"index": 0, "finish_reason": finish, **choice}],
            "usage": {"prompt_tokens": 7, "completion_tokens": made, "total_tokens": 7 + made},
        }  # fmt: skip

    def chunks(self) -> list[str]:
        made = []
        for number, word in enumerate(WORDS, 1):
            finish = "stop" if number == len(WORDS) else None
            choice = {"index": 0, "text": f" {word}", "finish_reason": finish}
            made.append(json.dumps({"id": "x-2", "model": "fake", "choices": [choice]}))
        usage = {"prompt_tokens": 7, "completion_tokens": len(WORDS), "total_tokens": 7 + len(WORDS)}
        return [*made, json.dumps({"id": "x-2", "model": "fake", "choices": [], "usage": usage}), "[DONE]"]

    def stream(self) -> None:
        self.begin_stream()
        for chunk in self.chunks():
            self.send_chunk(f"data: {chunk}\n\n")
            time.sleep(0.02)
        self.send_chunk("")

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())

    def send_object(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), "application/json", status)

    def send(self, body: bytes, kind: str = "text/plain", status: int = 200, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)


class Sick(Honest):
    def health(self) -> None:
        self.send(b"", status=503)


class Redirects(Honest):
    def health(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/login")
        self.send_header("Content-Length", "0")
        self.end_headers()


class HealthyButBroken(Honest):
    def completion(self) -> None:
        self.send_object({"error": {"message": "EngineCore encountered an issue"}}, 500)


class HealthyButHung(Honest):
    def completion(self) -> None:
        time.sleep(30)


class Drips(Honest):
    """A byte now and then: no single read ever times out."""

    def completion(self) -> None:
        self.send(b"{", "application/json", size=1000)
        for _ in range(300):
            time.sleep(0.1)
            self.wfile.write(b" ")


class HangsInTheMiddle(Honest):
    def chat(self) -> None:
        time.sleep(30)

    def stream(self) -> None:
        time.sleep(30)

    def version(self) -> None:
        time.sleep(30)


class CutsOff(Honest):
    def completion(self) -> None:
        whole = json.dumps(self.body("text_completion", {"text": self.text()})).encode()
        self.send(whole, "application/json", size=len(whole) + 10)
        self.close_connection = True


class HangsUp(Honest):
    def completion(self) -> None:
        self.close_connection = True


class LoginPage(Honest):
    def completion(self) -> None:
        self.send(b"<html>please log in</html>", "text/html")


class HtmlAsJson(Honest):
    def chat(self) -> None:
        self.send(b"<html>please log in</html>", "application/json")


class ErrorWith200(Honest):
    def chat(self) -> None:
        self.send_object({"error": {"message": "overloaded"}})


class OtherModel(Honest):
    def models(self) -> None:
        self.send_object({"object": "list", "data": []})


class AnswersAsAnother(Honest):
    def body(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return super().body(kind, choice) | {"model": "another"}


class Degenerate(Honest):
    def text(self) -> str:
        return "!" * 96


class Silent(Honest):
    def text(self) -> str:
        return ""


class Miscounts(Honest):
    def body(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        made = super().body(kind, choice)
        made["usage"]["total_tokens"] += 1
        return made


class NoUsage(Honest):
    def chat(self) -> None:
        whole = self.body("chat.completion", {"message": {"role": "assistant", "content": self.text()}})
        self.send_object({k: v for k, v in whole.items() if k != "usage"})


class NoVersion(Honest):
    def version(self) -> None:
        self.send_object({"detail": "Not Found"}, 404)


class Buffered(Honest):
    """What a proxy does that collects the answer first."""

    delay = 0.0

    def stream(self) -> None:
        self.begin_stream()
        time.sleep(self.delay)
        self.send_chunk("".join(f"data: {chunk}\n\n" for chunk in self.chunks()))
        self.send_chunk("")


class BufferedInPieces(Buffered):
    """The same, and then hands it on in small writes."""

    def stream(self) -> None:
        self.begin_stream()
        time.sleep(self.delay)
        for chunk in self.chunks():
            self.send_chunk(f"data: {chunk}\n\n")
            time.sleep(0.001)
        self.send_chunk("")


class NoDone(Honest):
    def chunks(self) -> list[str]:
        return super().chunks()[:-1]


class BreaksOffTheStream(Honest):
    def stream(self) -> None:
        self.begin_stream()
        for chunk in self.chunks()[:9]:
            self.send_chunk(f"data: {chunk}\n\n")
        self.close_connection = True


class ErrorInTheStream(Honest):
    def chunks(self) -> list[str]:
        return [*super().chunks()[:5], json.dumps({"error": {"message": "engine died"}}), "[DONE]"]


class StreamsSomethingElse(Honest):
    def chunks(self) -> list[str]:
        return [chunk.replace("sensible", "foolish") for chunk in super().chunks()]


class StreamsNumbers(Honest):
    def chunks(self) -> list[str]:
        return [chunk.replace('" a"', "5") for chunk in super().chunks()]


class NoStream(Honest):
    def stream(self) -> None:
        self.completion()


# What lies, and the probe that must say so.
LIARS: dict[type[Honest], str] = {
    Sick: "reachable",
    Redirects: "reachable",
    HealthyButBroken: "ready",
    HealthyButHung: "ready",
    Drips: "ready",
    CutsOff: "ready",
    HangsUp: "ready",
    LoginPage: "ready",
    OtherModel: "models",
    AnswersAsAnother: "completion",
    Degenerate: "completion",
    Silent: "completion",
    Miscounts: "completion",
    HtmlAsJson: "chat",
    ErrorWith200: "chat",
    NoUsage: "chat",
    HangsInTheMiddle: "chat",
    NoDone: "streaming",
    BreaksOffTheStream: "streaming",
    ErrorInTheStream: "streaming",
    StreamsSomethingElse: "streaming",
    StreamsNumbers: "streaming",
    NoStream: "streaming",
    NoVersion: "version",
}


class Quiet(ThreadingHTTPServer):
    """Does not wait for answers that hang, and does not print what breaks off."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what half of these tests are about."""


@contextmanager
def serving(handler: type[Honest]) -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_honest_server_passes() -> None:
    with serving(Honest) as url:
        done = bringup("verify", "--json", "--suite", "smoke", url)
    assert done.code == 0, done.err
    seen = statuses(done.json()["probes"])
    assert {name for name, status in seen.items() if status != "pass"} == {"auth", "process", "vram"}


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.__name__)
def test_a_lie_is_found(liar: type[Honest]) -> None:
    with serving(liar) as url:
        done = bringup(
            "verify", "--json", "--suite", "smoke", "--expect-model", "fake", url, "--request-timeout", f"{DEADLINE:g}s"
        )
    assert done.code == 7, done.err
    assert "Traceback" not in done.err
    assert sum(p["seconds"] for p in done.json()["probes"]) <= DEADLINE + 1.5
    assert statuses(done.json()["probes"])[LIARS[liar]] == "fail"


@pytest.mark.parametrize("proxy", [Buffered, BufferedInPieces])
@pytest.mark.parametrize(("delay", "status", "code"), [(0.3, "unknown", 9), (3.2, "fail", 7)])
def test_a_block_is_no_stream(proxy: type[Buffered], delay: float, status: str, code: int) -> None:
    """Over at once it tells nothing; after seconds of silence it is a block."""
    with serving(type("Delayed", (proxy,), {"delay": delay})) as url:
        done = bringup("verify", "--json", "--suite", "smoke", url)
    assert done.code == code, done.err
    assert statuses(done.json()["probes"])["streaming"] == status


ADDRESSES: dict[str, str] = {
    "no scheme": "127.0.0.1:8000",
    "another scheme": "ftp://127.0.0.1",
    "half an address": "http://[::1",
    "a port that is none": "http://127.0.0.1:99999",
    "a key in it": "http://user:key@127.0.0.1:8000",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_that_is_none_is_usage(name: str) -> None:
    done = bringup("verify", ADDRESSES[name])
    assert done.code == 2, done.err
    assert "Traceback" not in done.err


def test_a_key_that_cannot_be_sent_is_usage_and_is_not_shown() -> None:
    with serving(Honest) as url:
        for key in ("first-secret\nsecond-secret", "schlüssel-secret"):
            done = bringup("verify", url, env={"BRINGUP_API_KEY": key})
            assert done.code == 2, done.err
            assert "secret" not in done.err
