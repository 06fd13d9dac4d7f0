"""Is this the OpenAI API's answer? Pure checks of shape, sums and text; each returns what is wrong, or "".

Shapes after the API reference of vLLM's OpenAI-compatible server and OpenAI's `completion` / `chat.completion` objects.
"""

from __future__ import annotations

import unicodedata
import zlib
from typing import Any

from bringup.edge.http import Answer

# The runbook's prompts: asked when nothing better is known about the model.
PROMPTS = (
    "Explain what a GPU is in one sentence:",
    "Explain KV cache in one sentence:",
    "What is inference optimization?",
)
MAX_TOKENS = 96
FINISH = ("stop", "length")


def greedy(model: str | None, prompt: str) -> dict[str, Any]:
    """A completion request without chance in it."""
    return {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}


def chat(model: str | None, prompt: str) -> dict[str, Any]:
    """The same as a chat."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0}


def decode(answer: Answer) -> tuple[Any, str]:
    """The JSON of an answer of status 200, or what is wrong with it."""
    if answer.status != 200:
        return None, f"HTTP {answer.status}: {answer.excerpt()}"
    if not answer.content_type.startswith("application/json"):
        return None, f"content type {answer.content_type or 'none'}: {answer.excerpt()}"
    try:
        return answer.json(), ""
    except ValueError as e:
        return None, f"no JSON ({e}): {answer.excerpt()}"


def no_template(answer: Answer) -> bool:
    """Whether a chat was refused because the model has no chat template, which is no fault of the server."""
    return answer.status == 400 and b"chat template" in answer.body


def completion_fault(body: Any, kind: str, model: str | None, limit: int = MAX_TOKENS) -> str:
    """What is wrong with a `text_completion` or `chat.completion` object; `limit`: the tokens that were asked for."""
    if not isinstance(body, dict):
        return f"a {type(body).__name__} instead of an object"
    if "error" in body:
        return f"HTTP 200 with an error: {body['error']}"
    if body.get("object") != kind:
        return f"object is {body.get('object')!r}, not {kind!r}"
    if not isinstance(body.get("id"), str) or not body["id"]:
        return "no id"
    if model is not None and body.get("model") != model:
        return f"the answer is from the model {body.get('model')!r}"
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return "not exactly one choice"
    if choices[0].get("index") != 0:
        return f"the choice's index is {choices[0].get('index')!r}"
    if choices[0].get("finish_reason") not in FINISH:
        return f"finish_reason is {choices[0].get('finish_reason')!r}"
    if text_of(body) is None:
        return "the choice carries no text"
    return usage_fault(body.get("usage"), choices[0]["finish_reason"], limit)


def text_of(body: dict[str, Any]) -> str | None:
    """The text of the first choice, of either kind."""
    choice = body["choices"][0]
    message = choice.get("message")
    text = said(message) if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None


def said(message: dict[str, Any]) -> Any:
    """The text of a chat's message or of a piece of one; of a model that thinks first and got no further, its thoughts.

    vLLM calls those `reasoning`, and older releases `reasoning_content`.
    """
    thought = message.get("reasoning") or message.get("reasoning_content")
    return message.get("content") or thought or message.get("content")


def usage_fault(usage: Any, finish: str, limit: int = MAX_TOKENS) -> str:
    """What does not add up in `usage`, of an answer of at most `limit` tokens."""
    if not isinstance(usage, dict):
        return "no usage"
    counts = [c for k in ("prompt_tokens", "completion_tokens", "total_tokens") if type(c := usage.get(k)) is int]
    if len(counts) != 3:
        return f"usage is not three whole numbers: {usage}"
    prompt, made, total = counts
    if prompt <= 0 or made <= 0 or made > limit:
        return f"usage is impossible: {prompt} prompt and {made} completion tokens of at most {limit}"
    if prompt + made != total:
        return f"usage does not add up: {prompt} + {made} is not {total}"
    if finish == "length" and made != limit:
        return f"finish_reason length after {made} of {limit} tokens"
    return ""


def text_fault(text: str) -> str:
    """Whether a text is degenerate: empty, unprintable, one thing over and over ("!!!!")."""
    words = text.split()
    if not words:
        return "the text is empty"
    # Cf is allowed: joiners of emoji and of many scripts are of that kind.
    if "\ufffd" in text or any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") and not c.isspace() for c in text):
        return "the text has characters that cannot be printed"
    if not any(c.isalnum() for c in text):
        return f"the text has no letter and no digit: {text[:20]!r}"
    letters = [c for c in text if not c.isspace()]
    if len(letters) >= 12 and len(set(letters)) <= 3:
        return f"the text is {len(letters)} characters of {len(set(letters))} kinds"
    if len(words) >= 12 and len(set(words)) / len(words) < 0.3:
        return f"the text repeats itself: {len(set(words))} different words of {len(words)}"
    packed = len(zlib.compress(text.encode()))
    if len(text) >= 120 and packed / len(text.encode()) < 0.25:
        return f"the text repeats itself: {len(text)} characters pack into {packed} bytes"
    return ""
