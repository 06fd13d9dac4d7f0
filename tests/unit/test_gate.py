"""The gate: what it lets through and what not, with an application that says what reached it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from bringup.inside import gate
from bringup.inside.gate import Gate, Rules

KEYS = ("first-key-123456", "second-key-123456")
AUTHORIZED = [(b"authorization", b"Bearer " + KEYS[0].encode())]


def rules(*keys: str, **more: Any) -> Rules:
    digests = tuple(hashlib.sha256(k.encode()).digest() for k in keys)
    return Rules(digests=digests, first=b"Bearer " + keys[0].encode() if keys else b"", **more)


@dataclass
class App:
    """What vLLM is here: it reads the body, streams three chunks, and remembers."""

    scopes: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    fails: Exception | None = None
    reads: bool = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        body, more = b"", self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client is gone")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        if self.fails:
            raise self.fails
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Server", b"x"), (b"a", b"b")]})
        for index in range(3):
            await send({"type": "http.response.body", "body": b"%d" % index, "more_body": index < 2})


@dataclass
class Got:
    """What came back, message by message."""

    messages: list[Any]
    app: App

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        found = dict(self.messages[0]["headers"])
        assert len(found) == len(self.messages[0]["headers"])
        return found

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.messages[1:])


def http(
    method: str = "GET", path: str = "/v1/models", headers: Iterable[tuple[bytes, bytes]] = (), **more: Any
) -> dict[str, Any]:
    raw = more.pop("raw_path", path.encode())
    return {
        "type": "http", "method": method, "path": path, "raw_path": raw, "headers": list(headers),
        "query_string": b"api_key=in-the-query", "client": ("10.1.2.3", 4711), **more,
    }  # fmt: skip


def ask(
    scope: dict[str, Any], given: Rules | None = None, body: Iterable[bytes] = (b"",), app: App | None = None
) -> Got:
    app = app or App()
    messages: list[Any] = []
    chunks = list(body)
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
        for index, chunk in enumerate(chunks)
    ]

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(Gate(app, rules(*KEYS) if given is None else given)(scope, receive, send))
    return Got(messages, app)


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


def concrete(route: str) -> str:
    return route.replace("{response_id}", "resp_0-a")


LISTED = [(method, route) for route, methods in gate.ROUTES.items() for method in methods]


# Who gets in


def test_health_needs_no_key() -> None:
    got = ask(http(path="/health"))
    assert (got.status, got.body) == (200, b"012")


@pytest.mark.parametrize(("method", "route"), [pair for pair in LISTED if pair[1] != gate.OPEN])
@pytest.mark.parametrize(
    "headers",
    [
        [], bearer("wrong"), bearer(""), bearer(KEYS[0][:-1]), bearer(KEYS[0] + "x"), bearer(f" {KEYS[0]}"),
        [(b"authorization", b"Basic " + KEYS[0].encode())], [(b"authorization", KEYS[0].encode())],
        [(b"x-api-key", KEYS[0].encode())], [*AUTHORIZED, *bearer("wrong")], [*AUTHORIZED, *AUTHORIZED],
    ],
)  # fmt: skip
def test_every_other_route_needs_one(method: str, route: str, headers: list[tuple[bytes, bytes]]) -> None:
    got = ask(http(method, concrete(route), headers))
    assert got.status == 401
    assert got.headers[b"www-authenticate"] == b"Bearer"
    assert json.loads(got.body)["error"]["code"] == 401
    assert got.app.scopes == []


@pytest.mark.parametrize(("method", "route"), LISTED)
@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_each_route(method: str, route: str, key: str) -> None:
    got = ask(http(method, concrete(route), [(b"Authorization".lower(), f"bEARER {key}".encode())]))
    assert got.status == 200
    # vLLM's own check knows the first key only.
    shown = dict(got.app.scopes[0]["headers"])[b"authorization"]
    assert shown.lower() == f"bearer {KEYS[0]}".encode()


@pytest.mark.parametrize(("method", "route"), LISTED)
def test_without_a_key_set_the_listed_routes_answer(method: str, route: str) -> None:
    assert ask(http(method, concrete(route)), rules()).status == 200


def test_all_keys_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the function of constant time, whichever key it is."""
    seen: list[bytes] = []
    compare = hmac.compare_digest

    def watched(given: bytes, known: bytes) -> bool:
        seen.append(known)
        return compare(given, known)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    given = rules(*KEYS)
    for headers in (bearer(KEYS[0]), bearer(KEYS[1]), bearer("wrong"), []):
        seen.clear()
        gate.key_of(headers, given.digests)
        assert tuple(seen) == given.digests


# What there is


NOT_THERE = [
    "/", "", "/v1", "/v1/", "//v1/models", "/v1//models", "/v1/models/", "/V1/models", "/v1/Models", "/v1/./models",
    "/v1/../v1/models", "/health/", "//health", "/Health", "/health/../v1/models", "/health;x", "/metrics/",
    "/metricsx", "/metrics/health", "/docs", "/openapi.json", "/ping", "/load", "/invocations", "/pause",
    "/scale_elastic_ep", "/reset_prefix_cache", "/v1/load_lora_adapter", "/inference/v1/generate", "/v2/x",
    "http://host/v1/models", "http://host/health", "/v1/responses/", "/v1/responses/a/b", "/v1/responses/a/cancel/",
    "/v1/responses/..", "/v1/responses/{response_id}", "/v1/responses/" + "a" * 129, "/health\n", "/v1/models\n",
    "/health\x00", "/v1/responses/a\n", "*", "\\health", "/ health",
]  # fmt: skip


@pytest.mark.parametrize("path", NOT_THERE)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"])
@pytest.mark.parametrize("headers", [[], AUTHORIZED])
def test_what_is_not_listed_is_not_there(path: str, method: str, headers: list[tuple[bytes, bytes]]) -> None:
    for given in (rules(*KEYS), rules(), rules(preflight=True)):
        got = ask(http(method, path, headers), given)
        assert (got.status, got.app.scopes) == (404, [])


@pytest.mark.parametrize("raw", [b"/%68ealth", b"/v1/%6dodels", b"/v1%2fmodels", b"/%2e/health", b"/health%00"])
def test_an_escaped_path_is_not_there_whatever_it_means(raw: bytes) -> None:
    for path in ("/health", "/v1/models"):
        assert ask(http(path=path, raw_path=raw, headers=AUTHORIZED)).status == 404


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_other_methods_are_refused(method: str) -> None:
    assert ask(http(method, "/health")).status == 405
    assert ask(http(method, "/v1/models")).status == 401
    got = ask(http(method, "/v1/models", AUTHORIZED))
    assert (got.status, got.headers[b"allow"], got.app.scopes) == (405, b"GET", [])


def test_a_root_path_is_cut_off_as_vllms_router_does() -> None:
    assert ask(http(path="/api/health", root_path="/api")).status == 200
    assert ask(http(path="/api/v1/models", root_path="/api")).status == 401
    assert ask(http(path="/apihealth", root_path="/api")).status == 404
    assert ask(http(path="/health", root_path="/api")).status == 200  # the router takes it without the prefix too


def test_a_websocket_is_closed_before_it_is_open(caplog: pytest.LogCaptureFixture) -> None:
    app, sent = App(), []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": AUTHORIZED, "client": None}
    with caplog.at_level(logging.INFO, "bringup.gate"):
        asyncio.run(Gate(app, rules())(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert app.scopes == []
    assert "WEBSOCKET - 403" in caplog.text


def test_the_servers_own_start_passes() -> None:
    got = ask({"type": "lifespan"})
    assert got.app.scopes == [{"type": "lifespan"}]


# CORS


PREFLIGHT = [(b"origin", b"https://x"), (b"access-control-request-method", b"POST")]


def test_a_preflight_passes_only_where_somebody_asked_for_cors() -> None:
    assert ask(http("OPTIONS", "/v1/models", PREFLIGHT)).status == 401
    assert ask(http("OPTIONS", "/v1/models", PREFLIGHT), rules()).status == 405
    asked = rules(*KEYS, preflight=True)
    assert ask(http("OPTIONS", "/v1/models", PREFLIGHT), asked).status == 200
    assert ask(http("OPTIONS", "/v1/models", PREFLIGHT[:1]), asked).status == 401
    assert ask(http("GET", "/v1/models", PREFLIGHT), asked).status == 401
    assert ask(http("OPTIONS", "/load", PREFLIGHT), asked).status == 404


# Sizes


def test_too_many_headers() -> None:
    many = [(b"x-%d" % n, b"") for n in range(gate.MAX_HEADERS)]
    assert ask(http(path="/health", headers=many)).status == 200
    assert ask(http(path="/health", headers=[*many, (b"y", b"")])).status == 431


def test_headers_that_are_too_long() -> None:
    fits = [(b"x", b"a" * (gate.MAX_HEADER_BYTES - 1))]
    assert ask(http(path="/health", headers=fits)).status == 200
    assert ask(http(path="/health", headers=[*fits, (b"y", b"")])).status == 431


def posted(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return http("POST", "/v1/completions", [*AUTHORIZED, *headers])


SMALL = rules(*KEYS, max_body=10)


def test_a_body_of_known_length_is_refused_by_its_head() -> None:
    assert ask(posted((b"content-length", b"10")), SMALL, [b"x" * 10]).app.bodies == [b"x" * 10]
    assert ask(posted((b"content-length", b"0" * 5000 + b"10")), SMALL, [b"x" * 10]).status == 200
    for length in (b"11", b"9" * 5000, b"0" * 5000 + b"11"):
        got = ask(posted((b"content-length", length)), SMALL, [b"x" * 11])
        assert (got.status, got.app.scopes, got.headers[b"connection"]) == (413, [], b"close")


@pytest.mark.parametrize("lengths", [[b"-1"], [b"ten"], [b""], [b"1", b"1"], [b"+1"], [b"1, 1"], [b"\xb2"]])
def test_a_length_that_is_none(lengths: list[bytes]) -> None:
    assert ask(posted(*((b"content-length", n) for n in lengths))).status == 400


def test_a_body_of_unknown_length_is_cut_at_the_limit() -> None:
    chunked = posted((b"transfer-encoding", b"chunked"))
    assert ask(chunked, SMALL, [b"x" * 4, b"x" * 6]).app.bodies == [b"x" * 10]
    both = posted((b"transfer-encoding", b"chunked"), (b"content-length", b"1"))
    assert ask(both, SMALL, [b"x" * 11]).status == 413
    got = ask(chunked, SMALL, [b"x" * 4, b"x" * 7, b"never read"])
    assert got.status == 413
    assert got.app.bodies == []
    assert len(got.messages) == 2


def test_an_application_that_answers_a_cut_body_is_not_heard() -> None:
    class Answers(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.scopes.append(scope)
            while (await receive())["type"] != "http.disconnect":
                pass
            assert (await receive())["type"] == "http.disconnect"
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})

    got = ask(posted(), SMALL, [b"x" * 11], Answers())
    assert [m.get("status") for m in got.messages] == [413, None]


def test_a_stranger_is_refused_before_a_byte_of_the_body_is_read() -> None:
    got = ask(http("POST", "/v1/completions"), body=[])  # receive() would raise
    assert got.status == 401


# What passes, passes as it is


def test_chunks_pass_one_by_one() -> None:
    """Each chunk is out before the application makes the next one."""
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for index in range(3):
            order.append(f"made {index}")
            await send({"type": "http.response.body", "body": b"%d" % index, "more_body": index < 2})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            order.append(f"sent {message['body'].decode()}")

    async def receive() -> Any:
        raise AssertionError("nobody reads")

    asyncio.run(Gate(app, rules())(http(), receive, send))
    assert order == [f"{what} {index}" for index in range(3) for what in ("made", "sent")]


def test_vllm_reads_its_callers_messages_themselves() -> None:
    """With a known length nothing stands between: a caller who leaves is seen as ever."""
    given: list[Callable[..., Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        given.append(receive)

    async def receive() -> Any:
        raise AssertionError("nobody reads")

    async def send(message: Any) -> None:
        raise AssertionError("nobody answers")

    asyncio.run(Gate(app, rules())(posted((b"content-length", b"1")), receive, send))
    assert given == [receive]


def test_an_error_of_the_application_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bringup.gate"), pytest.raises(RuntimeError, match="engine"):
        ask(http(), rules(), app=App(fails=RuntimeError("engine")))
    assert "GET /v1/models 500" in caplog.text


# Names


def test_a_request_has_an_id() -> None:
    for good in (b"a", b"0123-abc_D.e", b"x" * 128):
        got = ask(http(headers=[*AUTHORIZED, (b"x-request-id", good)]))
        assert got.headers[b"x-request-id"] == good
        assert dict(got.app.scopes[0]["headers"])[b"x-request-id"] == good
    for bad in ([], [b""], [b"a b"], [b"x" * 129], [b"a\n"], [b"\xff"], [b"a", b"b"], [b"%s"]):
        got = ask(http(headers=[*AUTHORIZED, *((b"x-request-id", b) for b in bad)]))
        made = got.headers[b"x-request-id"]
        assert re.fullmatch(rb"[0-9a-f]{32}", made)
        assert [v for n, v in got.app.scopes[0]["headers"] if n == b"x-request-id"] == [made]
    assert ask(http()).headers[b"x-request-id"]  # a refusal too


def test_no_answer_names_the_server() -> None:
    assert set(ask(http(headers=AUTHORIZED)).headers) == {b"a", b"x-request-id"}
    assert b"server" not in ask(http()).headers


def test_one_line_a_request_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bringup.gate"):
        ask(http(headers=[(b"authorization", b"Bearer " + KEYS[1].encode()), (b"x-request-id", b"mine")]))
        ask(http(headers=bearer("wrong-key-zzz")))
        ask(http(path=f"/v1/{KEYS[0]}\nforged"))
        ask(http("POST\n", path="/health"))
        ask(http(path="/health"))
        ask(http("HEAD", "/health", client=("1.1.1.1 GET /v1/models 200", 1)))
        ask(http("HEAD", "/health", client=None))
    lines = [re.sub(r"[0-9a-f]{32}", "ID", re.sub(r"[\d.]+ s$", "S", r.getMessage())) for r in caplog.records]
    assert lines == [
        "10.1.2.3 GET /v1/models 200 key 2 id mine S",
        "10.1.2.3 GET /v1/models 401 key - id ID S",
        "10.1.2.3 GET - 404 key - id ID S",
        "10.1.2.3 - /health 405 key - id ID S",
        "- HEAD /health 405 key - id ID S",
        "- HEAD /health 405 key - id ID S",
    ]


def test_what_asks_for_ever_is_logged_only_when_it_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    ours = rules(*KEYS, asker=b"ours-1")
    known, ident = [*AUTHORIZED, (b"x-request-id", b"ours-1")], [(b"x-request-id", b"ours-1")]
    with caplog.at_level(logging.INFO, "bringup.gate"):
        assert ask(http(headers=known), ours).status == 200
        assert ask(http(headers=ident), ours).status == 401
        ask(http(headers=known), rules(*KEYS))
    assert [r.getMessage().split()[3:-2] for r in caplog.records] == [
        ["401", "key", "-", "id", "health"],
        ["200", "key", "1", "id", "ours-1"],
    ]


def test_health_may_have_a_second_name() -> None:
    named = rules(*KEYS, health="/ping")
    got = ask(http(path="/ping"), named)
    assert got.status == 200
    assert (got.app.scopes[0]["path"], got.app.scopes[0]["raw_path"]) == ("/health", b"/health")
    assert ask(http("POST", path="/ping"), named).status == 405
    assert ask(http(path="/ping/"), named).status == 404
    assert ask(http(path="/ping", raw_path=b"/%70ing"), named).status == 404
    assert ask(http(path="/ping")).status == 404
    assert ask(http(path="/health"), named).app.scopes[0]["path"] == "/health"
    assert ask(http(), named).status == 401


# Where the rules come from


def test_the_rules_are_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate.rules_of({}) == Rules() == rules()
    environ = {"VLLM_API_KEY": KEYS[0], gate.MORE_KEYS: KEYS[1], gate.PREFLIGHT: "1", "BRINGUP_MAX_BODY": "2"}
    environ |= {gate.HEALTH_PATH: "/ping", gate.ASKER: "ours"}
    assert gate.rules_of(environ) == rules(*KEYS, preflight=True, max_body=2 * 2**20, health="/ping", asker=b"ours")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert Gate(App()).rules == gate.rules_of(environ)
