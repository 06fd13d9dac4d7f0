"""The gate in front of vLLM: an ASGI middleware, given to vLLM by the entry point with `--middleware`.

vLLM's own key covers the paths that begin with /v1, /v2 and /inference; everything else it registers answers to
everybody. Here it is the other way round: a route that is not in `ROUTES` does not exist, and every one of them but
health needs a key where one is set. What is let through is passed on untouched, chunk by chunk.

A process of its own in front would need a second hop for every chunk, and a container of RunPod holds no second one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from bringup.settings import Settings, variable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MIDDLEWARE = "bringup.inside.gate.Gate"
# Keys beyond VLLM_API_KEY, which takes one; a space between. The entry point sets both, and BRINGUP_PREFLIGHT.
MORE_KEYS = "BRINGUP_MORE_API_KEYS"
PREFLIGHT = "BRINGUP_PREFLIGHT"
# A second name of /health, and the request id of the entry point's own questions (see `pulse`), which it makes up.
HEALTH_PATH = "BRINGUP_HEALTH_PATH"
ASKER = "BRINGUP_HEALTH_ID"
OURS = (MORE_KEYS, PREFLIGHT, HEALTH_PATH, ASKER)  # all that the entry point alone may set
OPEN = "/health"
GET, POST = ("GET",), ("POST",)
ROUTES: dict[str, tuple[str, ...]] = {
    OPEN: GET,
    "/metrics": GET,
    "/version": GET,
    "/tokenize": POST,
    "/detokenize": POST,
    "/v1/models": GET,
    "/v1/completions": POST,
    "/v1/chat/completions": POST,
    "/v1/responses": POST,
    "/v1/responses/{response_id}": GET,
    "/v1/responses/{response_id}/cancel": POST,
    "/v1/messages": POST,
    "/v1/messages/count_tokens": POST,
}
_RESPONSE = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}(/cancel)?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SHOWN = re.compile(r"[A-Za-z0-9.:]{1,45}")  # an address, or a method
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 2**10
MAX_DIGITS = 18  # of a length; Python refuses to read numbers of thousands
NOT_LISTED = "-"  # what the log calls every other path: a path is the caller's text, and may hold anything
_log = logging.getLogger("bringup.gate")


@dataclass(frozen=True)
class Rules:
    """What one server's gate goes by.

    Args:
        digests: sha256 of each key, none where no key is set.
        first: the header that vLLM's own check takes.
        max_body: bytes of a request's body.
        preflight: whether somebody asked for CORS; then vLLM answers preflights, which never carry a key.
        health: another path by which /health is known, empty for none.
        asker: the request id of whoever asks every few seconds, for ever: what succeeds is not logged.
    """

    digests: tuple[bytes, ...] = ()
    first: bytes = b""
    max_body: int = Settings.max_body * 2**20
    preflight: bool = False
    health: str = ""
    asker: bytes = b""


@dataclass(frozen=True)
class Ruling:
    """Status 0 lets a request through. `key`: the number of the key that it came with, from 1; 0 is none."""

    status: int
    route: str
    key: int = 0
    why: str = ""


def rules_of(environ: Mapping[str, str]) -> Rules:
    """The rules that the entry point has put into the server's environment."""
    keys = [k for k in (environ.get("VLLM_API_KEY", ""), *environ.get(MORE_KEYS, "").split(" ")) if k]
    return Rules(
        digests=tuple(hashlib.sha256(k.encode()).digest() for k in keys),
        first=b"Bearer " + keys[0].encode() if keys else b"",
        max_body=int(environ.get(variable("max_body")) or Settings.max_body) * 2**20,
        preflight=environ.get(PREFLIGHT) == "1",
        health=environ.get(HEALTH_PATH, ""),
        asker=environ.get(ASKER, "").encode(),
    )


def route_of(scope: Scope, health: str = "") -> str:
    """The route of `ROUTES` that a path is, letter by letter; `NOT_LISTED` for any other. `health` is one of /health.

    No path is normalised here. A spelling that a router further in might take for a route (doubled slash, escape,
    another case, a slash at the end) is another path, and refused as such.
    """
    if b"%" in scope.get("raw_path", b""):
        return NOT_LISTED
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if health and path == health:
        return OPEN
    if root and path.startswith(f"{root}/"):  # as vLLM's router cuts it, for `--root-path`
        path = path[len(root) :]
    if path in ROUTES:  # the templates are no paths: no URL has a brace that is not escaped, and this checks it
        return path if "{" not in path else NOT_LISTED
    if found := _RESPONSE.fullmatch(path):
        return "/v1/responses/{response_id}" + (found[1] or "")
    return NOT_LISTED


def key_of(headers: list[tuple[bytes, bytes]], digests: tuple[bytes, ...]) -> int:
    """The number of the key in the one Authorization header, from 1; 0 for none, a wrong one, or two headers.

    All keys are compared, by digests of one length, so that the time tells nothing about any of them.
    """
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, word = (given[0] if len(given) == 1 else b"").partition(b" ")
    digest = hashlib.sha256(word).digest()
    number = 0
    for index, known in enumerate(digests, 1):
        if hmac.compare_digest(digest, known):
            number = index
    return number if scheme.lower() == b"bearer" else 0


def judge(scope: Scope, rules: Rules) -> Ruling:
    """What to do with a request, by its head alone."""
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
        return Ruling(431, NOT_LISTED, why=f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them")
    route, method = route_of(scope, rules.health), scope["method"]
    if route == NOT_LISTED:
        return Ruling(404, route, why="there is no such route")
    if rules.preflight and method == "OPTIONS" and _is_preflight(headers):
        return Ruling(0, route)
    key = key_of(headers, rules.digests) if rules.digests else 0
    if rules.digests and not key and route != OPEN:
        return Ruling(401, route, why="the API key is missing or wrong: send it as `Authorization: Bearer KEY`")
    if method not in ROUTES[route]:
        return Ruling(405, route, key, f"this route takes {', '.join(ROUTES[route])}")
    length = [value for name, value in headers if name == b"content-length"]
    if len(length) > 1 or (length and not length[0].isdigit()):
        return Ruling(400, route, key, "Content-Length is no number")
    digits = length[0].lstrip(b"0") if length else b""
    if len(digits) > MAX_DIGITS or int(digits or b"0") > rules.max_body:
        return Ruling(413, route, key, _too_large(rules))
    return Ruling(0, route, key)


def _is_preflight(headers: list[tuple[bytes, bytes]]) -> bool:
    return {b"origin", b"access-control-request-method"} <= {name for name, _ in headers}


def _too_large(rules: Rules) -> str:
    return f"the body is larger than {rules.max_body} bytes ({variable('max_body')})"


def request_id(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bool]:
    """The caller's X-Request-Id if it is one plain word, else a new one; and whether it is the caller's."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0], True
    return uuid.uuid4().hex.encode(), False


class Gate:
    """The middleware. vLLM constructs it with the application and nothing else; the rules are the environment's."""

    def __init__(self, app: App, rules: Rules | None = None) -> None:
        self.app = app
        self.rules = rules_of(os.environ) if rules is None else rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection: a request, or the server's own start and end."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # none of the routes is one
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            _audit(scope, 403, Ruling(403, NOT_LISTED), request_id(scope["headers"])[0], time.monotonic())

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        ruling = judge(scope, self.rules)
        ident, own = request_id(scope["headers"])
        if ruling.status:
            await _refuse(send, ruling, ident)
            self._audit(scope, ruling.status, ruling, ident, began)
            return
        answer = _Answer(send, ident)
        names = {name for name, _ in scope["headers"]}
        # A declared length is kept by the web server; a body that says "chunked" has none, whatever else it says.
        known = b"content-length" in names and b"transfer-encoding" not in names
        reads = receive if known or scope["method"] != "POST" else _Body(receive, answer, self.rules.max_body).receive
        failed = True
        try:
            await self.app(self._inner(scope, ruling, ident, own), reads, answer.send)
            failed = False
        except Exception:  # of the reading of a body that was cut: the caller is not gone, and is told below
            if not answer.cut:
                raise
        finally:
            status = answer.status or (413 if answer.cut else 500 if failed else 0)
            self._audit(scope, status, ruling, ident, began)
        if answer.cut and not answer.status:
            await _refuse(send, Ruling(413, ruling.route, why=_too_large(self.rules)), ident)

    def _inner(self, scope: Scope, ruling: Ruling, ident: bytes, own: bool) -> Scope:
        """What vLLM sees: the request's id, and the one key that its own check knows."""
        headers = scope["headers"]
        if not own:
            headers = [h for h in headers if h[0] != b"x-request-id"] + [(b"x-request-id", ident)]
        if ruling.key > 1:
            headers = [h if h[0] != b"authorization" else (h[0], self.rules.first) for h in headers]
        path = {"path": OPEN, "raw_path": OPEN.encode()} if scope["path"] == self.rules.health else {}
        return {**scope, **path, "headers": headers}

    def _audit(self, scope: Scope, status: int, ruling: Ruling, ident: bytes, began: float) -> None:
        if ident != self.rules.asker:
            _audit(scope, status, ruling, ident, began)
        elif status != 200:  # without the id itself, which is nobody's business
            _audit(scope, status, ruling, b"health", began)


class _Answer:
    """Passes the answer on; its head gets the request's id."""

    def __init__(self, send: Send, ident: bytes) -> None:
        self._send, self._ident = send, ident
        self.status = 0
        self.cut = False

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and not self.cut:
            self.status = message["status"]
            kept = [h for h in message.get("headers", ()) if h[0].lower() not in (b"x-request-id", b"server")]
            message = {**message, "headers": [*kept, (b"x-request-id", self._ident)]}
        elif self.cut and not self.status:
            return _nothing()
        return self._send(message)


async def _nothing() -> None:
    """What the application says about a body that we cut is not sent: the answer is ours."""


class _Body:
    """A body of unknown length. At the limit the application is told that its caller is gone."""

    def __init__(self, receive: Receive, answer: _Answer, limit: int) -> None:
        self._receive, self._answer, self._left = receive, answer, limit

    async def receive(self) -> Message:
        if self._answer.cut:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._answer.cut = True
            return {"type": "http.disconnect"}
        return message


async def _refuse(send: Send, ruling: Ruling, ident: bytes) -> None:
    """An error as the OpenAI API has it, which its clients read."""
    body = json.dumps({"error": {"message": ruling.why, "type": "gate", "param": None, "code": ruling.status}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", ident),
    ]
    if ruling.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    elif ruling.status == 405:
        headers.append((b"allow", ", ".join(ROUTES[ruling.route]).encode()))
    elif ruling.status == 413:
        headers.append((b"connection", b"close"))  # what is left of the body is nobody's
    await send({"type": "http.response.start", "status": ruling.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _audit(scope: Scope, status: int, ruling: Ruling, ident: bytes, began: float) -> None:
    """One line, of words that are ours or checked: no path, no query, no header, no key but by its number."""
    if ruling.route == OPEN and status == 200:
        return  # six a minute, for ever
    client, method = (scope.get("client") or ("-",))[0], scope.get("method", "WEBSOCKET")
    who, how = (word if _SHOWN.fullmatch(word) else "-" for word in (client, method))
    _log.info("%s %s %s %d key %s id %s %.3f s", who, how, ruling.route, status, ruling.key or "-", ident.decode(),
              time.monotonic() - began)  # fmt: skip
