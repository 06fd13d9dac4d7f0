"""Python runs this first in every process of a server whose PYTHONPATH has this directory; calls.py puts it there.

SIGUSR1 begins to count the calls of the main thread, the next one ends that and writes TMPDIR/calls.PID.json, rows of
[file, function, "", calls of it], and [file, function, built-in function, calls of it that the function made].
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

counted: Counter[tuple[CodeType, str]] = Counter()


def count(frame: FrameType, event: str, argument: Any) -> None:
    """One event of `sys.setprofile`."""
    if event == "call":
        counted[frame.f_code, ""] += 1
    elif event == "c_call":
        counted[frame.f_code, getattr(argument, "__qualname__", "") or repr(argument)] += 1


def turn(_number: int, _frame: FrameType | None) -> None:
    """Begin, or end and write."""
    if sys.getprofile() is None:
        counted.clear()
        sys.setprofile(count)
        return
    sys.setprofile(None)
    rows = [[code.co_filename, code.co_qualname, builtin, n] for (code, builtin), n in counted.items()]
    file = Path(os.environ["TMPDIR"], f"calls.{os.getpid()}.json")
    file.with_suffix(".part").write_text(json.dumps(rows), "utf-8")
    file.with_suffix(".part").replace(file)


signal.signal(signal.SIGUSR1, turn)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # whoever started us may have blocked it
