"""Lies of the API: each changes the real answer in one way, and names the probes of which one must say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.stub.recording import NONE, OWN, Ask
from tests.stub.server import LIES, Reply, Stub

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
Where = Callable[[Ask], bool]


@dataclass(frozen=True)
class Lie:
    """A way to lie: how, and the probes that may be the first to notice, in any suite that asks one of them.

    `keyed`: it lies about the key, so one must be set. `local`: it is told where there is a container. `container`:
    what is found in that container instead (`executed`, `rows`).
    """

    tell: LIES
    probes: tuple[str, ...]
    keyed: bool = False
    local: bool = False
    container: tuple[tuple[str, Any], ...] = ()


API: dict[str, Lie] = {}


def add(name: str, *probes: str, keyed: bool = False, local: bool = False) -> Callable[[LIES], LIES]:
    """Register a lie under its name."""

    def register(tell: LIES) -> LIES:
        API[name] = Lie(tell, probes, keyed=keyed, local=local)
        return tell

    return register


def change(name: str, where: Where, how: Callable[[Reply], object], *probes: str) -> None:
    """A lie that changes the replies to some asks, without remembering anything."""

    def tell(_stub: Stub, ask: Ask, reply: Reply) -> None:
        if where(ask):
            how(reply)

    API[name] = Lie(tell, probes)


def path(*paths: str) -> Where:
    return lambda ask: ask.path in paths


def good(*paths: str, stream: bool | None = None) -> Where:
    """Requests for text on these routes; with `stream`, only those that are, or are not, streams."""

    def where(ask: Ask) -> bool:
        return ask.path in paths and (stream is None or bool(ask.json.get("stream")) is stream)

    return where


def status(number: int, value: Any = None) -> Callable[[Reply], None]:
    def how(reply: Reply) -> None:
        reply.status, reply.content_type, reply.events = number, "application/json", None
        reply.set({"error": {"message": "it does not work", "code": number}} if value is None else value)

    return how


def fields(**changes: Any) -> Callable[[Reply], None]:
    """Attributes of the reply."""

    def how(reply: Reply) -> None:
        for name, value in changes.items():
            setattr(reply, name, value)

    return how


def edit(how: Callable[[dict[str, Any]], object]) -> Callable[[Reply], None]:
    return lambda reply: reply.edit(how)


def body(**changes: Any) -> Callable[[Reply], None]:
    """Keys of the JSON."""
    return edit(lambda value: value.update(changes))


def choice(how: Callable[[dict[str, Any]], object]) -> Callable[[Reply], None]:
    return edit(lambda value: [how(c) for c in value.get("choices", ())])


def text(how: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    """Change a choice's text, of either kind, whole or streamed."""

    def change_one(one: dict[str, Any]) -> None:
        for holder, key in ((one, "text"), (one.get("message"), "content"), (one.get("delta"), "content")):
            if isinstance(holder, dict) and isinstance(holder.get(key), str):
                holder[key] = how(holder[key])

    return change_one


def usage(**by: int) -> Callable[[Reply], None]:
    def move(value: dict[str, Any]) -> None:
        if isinstance(value.get("usage"), dict):
            for key, more in by.items():
                value["usage"][key] += more

    return edit(move)


def both(*hows: Callable[[Reply], object]) -> Callable[[Reply], None]:
    def how(reply: Reply) -> None:
        for one in hows:
            one(reply)

    return how


def redirect(reply: Reply) -> None:
    reply.status, reply.body, reply.headers = 302, b"", {"Location": "/health"}


def html(reply: Reply) -> None:
    reply.body = b"<!doctype html><title>Sign in</title><p>Please sign in"


def events(how: Callable[[list[str]], list[str]]) -> Callable[[Reply], None]:
    def change_all(reply: Reply) -> None:
        if reply.events is not None:
            reply.events = how(reply.events)

    return change_all


POSTS = (COMPLETIONS, CHATS)
PLAIN, STREAMS = good(*POSTS, stream=False), good(*POSTS, stream=True)
FOUR = ("completion", "chat", "streaming", "canary")
CANNED = " A GPU is a processor with thousands of small cores, and it computes many numbers at once."

# ---- nothing behind the health route
change("sick", path("/health"), status(503), "reachable")
change("redirect loop", path("/health"), redirect, "reachable")
change("health hangs", path("/health"), fields(before=60.0), "reachable")
change("healthy but broken", path(COMPLETIONS), status(500), "ready")
change("healthy but hung", path(COMPLETIONS), fields(before=60.0, events=None), "ready")
change("drips", PLAIN, fields(drip=0.05), "ready")
change("hangs up", PLAIN, fields(claimed=5000, body=b"", cut=True), "ready")
change("cuts the body", PLAIN, lambda r: fields(claimed=len(r.body), body=r.body[:-9], cut=True)(r), "ready")
change("claims a shorter body", PLAIN, lambda r: fields(claimed=len(r.body) - 9, cut=True)(r), "ready")
change("never ends the body", PLAIN, lambda r: fields(claimed=len(r.body) + 1, hold=True)(r), "ready")
change("login page", PLAIN, both(html, fields(content_type="text/html")), "ready")
change("HTML as JSON", PLAIN, html, "ready")
change("JSON as text", PLAIN, fields(content_type="text/plain"), "ready")
change("BOM", PLAIN, lambda r: fields(body=b"\xef\xbb\xbf" + r.body)(r), "ready")
change("gzip that is none", PLAIN, fields(headers={"Content-Encoding": "gzip"}), "ready")
change("no content", PLAIN, fields(status=204, body=b""), "ready")
change("error with 200", PLAIN, status(200), "ready")
change("error with 200 in chats", good(CHATS), status(200), "chat")
change("chats hang", good(CHATS), fields(before=60.0, events=None), "chat")

# ---- whose answers are these
change("no models", path("/v1/models"), lambda r: r.set({"object": "list", "data": []}), "models")
change("lists another model", path("/v1/models"), edit(lambda v: v["data"][0].update(id="another")), "models")
change("models hang", path("/v1/models"), fields(before=60.0), "models")
change("answers as another model", PLAIN, body(model="another"), "completion")
change("streams as another model", STREAMS, body(model="another"), "streaming")
change("canned text", PLAIN, choice(text(lambda _: CANNED)), "completion")
change("canned chats", good(CHATS), choice(text(lambda _: CANNED)), "chat")
change("degenerate", PLAIN, choice(text(lambda t: "!" * len(t))), "completion")
change("silent", PLAIN, choice(text(lambda _: "")), "completion")
change("upper case", PLAIN, choice(text(str.upper)), "completion")
change("one word is missing", PLAIN, choice(text(lambda t: t.replace(" is ", " ", 1))), "completion")

# ---- shapes and sums
change("invalid UTF-8", PLAIN, lambda r: fields(body=r.body.replace(b" the ", b" th\xe9 "))(r), "completion")
change("unfinished", PLAIN, choice(lambda c: c.update(finish_reason=None)), "completion")
change("aborted", PLAIN, choice(lambda c: c.update(finish_reason="abort")), "completion")
change("two choices", PLAIN, edit(lambda v: v.update(choices=v["choices"] * 2)), "completion")
change("no choices", PLAIN, body(choices=[]), "completion")
change("another object", PLAIN, body(object="list"), "completion")
change("no id", PLAIN, body(id=""), "completion")
change("usage does not add up", PLAIN, usage(total_tokens=1), "completion")
change("no usage in chats", good(CHATS), body(usage=None), "chat")
change("negative usage", PLAIN, usage(prompt_tokens=-1000, total_tokens=-1000), "completion")
change("a token too few is counted", PLAIN, usage(completion_tokens=-1, total_tokens=-1), "ready", *FOUR)
change("a prompt token too many is counted", PLAIN, usage(prompt_tokens=1, total_tokens=1), "streaming", "concurrency")
change("one id for all", good(*POSTS), body(id="cmpl-1"), "determinism")

# ---- streams
TELLING = 3.2  # seconds; see probes.streaming.TELLING
ALL = 10**6
change("one block", STREAMS, fields(pause=0.0, together=ALL, before=TELLING), "streaming")
change("one block at once", STREAMS, fields(pause=0.0, together=ALL), "streaming")
change("a block in pieces", STREAMS, fields(pause=0.0005, before=TELLING), "streaming")
change("no DONE", STREAMS, events(lambda e: e[:-1]), "streaming")
change("the stream breaks off", STREAMS, both(events(lambda e: e[:9]), fields(cut=True)), "streaming")
change("the stream never ends", STREAMS, fields(hold=True), "streaming")
change("the stream goes on after DONE", STREAMS, events(lambda e: [*e, *e[:3]]), "streaming")
change("an error in the stream", STREAMS, events(lambda e: [*e[:5], '{"error": {"message": "x"}}', e[-1]]), "streaming")
change("a chunk twice", STREAMS, events(lambda e: [*e[:6], e[5], *e[6:]]), "streaming")
change("a chunk is missing", STREAMS, events(lambda e: [*e[:5], *e[6:]]), "streaming")
change("chunks out of order", STREAMS, events(lambda e: [*e[:4], e[5], e[4], *e[6:]]), "streaming")
change("broken JSON in the stream", STREAMS, events(lambda e: [*e[:4], e[4][:-3], *e[5:]]), "streaming")
change("no usage in the stream", STREAMS, events(lambda e: [*e[:-2], e[-1]]), "streaming")
change("the stream counts a token more", STREAMS, usage(completion_tokens=1, total_tokens=1), "streaming")
change("the stream counts a prompt token more", STREAMS, usage(prompt_tokens=1, total_tokens=1), "streaming")
change(
    "no stream", STREAMS, both(lambda r: r.set({}), fields(events=None, content_type="application/json")), "streaming"
)
change("the stream drips", STREAMS, fields(pause=3.0), "streaming")


@add("ids change in the stream", "streaming")
def _ids(_stub: Stub, _ask: Ask, reply: Reply) -> None:
    if reply.events:
        reply.events = [e.replace('"id": "', f'"id": "{n % 2}', 1) for n, e in enumerate(reply.events)]


# ---- what lies behind
change("no version", path("/version"), status(404), "version")
change("a version that is none", path("/version"), lambda r: r.set({"version": 32}), "version")


@add("another version", "version", local=True)
def _version(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.path == "/version":
        reply.set({"version": "0.31.9"})


def _nothing(_stub: Stub, _ask: Ask, _reply: Reply) -> None:
    """The API does not lie."""


ENGINELESS = [{"PID": "7", "COMMAND": "python -m bringup.inside.serve"}]
CONTAINER: dict[str, Lie] = {
    "another version is installed": Lie(_nothing, ("version",), local=True, container=(("executed", (0, "0.31.9\n")),)),
    "no vLLM is installed": Lie(_nothing, ("version",), local=True, container=(("executed", (1, "Traceback")),)),
    "no engine": Lie(_nothing, ("process",), local=True, container=(("rows", ENGINELESS),)),
    "no processes": Lie(_nothing, ("process",), local=True, container=(("rows", []),)),
}


# ---- the key
def _keyed(name: str, where: Where, *probes: str) -> None:
    def tell(stub: Stub, ask: Ask, reply: Reply) -> None:
        if ask.path.startswith("/v1/") and ask.auth != OWN and where(ask):
            stub.as_own(ask, reply)

    API[name] = Lie(tell, probes, keyed=True)


_keyed("no key is demanded", lambda _: True, "auth")
_keyed("any key opens", lambda ask: ask.auth != NONE, "auth")
_keyed("who has no key may enter", lambda ask: ask.auth == NONE, "auth")
_keyed("only the list of models is closed", lambda ask: ask.path != "/v1/models", "auth")
_keyed("the list of models is open", path("/v1/models"), "auth")
_keyed("chats are open", path(CHATS), "auth")


@add("the right key is refused", "models", keyed=True)
def _refuse(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.path.startswith("/v1/") and ask.auth == OWN:
        status(401)(reply)
