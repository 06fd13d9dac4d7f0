"""The judges of answers, texts and streams: a right one passes, and each single defect is found."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bringup import probes
from bringup.edge import gpu
from bringup.edge.http import Answer, NoAnswer
from bringup.errors import EvidenceMissing
from bringup.probes import answers, behind, openai
from bringup.probes.finding import Finding, passed
from bringup.records import Status, verdict_of
from bringup.server import Server
from tests.unit.fakes import (
    TEXT,
    FakeContainer,
    FakeHttp,
    answer,
    canaries,
    chat,
    completion,
    hang,
    make_server,
    stream_of,
)

# ---- the shape of a completion


def test_right_answers_have_no_fault() -> None:
    assert openai.completion_fault(completion(), "text_completion", "m") == ""
    assert openai.completion_fault(completion(), "text_completion", None) == ""
    assert openai.completion_fault(chat(), "chat.completion", "m") == ""
    full = completion(made=openai.MAX_TOKENS, finish="length")
    assert openai.completion_fault(full, "text_completion", "m") == ""


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_model_that_got_no_further_than_its_thoughts_has_said_something(name: str) -> None:
    body = chat(None)
    assert "no text" in openai.completion_fault(body, "chat.completion", "m")
    body["choices"][0]["message"][name] = "The user asks"
    assert openai.completion_fault(body, "chat.completion", "m") == ""
    assert openai.text_of(body) == "The user asks"


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = value

    return change


DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an error in it": (_set("error", value={"message": "x"}), "HTTP 200 with an error"),
    "another object": (_set("object", value="chat.completion"), "object is"),
    "no object": (lambda b: b.pop("object"), "object is None"),
    "no id": (lambda b: b.pop("id"), "no id"),
    "empty id": (_set("id", value=""), "no id"),
    "another model": (_set("model", value="x"), "from the model 'x'"),
    "no model": (lambda b: b.pop("model"), "from the model None"),
    "no choices": (lambda b: b.pop("choices"), "one choice"),
    "empty choices": (_set("choices", value=[]), "one choice"),
    "two choices": (lambda b: b["choices"].append(b["choices"][0]), "one choice"),
    "a choice of another type": (_set("choices", 0, value="x"), "one choice"),
    "another index": (_set("choices", 0, "index", value=1), "index is 1"),
    "aborted": (_set("choices", 0, "finish_reason", value="abort"), "finish_reason is 'abort'"),
    "unfinished": (_set("choices", 0, "finish_reason", value=None), "finish_reason is None"),
    "no text": (lambda b: b["choices"][0].pop("text"), "no text"),
    "null text": (_set("choices", 0, "text", value=None), "no text"),
    "a number as text": (_set("choices", 0, "text", value=5), "no text"),
    "no usage": (lambda b: b.pop("usage"), "no usage"),
    "null usage": (_set("usage", value=None), "no usage"),
    "no total": (lambda b: b["usage"].pop("total_tokens"), "three whole numbers"),
    "a count as text": (_set("usage", "total_tokens", value="17"), "three whole numbers"),
    "a count that is true": (_set("usage", "completion_tokens", value=True), "three whole numbers"),
    "no prompt tokens": (_set("usage", value={"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}), "impos"),
    "no tokens made": (_set("usage", value={"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}), "impos"),
    "too many": (_set("usage", value={"prompt_tokens": 5, "completion_tokens": 97, "total_tokens": 102}), "impossible"),
    "a wrong sum": (_set("usage", "total_tokens", value=18), "5 + 12 is not 18"),
    "short of its length": (_set("choices", 0, "finish_reason", value="length"), "length after 12 of 96"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_single_defect_is_found(name: str) -> None:
    change, words = DEFECTS[name]
    body = copy.deepcopy(completion())
    change(body)
    assert words in openai.completion_fault(body, "text_completion", "m")


@pytest.mark.parametrize("body", [None, [], "text", 1])
def test_what_is_no_object_is_found(body: Any) -> None:
    assert "instead of an object" in openai.completion_fault(body, "text_completion", "m")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (answer({}, status=500), "HTTP 500"),
        (answer({}, status=204), "HTTP 204"),
        (answer(b"<html>", content_type="text/html"), "content type text/html"),
        (answer(b"{}", content_type=""), "content type none"),
        (answer(b"<html>"), "no JSON"),
        (answer(b"\xff"), "no JSON"),
    ],
)
def test_what_is_no_json_answer_is_found(given: Answer, words: str) -> None:
    body, fault = openai.decode(given)
    assert body is None
    assert words in fault


# ---- the text


@pytest.mark.parametrize(
    "text",
    [
        TEXT, " 42", "Yes", " banana", " 2 + 3 = 5.", ' {"status": "ok"}', " fünf", "今日は良い天気です",
        "\n\n- one\n- two",
        "👩\u200d💻 writes code", " One, two, three, four, five, six, seven, eight, nine, ten.", "ha ha ha",
    ],
)  # fmt: skip
def test_text_that_is_text(text: str) -> None:
    assert openai.text_fault(text) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("ok \x00", "cannot be printed"),
        ("ok \ufffd", "cannot be printed"),
        ("!!!!", "no letter"),
        ("!" * 96, "no letter"),
        ("... , ;", "no letter"),
        ("a" * 12, "of 1 kinds"),
        ("ababababcabc", "of 3 kinds"),
        ("the cat " * 10, "repeats itself"),
        ("This is one sentence. " * 12, "repeats itself"),
        ("abcdefgh" * 20, "pack into"),
    ],
)
def test_degenerate_text(text: str, words: str) -> None:
    assert words in openai.text_fault(text)


def test_the_known_answers_are_not_degenerate() -> None:
    from bringup import catalog

    known = [c.answer for c in catalog.load()["tiny-qwen2"].canaries]
    assert len(known) >= 20
    assert [a for a in known if openai.text_fault(a)] == []


# ---- the order, the gates, the deadline

HEALTHY = {
    "/health": answer(b"", content_type=""),
    "/v1/models": answer({"data": [{"id": "m", "max_model_len": 10}]}),
    "/v1/completions": lambda p, _: answer(
        completion(made=1, finish="length") if p["max_tokens"] == 1 else completion()
    ),
    "/v1/chat/completions": answer(chat()),
    "/version": answer({"version": "0.32.0"}),
}


def ask_all(deadline: float = 5.0, container: FakeContainer | None = None, **replies: Any) -> dict[str, Any]:
    changed = {**HEALTHY, **{f"/{k.replace('_', '/')}": v for k, v in replies.items()}}
    http = FakeHttp(changed, [stream_of(TEXT, 0.02)])
    return {r.name: r for r in probes.verify(make_server(http, deadline, container=container), names=probes.SMOKE)}


def test_a_healthy_server_passes_everything() -> None:
    rows = [
        {"PID": "1", "COMMAND": "python -m vllm.entrypoints.openai.api_server"},
        {"PID": "2", "COMMAND": "EngineCore"},
    ]
    seen = ask_all(container=FakeContainer(rows=rows))
    assert list(seen) == list(probes.SMOKE)
    assert {n: r.status.value for n, r in seen.items() if r.status is not Status.PASS} == {
        "auth": "skip",
        "vram": "skip",
    }


@pytest.mark.parametrize(
    ("replies", "gate"),
    [({"health": answer(b"", status=503)}, "reachable"), ({"v1_completions": answer({}, status=500)}, "ready")],
)
def test_a_closed_gate_leaves_the_rest_unknown(replies: dict[str, Any], gate: str) -> None:
    seen = ask_all(**replies)
    after = list(seen)[list(seen).index(gate) + 1 :]
    assert seen[gate].status is Status.FAIL
    assert {seen[n].status for n in after} == {Status.UNKNOWN}
    assert all(f"not asked: {gate} failed" in seen[n].found for n in after)


def test_a_wrong_model_is_told_by_the_list_before_anything_else_fails() -> None:
    seen = ask_all(v1_models=answer({"data": [{"id": "n"}]}), v1_completions=answer({}, status=404))
    assert (seen["models"].status, seen["models"].found) == (Status.FAIL, "it lists n")


def test_a_server_that_hangs_has_its_verdict_after_one_deadline() -> None:
    seen = ask_all(0.2, v1_chat_completions=hang, version=hang)
    assert seen["completion"].status is Status.PASS
    assert seen["chat"].status is Status.FAIL
    later = [seen[n] for n in ("streaming", "version", "process", "vram")]
    assert {r.status for r in later} == {Status.UNKNOWN}
    assert {r.found for r in later} == {"not asked: chat failed"}, "a second deadline was waited for"


def test_a_probe_that_never_returns_is_left_behind() -> None:
    never = threading.Event()

    def drips(_server: Server) -> Finding:
        never.wait()
        raise AssertionError

    found = probes.ask("drips", drips, make_server(FakeHttp({}), deadline=0.1))
    assert (found.status, found.found) == (Status.FAIL, "none within 0.1 s")
    assert found.seconds >= 0.1


def raising(error: BaseException) -> Callable[[Server], Finding]:
    def probe(_server: Server) -> Finding:
        raise error

    return probe


@pytest.mark.parametrize(
    ("error", "status"),
    [(NoAnswer("refused"), Status.FAIL), (EvidenceMissing("gone"), Status.UNKNOWN)],
)
def test_what_an_error_in_a_probe_means(error: Exception, status: Status) -> None:
    found = probes.ask("x", raising(error), make_server(FakeHttp({})))
    assert (found.status, found.found) == (status, str(error))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_probe_with_a_bug_is_unknown() -> None:
    found = probes.ask("x", raising(ZeroDivisionError()), make_server(FakeHttp({})))
    assert found.status is Status.UNKNOWN


def test_a_finding_keeps_its_data() -> None:
    found = probes.ask("x", lambda _: passed("a", "b", tokens=3), make_server(FakeHttp({})))
    assert (found.name, found.status, found.expected, found.found, found.data) == (
        "x",
        Status.PASS,
        "a",
        "b",
        {"tokens": 3},
    )


def test_unanswered_is_a_failure_and_nothing_passes() -> None:
    seen = list(probes.unanswered("refused"))
    assert [r.name for r in seen] == list(probes.PROBES)
    assert [r.status for r in seen] == [Status.FAIL] + [Status.UNKNOWN] * (len(seen) - 1)
    assert verdict_of(seen) == "fail"


# ---- single probes


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "shape"), ({"data": None}, "shape"), ({"data": [{}]}, "shape"), ([], "shape"), ({"data": ["m"]}, "shape"),
        ({"data": []}, "it lists nothing"), ({"data": [{"id": "n"}]}, "it lists n"),
    ],
)  # fmt: skip
def test_models_that_fail(body: Any, words: str) -> None:
    found = answers.models(make_server(FakeHttp({"/v1/models": answer(body)})))
    assert found.status is Status.FAIL
    assert words in found.found


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": 0}, {"completion_tokens": 2}, [], "1"])
def test_ready_needs_exactly_the_token_it_asked_for(usage: Any) -> None:
    found = answers.ready(make_server(FakeHttp({"/v1/completions": answer({"usage": usage})})))
    assert found.status is Status.FAIL


def test_known_answers_are_compared_word_for_word() -> None:
    known = canaries(("a?", " right"), ("b?", " right too"))

    def reply(payload: Any, _timeout: float) -> Answer:
        return answer(completion(" right" if payload["prompt"] == "a?" else " wrong", made=1))

    http = FakeHttp({"/v1/completions": reply})
    found = answers.completion(make_server(http, canaries=known))
    assert found.status is Status.FAIL
    assert "'b?': answered 'wrong', not 'right too'" in found.found
    assert [p["prompt"] for _, p in http.asked] == ["a?", "b?"]


def test_no_chat_template_is_no_fault_of_the_server() -> None:
    no_template = answer({"error": "As of transformers 4.44, default chat template is no longer allowed"}, status=400)
    found = answers.chat(make_server(FakeHttp({"/v1/chat/completions": no_template})))
    assert found.status is Status.SKIP
    other = answer({"error": "bad request"}, status=400)
    assert answers.chat(make_server(FakeHttp({"/v1/chat/completions": other}))).status is Status.FAIL


@pytest.mark.parametrize(
    ("said", "executed", "status"),
    [
        ({"version": "0.32.0"}, (0, "0.32.0\n"), Status.PASS),
        ({"version": "0.32.0+cpu"}, (0, "0.32.0\n"), Status.PASS),
        ({"version": "0.31.0"}, (0, "0.31.0\n"), Status.FAIL),
        ({"version": "0.32.0"}, (0, "0.31.0\n"), Status.FAIL),
        ({"version": "0.32.0"}, (0, ""), Status.FAIL),
        ({"version": "0.32.0"}, (1, "Traceback"), Status.FAIL),
        ({"version": None}, (0, "0.32.0"), Status.FAIL),
        ({}, (0, "0.32.0"), Status.FAIL),
        ([], (0, "0.32.0"), Status.FAIL),
    ],
)
def test_version(said: Any, executed: tuple[int, str], status: Status) -> None:
    http = FakeHttp({"/version": answer(said)})
    found = behind.version(make_server(http, vllm_version="0.32.0", container=FakeContainer(executed=executed)))
    assert found.status is status


@pytest.mark.parametrize("rows", [[], [{"COMMAND": "bash"}], [{"COMMAND": "python -m vllm.entrypoints"}]])
def test_a_container_without_both_processes_fails(rows: list[dict[str, str]]) -> None:
    assert behind.process(make_server(FakeHttp({}), container=FakeContainer(rows=rows))).status is Status.FAIL


def test_without_a_container_what_lies_behind_is_skipped() -> None:
    assert behind.process(make_server(FakeHttp({}))).status is Status.SKIP
    assert behind.vram(make_server(FakeHttp({}), gpu=True)).status is Status.SKIP


HELD: dict[str, tuple[dict[int, int] | None, int | None, int | None, int, Status]] = {
    # bytes by pid, used now, used before, weights
    "held by the server": ({7: 150}, 150, 0, 100, Status.PASS),
    "exactly the weights": ({7: 100}, 100, 0, 100, Status.PASS),
    "held by somebody else": ({8: 150}, 150, 150, 100, Status.FAIL),
    "nothing held, nothing grown": ({}, 10, 0, 100, Status.FAIL),
    "grown, but by whom": ({}, 200, 0, 100, Status.UNKNOWN),
    "start not observed": ({}, 200, None, 100, Status.UNKNOWN),
    "NVML does not tell": (None, 200, 0, 100, Status.UNKNOWN),
    "no use to be read": ({}, None, 0, 100, Status.UNKNOWN),
    "weights of unknown size": ({7: 150}, 150, 0, 0, Status.UNKNOWN),
}


@pytest.mark.parametrize("name", HELD)
def test_vram(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, now, before, weights, status = HELD[name]
    monkeypatch.setattr(gpu, "memory_by_pid", lambda _: held)
    monkeypatch.setattr(gpu, "memory_used", lambda _: now)
    server = make_server(FakeHttp({}), gpu=True, weights_bytes=weights, container=FakeContainer(), vram_before=before)
    assert behind.vram(server).status is status
