"""Secrets that stand nowhere else, and where they turn up."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import quote


def canaries(words: Iterable[str]) -> dict[str, str]:
    """One a word, with characters that every encoding writes in another way."""
    return {word: f"{word}/+{secrets.token_hex(12)}?=" for word in words}


def forms(secret: str) -> dict[str, bytes]:
    """The secret in each encoding."""
    raw = secret.encode()
    return {
        "plain": raw,
        "base64": base64.b64encode(raw).rstrip(b"="),
        "url": quote(secret, safe="").encode(),
        "hex": raw.hex().encode(),
    }


def leaks(given: Mapping[str, str], sinks: Mapping[str, bytes]) -> list[str]:
    """Which secret is where; a place where nothing is at all was not looked into."""
    assert all(sinks.values()), [name for name, text in sinks.items() if not text]
    return [
        f"{word} ({form}) in {sink}"
        for word, secret in given.items()
        for form, text in forms(secret).items()
        for sink, content in sinks.items()
        if text in content
    ]
