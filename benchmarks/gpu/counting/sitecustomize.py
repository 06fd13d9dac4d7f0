"""Python runs this first in every process of a server whose PYTHONPATH has this directory; calls.py puts it there.

COUNT_CALLS has the numbers of two signals: one begins to count the calls of the main thread, the other ends that and
writes TMPDIR/calls.PID.json, rows of [file, function, "", calls of it, 0], and [file, function, built-in function,
calls of it that the function made, the nanoseconds that they took]. Of Python functions no time is taken: most of it
would be the counting. (cProfile would be simpler, but from Python 3.12 on it mixes all threads.)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

BEGIN, END = map(int, os.environ["COUNT_CALLS"].split(","))
counted: Counter[tuple[CodeType, str]] = Counter()
took: Counter[tuple[CodeType, str]] = Counter()
begun: list[int] = []  # of the built-in functions that are under way


def count(frame: FrameType, event: str, argument: Any) -> None:
    """One event of `sys.setprofile`."""
    if event == "call":
        counted[frame.f_code, ""] += 1
    elif event == "c_call":
        counted[frame.f_code, _name(argument)] += 1
        begun.append(time.perf_counter_ns())
    elif event in ("c_return", "c_exception") and begun:  # the first one is of the call that began all this
        took[frame.f_code, _name(argument)] += time.perf_counter_ns() - begun.pop()


def _name(builtin: Any) -> str:
    return getattr(builtin, "__qualname__", "") or repr(builtin)


def begin(_number: int, _frame: FrameType | None) -> None:
    """Count from now on."""
    for kept in (counted, took, begun):
        kept.clear()
    sys.setprofile(count)


def end(_number: int, _frame: FrameType | None) -> None:
    """No more, and write."""
    sys.setprofile(None)
    rows = [[key[0].co_filename, key[0].co_qualname, key[1], n, took[key]] for key, n in counted.items()]
    file = Path(os.environ["TMPDIR"], f"calls.{os.getpid()}.json")
    file.with_suffix(".part").write_text(json.dumps(rows), "utf-8")
    file.with_suffix(".part").replace(file)


signal.signal(BEGIN, begin)
signal.signal(END, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {BEGIN, END})  # whoever started us may have blocked them
