"""Secrets on the host's side: the API key of the server, the token of the model hub. Neither is ever shown."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bringup.errors import UsageError
from bringup.redact import secret_arguments
from bringup.settings import Settings

_MAKE = "make a key: openssl rand -hex 32 > FILE"
_COPY = "copy the token from the Hub's settings page, on one line"


def api_key(settings: Settings) -> str | None:
    """The key of the server, the first of its file, or that of the environment.

    Raises:
        UsageError: the file cannot be read or is empty, or the key cannot be sent in a header; it is never shown.
    """
    return next(iter(_api_keys(settings)), None)


def _api_keys(settings: Settings) -> list[str]:
    if settings.api_key_file is None:
        return [_one_word(settings.api_key, "the variable BRINGUP_API_KEY", _MAKE)] if settings.api_key else []
    lines = _text_of(settings.api_key_file, "API key").splitlines()
    return [
        _one_word(line.strip(), f"the API key file {settings.api_key_file}", _MAKE) for line in lines if line.strip()
    ]


def hub_token(settings: Settings) -> str | None:
    """The token of the model hub, from its file or else the environment.

    Raises:
        UsageError: as for `api_key`.
    """
    if settings.hf_token_file is None:
        return _one_word(settings.hf_token, "the variable HF_TOKEN", _COPY) if settings.hf_token else None
    return _of_file(settings.hf_token_file, "Hub token", _COPY)


def secrets(settings: Settings) -> list[str]:
    """All that must not be shown: keys, token, and what stands among the arguments for vLLM although it should not.

    Raises:
        UsageError: as for `api_key`.
    """
    known = _api_keys(settings)
    with contextlib.suppress(UsageError):  # a token that nobody could read is in no text either
        known += [token] if (token := hub_token(settings)) else []
    return known + secret_arguments(settings.vllm_args)


def _of_file(path: Path, what: str, hint: str) -> str:
    return _one_word(_text_of(path, what), f"the {what} file {path}", hint)


def _text_of(path: Path, what: str) -> str:
    try:
        word = path.read_text("utf-8").strip()
    except (OSError, ValueError) as e:
        raise UsageError(f"the {what} file {path} cannot be read: {e}") from e
    if not word:
        raise UsageError(f"the {what} file {path} is empty", hint=f"put the {what} on its first line")
    return word


def _one_word(word: str, place: str, hint: str) -> str:
    if not all("!" <= c <= "~" for c in word):
        raise UsageError(f"{place} holds something else than one word of printable ASCII characters", hint=hint)
    return word
