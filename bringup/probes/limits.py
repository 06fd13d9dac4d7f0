"""Probes of what a server must refuse: bad requests, a prompt that is too long, a stranger without the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bringup.edge.http import Answer, NoAnswer
from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed, skipped, unknown
from bringup.server import Server

TOKEN = 50  # an id that every vocabulary has: prompts of ids have exactly the length that is wanted
HUGE = 2**20  # words; more than any context
UNICODE = "Grüße, 世界, \U0001f600\u200d, עברית:"
JSON = "application/json"
REFUSED = (400, 422)  # 422 is FastAPI's own answer to a body that does not fit; vLLM makes it 400


def requests(server: Server) -> Finding:
    """Each bad request has its status, unusual good ones are answered, and the server lives on."""
    asked = 0
    for name, allowed, answer in _bad(server):
        asked += 1
        if answer.status not in allowed:
            wanted = f"{name}: HTTP {' or '.join(map(str, allowed))}"
            return failed(wanted, f"HTTP {answer.status}: {answer.excerpt()}")
    wanted = f"{asked} bad requests refused, unusual ones answered, alive after"
    for fault in (_unicode(server), _echo(server), _stop(server), _alive(server)):
        if fault:
            return failed(wanted, fault)
    return passed(wanted, f"{asked} refused, unicode and stop strings right, alive")


def _bad(server: Server) -> Iterator[tuple[str, tuple[int, ...], Answer]]:
    """What was asked, the statuses that are right, the answer."""
    path, limit = "/v1/completions", server.deadline
    good = openai.greedy(server.expect.model, "a") | {"max_tokens": 1}
    yield "invalid JSON", REFUSED, server.http.send("POST", path, b'{"prompt": ', JSON, limit)
    yield "text/plain", (*REFUSED, 415), server.http.send("POST", path, json.dumps(good).encode(), "text/plain", limit)
    bodies: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
        "an unknown model": ((404,), {"model": "no-such-model-is-served"}),
        "max_tokens -1": (REFUSED, {"max_tokens": -1}),
        "an empty prompt": (REFUSED, {"prompt": ""}),
        "temperature -5": (REFUSED, {"temperature": -5}),
        f"a prompt of {HUGE} words": ((*REFUSED, 413), {"prompt": "a " * HUGE}),
    }
    for name, (allowed, change) in bodies.items():
        yield name, allowed, server.http.post(path, good | change, limit)
    yield "a route that is none", (404,), server.http.post("/v1/no-such-route", good, limit)


def _answer(server: Server, request: dict[str, Any]) -> tuple[Any, str]:
    body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
    return body, fault or openai.completion_fault(body, "text_completion", server.expect.model)


def _unicode(server: Server) -> str:
    _, fault = _answer(server, openai.greedy(server.expect.model, UNICODE))
    return fault and f"a prompt of many scripts: {fault}"


def _echo(server: Server) -> str:
    """A prompt of many scripts comes back as it was sent, where the server repeats prompts."""
    request = openai.greedy(server.expect.model, UNICODE) | {"echo": True}
    answer = server.http.post("/v1/completions", request, server.deadline)
    if answer.status == 400:
        return ""
    body, fault = openai.decode(answer)
    fault = fault or openai.completion_fault(body, "text_completion", server.expect.model)
    if not fault and not (text := openai.text_of(body) or "").startswith(UNICODE):
        fault = f"it came back as {text[: len(UNICODE)]!r}"
    return fault and f"a prompt of many scripts, repeated: {fault}"


def _stop(server: Server) -> str:
    """A character of the plain answer, as a stop string, is not in the answer; two greedy runs may differ."""
    request = openai.greedy(server.expect.model, openai.PROMPTS[0])
    body, fault = _answer(server, request)
    text = (openai.text_of(body) or "").strip() if not fault else ""
    if fault or not text:
        return f"a plain answer: {fault or 'no text'}"
    stop = text[len(text) // 2]
    body, fault = _answer(server, request | {"stop": [stop]})
    if fault:
        return f"a stop string: {fault}"
    said = openai.text_of(body) or ""
    return f"the stop string {stop!r} is in the answer {said!r}" if stop in said else ""


def _alive(server: Server) -> str:
    request = openai.greedy(server.expect.model, openai.PROMPTS[0]) | {"max_tokens": 1}
    body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
    if not fault and not (isinstance(body, dict) and body.get("choices")):
        fault = "an answer without choices"
    return fault and f"after all that: {fault}"


def context_length(server: Server) -> tuple[int | None, str]:
    """Tokens of prompt and answer together, as the server's list of models says it, or what is wrong with the list."""
    body, fault = openai.decode(server.http.get("/v1/models", server.deadline))
    try:
        length = None if fault else body["data"][0]["max_model_len"]
    except (KeyError, IndexError, TypeError):
        length = None
    return (length if type(length) is int and length > 1 else None), fault


def context(server: Server) -> Finding:
    """The longest prompt that must fit is answered, one token more is refused; the server itself says the length."""
    wanted = "a prompt of max_model_len - 1 tokens answered, one of max_model_len refused"
    length, fault = context_length(server)
    if fault:
        return failed(wanted, fault)
    if length is None:
        return unknown(wanted, "/v1/models says no max_model_len")
    request = openai.greedy(server.expect.model, "") | {"max_tokens": 1}
    try:
        fits = server.http.post("/v1/completions", request | {"prompt": [TOKEN] * (length - 1)}, server.deadline)
    except NoAnswer as e:
        if "within" in str(e):  # a slow server is no wrong one
            return unknown(wanted, f"{length - 1} tokens: {e}", max_model_len=length)
        raise
    body, fault = openai.decode(fits)
    usage = body.get("usage") if isinstance(body, dict) else None
    if fault or not isinstance(usage, dict) or usage.get("prompt_tokens") != length - 1:
        return failed(wanted, f"{length - 1} tokens: {fault or f'usage {usage}'}", max_model_len=length)
    over = server.http.post("/v1/completions", request | {"prompt": [TOKEN] * length}, server.deadline)
    if over.status not in REFUSED:
        return failed(wanted, f"{length} tokens: HTTP {over.status}: {over.excerpt()}", max_model_len=length)
    found = f"{length - 1} tokens after {fits.seconds:.2f} s; {length}: HTTP {over.status}"
    return passed(wanted, found, max_model_len=length, seconds=fits.seconds)


def auth(server: Server) -> Finding:
    """Where a key is set, the API answers to nobody without it."""
    wanted = "HTTP 401 without the key and with a wrong one"
    if not server.http.has_key:
        return skipped(wanted, "no key is set")
    one = {"max_tokens": 1}
    posts = {
        "/v1/completions": openai.greedy(server.expect.model, openai.PROMPTS[0]) | one,
        "/v1/chat/completions": openai.chat(server.expect.model, openai.PROMPTS[0]) | one,
    }
    for name, key in (("no key", None), ("a wrong key", "wrong-" * 6)):
        stranger = server.http.with_key(key)
        answers = {"GET /v1/models": stranger.get("/v1/models", server.deadline)}
        answers |= {f"POST {p}": stranger.post(p, request, server.deadline) for p, request in posts.items()}
        for route, answer in answers.items():
            if answer.status not in (401, 403):
                return failed(wanted, f"{route} with {name}: HTTP {answer.status}: {answer.excerpt()}")
    own = server.http.get("/v1/models", server.deadline)
    if own.status != 200:
        return failed(wanted, f"GET /v1/models with the key: HTTP {own.status}: {own.excerpt()}")
    refusing = f"{1 + len(posts)} routes refuse both, and answer with the key"
    opened = _open(server)
    return passed(wanted, f"{refusing}; open without one: {', '.join(opened)}" if opened else refusing, open=opened)


def _open(server: Server) -> list[str]:
    """Routes outside /v1 that answer to everyone. A fact, not a fault: vLLM's own key does not cover them."""
    found = []
    for route in ("/version", "/metrics"):
        try:
            answer = server.http.with_key(None).get(route, server.deadline / 10)  # a fact is worth no waiting
        except NoAnswer:
            continue
        found += [route] if answer.status == 200 else []
    return found
