"""Fakes at the seams: what stands for HTTP and for the container in unit tests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar, cast

from bringup.catalog import Canary, Model
from bringup.edge import proc
from bringup.edge.docker import ContainerState
from bringup.edge.http import Answer, Event, Http, NoAnswer
from bringup.lock import LockedFile, LockedModel
from bringup.plan import Expect, Plan, make_plan
from bringup.server import Server
from bringup.settings import Settings

MODEL = Model(
    name="m", source="models/m", architecture="A", context=1, license="MIT", gated=False,
    lock=LockedModel("m", "local:models/m", "MIT", (LockedFile("a.json", 3, "0" * 64),)),
)  # fmt: skip

T = TypeVar("T")
Reply = Answer | NoAnswer | Callable[[Any, float], Answer]


def answer(body: Any, status: int = 200, content_type: str = "application/json", seconds: float = 0.01) -> Answer:
    """A complete answer; anything but bytes becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, content_type, data, seconds)


class FakeHttp:
    """Answers by path; keeps what it was asked. A function as a reply gets the payload and the timeout."""

    def __init__(self, replies: dict[str, Reply], streams: list[tuple[Answer, list[Event]]] | None = None) -> None:
        self.replies = replies
        self.streams = list(streams or [])
        self.asked: list[tuple[str, Any]] = []

    has_key = False

    def get(self, path: str, timeout: float) -> Answer:
        return self.post(path, None, timeout)

    def post(self, path: str, payload: Any, timeout: float) -> Answer:
        self.asked.append((path, payload))
        reply = self.replies.get(path, NoAnswer("connection refused"))
        if isinstance(reply, NoAnswer):
            raise reply
        return reply if isinstance(reply, Answer) else reply(payload, timeout)

    def events(self, path: str, payload: Any, _timeout: float) -> tuple[Answer, list[Event]]:
        self.asked.append((path, payload))
        if not self.streams:
            raise NoAnswer("connection refused")
        return self.streams.pop(0)


def hang(_payload: Any, timeout: float) -> Answer:
    """A server that says nothing: what a client with a deadline sees."""
    time.sleep(timeout)
    raise NoAnswer(f"connected, but no answer within {timeout:g} s")


def state(status: str = "running", **changes: Any) -> ContainerState:
    """A container's state; started at the epoch."""
    known: dict[str, Any] = {
        "id": "c1", "name": "p-server-1", "status": status, "exit_code": 0, "oom_killed": False,
        "started": "2026-01-01T00:00:00.123456789Z", "image_id": "sha256:1",
    }  # fmt: skip
    return ContainerState(**known | changes)


@dataclass
class FakeContainer:
    """A container that says what it is told to; an exception as a value is raised. `states` runs out at its last."""

    states: list[ContainerState | Exception] = field(default_factory=lambda: [state()])
    rows: list[dict[str, str]] | Exception = field(
        default_factory=lambda: [{"PID": "7", "COMMAND": "VLLM::EngineCore"}]
    )
    executed: tuple[int, str] | Exception = (0, "0.32.0\n")
    file: bytes | Exception = b'{"msg": "x"}\n'
    logs_: str | Exception = "2026-01-01T00:00:00Z one\n2026-01-01T00:00:01Z two\n"
    inspected: dict[str, Any] = field(default_factory=dict)
    id: str = "c1"
    python: str = "/opt/venv/bin/python"
    state_dir: str = "/var/lib/bringup"
    vram_before: int | None = None

    def members(self) -> proc.Members:
        return proc.Members(proc.in_container(_give(self.states[0]).id))

    def image(self) -> dict[str, Any]:
        return {"Id": "sha256:1"}

    def state(self) -> ContainerState:
        return _give(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def top(self) -> list[dict[str, str]]:
        return _give(self.rows)

    def execute(self, _argv: list[str]) -> tuple[int, str]:
        return _give(self.executed)

    def copy_out(self, _path: str) -> bytes:
        return _give(self.file)

    def logs(self, tail: int | None = None, since: int | None = None) -> str:
        lines = _give(self.logs_).splitlines(keepends=True)
        if since is not None:
            lines = [line for line in lines if datetime.fromisoformat(line.split(" ")[0]).timestamp() >= since]
        return "".join(lines if tail is None else lines[-tail:])

    def inspect(self) -> dict[str, Any]:
        return self.inspected


def _give(value: T | Exception) -> T:
    if isinstance(value, Exception):
        raise value
    return value


def plan(flavour: str = "cpu", **settings: Any) -> Plan:
    """The plan of a model that nobody has."""
    return make_plan(Settings(model="m", **settings), MODEL, (flavour, "because"), {})


def expect(**changes: Any) -> Expect:
    """Little is expected, unless the test says so."""
    known: dict[str, Any] = {
        "model": "m", "vllm_version": None, "canaries": (), "weights_bytes": 100, "container": True, "gpu": False,
    }  # fmt: skip
    return Expect(**known | changes)


def make_server(http: FakeHttp, deadline: float = 5.0, **changes: Any) -> Server:
    """A server behind fakes; `container` and what `Expect` knows can be given."""
    own = {k: changes.pop(k) for k in ("container", "vram_before") if k in changes}
    return Server(http=cast("Http", http), expect=expect(**changes), deadline=deadline, **own)


def canaries(*pairs: tuple[str, str]) -> tuple[Canary, ...]:
    """Known answers."""
    return tuple(Canary(*pair) for pair in pairs)


TEXT = " The capital of France is Paris, the capital of Italy is Rome."


def completion(text: Any = TEXT, made: int = 12, finish: str = "stop", model: str = "m") -> dict[str, Any]:
    return {
        "id": "cmpl-1", "object": "text_completion", "model": model,
        "choices": [{"index": 0, "text": text, "finish_reason": finish}],
        "usage": {"prompt_tokens": 5, "completion_tokens": made, "total_tokens": 5 + made},
    }  # fmt: skip


def chat(text: Any = TEXT, **changes: Any) -> dict[str, Any]:
    made = completion(**changes) | {"object": "chat.completion"}
    made["choices"] = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    return made


def chunk(text: Any, finish: str | None = None, id_: str = "c", model: str = "m", **more: Any) -> str:
    choices = [{"index": 0, "text": text, "finish_reason": finish}]
    return json.dumps({"id": id_, "model": model, "choices": choices} | more)


def usage(made: int) -> str:
    counts = {"prompt_tokens": 5, "completion_tokens": made, "total_tokens": 5 + made}
    return json.dumps({"id": "c", "model": "m", "choices": [], "usage": counts})


USAGE = usage(3)


SSE = answer(b"", content_type="text/event-stream; charset=utf-8")


def stream_of(text: str, step: float, first: float = 0.01) -> tuple[Answer, list[Event]]:
    parts = [f" {word}" for word in text.split()]
    data = [chunk(p, "stop" if i == len(parts) - 1 else None) for i, p in enumerate(parts)]
    last = first + step * len(data)
    end = [Event(last, usage(len(parts))), Event(last, "[DONE]")]
    return SSE, [*(Event(first + step * i, d) for i, d in enumerate(data)), *end]
