"""Secrets are taken out by value and by looks; what is no secret, and the JSON around it, stays."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable
from urllib.parse import quote

import pytest

from bringup.redact import MASK, redact, secret_arguments, shown_variables

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


def test_the_name_of_a_secret_of_runpods_is_none() -> None:
    named = '"VLLM_API_KEY": "{{ RUNPOD_SECRET_bringup_api_key }}"'
    assert redact(named) == named
    assert redact('"VLLM_API_KEY": "k3y"') == f'"VLLM_API_KEY": "{MASK}"'


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
    "any flag": ("serve --hf-token s3cretvalue --port 1", "s3cretvalue"),
    "any flag with =": ("serve --hf_token=s3cretvalue", "s3cretvalue"),
    "address": ("https_proxy=http://user:s3cretvalue@proxy:3128/ and more", "s3cretvalue"),
    "JSON with an address": ('{"url": "https://:s3cretvalue@host"}', "s3cretvalue"),
    "list": ("args: ['--api-key', 's3cretvalue', '--port']", "s3cretvalue"),
    "JSON list": ('["--hf-token",\n  "s3cretvalue", "--port", "1"]', "s3cretvalue"),
    "JSON list in JSON": ('{"msg": "[\\"--hf-token\\", \\"s3cretvalue\\"]"}', "s3cretvalue"),
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
    "http://[::1]:8000/a@b ops@example.org git@example.org:x/y ssh://git@example.org/x",
    "--tokenizer some/where --max-num-batched-tokens 512 --token-limit 5",
    '["--hf-token", "--port", "8000"]',
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


@pytest.mark.parametrize("spell", [repr, shlex.quote, lambda s: json.dumps(repr([s])), lambda s: json.dumps(f"ü {s}")])
def test_a_known_secret_goes_however_a_program_spells_it(spell: Callable[[str], str]) -> None:
    secret = "k3y 'with\" both\\ and ü"
    done = redact(f"before {spell(secret)} after", [secret])
    assert MASK in done
    assert not any(part in done for part in ("k3y", "with", "both"))


# ---- arguments and variables


def test_secret_arguments_are_known_by_their_flags() -> None:
    argv = [
        "--model",
        "m",
        "--api-key",
        "first",
        "second",
        "--hf_token=third",
        "--HF-TOKEN",
        "--port",
        "8000",
        "--tokenizer",
        "t",
    ]
    assert secret_arguments(argv) == ["first", "second", "third"]


@pytest.mark.parametrize("word", ["true", "False", "null", "8000", "1.5", "auto", ""])
def test_a_word_that_stands_elsewhere_too_is_no_secret_by_value(word: str) -> None:
    """Taken out wherever it stands it would tear the record apart; where it stands as an argument the looks tell."""
    assert secret_arguments(["--hf-token", word]) == []
    if word:
        assert redact(json.dumps(["--hf-token", word])) == json.dumps(["--hf-token", MASK])


def test_variables_that_steer_the_server_are_shown_and_no_others() -> None:
    shown = {"VLLM_LOGGING_LEVEL": "INFO", "BRINGUP_HF_TOKEN_FILE": "/x", "PATH": "/bin", "TOKENIZERS_PARALLELISM": "0"}
    hidden = {"VLLM_API_KEY": "x", "BRINGUP_HF_TOKEN": "x", "HF_TOKEN": "x", "HTTPS_PROXY": "x", "MY_VLLM_X": "x"}
    assert shown_variables(shown | hidden | {"MINE": ""}) == shown | dict.fromkeys(hidden, MASK) | {"MINE": ""}
