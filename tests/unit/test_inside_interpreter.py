"""What the launcher spares CPython: chunks of its stack, and the search for a frame's module."""

from __future__ import annotations

import inspect
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType

import pytest

from bringup.inside import interpreter

DEPTH, CALLS = 300, 200


def faults(walk: Callable[[], None]) -> int:
    """Pages that this process touched for the first time meanwhile: each chunk of the stack is made of new ones."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    walk()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def leaf() -> None:
    """A call that may be the first one in a chunk."""


def walk(depth: int = DEPTH) -> None:
    """Calls at every depth, so that the ends of several chunks are among them."""
    for _ in range(CALLS):
        leaf()
    if depth:
        walk(depth - 1)


def test_calls_with_room_ask_the_kernel_for_nothing() -> None:
    faults(walk)  # whatever else is touched for the first time
    ordinary, roomy = faults(walk), faults(interpreter.roomy(walk))
    assert ordinary >= CALLS, "no call of this Python crossed the end of a chunk"
    assert roomy < ordinary / 4


def test_a_function_with_room_is_given_its_arguments_and_may_fail() -> None:
    seen: list[object] = []
    interpreter.roomy(lambda *args: seen.extend(args))(1, "b", None)
    assert seen == [1, "b", None]
    with pytest.raises(SystemExit, match="3"):
        interpreter.roomy(sys.exit)(3)


def frame_of(name: object) -> FrameType:
    """A frame that says that it is of the module of this name, and is not."""
    frames: list[FrameType] = []
    space = {"__name__": name, "frames": frames, "sys": sys}
    exec(compile("frames.append(sys._getframe())", os.devnull, "exec"), space)  # noqa: S102 - two words of ours
    return frames[0]


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What `inspect` itself was asked for, after the change."""
    asked: list[object] = []
    ask = inspect.getmodule

    def getmodule(thing: object, file: str | None = None) -> ModuleType | None:
        asked.append(thing)
        return ask(thing, file)

    monkeypatch.setattr(inspect, "getmodule", getmodule)
    interpreter.know_frames()
    return asked


def test_a_frames_module_is_the_one_that_inspect_finds_without_a_search(searched: list[object]) -> None:
    frame = inspect.currentframe()
    assert frame is not None
    assert inspect.getmodule(frame) is sys.modules[__name__]
    assert frame.f_back is not None
    assert inspect.getmodule(frame.f_back).__name__ == frame.f_back.f_globals["__name__"]  # type: ignore[union-attr]
    assert searched == []


def test_anything_else_is_left_to_inspect(searched: list[object]) -> None:
    assert inspect.getmodule(walk) is sys.modules[__name__]
    assert inspect.getmodule(Path) is sys.modules[Path.__module__]
    assert inspect.getmodule(walk.__code__) is sys.modules[__name__]
    assert searched[0] is walk
    frame = frame_of("json")
    assert inspect.getmodule(frame) is not sys.modules["json"]
    assert searched[-1] is frame


@pytest.mark.parametrize("name", [None, "no.such.module", 3])
def test_a_frame_without_a_module_has_none(name: object, searched: list[object]) -> None:
    frame = frame_of(name)
    assert inspect.getmodule(frame) is None
    assert searched == [frame]
