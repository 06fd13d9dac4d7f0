"""What tests ask of the machine that they run on."""

from __future__ import annotations

import platform


def kernel() -> tuple[int, ...]:
    """The kernel's release, as far as two numbers tell it: (6, 1)."""
    return tuple(int(n) for n in platform.release().split("-")[0].split(".")[:2])
