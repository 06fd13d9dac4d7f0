"""The probes beyond the smoke suite: an honest server passes each, and each lie is found by the one it concerns."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from bringup import probes
from bringup.edge.http import Answer, NoAnswer
from bringup.fingerprint import fingerprint
from bringup.probes import counters
from bringup.records import ProbeRecord, Status
from bringup.server import Server
from bringup.settings import fields
from tests.unit.fakes import FakeContainer, answer, canaries, expect

KEY = "the-key"
KNOWN = {"one": " the first known answer", "two": " the second known answer", "three": " a third", "four": " a fourth"}
TEXT = " A GPU computes many numbers at once, for images and for models."
NEW = ("logprobs", "determinism", "concurrency", "context", "requests", "metrics", "cancel", "auth")


class FakeVllm:
    """As much of vLLM as these probes ask; `lies` are what it does otherwise."""

    def __init__(self, *lies: str, key: str | None = KEY, shared: FakeVllm | None = None, length: int = 2048) -> None:
        self.lies, self.key, self.length = lies, key, length
        self.home = shared or self
        self.counts = {counters.RUNNING: 0.0, counters.DONE: 40.0, counters.PROMPT: 1000.0, counters.MADE: 900.0}
        self.lock = threading.Lock()
        self.served = 0
        self.before: dict[str, int] = {}

    has_key = property(lambda self: self.key is not None)

    def with_key(self, key: str | None) -> FakeVllm:
        return FakeVllm(*self.lies, key=key, shared=self.home, length=self.length)

    def stranger(self) -> bool:
        if self.key == KEY:
            return "own key refused" in self.lies and self.home.key == KEY
        return not ("no key needed" in self.lies and self.key is None) and "any key" not in self.lies

    def get(self, path: str, _timeout: float) -> Answer:
        if path == "/metrics":
            return self.metrics()
        if self.stranger():
            return answer({"error": "Unauthorized"}, status=401)
        listed: dict[str, Any] = {"id": "m", "max_model_len": self.length}
        if "no length" in self.lies:
            del listed["max_model_len"]
        return answer({"data": [listed]})

    def metrics(self) -> Answer:
        if "no metrics" in self.lies:
            return answer({"detail": "Not Found"}, status=404)
        home = self.home
        if "others" in self.lies:
            home.count(1, 9, 9)
        lines = ["# HELP vllm:x y", "# TYPE vllm:x counter", "strange line {"]
        for name, value in home.counts.items():
            half = value if name == counters.RUNNING else value / 2
            lines += [f'{name}{{engine="{e}",model_name="m"}} {half if e == "0" else value - half}' for e in "01"]
        if "half of metrics" in self.lies:
            lines = [line for line in lines if counters.MADE not in line]
        return answer("\n".join(lines).encode(), content_type="text/plain; version=0.0.4")

    def count(self, done: int, prompt: int, made: int) -> None:
        if "frozen" in self.lies:
            return
        with self.lock:
            self.counts[counters.DONE] += done
            self.counts[counters.PROMPT] += prompt
            self.counts[counters.MADE] += made

    def send(self, _method: str, path: str, data: bytes, content_type: str, timeout: float) -> Answer:
        if content_type != "application/json" and "any type" not in self.lies:
            return answer({"error": {}}, status=400)
        try:
            return self.post(path, json.loads(data), timeout)
        except ValueError:
            return answer({}, status=200 if "any JSON" in self.lies else 400)

    def refusal(self, path: str, asked: dict[str, Any]) -> int:
        prompt = asked["prompt"]
        long = len(prompt) >= self.length if isinstance(prompt, list) else len(prompt) > 13 * self.length
        refused = {
            "any route": (path != "/v1/completions", 404),
            "any model": (asked["model"] != "m", 404),
            "any max_tokens": (asked["max_tokens"] < 1, 400),
            "any temperature": (asked["temperature"] < 0, 400),
            "any prompt": (prompt == "", 400),
            "any length": (long, 400),
            "": ("echo" in asked and "no echo" in self.lies, 400),
        }
        return next((status for lie, (bad, status) in refused.items() if bad and lie not in self.lies), 0)

    def post(self, path: str, asked: dict[str, Any], timeout: float) -> Answer:
        home, prompt = self.home, asked.get("prompt", "a chat")
        asked = {"prompt": prompt, **asked}
        if self.stranger():
            return answer({"error": "Unauthorized"}, status=401)
        if "dies of them" in self.lies and home.served < 0:
            raise NoAnswer("connection refused")
        if status := self.refusal(path, asked):
            if status == 404 and path != "/v1/completions":
                home.served = -1000
            return answer({"error": {"code": status}}, status=status)
        if "refuses what fits" in self.lies and len(prompt) == self.length - 1:
            return answer({"error": {}}, status=400)
        if "slow" in self.lies and len(prompt) == self.length - 1:
            raise NoAnswer(f"connected, but no answer within {timeout:g} s")
        with home.lock:
            home.served += 1
            number = home.served
        made = max(1, asked["max_tokens"] if asked.get("ignore_eos") else min(asked["max_tokens"], 12))
        usage = {"prompt_tokens": len(prompt) if isinstance(prompt, list) else 9, "completion_tokens": made}
        home.count(1, usage["prompt_tokens"], made)
        if "mixed up" in self.lies and asked.get("ignore_eos"):
            home.before, usage = usage, home.before or usage
        return answer(self.body(asked, usage, number))

    def body(self, asked: dict[str, Any], usage: dict[str, int], number: int) -> dict[str, Any]:
        prompt = asked["prompt"]
        text = KNOWN.get(prompt, TEXT) if isinstance(prompt, str) else " words"
        if "another's words" in self.lies and prompt == "two":
            text = KNOWN["three"]
        if "differs" in self.lies and number % 2:
            text = text[:20] + "X" + text[21:]
        for stop in asked.get("stop", ()) if "ignores stop" not in self.lies else ():
            text = text.partition(stop)[0] or " a"
        if "mojibake" in self.lies and prompt == probes.limits.UNICODE:
            text = "\ufffd\ufffd"
        if "echo" in asked and "mojibake in echoes" not in self.lies:
            text = prompt + text
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "stop"}
        if "mojibake" in self.lies and prompt == probes.limits.UNICODE:
            choice["text"] = None
        if "logprobs" in asked:
            choice["logprobs"] = self.logprobs(prompt.split(" ", 8) if "echo" in asked else [], asked["max_tokens"])
        total = usage["prompt_tokens"] + usage["completion_tokens"]
        return {
            "id": "cmpl-1" if "one id" in self.lies else f"cmpl-{number}", "object": "text_completion", "model": "m",
            "choices": [choice], "usage": usage | {"total_tokens": total},
        }  # fmt: skip

    def logprobs(self, scored: list[str], tokens: int) -> Any:
        values: list[Any] = [-0.01 * (i + 1) for i in range(len(scored) + tokens)]
        if scored:
            values[0] = None
        changes: dict[str, Callable[[], Any]] = {
            "nan": lambda: values.__setitem__(3, math.nan),
            "infinite": lambda: values.__setitem__(3, -math.inf),
            "above 0": lambda: values.__setitem__(3, 0.5),
            "null": lambda: values.__setitem__(3, None),
            "constant": lambda: values.__setitem__(slice(None), [-1.0] * len(values)),
            "too few": values.pop,
            "other text": lambda: scored.__setitem__(0, "x"),
        }
        for lie in self.lies:
            changes.get(lie, bool)()
        told = {"tokens": scored + ["a"] * tokens, "token_logprobs": values}
        return None if "no logprobs" in self.lies else told

    def abandon(self, _path: str, asked: dict[str, Any], _timeout: float, events: int) -> tuple[int, float]:
        if "no stream" in self.lies:
            return 1, 0.1
        self.home.count(1, 9, asked["max_tokens"] if {"goes on", "held back"} & {*self.lies} else 5)
        if "never ends" in self.lies:
            self.home.counts[counters.RUNNING] = 1.0
        return events, 4.0 if "held back" in self.lies else 0.1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "PAUSE", 0.001)
    monkeypatch.setattr(counters, "LAG", 0.02)


def ask(http: FakeVllm, *names: str, local: bool = True, known: bool = True) -> dict[str, ProbeRecord]:
    told = expect(canaries=canaries(*KNOWN.items()) if known else ())
    server = Server(http=cast("Any", http), expect=told, deadline=1.0, container=FakeContainer() if local else None)
    return {name: probes.ask(name, probes.PROBES[name], server) for name in names}


@pytest.mark.parametrize("known", [True, False])
def test_an_honest_server_passes_all_of_them(known: bool) -> None:
    seen = ask(FakeVllm(), *NEW, known=known)
    assert {n: (r.status.value, r.found) for n, r in seen.items() if r.status is not Status.PASS} == {}
    assert seen["determinism"].data == {"same": True}
    assert len(seen["logprobs"].data["logprobs"]) == len(seen["logprobs"].data["tokens"]) == 9 + 16


def test_a_server_that_scores_no_prompt_gives_the_fingerprint_of_its_answer() -> None:
    found = ask(FakeVllm("no echo"), "logprobs", "requests")
    assert {r.status for r in found.values()} == {Status.PASS}
    assert (found["logprobs"].data["given"], len(found["logprobs"].data["tokens"])) == (0, 16)


@pytest.mark.parametrize(
    ("away", "status"), [(0.0, Status.PASS), (0.04, Status.PASS), (0.2, Status.UNKNOWN), (0.5, Status.FAIL)]
)
def test_a_known_fingerprint_is_held_against_the_answer(away: float, status: Status) -> None:
    seen = fingerprint(ask(FakeVllm(), "logprobs")["logprobs"].data)
    known = dataclasses.replace(seen, logprobs=tuple(v and v - away for v in seen.logprobs))
    server = Server(http=cast("Any", FakeVllm()), expect=expect(fingerprint=known), deadline=1.0)
    assert probes.ask("logprobs", probes.PROBES["logprobs"], server).status is status


LIES: dict[str, tuple[str, str]] = {
    "any JSON": ("requests", "HTTP 200"),
    "any type": ("requests", "HTTP 200"),
    "any route": ("requests", "HTTP 200"),
    "any model": ("requests", "HTTP 200"),
    "any max_tokens": ("requests", "HTTP 200"),
    "any temperature": ("requests", "HTTP 200"),
    "any prompt": ("requests", "HTTP 200"),
    "ignores stop": ("requests", "the stop string"),
    "mojibake": ("requests", "many scripts"),
    "dies of them": ("requests", "connection refused"),
    "any length": ("context", "HTTP 200"),
    "refuses what fits": ("context", "HTTP 400"),
    "no key needed": ("auth", "with no key: HTTP 200"),
    "any key": ("auth", "HTTP 200"),
    "own key refused": ("auth", "with the key: HTTP 401"),
    "nan": ("logprobs", "nan"),
    "infinite": ("logprobs", "inf"),
    "above 0": ("logprobs", "0.5"),
    "null": ("logprobs", "None"),
    "constant": ("logprobs", "all log probabilities are -1.0"),
    "too few": ("logprobs", "24 log probabilities"),
    "other text": ("logprobs", "not the text that was asked for"),
    "mojibake in echoes": ("requests", "many scripts, repeated"),
    "no logprobs": ("logprobs", "carries no"),
    "mixed up": ("concurrency", "the answer counts"),
    "one id": ("determinism", "two answers have the id 'cmpl-1'"),
    "another's words": ("concurrency", "not 'the second known answer'"),
    "frozen": ("metrics", "0 requests"),
    "goes on": ("cancel", "all 1024 tokens"),
    "never ends": ("cancel", "1 requests are still running"),
    "no stream": ("cancel", "ended after 1 events"),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_fails_its_probe(lie: str) -> None:
    name, words = LIES[lie]
    found = ask(FakeVllm(lie), name)[name]
    assert (found.status, words in found.found) == (Status.FAIL, True), found


UNKNOWN = {
    "no length": ("context", "no max_model_len"),
    "slow": ("context", "2047 tokens: connected, but no answer within"),
    "others": ("metrics", "others ask this server too"),
    "no metrics": ("metrics", "HTTP 404"),
    "half of metrics": ("cancel", "has no vllm:generation_tokens_total"),
    "held back": ("cancel", "came after 4.0 s"),
}


@pytest.mark.parametrize("signal", UNKNOWN)
def test_a_signal_that_is_not_to_be_had_is_unknown(signal: str) -> None:
    name, words = UNKNOWN[signal]
    found = ask(FakeVllm(signal), name)[name]
    assert (found.status, words in found.found) == (Status.UNKNOWN, True), found


def test_other_requests_that_run_leave_cancel_unknown() -> None:
    http = FakeVllm()
    http.counts[counters.RUNNING] = 2.0
    found = ask(http, "cancel")["cancel"]
    assert (found.status, found.found) == (Status.UNKNOWN, "2 other requests are running")


def test_counters_that_do_not_move_after_a_stream_fail() -> None:
    assert ask(FakeVllm("frozen"), "cancel")["cancel"].found == "the counters did not move"


def test_texts_that_differ_are_a_fact() -> None:
    found = ask(FakeVllm("differs"), "determinism")["determinism"]
    assert (found.status, found.data) == (Status.PASS, {"same": False, "differs_at": 20})


def test_what_was_not_offered_is_skipped() -> None:
    assert ask(FakeVllm("no metrics"), "metrics", local=False)["metrics"].status is Status.SKIP
    assert ask(FakeVllm(key=None), "auth")["auth"].status is Status.SKIP


def test_what_is_open_outside_v1_is_a_fact_and_no_fault() -> None:
    """vLLM's own key leaves it open; the gate does not."""
    record = ask(FakeVllm(), "auth")["auth"]
    assert (record.status, record.data["open"]) == (Status.PASS, ["/metrics"])
    assert "open without one: /metrics" in record.found
    record = ask(FakeVllm("no metrics"), "auth")["auth"]
    assert (record.status, record.data["open"]) == (Status.PASS, [])
    found = ask(FakeVllm(length=300), "cancel")["cancel"]
    assert (found.status, "300 tokens" in found.found) == (Status.SKIP, True)


def test_samples_are_summed_over_labels_and_strange_lines_passed_over() -> None:
    text = '# x\na{l="1 2"} 1\na{l="b}"} 2.5e0\nb 3 1700000000\nc x\n{} 1\nd{ 2\n'
    assert counters.parse(text) == {"a": 3.5, "b": 3.0}


def test_only_the_named_probes_are_asked() -> None:
    told = Server(http=cast("Any", FakeVllm()), expect=expect(), deadline=1.0)
    assert [r.name for r in probes.verify(told, names=("context", "logprobs"))] == ["logprobs", "context"]
    assert [r.name for r in probes.unanswered("why", ("models", "ready"))] == ["models", "ready"]
    suite = fields()["suite"][1].parse
    assert [suite(name) for name in probes.SUITES] == list(probes.SUITES)
    assert set(probes.SMOKE) < set(probes.SUITES["standard"]) < set(probes.SUITES["full"]) == set(probes.PROBES)
