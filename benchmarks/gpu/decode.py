#!/usr/bin/env python3
"""Compare decode rates of servers that run at the same time, asked in turns: what the machine does meanwhile hits all.

usage: decode.py --model DIR --out FILE [--rounds N] [--streams N,...] [--tokens N] [--arm NAME[@CACHE]:...] ARM...

The arms are those of start.py. All are started, one after the other, each with --utilization of the GPU (0.12); those
that are not asked wait, and use nothing. An arm that is named twice is started twice: so much do two starts of one and
the same differ. A round asks each of them once, in an order drawn anew: --tokens (256) a stream, greedy, prompts that
nobody was asked before. The first two rounds warm up. An arm's ratio is the median over the rounds of its rate (the
mean of its starts) by the first arm's in the same round. So is the CPU time a token of the thread that serves the API,
the event loop: the machine moves it less than the rate, and with many streams the rate depends on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import probe
import start
from spread import enough_rounds, interval
from watch import Gpu, command, cpu_seconds, family

FIRST_PORT = 18000  # above the usual ones, below the ephemeral ones
WARM_UP = 2  # rounds
API = ("vllm.entrypoints.openai.api_server", "bringup.inside.serve")
FIGURES = (("tok_s", "tokens/s"), ("cpu_us", "CPU time a token"))


@dataclass(frozen=True)
class Server:
    """Where it answers, and the process that does."""

    port: int
    pid: int


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
    return Server(port, next(pid for pid in family(process.pid) if any(word in command(pid) for word in API)))


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
            before = cpu_seconds(server.pid)
            burst = asyncio.run(probe.burst(server.port, start.NAME, streams, tokens, label))
            burst["cpu_us"] = (cpu_seconds(server.pid) - before) / burst["tokens"] * 1e6
            if n >= WARM_UP:
                found[name].append(burst)
    return found


def lines(streams: int, found: dict[str, list[dict[str, float]]], names: dict[str, str]) -> list[str]:
    """A line a start: its figures; then lines of each arm: its ratios to the first one."""
    said = []
    for name in names:
        first_token = median(b["ttft_median"] for b in found[name]) * 1000
        rate, cpu = (median(b[figure] for b in found[name]) for figure, _ in FIGURES)
        said.append(f"{streams:3} streams  {name:12} {rate:8.1f} tok/s  first token {first_token:6.1f} ms  "
                    f"{cpu:6.1f} us of CPU a token")  # fmt: skip
    rounds = range(len(found[next(iter(names))]))
    arms = list(dict.fromkeys(names.values()))
    for figure, called in FIGURES:
        means = {a: [mean(found[n][r][figure] for n in names if names[n] == a) for r in rounds] for a in arms}
        for arm in arms[1:]:
            ratios = [a / b for a, b in zip(means[arm], means[arms[0]], strict=True)]
            low, high = interval(ratios)
            said.append(f"{streams:3} streams  {arm:12} by {arms[0]}, {called}: {median(ratios):.3f} "
                        f"(95 %: {low:.3f} to {high:.3f})")  # fmt: skip
    return said


def main() -> int:
    """Start, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--locked", default="qwen2.5-1.5b-instruct", help="its name in the weights lock")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all rounds; the logs lie beside it")
    parser.add_argument("--caches", type=Path, default=Path("/tmp/bringup-bench"))  # noqa: S108 - by hand, as root
    parser.add_argument("--source", type=Path, default=start.ROOT, help="directory that holds the package bringup")
    parser.add_argument("--utilization", default="0.12", help="--gpu-memory-utilization of each")
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument("--rounds", type=enough_rounds, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", default="1,64")
    parser.add_argument("--tokens", type=int, default=256, help="of each stream")
    parser.add_argument("arms", nargs="+", metavar="ARM")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `timeout` ends it: no server must stay
    known = start.arms(given.arm)
    if unknown := set(given.arms) - set(known):
        parser.error(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.caches.mkdir(parents=True, exist_ok=True)
    bench = start.Bench(given.model.resolve(), given.locked, given.out.resolve(), given.caches.resolve(),
                        given.source.resolve(), given.utilization, Gpu())  # fmt: skip
    print(f"GPU: {bench.gpu.name()}", flush=True)
    draw = random.Random(given.seed)  # noqa: S311 - an order
    names = named(given.arms)
    result: dict[str, Any] = {"gpu": bench.gpu.name(), "arms": given.arms, "tokens": given.tokens, "streams": {}}
    with ExitStack() as stack:
        servers = {
            name: serve(bench, known[arm], name, FIRST_PORT + n, stack) for n, (name, arm) in enumerate(names.items())
        }
        for streams in map(int, given.streams.split(",")):
            found = ask(servers, streams, given.tokens, given.rounds, draw)
            result["streams"][streams] = found
            print("\n".join(lines(streams, found, names)), flush=True)
            given.out.write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
