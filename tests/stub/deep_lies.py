"""Lies that the standard and the full suite must find: meaning, limits, counters, load. Some remember what was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from bringup.probes import counters
from tests.stub.lies import (
    ALL,
    API,
    COMPLETIONS,
    CONTAINER,
    PLAIN,
    STREAMS,
    TELLING,
    Lie,
    add,
    change,
    choice,
    edit,
    fields,
    status,
    text,
    usage,
)
from tests.stub.recording import OWN, Ask
from tests.stub.server import Reply, Stub

RARE = "How many days are in a week?"  # only the canaries ask it


def _echoes(ask: Ask) -> bool:
    return bool(ask.json.get("echo"))


def _ids(ask: Ask) -> bool:
    return isinstance(ask.json.get("prompt"), list)


# ---- text that went through the wrong hands


def _mojibake(said: str) -> str:
    return said.encode().decode("latin-1")


change("mojibake", PLAIN, choice(text(_mojibake)), "requests")
change("only ASCII comes back", PLAIN, choice(text(lambda t: t.encode("ascii", "replace").decode())), "requests")


# ---- log probabilities


def _values(how: Callable[[list[Any]], list[Any]]) -> Callable[[Reply], None]:
    def one(c: dict[str, Any]) -> None:
        if c.get("logprobs"):
            c["logprobs"]["token_logprobs"] = how(c["logprobs"]["token_logprobs"])

    return choice(one)


def _noise(size: float, seed: int) -> Callable[[list[Any]], list[Any]]:
    def how(values: list[Any]) -> list[Any]:
        chance = random.Random(seed)
        return [v if v is None else min(-1e-6, v + chance.gauss(0, size)) for v in values]

    return how


change("log probabilities of nothing", PLAIN, _values(lambda v: [*v[:5], math.nan, *v[6:]]), "logprobs")
change("infinite log probabilities", PLAIN, _values(lambda v: [*v[:5], -math.inf, *v[6:]]), "logprobs")
change("positive log probabilities", PLAIN, _values(lambda v: [x and -x for x in v]), "logprobs")
change("constant log probabilities", PLAIN, _values(lambda v: [x and -1.0 for x in v]), "logprobs")
change("a log probability too few", PLAIN, _values(lambda v: v[:-1]), "logprobs")
change("no log probabilities", PLAIN, choice(lambda c: c.update(logprobs=None)), "logprobs")
change("other weights", PLAIN, _values(_noise(1.0, 1)), "logprobs")
change("slightly other weights", PLAIN, _values(_noise(0.35, 2)), "logprobs")


def _one_token(c: dict[str, Any]) -> None:
    if c.get("logprobs"):
        c["logprobs"]["tokens"] = ["a"] * len(c["logprobs"]["tokens"])


change("the same token over and over", PLAIN, choice(_one_token), "logprobs")


# ---- answers of another request

OVERLAP = 0.05  # seconds that an answer takes at least, so that two of them overlap


@add("answers of the request before", "completion", "ready")
def _before(stub: Stub, ask: Ask, reply: Reply) -> None:
    if PLAIN(ask) and reply.status == 200:
        last = stub.memory.get(ask.path, reply.body)
        stub.memory[ask.path], reply.body = reply.body, last


@add("answers are swapped when two are asked at once", "canary", "concurrency")
def _swap(stub: Stub, ask: Ask, reply: Reply) -> None:
    if PLAIN(ask) and reply.status == 200:
        reply.before += OVERLAP
        last, stub.memory["last"] = stub.memory.get("last"), reply.body
        if stub.running > 1 and last:
            reply.body = last


@add("counts are those of the request before", "concurrency")
def _counts_before(stub: Stub, ask: Ask, reply: Reply) -> None:
    if PLAIN(ask) and reply.status == 200 and _ids(ask):
        last, stub.memory["usage"] = stub.memory.get("usage"), reply.json["usage"]
        if last:
            reply.edit(lambda v: v.update(usage=last))


change("prompts of ids are counted a token short", _ids, usage(prompt_tokens=-1, total_tokens=-1), "concurrency")


# ---- limits


@add("the context is a token shorter", "context")
def _shorter(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if _ids(ask) and len(ask.json["prompt"]) == 2047:
        status(400)(reply)


@add("the context says a token too few", "context")
def _says_less(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.path == "/v1/models":
        reply.edit(lambda v: v["data"][0].update(max_model_len=2047))
    elif _ids(ask) and len(ask.json["prompt"]) in (2046, 2047):  # both fit, and the real server would say so
        length = len(ask.json["prompt"])
        status(200, {"usage": {"prompt_tokens": length, "completion_tokens": 1, "total_tokens": length + 1}})(reply)


@add("prompts are cut to the context", "context")
def _truncates(stub: Stub, ask: Ask, reply: Reply) -> None:
    if _ids(ask) and len(ask.json["prompt"]) == 2048:
        stub.another(reply, lambda a: _ids(a) and len(a.json["prompt"]) == 2047)


@add("no length is said", "context")
def _no_length(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.path == "/v1/models":
        reply.edit(lambda v: [m.pop("max_model_len", None) for m in v["data"]])


def _accepts(name: str, bad: Callable[[Ask], bool]) -> None:
    def tell(stub: Stub, ask: Ask, reply: Reply) -> None:
        if ask.method == "POST" and ask.auth == OWN and reply.status >= 400 and bad(ask):
            stub.another(reply, lambda a: a.path == COMPLETIONS and a.json.get("max_tokens") == 1)

    API[name] = Lie(tell, ("requests",))


_accepts("broken JSON is answered", lambda a: a.body.endswith(b": "))
_accepts("an unknown model is answered", lambda a: "no-such" in str(a.json.get("model")))
_accepts("-1 tokens are answered", lambda a: a.json.get("max_tokens") == -1)
_accepts("an empty prompt is answered", lambda a: a.json.get("prompt") == "")
_accepts("any temperature is answered", lambda a: a.json.get("temperature") == -5)
_accepts("a huge body is answered", lambda a: len(a.body) > 10**6)
_accepts("text/plain is answered", lambda a: a.content_type.startswith("text/plain"))
_accepts("any route is answered", lambda a: a.path == "/v1/no-such-route")


def _bad(ask: Ask, reply: Reply) -> bool:
    return ask.method == "POST" and ask.auth == OWN and reply.status in (400, 404, 415, 422)


@add("bad requests are its own errors", "requests", "context")
def _own_errors(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if _bad(ask, reply):
        reply.status = 500


@add("it dies of a bad request", "requests", "context")
def _dies(stub: Stub, ask: Ask, reply: Reply) -> None:
    if "dead" in stub.memory:
        fields(before=60.0, events=None)(reply)
    if _bad(ask, reply) and not _ids(ask):
        stub.memory["dead"] = True


@add("stop strings are ignored", "requests")
def _stop(stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.json.get("stop"):
        same = {k: v for k, v in ask.json.items() if k != "stop"}
        stub.another(reply, lambda a: a.json == same)


# ---- counters


def _metrics(name: str, how: Callable[[Stub, str], str], *probes: str) -> None:
    def tell(stub: Stub, ask: Ask, reply: Reply) -> None:
        if ask.path == "/metrics" and reply.status == 200:
            reply.body = how(stub, reply.body.decode()).encode()

    API[name] = Lie(tell, probes)


def _other_process(stub: Stub, _honest: str) -> str:
    """Counters that move by themselves, and not by what was sent here."""
    moved = stub.memory["moved"] = stub.memory.get("moved", 0) + 1
    own = dict(zip(counters.NAMES, (0.0, moved, 7.0 * moved, 11.0 * moved), strict=True))
    return stub.metrics(stub.recorded_metrics(), own)


def _resets(stub: Stub, _honest: str) -> str:
    asked = stub.memory["asked"] = stub.memory.get("asked", 0) + 1
    gone = {name: count % 7 if name != counters.RUNNING else count for name, count in stub.counts.items()}
    return stub.metrics(stub.recorded_metrics(), gone if asked % 8 else dict.fromkeys(counters.NAMES, 0.0))


_metrics(
    "metrics stand still", lambda s, _: s.metrics(s.recorded_metrics(), dict.fromkeys(counters.NAMES, 0.0)), "metrics"
)
_metrics("metrics of another process", _other_process, "metrics", "cancel")
_metrics("counters reset", _resets, "metrics", "cancel")
_metrics("half of the metrics", lambda _, t: t.replace(counters.MADE, "vllm:x"), "metrics")
_metrics("twice the tokens are counted", lambda s, _: s.metrics(s.recorded_metrics(), {
    name: (2 if name == counters.MADE else 1) * count for name, count in s.counts.items()}), "metrics")  # fmt: skip
_metrics("metrics are an error page", lambda _s, _t: "<html>502 Bad Gateway</html>", "metrics")


@add("no metrics", "metrics", local=True)
def _no_metrics(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.path == "/metrics":
        status(404)(reply)


# ---- readers that leave


@add("the stream goes on without a reader", "cancel")
def _goes_on(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if STREAMS(ask):
        fields(deaf=True, pause=min(reply.pause, 0.001))(reply)


@add("what was left keeps running", "cancel")
def _keeps_running(stub: Stub, ask: Ask, _reply: Reply) -> None:
    if STREAMS(ask) and ask.json["max_tokens"] >= 1000 and "leaked" not in stub.memory:
        stub.memory["leaked"] = True
        stub.count(running=1)


def _fourth_of_many(stub: Stub, ask: Ask) -> bool:
    """Whether this is the fourth stream of those that are asked for to be left."""
    if STREAMS(ask) and ask.json["max_tokens"] == 400:
        stub.memory["many"] = stub.memory.get("many", 0) + 1
        return bool(stub.memory["many"] == 4)
    return False


@add("what was left keeps running when many leave", "cancels")
def _leaks(stub: Stub, ask: Ask, _reply: Reply) -> None:
    if _fourth_of_many(stub, ask):
        stub.count(running=1)


@add("it answers nothing after many have left", "cancels")
def _sick_after(stub: Stub, ask: Ask, reply: Reply) -> None:
    if _fourth_of_many(stub, ask):
        stub.memory["sick"] = True
    if PLAIN(ask) and "sick" in stub.memory:
        status(500)(reply)


# ---- what only shows when much is asked


@add("it does not know one answer", "canaries")
def _rare(_stub: Stub, ask: Ask, reply: Reply) -> None:
    if ask.json.get("prompt") == RARE:
        choice(text(lambda _: " I do not know."))(reply)


@add("it does not know one answer in twenty", "canaries")
def _forgets(stub: Stub, ask: Ask, reply: Reply) -> None:
    if PLAIN(ask) and ask.json.get("max_tokens") == 256:
        stub.memory["asked"] = stub.memory.get("asked", 0) + 1
        if stub.memory["asked"] % 20 == 0:
            choice(text(lambda t: t.replace("a", "o")))(reply)


MANY = 2  # running streams from which on these lie


def _under_load(name: str, how: Callable[[Stub, Reply], object], *probes: str) -> None:
    def tell(stub: Stub, ask: Ask, reply: Reply) -> None:
        if STREAMS(ask) and stub.running >= MANY and reply.status == 200:
            how(stub, reply)

    API[name] = Lie(tell, probes)


def _mix(stub: Stub, reply: Reply) -> None:
    last, stub.memory["stream"] = stub.memory.get("stream"), reply.events
    if last:
        reply.events = last


def _blend(stub: Stub, reply: Reply) -> None:
    """A piece of another stream's text in this one, under this one's id."""
    own = reply.events or []
    last, stub.memory["text"] = stub.memory.get("text"), own
    if last:
        at = len(own) // 2
        reply.events = [*own[:at], last[at % len(last)].replace(_id(last), _id(own)), *own[at + 1 :]]


def _id(events: list[str]) -> str:
    return events[0].split('"id": "', 1)[1].split('"', 1)[0]


def _cut(stub: Stub, reply: Reply) -> None:
    stub.memory["cut"] = stub.memory.get("cut", 0) + 1
    if stub.memory["cut"] % 5 == 0:
        reply.events, reply.cut = (reply.events or [])[:7], True


_under_load("streams are mixed up under load", _mix, "soak")
_under_load("streams are blended under load", _blend, "soak")
_under_load("streams are cut under load", _cut, "soak")
_under_load("streams are blocks under load", lambda _, r: fields(pause=0.0, together=ALL, before=TELLING)(r), "soak")
_under_load("streams are short blocks under load", lambda _, r: fields(pause=0.0, together=ALL, before=0.3)(r), "soak")
_under_load("streams hang under load", lambda _, r: fields(before=60.0)(r), "soak")
_under_load("too many requests", lambda _, r: status(429)(r), "soak")
_under_load("ids are given twice under load", lambda _, r: edit(lambda v: v.update(id="cmpl-1"))(r), "soak")


LIARS: dict[str, Lie] = API | CONTAINER
