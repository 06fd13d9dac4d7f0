#!/usr/bin/env python3
"""Count the Python calls a token that servers make, by thread: the work that a start may have added to each token.

usage: calls.py --model DIR --out FILE [--streams N,...] [--tokens N] [--arm NAME[@CACHE]:...] ARM...

The arms are those of start.py. Each is started alone, warmed up, and asked with --streams (1) at once for --tokens
(256) each, while every call of two threads is counted: of the API's event loop, and of the engine's. A count is nearly
the same on any machine and in any hour, where rates differ by several percent. With one stream each step makes one
token; with more, several tokens may reach a client as one, and counts vary. Counting slows both down, so that of times
only those are told that the built-in functions took, torch's among them: where they differ, it is not by the number of
calls. What differs most from the first arm is told by function. An engine whose worker is another process, as on a CPU,
waits for it by spinning, and these calls are left out: there are as many as it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import probe
import start
from decode import FIRST_PORT, THREADS, Server, launch, numbers

COUNTING = Path(__file__).resolve().parent / "counting"
# See there. Not SIGUSR1 and SIGUSR2, which a library in a server's process may take for itself.
BEGIN, END = signal.SIGRTMIN + 11, signal.SIGRTMIN + 12
BURSTS = 4
DIFFERENCES = 8  # lines
WAITING = ("vllm/distributed/device_communicators/shm_broadcast.py", "vllm/distributed/utils.py")
DEADLINE = 20.0  # seconds until a thread has written its counts; one that sleeps wakes up for the signal


class Calls(NamedTuple):
    """Of one function, a token: how often it was called, and the microseconds that it took if it is a built-in one."""

    number: float = 0.0
    took: float = 0.0


# How a field of `Calls` is called.
FIELDS = {"number": "calls a token", "took": "us a token in built-in functions"}
Found = dict[str, dict[str, Calls]]  # by thread and function


def counts(bench: start.Bench, arm: start.Arm, server: Server, streams: int, tokens: int) -> Found:
    """The calls of each function, for each of `THREADS`.

    Raises:
        SystemExit: a thread does not count.
    """
    files = {thread: bench.caches / arm.cache / "tmp" / f"calls.{pid}.json" for thread, pid in server.pids.items()}

    def load(label: str) -> float:
        burst = probe.burst(server.port, start.NAME, streams, tokens, f"{streams} streams, {label}")
        return asyncio.run(burst)["tokens"]

    load("warm up")
    for file in files.values():
        file.unlink(missing_ok=True)
    tell(server, BEGIN)
    made = sum(load(str(n)) for n in range(BURSTS))
    tell(server, END)
    deadline = time.monotonic() + DEADLINE
    while missing := [thread for thread, file in files.items() if not file.exists()]:
        if time.monotonic() > deadline:
            sys.exit(f"{', '.join(missing)}: no counts; is {COUNTING} the first on the path with a sitecustomize?")
        time.sleep(0.05)
    return {thread: _by_function(file, made) for thread, file in files.items()}


def tell(server: Server, number: int) -> None:
    """Send the threads' processes a signal."""
    for pid in server.pids.values():
        os.kill(pid, number)


def _by_function(file: Path, tokens: float) -> dict[str, Calls]:
    found: dict[str, Calls] = defaultdict(Calls)  # two functions may have one name: generators, and lambdas
    for path, function, builtin, n, took in json.loads(file.read_text("utf-8")):
        if not path.endswith(WAITING):
            place = path.rpartition("site-packages/")[2]
            name = f"{place} {function}{': ' if builtin else ''}{builtin}"
            before = found[name]
            found[name] = Calls(before.number + n / tokens, before.took + took / 1e3 / tokens)
    return found


def lines(streams: int, found: dict[str, Found]) -> list[str]:
    """A line for each thread, field and arm, and what differs most from the first arm."""
    said = []
    first = next(iter(found))
    for thread, (field, called) in itertools.product(THREADS, FIELDS.items()):
        by_arm = {
            arm: {name: getattr(one, field) for name, one in threads[thread].items()} for arm, threads in found.items()
        }
        base = by_arm[first]
        for arm, mine in by_arm.items():
            ratio = sum(mine.values()) / sum(base.values())
            said.append(f"{streams:3} streams  {thread:6}  {arm:14} {sum(mine.values()):8.1f} {called}, "
                        f"by {first} {ratio:.3f}")  # fmt: skip
            apart = {name: mine.get(name, 0.0) - base.get(name, 0.0) for name in {*mine, *base}}
            most = sorted(apart, key=lambda name: -abs(apart[name]))[: DIFFERENCES if arm != first else 0]
            said += [f"    {apart[name]:+8.3f}  {name}" for name in most if apart[name]]
    return said


def main() -> int:
    """Start, ask, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    start.options(parser, "JSON file of all counts; the logs lie beside it", "0.3")
    parser.add_argument("--streams", type=numbers, default=[1])
    parser.add_argument("--tokens", type=int, default=256, help="of each stream")
    parser.add_argument("arms", nargs="+", metavar="ARM")
    given = parser.parse_args()
    bench, known = start.opened(parser, given, given.arms)
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[int, dict[str, Found]] = {n: {} for n in given.streams}
    for name in dict.fromkeys(given.arms):
        counting = {"PYTHONPATH": f"{bench.source}:{COUNTING}", "COUNT_CALLS": f"{BEGIN},{END}"}
        arm = replace(known[name], variables=known[name].variables | counting)
        with ExitStack() as stack:
            server = launch(bench, arm, name, FIRST_PORT, stack).answering()
            for streams, arms in found.items():
                arms[name] = counts(bench, arm, server, streams, given.tokens)
    for streams, arms in found.items():
        print("\n".join(lines(streams, arms)), flush=True)
    bench.out.write_text(json.dumps({"gpu": bench.gpu.name(), "tokens": given.tokens, "streams": found}), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
