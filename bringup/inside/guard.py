"""Can HF_HUB_ENABLE_HF_TRANSFER hurt this server? Decided before its interpreter starts.

huggingface_hub reads the variable while it is imported. Below 1.0 it then needs the hf_transfer wheel and fails
without it; from 1.0 on it ignores the variable. Container hosts set it for every image that they run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass

VARIABLE = "HF_HUB_ENABLE_HF_TRANSFER"
_TRUE = ("1", "ON", "YES", "TRUE")  # huggingface_hub's own list


@dataclass(frozen=True)
class Finding:
    """Whether the variable must go, and why, in one line."""

    unset: bool
    reason: str


def judge(value: str | None, hub: str | None, wheel: bool) -> Finding:
    """What to do about the variable.

    Args:
        value: the variable, None when it is unset.
        hub: version of huggingface_hub, None when it is not installed.
        wheel: whether hf_transfer can be imported.
    """
    have = f"huggingface_hub {hub or 'absent'}, hf_transfer {'present' if wheel else 'absent'}"
    if value is None or value.upper() not in _TRUE:
        shown = "unset" if value is None else f"{value!r}"
        return Finding(False, f"{VARIABLE} is {shown}: off ({have})")
    major = re.match(r"\d+", hub or "")
    if major is None:
        return Finding(True, f"{VARIABLE}={value} unset: no huggingface_hub that could use it ({have})")
    if int(major.group()) >= 1:
        return Finding(
            True,
            f"{VARIABLE}={value} unset: huggingface_hub 1.0 and newer ignores it; "
            f"HF_XET_HIGH_PERFORMANCE=1 is its successor ({have})",
        )
    if not wheel:
        return Finding(True, f"{VARIABLE}={value} unset: without the hf_transfer wheel it stops the server ({have})")
    return Finding(False, f"{VARIABLE}={value} kept: it works here ({have})")


def look() -> tuple[str | None, bool]:
    """Version of huggingface_hub and presence of hf_transfer in this interpreter; imports neither."""
    try:
        hub = importlib.metadata.version("huggingface_hub")
    except importlib.metadata.PackageNotFoundError:
        hub = None
    return hub, importlib.util.find_spec("hf_transfer") is not None
