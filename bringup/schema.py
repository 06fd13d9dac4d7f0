"""The shape of record.json, as data/record.schema.json has it, and whether a record is of that shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bringup.errors import UsageError
from bringup.records import SCHEMA

if TYPE_CHECKING:
    from jsonschema import ValidationError

FILE = Path(__file__).parent / "data" / "record.schema.json"


def load() -> dict[str, Any]:
    """The schema, as JSON types."""
    read: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return read


def require(record: dict[str, Any]) -> None:
    """See to it that a record is of the shape that its version has; keys that are not known are let be.

    Raises:
        UsageError: it is not, or of a version that this bringup does not know.
    """
    version = record.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UsageError(
            f"record.json has no schema of a record, but {_short(version)}", hint="collect the evidence again"
        )
    if version > SCHEMA:
        raise UsageError(
            f"record.json was made by a newer bringup ({_short(record.get('tool_version'))}): it has schema {version},"
            f" and this one reads up to {SCHEMA}",
            hint="read it with that version",
        )
    # Here, for it takes longer to import than the rest of a command does.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    worst = best_match(Draft202012Validator(load()).iter_errors(record))
    if worst is not None:
        raise UsageError(
            f"record.json is no record of schema {version}: {_fault(worst)}",
            hint="`sha256sum -c SHA256SUMS` tells if it was changed",
        )


def _fault(error: ValidationError) -> str:
    """Where and what, on one line: jsonschema's own words hold the whole value."""
    at = error.json_path.removeprefix("$").lstrip(".")
    where = f"{at}: " if at else ""
    if error.validator == "required":
        return where + error.message
    return f"{where}{_short(error.instance)} is not what `{error.validator}` asks for: {_short(error.validator_value)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
