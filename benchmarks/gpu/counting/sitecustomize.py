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
begun: list[tuple[tuple[CodeType, str], int]] = []  # the built-in functions that are under way, and since when


def count(frame: FrameType, event: str, argument: Any) -> None:
    """One event of `sys.setprofile`."""
    if event == "call":
        counted[frame.f_code, ""] += 1
    elif event == "c_call":
        key = frame.f_code, getattr(argument, "__qualname__", "") or repr(argument)
        counted[key] += 1
        begun.append((key, time.perf_counter_ns()))
    elif event in ("c_return", "c_exception") and begun:  # the first one is of the call that began all this
        now = time.perf_counter_ns()
        key, since = begun.pop()
        took[key] += now - since


def begin(_number: int, _frame: FrameType | None) -> None:
    """Count from now on."""
    for kept in (counted, took, begun):
        kept.clear()
    sys.setprofile(count)


def end(_number: int, _frame: FrameType | None) -> None:
    """No more, and write."""
    sys.setprofile(None)
    rows = [
        [code.co_filename, code.co_qualname, builtin, n, took[code, builtin]] for (code, builtin), n in counted.items()
    ]
    file = Path(os.environ["TMPDIR"], f"calls.{os.getpid()}.json")
    file.with_suffix(".part").write_text(json.dumps(rows), "utf-8")
    file.with_suffix(".part").replace(file)


signal.signal(BEGIN, begin)
signal.signal(END, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {BEGIN, END})  # whoever started us may have blocked them
