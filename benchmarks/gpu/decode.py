#!/usr/bin/env python3
"""Compare decode rates of servers that run at the same time, asked in turns: what the machine does meanwhile hits all.

usage: decode.py --model DIR --out FILE [--rounds N] [--streams N,...] [--tokens N] [--arm NAME[@CACHE]:...] ARM...

The arms are those of start.py. All are started, one after the other, each with --utilization of the GPU (0.12); those
that are not asked wait, and use nothing. An arm that is named twice is started twice: so much do two starts of one and
the same differ. A round asks each of them once, in an order drawn anew: --tokens (256) a stream, greedy, prompts that
nobody was asked before. The first two rounds warm up. An arm's ratio is the median over the rounds of its rate (the
mean of its starts) by the first arm's in the same round. So is the CPU time a token of two threads: the event loop
that serves the API, and the engine's. What the machine does meanwhile only ever slows a burst down, so there is the
ratio of the best bursts of every five rounds as well. With --cpus these two threads of every server run on the same two
CPUs, and the client on a third: CPUs of a shared host differ, and a process that keeps one keeps its luck.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import probe
import start
from spread import LEAST, enough_rounds, interval
from watch import command, cpu_seconds, family

FIRST_PORT = 18000  # above the usual ones, below the ephemeral ones
WARM_UP = 2  # rounds
# How the process of each is called; it is about its first thread.
THREADS = {
    "API": ("vllm.entrypoints.openai.api_server", "bringup.inside.serve"),
    "engine": ("VLLM::EngineCore",),
}
RATE = "tok_s"
CPU = {thread: f"{thread.lower()}_us" for thread in THREADS}
CALLED = {RATE: "tokens/s", **{figure: f"CPU time a token, {thread}" for thread, figure in CPU.items()}}
BLOCK = 5  # rounds, of which the best bursts are compared


@dataclass(frozen=True)
class Server:
    """Where it answers, and the pid for each of `THREADS`."""

    port: int
    pids: dict[str, int]


def named(arms: Sequence[str]) -> dict[str, str]:
    """A name for each start, and its arm: the arm's own, with a number from the second on."""
    count: dict[str, int] = defaultdict(int)
    found = {}
    for arm in arms:
        count[arm] += 1
        found[arm if count[arm] == 1 else f"{arm}.{count[arm]}"] = arm
    return found


def serve(bench: start.Bench, arm: start.Arm, name: str, port: int, stack: ExitStack) -> Server:
    """Start one, wait until it answers, and see to its end.

    Raises:
        SystemExit: it does not answer.
    """
    log, records = (bench.out.with_name(f"{bench.out.stem}.{name}{suffix}") for suffix in (".log", ".jsonl"))
    argv, environment = start.command_line(bench, arm, records, port)
    console = stack.enter_context(log.open("wb"))
    asked = time.time()
    process = subprocess.Popen(argv, stdout=console, stderr=subprocess.STDOUT, env=environment,
                               start_new_session=True, cwd=bench.caches)  # fmt: skip
    stack.callback(end, process)
    healthy = probe.wait_healthy(port, lambda: process.poll() is None, asked + start.DEADLINE)[1]
    if not healthy:
        sys.exit(f"{name} does not answer: {log}")
    print(f"{name} serves on port {port} after {healthy - asked:.2f} s", flush=True)
    commands = {pid: command(pid) for pid in family(process.pid)}
    pids = {
        thread: next(pid for pid, text in commands.items() if any(word in text for word in words))
        for thread, words in THREADS.items()
    }
    return Server(port, pids)


def pin(servers: Iterable[Server], cpus: Sequence[int]) -> None:
    """Put the threads of `THREADS` on these CPUs, the same for all servers, and this client on the last one."""
    *theirs, ours = cpus
    for server in servers:
        for pid, cpu in zip(server.pids.values(), theirs, strict=True):
            os.sched_setaffinity(pid, {cpu})
    os.sched_setaffinity(0, {ours})


def cpu_numbers(text: str) -> list[int]:
    """As many CPUs as are pinned, as argparse's `type`."""
    if len(found := [int(word) for word in text.split(",")]) != len(THREADS) + 1:
        raise argparse.ArgumentTypeError(f"{len(found)} CPUs, needed are {len(THREADS) + 1}")
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def ask(
    servers: dict[str, Server], streams: int, tokens: int, rounds: int, draw: random.Random
) -> dict[str, list[dict[str, float]]]:
    """What each arm did in each round that counts."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for n in range(rounds + WARM_UP):
        for name in draw.sample(list(servers), len(servers)):
            label, server = f"{streams} streams, round {n}, {name}", servers[name]
            before = {thread: cpu_seconds(pid) for thread, pid in server.pids.items()}
            burst = asyncio.run(probe.burst(server.port, start.NAME, streams, tokens, label))
            for thread, pid in server.pids.items():
                burst[CPU[thread]] = (cpu_seconds(pid) - before[thread]) / burst["tokens"] * 1e6
            if n >= WARM_UP:
                found[name].append(burst)
    return found


def lines(streams: int, found: dict[str, list[dict[str, float]]], names: dict[str, str]) -> list[str]:
    """A line a start: its figures; then lines of each arm: its ratios to the first one."""
    said = []
    for name in names:
        first_token = median(b["ttft_median"] for b in found[name]) * 1000
        rate, api, engine = (median(b[figure] for b in found[name]) for figure in CALLED)
        said.append(f"{streams:3} streams  {name:14} {rate:8.1f} tok/s  first token {first_token:6.1f} ms  "
                    f"CPU a token: API {api:6.1f} us, engine {engine:6.1f} us")  # fmt: skip
    first, *others = dict.fromkeys(names.values())
    for arm in others:
        for figure, called in CALLED.items():
            said.append(compared(streams, f"{arm:14} by {first}, {called}", ratios(found, names, (arm, first), figure)))
        best = ratios(found, names, (arm, first), RATE, BLOCK)
        if len(best) >= LEAST:
            said.append(compared(streams, f"{arm:14} by {first}, {CALLED[RATE]}, best of {BLOCK} rounds", best))
    return said


def ratios(
    found: dict[str, list[dict[str, float]]], names: dict[str, str], pair: tuple[str, str], figure: str, block: int = 1
) -> list[float]:
    """One arm by the other, each the mean of its starts, round by round; with a block, of its highest in so many."""
    rounds = len(found[next(iter(names))])
    arm, first = (
        [
            mean(max(b[figure] for b in found[n][r : r + block]) for n in names if names[n] == side)
            for r in range(0, rounds - block + 1, block)
        ]
        for side in pair
    )
    return [a / b for a, b in zip(arm, first, strict=True)]


def compared(streams: int, what: str, values: Sequence[float]) -> str:
    """The median of ratios, and how well it is known."""
    low, high = interval(values)
    return f"{streams:3} streams  {what}: {median(values):.3f} (95 %: {low:.3f} to {high:.3f})"


def main() -> int:
    """Start, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    start.options(parser, "JSON file of all rounds; the logs lie beside it", "0.12")
    parser.add_argument("--rounds", type=enough_rounds, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", default="1,64")
    parser.add_argument(
        "--cpus", type=cpu_numbers, metavar="API,ENGINE,CLIENT", help="numbers of CPUs, of different cores"
    )
    parser.add_argument("--tokens", type=int, default=256, help="of each stream")
    parser.add_argument("arms", nargs="+", metavar="ARM")
    given = parser.parse_args()
    bench, known = start.opened(parser, given, given.arms)
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"GPU: {bench.gpu.name()}", flush=True)
    draw = random.Random(given.seed)  # noqa: S311 - an order
    names = named(given.arms)
    result: dict[str, Any] = {"gpu": bench.gpu.name(), "arms": given.arms, "tokens": given.tokens, "cpus": given.cpus,
                              "streams": {}}  # fmt: skip
    with ExitStack() as stack:
        servers = {
            name: serve(bench, known[arm], name, FIRST_PORT + n, stack) for n, (name, arm) in enumerate(names.items())
        }
        if given.cpus:
            pin(servers.values(), given.cpus)
        for streams in map(int, given.streams.split(",")):
            found = ask(servers, streams, given.tokens, given.rounds, draw)
            result["streams"][streams] = found
            print("\n".join(lines(streams, found, names)), flush=True)
            bench.out.write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
