"""Secrets on the host's side: the API key of the server, the token of the model hub. Neither is ever shown."""

from __future__ import annotations

import contextlib
import os
import secrets as random
from collections.abc import Mapping
from pathlib import Path

from bringup.errors import UsageError
from bringup.redact import secret_arguments
from bringup.settings import Settings

_MAKE = "make a key: openssl rand -hex 32 > FILE"
_RUNPOD = "make one in RunPod's console (Settings, API keys)"
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


def own_file(project: str, environ: Mapping[str, str]) -> Path:
    """Where the key lies that `up` makes for a project: with this user's state, beside no checkout and in no bundle."""
    return state_home(environ) / f"{project}.key"


def state_home(environ: Mapping[str, str]) -> Path:
    """Where this user's programs keep what they need again, as the XDG base directories have it; ours of it."""
    state = Path(environ.get("XDG_STATE_HOME", ""))
    base = state if state.is_absolute() else Path.home() / ".local" / "state"
    return base / "bringup"


def make_key(file: Path) -> bool:
    """Write a new key, which only this user can read; False if there was one, which stays.

    Raises:
        UsageError: it cannot be written.
    """
    part = file.with_name(f".{file.name}.{random.token_hex(4)}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(part, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
            f.write(f"{random.token_urlsafe(32)}\n")
        try:
            os.link(part, file)  # whole, or not at all, and never over another one
        except FileExistsError:
            return False
        finally:
            part.unlink()
    except OSError as e:
        raise UsageError(f"the API key file {file} cannot be made: {e}", hint="give --api-key-file FILE") from e
    return True


def hub_token(settings: Settings) -> str | None:
    """The token of the model hub, from its file or else the environment.

    Raises:
        UsageError: as for `api_key`.
    """
    if settings.hf_token_file is None:
        return _one_word(settings.hf_token, "the variable HF_TOKEN", _COPY) if settings.hf_token else None
    return _of_file(settings.hf_token_file, "Hub token", _COPY)


def runpod_key(path: Path | None, environ: Mapping[str, str]) -> str:
    """The key of RunPod's API, from a file that only its owner can read, or the variable RUNPOD_API_KEY.

    Raises:
        UsageError: as for `api_key`; or there is none, or others can read the file.
    """
    if path is None:
        if text := environ.get("RUNPOD_API_KEY", ""):
            return _one_word(text, "the variable RUNPOD_API_KEY", _RUNPOD)
        raise UsageError("there is no key for RunPod", hint=f"{_RUNPOD}; set RUNPOD_API_KEY or --runpod-key-file FILE")
    word = _of_file(path, "RunPod key", _RUNPOD)
    if path.stat().st_mode & 0o077:
        raise UsageError(f"others can read the RunPod key file {path}", hint=f"chmod 600 {path}")
    return word


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
