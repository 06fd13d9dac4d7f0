"""Values of a bundle's JSON, whoever wrote it: of the wrong shape they are missing, and text is never trusted. Pure."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from typing import Any

LONG = 2000  # characters of one text that are shown
NONE = "–"  # noqa: RUF001 - a figure that nobody gave
# What a reader does not see, or what makes text read otherwise than it is written (controls, directions, halves of
# surrogate pairs); no XML document may hold most of them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\ufffe\uffff\U000e0000-\U000e007f]"
)


def at(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and indices; None where there is nothing."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; anything else has none."""
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list | tuple) else []


def words(value: Any) -> list[str]:
    """The texts of a list."""
    return [text(v) for v in value] if isinstance(value, list | tuple) else []


def text(value: Any, limit: int = LONG) -> str:
    """Any value as text that can be shown: what would not be seen is written as its code, what is long is cut."""
    if value is None:
        return ""
    if isinstance(value, float | dict | list | tuple | bool):
        value = json.dumps(value, ensure_ascii=False, default=str)
    whole = str(value)
    cut = whole if len(whole) <= limit else f"{whole[:limit]} … ({len(whole) - limit} more characters)"
    return _UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", cut)


def line(value: Any, limit: int = LONG) -> str:
    """The same on one line."""
    return " ".join(text(value, limit).split())


def size(value: Any) -> str:
    """Bytes for people."""
    n = number(value)
    if n is None:
        return NONE
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(n) >= scale:
            return f"{n / scale:.2f} {unit}" if unit == "GiB" else f"{n / scale:.1f} {unit}"
    return f"{n:.0f} B"


def seconds(value: Any) -> str:
    """Seconds for people."""
    n = number(value)
    if n is None:
        return NONE
    return f"{n:.1f} s" if abs(n) >= 100 else f"{n:.2f} s" if abs(n) >= 0.1 else f"{n * 1000:.1f} ms"


def percent(value: Any) -> str:
    """A difference in percent."""
    n = number(value)
    return NONE if n is None else f"{n:+.1f} %"


def moment(value: Any) -> str:
    """A time as records have it (ISO 8601), shorter; as it is where it is none."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except (TypeError, ValueError):
        return line(value)
