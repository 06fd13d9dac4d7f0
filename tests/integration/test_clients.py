"""The official `openai` client and langchain-openai against the real server: docs/clients.md is this file as a table.

Two servers: the image as it is, and one with the parser of tool calls that the plan gives Qwen2.5.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_openai import OpenAI as CompletionLLM
from pydantic import BaseModel, SecretStr

from bringup import catalog
from bringup.testing import VLLMContainer
from tests.integration.support import MODEL, vllm

pytestmark = pytest.mark.integration

KNOWN = {c.prompt: c.answer for c in catalog.load()[MODEL].canaries}
PROMPT = "What is the capital of France?"
ANSWER = KNOWN[PROMPT].strip()
JSON = "Return a JSON object with the city Paris and the country France."
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


class Place(BaseModel):
    """What the model is made to answer: it knows this answer, and could have had others."""

    city: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


FUNCTION = {"name": "visit", "description": "Visit a place.", "parameters": Place.model_json_schema(), "strict": True}
VISIT: Any = [{"type": "function", "function": FUNCTION}]
NAMED: Any = {"type": "function", "function": {"name": "visit"}}


@pytest.fixture(scope="module")
def server(image: str) -> Iterator[VLLMContainer]:
    with vllm(image).with_settings(max_model_len=512) as made:
        yield made


@pytest.fixture(scope="module")
def tooled(image: str) -> Iterator[VLLMContainer]:
    with vllm(image).with_settings(max_model_len=512).with_vllm_args(*TOOLS) as made:
        yield made


def client_of(server: VLLMContainer, **given: Any) -> openai.OpenAI:
    known: dict[str, Any] = {"api_key": server.api_key, "max_retries": 0, "timeout": 60}
    return openai.OpenAI(base_url=server.openai_url, **known | given)


def chat_model(server: VLLMContainer, **given: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=server.openai_url,
        api_key=SecretStr(server.api_key),
        model=MODEL,
        max_retries=0,
        temperature=0,
        **given,
    )


@pytest.fixture(scope="module")
def client(server: VLLMContainer) -> openai.OpenAI:
    return client_of(server)


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 96}
# A call's JSON may have white space anywhere, and a model that never learnt to call gets lost in it.
CALLING: dict[str, Any] = {"frequency_penalty": 2.0, "max_tokens": 256}


# ---- answers


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=PROMPT, **GREEDY)
    assert answer.choices[0].text.strip() == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_completion_of_several_prompts(client: openai.OpenAI) -> None:
    prompts = list(KNOWN)[5:8]
    answer = client.completions.create(prompt=prompts, **GREEDY)
    assert [c.text.strip() for c in answer.choices] == [KNOWN[p].strip() for p in prompts]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=said(PROMPT), **GREEDY)
    assert (answer.choices[0].message.content or "").strip() == ANSWER
    assert answer.choices[0].message.role == "assistant"


def test_completion_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices).strip() == ANSWER
    assert len(chunks) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens >= 5


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=said(PROMPT), stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens >= 5


def test_async_client_with_four_requests_at_once(server: VLLMContainer) -> None:
    prompts = list(KNOWN)[:4]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.openai_url, api_key=server.api_key, max_retries=0) as many:
            answers = await asyncio.gather(*(many.completions.create(prompt=p, **GREEDY) for p in prompts))
            return [a.choices[0].text.strip() for a in answers]

    assert asyncio.run(ask()) == [KNOWN[p].strip() for p in prompts]


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=PROMPT, temperature=0, max_output_tokens=96)
    assert answer.output_text.strip() == ANSWER


# ---- what a request may ask for


def test_logprobs(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt=PROMPT, logprobs=2, **GREEDY).choices[0].logprobs
    assert plain is not None
    assert plain.token_logprobs
    assert all(p is not None and p <= 0 for p in plain.token_logprobs)
    chat = client.chat.completions.create(messages=said(PROMPT), logprobs=True, top_logprobs=2, **GREEDY)
    found = chat.choices[0].logprobs
    assert found is not None
    assert found.content
    assert {len(token.top_logprobs) for token in found.content} == {2}


def test_stop(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=PROMPT, stop=["capital"], **GREEDY).choices[0]
    assert (answer.text.strip(), answer.finish_reason) == (ANSWER.partition("capital")[0].strip(), "stop")


def test_seed(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str:
        asked: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 2.0, "max_tokens": 32, "seed": seed}
        return str(client.completions.create(**asked).choices[0].text)

    one, again, other = sample(1), sample(1), sample(2)
    assert one == again != other


def test_n(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=said(PROMPT), n=3, temperature=2.0, seed=5, max_tokens=32
    )
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1, "sampled, so they differ"


def test_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(messages=said(JSON), response_format=Place, **GREEDY)
    assert answer.choices[0].message.parsed == Place(city="Paris", country="France")


def test_a_schema_is_kept_to_where_the_model_would_say_something_else(client: openai.OpenAI) -> None:
    """Without room for white space, in which a model this small gets lost."""
    for extra, allowed in (
        ({"choice": ["yes", "no"]}, r"yes|no"),
        ({"regex": "[a-c]{4}"}, r"[a-c]{4}"),
        ({"json": Place.model_json_schema(), "disable_any_whitespace": True}, r'\{"city": ?"(Paris|Rome)".*\}'),
    ):
        answer = client.completions.create(prompt=PROMPT, extra_body={"structured_outputs": extra}, **GREEDY)
        assert re.fullmatch(allowed, answer.choices[0].text), answer.choices[0].text


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=said(JSON), response_format={"type": "json_object"}, **GREEDY)
    assert json.loads(answer.choices[0].message.content or "") == {"city": "Paris", "country": "France"}


# ---- refusals


def test_wrong_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `nope` does not exist"):
        client.completions.create(model="nope", prompt=PROMPT)


@pytest.mark.parametrize("key", ["wrong", "-"])
def test_wrong_key(server: VLLMContainer, key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        client_of(server, api_key=key).models.list()


def test_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature must be non-negative"):
        client.completions.create(model=MODEL, prompt=PROMPT, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens"):
        client.completions.create(model=MODEL, prompt="word " * 600)


def test_timeout_is_the_clients_and_the_server_lives_on(client: openai.OpenAI) -> None:
    # An answer of 400 tokens takes far longer than the client waits, also where the client itself is held up.
    hurried = client.with_options(timeout=0.05).completions
    with pytest.raises(openai.APITimeoutError):
        hurried.create(prompt=PROMPT, model=MODEL, max_tokens=400, extra_body={"ignore_eos": True})
    assert client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text.strip() == ANSWER


Ask = Callable[[openai.OpenAI], Any]
ABSENT: dict[str, Ask] = {
    "a model by its name": lambda c: c.models.retrieve(MODEL),
    "embeddings": lambda c: c.embeddings.create(model=MODEL, input=PROMPT),
    "moderations": lambda c: c.moderations.create(input=PROMPT),
    "files": lambda c: c.files.list(),
    "speech": lambda c: c.audio.speech.create(model=MODEL, voice="alloy", input=PROMPT),
}


@pytest.mark.parametrize("what", ABSENT)
def test_what_a_text_model_does_not_serve_is_not_found(client: openai.OpenAI, what: str) -> None:
    with pytest.raises(openai.NotFoundError):
        ABSENT[what](client)


def test_an_image_is_refused(client: openai.OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="not a multimodal model"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [picture]}])  # type: ignore[list-item, misc]


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_tools_without_a_parser_are_refused(client: openai.OpenAI, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="--tool-call-parser to be set"):
        client.chat.completions.create(messages=said(PROMPT), tools=VISIT, tool_choice=choice, **GREEDY)


def test_tools_that_are_not_to_be_called_need_no_parser(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=said(PROMPT), tools=VISIT, tool_choice="none", **GREEDY)
    assert (answer.choices[0].message.content or "").strip() == ANSWER


# ---- tools, with the parser


def test_auto_leaves_it_to_the_model(tooled: VLLMContainer) -> None:
    answer = client_of(tooled).chat.completions.create(messages=said(PROMPT), tools=VISIT, **GREEDY).choices[0].message
    assert (answer.tool_calls, (answer.content or "").strip()) == (None, ANSWER), "the tiny model never learnt to call"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_call_that_is_required_comes_and_keeps_to_a_strict_schema(tooled: VLLMContainer, choice: Any) -> None:
    answer = client_of(tooled).chat.completions.create(
        messages=said(JSON), tools=VISIT, tool_choice=choice, **GREEDY | CALLING
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "visit"
    Place.model_validate_json(call.function.arguments)


def test_a_call_comes_in_a_stream(tooled: VLLMContainer) -> None:
    stream = client_of(tooled).chat.completions.create(
        messages=said(JSON), tools=VISIT, tool_choice=NAMED, stream=True, **GREEDY | CALLING
    )
    deltas = [d for chunk in stream if chunk.choices for d in chunk.choices[0].delta.tool_calls or [] if d.function]
    assert "".join(d.function.name or "" for d in deltas if d.function) == "visit"
    Place.model_validate_json("".join(d.function.arguments or "" for d in deltas if d.function))


# ---- langchain-openai


def test_langchain_chat(server: VLLMContainer) -> None:
    model = chat_model(server)
    answer = model.invoke(PROMPT)
    assert str(answer.content).strip() == ANSWER
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(str(part.content) for part in model.stream(PROMPT)).strip() == ANSWER
    assert [str(a.content).strip() for a in model.batch([PROMPT, PROMPT])] == [ANSWER, ANSWER]
    assert str(asyncio.run(model.ainvoke(PROMPT)).content).strip() == ANSWER


def test_langchain_completion(server: VLLMContainer) -> None:
    model = CompletionLLM(
        base_url=server.openai_url, api_key=SecretStr(server.api_key), model=MODEL, temperature=0, max_retries=0
    )
    assert model.invoke(PROMPT).strip() == ANSWER
    assert "".join(model.stream(PROMPT)).strip() == ANSWER


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_langchain_structured_output(server: VLLMContainer, method: Any) -> None:
    assert chat_model(server).with_structured_output(Place, method=method).invoke(JSON) == Place(
        city="Paris", country="France"
    )


def test_langchain_tools(server: VLLMContainer, tooled: VLLMContainer) -> None:
    with pytest.raises(openai.BadRequestError, match="--tool-call-parser to be set"):
        chat_model(server).bind_tools([Place]).invoke(PROMPT)
    made = (
        chat_model(tooled, **CALLING).with_structured_output(Place, method="function_calling", strict=True).invoke(JSON)
    )
    assert isinstance(made, Place)


def test_langchain_embeddings_are_refused(server: VLLMContainer) -> None:
    model = OpenAIEmbeddings(
        base_url=server.openai_url, api_key=SecretStr(server.api_key), model=MODEL, max_retries=0,
        check_embedding_ctx_length=False,
    )  # fmt: skip
    with pytest.raises(openai.NotFoundError):
        model.embed_query(PROMPT)
