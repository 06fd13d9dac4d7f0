"""Probes of what answers mean: their probabilities, whether they repeat, and whether each goes to whoever asked."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bringup.edge.http import Answer
from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed
from bringup.server import Server

FINGERPRINT = 16  # tokens whose log probabilities are kept
AT_ONCE = 8
HIGHEST = 1e-4  # a log probability is at most 0; this much is rounding


def logprobs(server: Server) -> Finding:
    """The log probabilities of a greedy answer are numbers a model can give; they are kept as its fingerprint."""
    wanted = f"{FINGERPRINT} finite log probabilities, none above 0"
    request = openai.greedy(server.expect.model, openai.PROMPTS[0])
    request |= {"max_tokens": FINGERPRINT, "ignore_eos": True, "logprobs": 1}
    body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
    if fault:
        return failed(wanted, fault)
    try:
        found = body["choices"][0]["logprobs"]
        tokens, values = list(found["tokens"]), list(found["token_logprobs"])
    except (KeyError, IndexError, TypeError):
        return failed(wanted, "the answer carries no log probabilities")
    if len(tokens) != FINGERPRINT or len(values) != FINGERPRINT:
        return failed(wanted, f"{len(tokens)} tokens and {len(values)} log probabilities")
    strange = [v for v in values if type(v) not in (int, float) or not math.isfinite(v) or v > HIGHEST]
    if strange:
        return failed(wanted, f"among them {strange[0]!r}")
    if len(set(values)) == 1:
        return failed(wanted, f"all are {values[0]}")
    mean = sum(values) / len(values)
    return passed(wanted, f"mean {mean:.3f}", prompt=openai.PROMPTS[0], tokens=tokens, logprobs=values)


def determinism(server: Server) -> Finding:
    """The same greedy request twice. That the texts differ is a fact of batching and of kernels, and no failure."""
    wanted = "two greedy answers; whether they are the same"
    request = openai.greedy(server.expect.model, openai.PROMPTS[1])
    texts = []
    for _ in range(2):
        body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
        fault = fault or openai.completion_fault(body, "text_completion", server.expect.model)
        if fault:
            return failed(wanted, fault)
        texts.append(openai.text_of(body) or "")
    one, other = texts
    if one == other:
        return passed(wanted, f"the same {len(one)} characters twice", same=True)
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return passed(wanted, f"they differ from character {at} on", same=False, differs_at=at)


def concurrency(server: Server) -> Finding:
    """Several requests at once, each with its own length of prompt and answer: whoever mixes them up is seen."""
    wanted = f"{AT_ONCE} requests at once, each with its own answer"
    known = {c.prompt: c.answer for c in server.expect.canaries[: AT_ONCE // 2]}
    asked: list[tuple[dict[str, Any], int, int, str | None]] = []
    for prompt, text in known.items():
        asked.append((openai.greedy(server.expect.model, prompt), 0, 0, text.strip()))
    for i in range(AT_ONCE - len(known)):
        prompt_tokens, made = 3 + 2 * i, 4 + 3 * i
        request = openai.greedy(server.expect.model, "") | {"prompt": [50 + i] * prompt_tokens}
        asked.append((request | {"max_tokens": made, "ignore_eos": True}, prompt_tokens, made, None))

    def post(request: dict[str, Any]) -> Answer:
        return server.http.post("/v1/completions", request, server.deadline)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(post, (request for request, *_ in asked)))
    ids = set()
    for (_, prompt_tokens, made, own), answer in zip(asked, answers, strict=True):
        body, fault = openai.decode(answer)
        fault = fault or _own(body, prompt_tokens, made, own)
        if fault:
            return failed(wanted, fault)
        ids.add(body.get("id"))
    if len(ids) != len(asked):
        return failed(wanted, f"{len(ids)} different ids in {len(asked)} answers")
    slowest = max(a.seconds for a in answers)
    return passed(wanted, f"{len(asked)} of {len(asked)}, the slowest after {slowest:.2f} s", slowest=slowest)


def _own(body: Any, prompt_tokens: int, made: int, text: str | None) -> str:
    """Why this is not the answer to that request; empty when it is."""
    try:
        usage, said = body["usage"], openai.text_of(body)
        counts = usage["prompt_tokens"], usage["completion_tokens"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return "an answer has not the API's shape"
    if said is None:
        return "an answer carries no text"
    if text is not None:
        return "" if said.strip() == text else f"answered {said.strip()!r}, not {text!r}"
    if counts != (prompt_tokens, made):
        return f"asked with {prompt_tokens} tokens for {made}, the answer counts {counts[0]} and {counts[1]}"
    return ""
