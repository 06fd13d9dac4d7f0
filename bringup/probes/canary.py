"""The canaries: does the model that answers know what it must? Wrong weights, wrong kernels and canned text do not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bringup import questions
from bringup.catalog import Canary
from bringup.edge.http import Answer
from bringup.probes import openai
from bringup.probes.answers import CANARIES
from bringup.probes.finding import Finding, failed, passed, unknown
from bringup.questions import Question, Threshold
from bringup.server import Server

FEW = 8  # what the standard suite asks
AT_ONCE = 4
KNOWN_TOKENS = 256  # more than the longest known answer has
TOKENS = 48  # of an answer to a question; they ask for a word
# For a model without a chat template: the form tells a base model what is wanted.
FORM = "Question: What is the capital of Portugal? Answer with one word.\nAnswer: Lisbon\n\nQuestion: {}\nAnswer:"


def canary(server: Server) -> Finding:
    """A handful: known answers that no other probe asks for, or the first questions."""
    return _known(server, server.expect.canaries[CANARIES:][:FEW]) or _questions(server, FEW)


def canaries(server: Server) -> Finding:
    """All known answers, or all questions."""
    return _known(server, server.expect.canaries) or _questions(server, None)


def _known(server: Server, asked: Sequence[Canary]) -> Finding | None:
    """A model with known answers gives each, word for word; None where none are known."""
    if not asked:
        return None
    wanted = f"{len(asked)} known answers, word for word"
    requests = [openai.greedy(server.expect.model, c.prompt) | {"max_tokens": KNOWN_TOKENS} for c in asked]
    for known, answer in zip(asked, _ask(server, "/v1/completions", requests), strict=True):
        body, fault = openai.decode(answer)
        fault = fault or openai.completion_fault(body, "text_completion", server.expect.model, KNOWN_TOKENS)
        said = "" if fault else (openai.text_of(body) or "").strip()
        if not fault and said != known.answer.strip():
            fault = f"answered {said!r}, not {known.answer.strip()!r}"
        if fault:
            return failed(wanted, f"{known.prompt!r}: {fault}")
    return passed(wanted, f"{len(asked)} of {len(asked)}", right=len(asked), asked=len(asked))


def _questions(server: Server, count: int | None) -> Finding:
    every, rows = questions.load()
    asked = every[:count]
    limit, rule = questions.threshold(rows, server.expect.parameters)
    wanted = f"{len(asked)} questions, {rule}"
    route, kind = "/v1/chat/completions", "chat.completion"
    requests = [openai.chat(server.expect.model, q.ask) | {"max_tokens": TOKENS} for q in asked]
    first = _ask(server, route, requests[:1])
    if openai.no_template(first[0]):
        route, kind = "/v1/completions", "text_completion"
        forms = [FORM.format(q.ask) for q in asked]
        stop = {"max_tokens": TOKENS, "stop": ["\n\n", "Question:"]}
        requests, first = [openai.greedy(server.expect.model, form) | stop for form in forms], []
    texts = []
    for question, answer in zip(asked, first + _ask(server, route, requests[len(first) :]), strict=True):
        body, fault = openai.decode(answer)
        fault = fault or openai.completion_fault(body, kind, server.expect.model, TOKENS)
        if fault:
            return failed(wanted, f"{question.ask!r}: {fault}")
        texts.append(openai.text_of(body) or "")
    return judge(wanted, Score.of(asked, texts), server.expect.parameters, limit)


@dataclass(frozen=True)
class Score:
    """How many were asked and right, how many answers are no text at all, how many are different; one wrong one."""

    asked: int
    right: int
    degenerate: int
    different: int
    wrong: str

    @classmethod
    def of(cls, asked: Sequence[Question], texts: Sequence[str]) -> Score:
        """The score of those answers, in the questions' order."""
        missed = [f"{q.ask!r}: {t.strip()[:60]!r}" for q, t in zip(asked, texts, strict=True) if not q.right(t)]
        return cls(
            asked=len(asked),
            right=len(asked) - len(missed),
            degenerate=sum(1 for t in texts if openai.text_fault(t)),
            different=len({t.strip() for t in texts}),
            wrong=missed[0] if missed else "",
        )


def judge(wanted: str, score: Score, parameters: int | None, limit: Threshold) -> Finding:
    """What a score says about a model of so many parameters. Pure.

    Text that is none, or one text for everything, is no model's answer at all. Sensible text below the threshold may be
    a small model's best: where its size is known to be larger it is a fail, otherwise nobody can tell: unknown.
    """
    share = score.right / score.asked
    found = f"{score.right} of {score.asked} right"
    data: dict[str, Any] = {"right": score.right, "asked": score.asked, "parameters": parameters}
    if score.different == 1:
        return failed(wanted, f"all {score.asked} questions have the same answer", **data)
    if share >= limit.passes:
        return passed(wanted, found, **data)
    found += f", for example {score.wrong}"
    if 2 * score.degenerate >= score.asked:
        return failed(wanted, f"{found}; {score.degenerate} answers are no text", **data)
    if share < limit.fails:
        return failed(wanted, found, **data)
    return unknown(wanted, f"{found}: too few to know these weights by", **data)


def _ask(server: Server, route: str, requests: list[dict[str, Any]]) -> list[Answer]:
    """Ask some at once, in the requests' order of answers."""
    until = time.monotonic() + server.deadline

    def post(request: dict[str, Any]) -> Answer:
        return server.http.post(route, request, max(0.1, until - time.monotonic()))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(post, requests))
