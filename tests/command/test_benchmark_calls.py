"""benchmarks/gpu/calls.py: what is counted in a server's thread, and what is told of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORK = """
import os, signal, sys, threading, time
begin, end = map(int, os.environ["COUNT_CALLS"].split(","))

def step(n):
    return len(str(n))

def beside():
    while not done:
        step(1)

done = False
thread = threading.Thread(target=beside)
os.kill(os.getpid(), begin)
thread.start()
for n in range(100):
    step(n)
time.sleep(0.05)
os.kill(os.getpid(), end)
done = True
thread.join()
"""


@pytest.fixture
def calls(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("calls")


@pytest.fixture
def counted(calls: Any, tmp_path: Path) -> Path:
    """What was counted in a process that does `WORK`."""
    numbers = f"{calls.BEGIN:d},{calls.END:d}"
    environment = os.environ | {"PYTHONPATH": str(calls.COUNTING), "COUNT_CALLS": numbers, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", WORK], env=environment, check=True, timeout=60)
    (file,) = tmp_path.glob("calls.*.json")
    return file


def test_the_main_threads_calls_are_counted_and_its_built_in_functions_timed(calls: Any, counted: Path) -> None:
    found = calls._by_function(counted, tokens=50)
    assert found["<string> step"] == (2, 0)
    assert found["<string> step: len"].number == 2
    assert found["<string> step: len"].took > 0
    assert found["<string> <module>: sleep"].took > 50_000 / 50, "as long as it slept, in microseconds"
    assert "<string> beside" not in found, "another thread's"
    assert all(len(row) == 5 for row in json.loads(counted.read_text("utf-8")))


def test_what_differs_is_told(calls: Any) -> None:
    def arm(copies: float, took: float) -> dict[str, Any]:
        return {
            "API": {"f": calls.Calls(10, 0), "f: copy": calls.Calls(copies, took)},
            "engine": {"f": calls.Calls(1, 1)},
        }

    said = calls.lines(1, {"plain": arm(10, 40), "ours": arm(11, 30)})
    assert "  1 streams  API     ours               21.0 calls a token, by plain 1.050" in said
    assert "  1 streams  API     ours               30.0 us a token in built-in functions, by plain 0.750" in said
    assert [line.split() for line in said if line.startswith("    ")] == [
        ["+1.000", "f:", "copy"],
        ["-10.000", "f:", "copy"],
    ]
