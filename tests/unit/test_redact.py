"""Secrets are taken out by value and by looks; what is no secret, and the JSON around it, stays."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from bringup.redact import MASK, redact

SECRET = 'k3y+"with/odd\\letters='


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(SECRET.encode()).decode().rstrip("="),
        SECRET.encode().hex(),
        quote(SECRET, safe=""),
        json.dumps(SECRET)[1:-1],
    ],
    ids=["plain", "base64", "base64 unpadded", "hex", "url", "in JSON"],
)
def test_a_known_secret_goes_in_each_form(form: str) -> None:
    done = redact(f"before {form} after {form}.", [SECRET])
    assert form not in done
    assert done.startswith("before [redacted]")
    assert done.count(MASK) == 2


def test_short_secrets_do_not_tear_words_apart() -> None:
    assert redact("a cat concatenates", ["cat"]) == "a cat concatenates"


LOOKS = {
    "hub token": ("token hf_AbCdEfGhIjKlMnOp in a line", "AbCdEfGhIjKlMnOp"),
    "bearer": ("Authorization: Bearer abc.def-123", "abc.def-123"),
    "argument": ("serve --api-key s3cretvalue --port 1", "s3cretvalue"),
    "argument with =": ("serve --api-key=s3cretvalue", "s3cretvalue"),
    "header": ("X-API-Key: s3cretvalue", "s3cretvalue"),
    "variable": ("HF_TOKEN=s3cretvalue", "s3cretvalue"),
    "quoted variable": ("export VLLM_API_KEY='s3cretvalue'", "s3cretvalue"),
    "password": ("DB_PASSWORD=s3cretvalue", "s3cretvalue"),
    "JSON": ('{"VLLM_API_KEY": "s3cretvalue"}', "s3cretvalue"),
    "JSON in JSON": ('{"msg": "{\\"api_key\\": \\"s3cretvalue\\"}"}', "s3cretvalue"),
    "variable in JSON": ('{"msg": "run with \\"HF_TOKEN=s3cretvalue\\""}', "s3cretvalue"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_like_a_secret_goes(name: str) -> None:
    text, secret = LOOKS[name]
    done = redact(text)
    assert secret not in done
    assert MASK in done


@pytest.mark.parametrize("name", [n for n in LOOKS if "JSON" in n])
def test_json_stays_json(name: str) -> None:
    json.loads(redact(LOOKS[name][0]))


INNOCENT = [
    '{"api_key_file": "/run/secrets/api_key", "sources": {"api_key_file": "flag"}}',
    "API key: none",
    "API key: needed",
    '{"max_tokens": 96, "completion_tokens": 5, "eos_token": null, "token": 5}',
    "sha256 2c79d9494c7e0991e71a81c5f909a3d9cc26cfa794f3112f2609e46d26086459",
    "tokens per second: 12.5",
    "hf_transfer present",
]


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
