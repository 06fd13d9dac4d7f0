"""Two things that CPython does thousands of times over while a server is imported, and need not.

Without them the imports cost 0.90 of the CPU time; `benchmarks/imports.py` measures it.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from bringup.inside.parts import parts

# A frame this large gets a chunk of its own of the next power of two, 1 MiB, and half of that is left for all others.
ROOM = 1 << 16  # words


def run(main: Callable[..., None], *args: object) -> None:
    """A process's main function, spared both unless BRINGUP_LAUNCH leaves the part out."""
    if "interpreter" in parts(os.environ):
        know_frames()
        main = roomy(main)
    main(*args)


def roomy(function: Callable[..., None]) -> Callable[..., None]:
    """The function, called with half a MiB of room on Python's stack of frames.

    That stack grows by chunks of 16 KiB, which are asked of the kernel and given back with the call that needed them
    (CPython 3.11 and newer). Where a loop's calls cross the end of one, each pays: 18,000 times in the imports.
    """

    def call(*args: object) -> None:
        function(*args)

    call.__code__ = call.__code__.replace(co_stacksize=ROOM)
    return call


def know_frames() -> None:
    """Let inspect name a frame's module by the frame's own globals.

    torch asks for that 150 times and more while it is imported, and `inspect.getmodule` resolves the paths of all
    modules for it, 4,800 by then.
    """
    ask: Callable[..., ModuleType | None] = inspect.getmodule

    def getmodule(object: Any, _filename: Any = None) -> ModuleType | None:  # noqa: A002 - inspect's name for it
        if inspect.isframe(object):
            module = sys.modules.get(object.f_globals.get("__name__", ""))
            if getattr(module, "__dict__", None) is object.f_globals:
                return module
        return ask(object, _filename)

    inspect.getmodule = getmodule
