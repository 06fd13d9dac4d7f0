"""The API key of the server, on the host's side."""

from __future__ import annotations

from bringup.errors import UsageError
from bringup.settings import Settings


def api_key(settings: Settings) -> str | None:
    """The key of the server, from its file or the environment.

    Raises:
        UsageError: the file cannot be read or is empty, or the key cannot be sent in a header; it is never shown.
    """
    if settings.api_key_file is None:
        return _one_word(settings.api_key, "the variable BRINGUP_API_KEY") if settings.api_key else None
    try:
        key = settings.api_key_file.read_text("utf-8").strip()
    except (OSError, ValueError) as e:
        raise UsageError(f"the API key file {settings.api_key_file} cannot be read: {e}") from e
    if not key:
        raise UsageError(f"the API key file {settings.api_key_file} is empty", hint="put the key on its first line")
    return _one_word(key, f"the API key file {settings.api_key_file}")


def _one_word(key: str, place: str) -> str:
    if not all("!" <= c <= "~" for c in key):
        raise UsageError(
            f"{place} holds something else than one word of printable ASCII characters",
            hint="make a key: openssl rand -hex 32 > FILE",
        )
    return key
