"""Probes of what answers mean: their probabilities, whether they repeat, and whether each goes to whoever asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bringup.edge.http import Answer
from bringup.fingerprint import Fingerprint, compare_fingerprints, fingerprint
from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed, unknown
from bringup.server import Server

AT_ONCE = 8
HIGHEST = 1e-4  # a log probability is at most 0; this much is rounding
# Scored token by token; what no model has by heart says most about its weights. ASCII: a token of it is text in any
# vocabulary.
SCORED = "The 7 quick brown foxes jumped over 13 lazy dogs; nobody (in Zanzibar) saw why."
GENERATED = 16  # tokens after it


def logprobs(server: Server) -> Finding:
    """A fixed text is scored and continued: numbers that a model can give, and its own where they are known.

    They are kept as the model's fingerprint. A server that scores no prompt is asked for the continuation alone.
    """
    wanted = "finite log probabilities, none above 0"
    wanted += ", and this model's own" if server.expect.fingerprint else ""
    request = openai.greedy(server.expect.model, SCORED)
    request |= {"max_tokens": GENERATED, "ignore_eos": True, "logprobs": 1}
    answer = server.http.post("/v1/completions", request | {"echo": True}, server.deadline)
    echoed = answer.status != 400
    if not echoed:
        answer = server.http.post("/v1/completions", request, server.deadline)
    body, fault = openai.decode(answer)
    if fault:
        return failed(wanted, fault)
    seen, fault = read_fingerprint(body, echoed=echoed)
    if seen is None:
        return failed(wanted, fault)
    data = seen.to_dict()
    values = [v for v in seen.logprobs if v is not None]
    found = f"{len(values)} values, mean {sum(values) / len(values):.3f}"
    if server.expect.fingerprint is None:
        return passed(wanted, found, **data)
    compared = compare_fingerprints(seen, server.expect.fingerprint)
    judge = {"same": passed, "differs": failed}.get(compared.verdict, unknown)
    return judge(wanted, f"{found}; beside the known ones: {compared.why}", **data)


def read_fingerprint(body: Any, *, echoed: bool) -> tuple[Fingerprint | None, str]:
    """The fingerprint in an answer, or None and why it can be no model's. Pure."""
    try:
        found, usage = body["choices"][0]["logprobs"], body["usage"]
        given = usage["prompt_tokens"] if echoed else 0
        seen = fingerprint(
            {"prompt": SCORED, "given": given, "tokens": found["tokens"], "logprobs": found["token_logprobs"]}
        )
    except (KeyError, IndexError, TypeError):
        return None, "the answer carries no log probabilities"
    except ValueError as e:
        return None, str(e)
    if len(seen.tokens) != given + GENERATED:
        return None, f"log probabilities of {len(seen.tokens)} tokens, not of {given} and {GENERATED}"
    values = [v for v in seen.logprobs if v is not None]
    if max(values) > HIGHEST:
        return None, f"among the log probabilities is {max(values)}"
    if len(set(values)) == 1:
        return None, f"all log probabilities are {values[0]}"
    # Without spaces: some tokenizers leave them out of a token that stands alone. A first token may mark the beginning.
    said, text = ("".join("".join(t).split()) for t in (seen.tokens[:given], SCORED))
    if echoed and not said.endswith(text):
        return None, f"the scored tokens are {said!r}, not the text that was asked for"
    return seen, ""


def determinism(server: Server) -> Finding:
    """The same greedy request twice. That the texts differ is a fact of batching and of kernels, and no failure."""
    wanted = "two greedy answers; whether they are the same"
    request = openai.greedy(server.expect.model, openai.PROMPTS[1])
    texts, ids = [], set()
    for _ in range(2):
        body, fault = openai.decode(server.http.post("/v1/completions", request, server.deadline))
        fault = fault or openai.completion_fault(body, "text_completion", server.expect.model)
        if fault:
            return failed(wanted, fault)
        texts.append(openai.text_of(body) or "")
        ids.add(body["id"])
    if len(ids) == 1:
        return failed(wanted, f"two answers have the id {ids.pop()!r}")
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
