"""Probes that need nothing but the API."""

from __future__ import annotations

from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed, skipped, unknown
from bringup.server import Server

CANARIES = 5  # how many known answers are asked for


def reachable(server: Server) -> Finding:
    """The health route answers. That says that a process listens, and no more."""
    answer = server.http.get("/health", server.deadline)
    if answer.status != 200:
        return failed("GET /health: 200", f"HTTP {answer.status}: {answer.excerpt()}")
    return passed("GET /health: 200", f"200 after {answer.seconds:.3f} s")


def ready(server: Server) -> Finding:
    """One real token: the only proof that the engine behind the health route works."""
    wanted = "one generated token"
    request = openai.greedy(server.expect.model, openai.PROMPTS[0]) | {"max_tokens": 1}
    answer = server.http.post("/v1/completions", request, server.deadline)
    body, fault = openai.decode(answer)
    if fault:
        return failed(wanted, fault)
    usage = body.get("usage") if isinstance(body, dict) else None
    made = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if made != 1:
        return failed(wanted, f"{made!r} completion tokens: {answer.excerpt()}")
    return passed(wanted, f"after {answer.seconds:.3f} s", seconds=answer.seconds)


def models(server: Server) -> Finding:
    """The served model is listed under its name."""
    wanted = f"/v1/models lists {server.expect.model or 'a model'}"
    body, fault = openai.decode(server.http.get("/v1/models", server.deadline))
    if fault:
        return failed(wanted, fault)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in data):
        return failed(wanted, "the list has not the API's shape")
    names = [m["id"] for m in data]
    if not names or (server.expect.model is not None and server.expect.model not in names):
        return failed(wanted, f"it lists {', '.join(names) or 'nothing'}")
    return passed(wanted, ", ".join(names), max_model_len=data[0].get("max_model_len"))


def first_listed(server: Server) -> Finding:
    """The id of the first model that is listed, as data; that there is none is for `models` to say."""
    body, fault = openai.decode(server.http.get("/v1/models", server.deadline))
    try:
        return passed("a list of models", "it came", id=str(body["data"][0]["id"]))
    except (KeyError, IndexError, TypeError):
        return unknown("a list of models", fault or "no model")


def completion(server: Server) -> Finding:
    """Completions: right shape, usage that adds up, text that is text, and the known answers where some are known."""
    return _completions(server, "/v1/completions", "text_completion")


def chat(server: Server) -> Finding:
    """The same through the chat template."""
    return _completions(server, "/v1/chat/completions", "chat.completion")


def _completions(server: Server, path: str, kind: str) -> Finding:
    known = {c.prompt: c.answer for c in server.expect.canaries[:CANARIES]}
    prompts = list(known) or list(openai.PROMPTS)
    wanted = f"{len(prompts)} valid answers" + (", word for word the known ones" if known else " of sensible text")
    make = openai.chat if kind == "chat.completion" else openai.greedy
    tokens, longest = 0, 0.0
    for prompt in prompts:
        answer = server.http.post(path, make(server.expect.model, prompt), server.deadline)
        if kind == "chat.completion" and openai.no_template(answer):
            return skipped(wanted, "the model has no chat template")
        body, fault = openai.decode(answer)
        fault = fault or openai.completion_fault(body, kind, server.expect.model)
        if fault:
            return failed(wanted, f"{prompt!r}: {fault}")
        text = openai.text_of(body) or ""
        fault = openai.text_fault(text)
        if not fault and known and text.strip() != known[prompt].strip():
            fault = f"answered {text.strip()!r}, not {known[prompt].strip()!r}"
        if fault:
            return failed(wanted, f"{prompt!r}: {fault}")
        tokens += body["usage"]["completion_tokens"]
        longest = max(longest, answer.seconds)
    found = f"{len(prompts)} of {len(prompts)}, {tokens} tokens, the slowest after {longest:.2f} s"
    return passed(wanted, found, tokens=tokens, slowest=longest)
