"""A host's facts as a file: written on one machine, judged on another. Pure.

The file is JSON: `schema`, `tool`, `taken`, `flavour` and `model` of the plan, and `facts`, which is HostFacts by its
fields' names. It holds versions, sizes, names of programs and the image's labels; no variables and no arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bringup.checks.facts import HostFacts
from bringup.errors import UsageError

SCHEMA = 1  # changes when a field changes its meaning or goes away
T = TypeVar("T")
_HINT = "write a new one with `bringup doctor --save-facts FILE`"


class _Wrong(Exception):
    """Where the value is, and what is wrong with it."""


def dump(facts: HostFacts, **about: str) -> str:
    """The file's text; `about` are the other texts of its head."""
    return (
        json.dumps({"schema": SCHEMA, **about, "facts": dataclasses.asdict(facts)}, indent=1, ensure_ascii=False) + "\n"
    )


def load(text: str, name: str) -> HostFacts:
    """The facts of a file's text; `name` is the file's, for the error.

    A field that is not there is one that was not told, if it can be.

    Raises:
        UsageError: no JSON, another schema, or a value that cannot be one; it is named.
    """
    try:
        raw = json.loads(text)
    except ValueError as e:
        raise _unusable(name, f"no JSON: {e}") from e
    if not isinstance(raw, dict) or "schema" not in raw:
        raise _unusable(name, "no facts of a host: `schema` is missing")
    if raw["schema"] != SCHEMA:
        raise _unusable(name, f"schema {raw['schema']!r}, and this version reads {SCHEMA}")
    try:
        return from_dict(raw.get("facts"))
    except _Wrong as e:
        raise _unusable(name, str(e)) from e


def from_dict(raw: Any) -> HostFacts:
    """HostFacts from JSON types, as `dataclasses.asdict` gives them."""
    return _dataclass(HostFacts, raw, "facts")


def _unusable(name: str, why: str) -> UsageError:
    return UsageError(f"{name}: {why}", hint=_HINT, id="facts-unusable")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _dataclass(kind: type[T], raw: Any, at: str) -> T:
    if not isinstance(raw, dict):
        raise _Wrong(f"{at}: an object is needed, not {_kind(raw)}")
    hints = _hints(cast("Any", kind))
    if unknown := sorted(raw.keys() - hints.keys()):
        raise _Wrong(f"{at}.{unknown[0]} is not known")
    given = {name: _value(hints[name], value, f"{at}.{name}") for name, value in raw.items()}
    required = {
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - given.keys()):
        raise _Wrong(f"{at}.{missing[0]} is missing")
    return kind(**given)


def _value(hint: Any, raw: Any, at: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(hint), raw, at)
    if origin is Literal:
        if raw in get_args(hint):
            return raw
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, raw, at)
    elif origin is tuple and isinstance(raw, list):
        return tuple(_value(get_args(hint)[0], one, f"{at}[{n}]") for n, one in enumerate(raw))
    elif origin is dict and isinstance(raw, dict):
        return {str(name): _value(get_args(hint)[1], value, f"{at}.{name}") for name, value in raw.items()}
    elif hint is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    elif hint in (int, str, bool) and type(raw) is hint:
        return raw
    raise _Wrong(f"{at}: {_kind(raw)} cannot be {getattr(hint, '__name__', hint)}")


def _one_of(hints: tuple[Any, ...], raw: Any, at: str) -> Any:
    if raw is None and type(None) in hints:
        return None
    wrong = []
    for hint in hints:
        if hint is not type(None):
            try:
                return _value(hint, raw, at)
            except _Wrong as e:
                wrong.append(e)
    # the deepest is where the right kind of value went wrong
    raise max(wrong, key=lambda e: (str(e).partition(":")[0].count("."), -wrong.index(e)))


def _kind(raw: Any) -> str:
    return "null" if raw is None else f"{type(raw).__name__} {json.dumps(raw)[:40]}"
