#!/usr/bin/env python3
"""Compare decode rates of servers that run at the same time, asked in turns: what the machine does meanwhile hits all.

usage: decode.py --model DIR --out FILE [--waves N] [--at-once N] [--rounds N] [--streams N,...] [--tokens N]
                 [--settle S] [--arm NAME[@CACHE]:...] ARM...

The arms are those of start.py, each started as often as it is named. All of a wave are started, in an order drawn anew
and --at-once (1) of them at a time, each with --utilization of the GPU (0.12); those that are not asked wait, and use
nothing. --settle (20) seconds after the last start, since ours puts its memory into large pages by then, they are asked
in turns: a turn asks one start of each arm, in an order drawn anew, and a round is so many turns that each start is
asked. To ask is --tokens (64) a stream, greedy, prompts that nobody was asked before. The first two rounds warm up.
Then all are ended, and the next wave starts the same arms anew.

The machine changes within a second, for all alike, and a turn is short: so what a start did is divided by the mean of
its turn. Two starts of one and the same server differ too: so a start counts once, the median of its turns. An arm's
ratio to the first arm is that of the means of their starts in one wave, and of more waves the mean; the interval (from
6 starts on) is drawn from the starts of each wave, by bootstrap. Told are tokens a second, tokens a second after the
first one of each stream (1 / TPOT), time to the first token, and the CPU time a token of two threads: the event loop
that serves the API, and the engine's. With --cpus these two threads of every server run on the same two CPUs, and the
client on a third: CPUs of a shared host differ, and a process that keeps one keeps its luck. What else the host does
only slows a turn down, and some servers more than others: so the rate that a start has in the best tenth of its turns
is told as well, undisturbed.

Two compilations of one model may differ as well. So it is an error when a start compiles here (fill the caches before:
`start.py ARM+cold`), and when plain vLLM with the caches of another arm loads something else than that: by the verdicts
of `bringup up`, so that this needs the package bringup on its path.

Servers that start at the same time disturb each other's measuring of the GPU's memory: --at-once needs
--kv-cache-memory-bytes, which goes to each server. And those that import ahead are the first of them on the GPU: with
few at a time, all arms are early and late.
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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import probe
import start
from spread import LEAST, bootstrap, ratio
from watch import command, cpu_seconds, family

from bringup import caches
from bringup.timeline import read_events

FIRST_PORT = 18000  # above the usual ones, below the ephemeral ones
WARM_UP = 2  # rounds
# How the process of each is called; it is about its first thread.
THREADS = {
    "API": ("vllm.entrypoints.openai.api_server", "bringup.inside.serve"),
    "engine": ("VLLM::EngineCore",),
}
CPU = {thread: f"{thread.lower()}_us" for thread in THREADS}
Burst = dict[str, float]
RATE = "tok_s_after"
UNDISTURBED = "undisturbed"
FIGURES = probe.FIGURES | {figure: f"us of CPU a token, {thread}" for thread, figure in CPU.items()}
TOLD = FIGURES | {UNDISTURBED: f"{FIGURES[RATE]}, undisturbed"}
Turn = dict[str, Burst]  # by start
Wave = dict[str, list[Burst]]  # the figures of each arm's starts, by the means of their turns


@dataclass(frozen=True)
class Server:
    """Where it answers, and the pid for each of `THREADS`."""

    port: int
    pids: dict[str, int]


@dataclass(frozen=True)
class Starting:
    """One that was asked to start; `asked` in epoch seconds."""

    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    asked: float

    def answering(self) -> Server:
        """It, when it answers.

        Raises:
            SystemExit: it does not, or another server does on its port.
        """
        alive = lambda: self.process.poll() is None  # noqa: E731
        healthy = probe.wait_healthy(self.port, alive, self.asked + start.DEADLINE)[1]
        if not healthy:
            sys.exit(f"{self.name} does not answer: {self.log}")
        print(f"{self.name} serves on port {self.port} within {healthy - self.asked:.2f} s", flush=True)
        commands = {pid: command(pid) for pid in family(self.process.pid)}
        pids = {
            thread: next((pid for pid, text in commands.items() if any(word in text for word in words)), 0)
            for thread, words in THREADS.items()
        }
        if not all(pids.values()):
            sys.exit(f"what answers on port {self.port} is no process of {self.name}: end it first")
        return Server(self.port, pids)


def named(arms: Sequence[str], wave: int) -> dict[str, list[str]]:
    """A name for each start of a wave, ARM.WAVE.NUMBER, by arm."""
    return {arm: [f"{arm}.{wave}.{n}" for n in range(1, arms.count(arm) + 1)] for arm in arms}


def launch(
    bench: start.Bench, arm: start.Arm, name: str, port: int, stack: ExitStack, extra: Sequence[str] = ()
) -> Starting:
    """Start one, with `extra` arguments, and see to its end."""
    log, records = (bench.out.with_name(f"{bench.out.stem}.{name}{suffix}") for suffix in (".log", ".jsonl"))
    argv, environment = start.command_line(bench, arm, records, port)
    console = stack.enter_context(log.open("wb"))
    asked = time.time()
    process = subprocess.Popen([*argv, *extra], stdout=console, stderr=subprocess.STDOUT, env=environment,
                               start_new_session=True, cwd=bench.caches)  # fmt: skip
    stack.callback(end, process)
    return Starting(name, port, log, process, asked)


def same_code(logs: Mapping[str, str], starts: Mapping[str, start.Arm]) -> None:
    """See that nothing was compiled beside others, and that plain vLLM runs what the arm compiled whose caches it has.

    Args:
        logs: what each start wrote so far.
        starts: the arm of each.

    Raises:
        SystemExit: one compiled, or loaded something else.
    """
    loaded: dict[str, set[str]] = {}
    for name, text in logs.items():
        found = next(c for c in caches.judge(read_events(text), None, None).caches if c.name == "vllm-aot")
        if found.verdict is caches.Answer.MISS:
            said = ", ".join(found.evidence)
            sys.exit(f"{name} compiled ({said}) beside others: fill its caches before (start.py ARM+cold)")
        loaded[name] = set(found.evidence) if found.verdict is caches.Answer.HIT else set()
    ours: dict[str, set[str]] = defaultdict(set)
    for name, code in loaded.items():
        if starts[name].ours:
            ours[starts[name].cache] |= code
    for name, code in loaded.items():
        cache = starts[name].cache
        if not starts[name].ours and cache in ours and code - ours[cache]:
            said, other = (", ".join(sorted(lines)) for lines in (code, ours[cache]))
            sys.exit(f"{name} runs other code ({said}) than what has the caches of {cache} ({other})")


def pin(servers: Iterable[Server], cpus: Sequence[int]) -> None:
    """Put the threads of `THREADS` on these CPUs, the same for all servers, and this client on the last one."""
    *theirs, ours = cpus
    for server in servers:
        for pid, cpu in zip(server.pids.values(), theirs, strict=True):
            os.sched_setaffinity(pid, {cpu})
    os.sched_setaffinity(0, {ours})


def numbers(text: str) -> list[int]:
    """Numbers with commas between, as argparse's `type`."""
    return [int(word) for word in text.split(",")]


def cpu_numbers(text: str) -> list[int]:
    """As many CPUs as are pinned, as argparse's `type`."""
    if len(found := numbers(text)) != len(THREADS) + 1:
        raise argparse.ArgumentTypeError(f"{len(found)} CPUs, needed are {len(THREADS) + 1}")
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server, and its engine with it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def one_wave(
    bench: start.Bench, arms: Mapping[str, start.Arm], names: Mapping[str, list[str]], given: argparse.Namespace,
    draw: random.Random,
) -> dict[int, list[Turn]]:  # fmt: skip
    """Start them, ask them, end them: the turns that count, by number of streams."""
    everywhere = os.sched_getaffinity(0)
    extra = [f"--kv-cache-memory-bytes={given.kv_cache_memory_bytes}"] if given.kv_cache_memory_bytes else []
    starts = {name: arms[arm] for arm, mine in names.items() for name in mine}
    order, servers = draw.sample(list(starts), len(starts)), dict[str, Server]()
    with ExitStack() as stack:
        starting: list[Starting] = []
        for first in range(0, len(order), given.at_once):
            now = [
                launch(bench, starts[name], name, FIRST_PORT + first + n, stack, extra)
                for n, name in enumerate(order[first : first + given.at_once])
            ]
            servers |= {one.name: one.answering() for one in now}
            starting += now
        same_code({one.name: one.log.read_text("utf-8", "replace") for one in starting}, starts)
        time.sleep(given.settle)
        if given.cpus:
            pin(servers.values(), given.cpus)
            stack.callback(os.sched_setaffinity, 0, everywhere)
        found = {n: asked_all(servers, list(names.values()), n, given, draw) for n in given.streams}
        for one in starting:
            one.process.send_signal(signal.SIGTERM)
    return found


def asked_all(
    servers: Mapping[str, Server], arms: Sequence[Sequence[str]], streams: int, given: argparse.Namespace,
    draw: random.Random,
) -> list[Turn]:  # fmt: skip
    """Ask all of them, round by round: the turns that count."""
    found = []
    for r in range(WARM_UP + given.rounds):
        for number, turn in enumerate(turns(arms, draw)):
            asked = ask(servers, turn, streams, given.tokens, f"{streams} streams, round {r}, turn {number}")
            if r >= WARM_UP:
                found.append(asked)
    return found


def turns(arms: Sequence[Sequence[str]], draw: random.Random) -> list[list[str]]:
    """A round: in each turn a start of each arm, and each start at least once."""
    shuffled = [draw.sample(starts, len(starts)) for starts in arms]
    each = [[starts[n % len(starts)] for starts in shuffled] for n in range(max(map(len, arms)))]
    return [draw.sample(turn, len(turn)) for turn in each]


def ask(servers: Mapping[str, Server], turn: Sequence[str], streams: int, tokens: int, label: str) -> Turn:
    """One after the other, each what nobody was asked under this label: what each did."""
    found = {}
    for name in turn:
        server = servers[name]
        before = {thread: cpu_seconds(pid) for thread, pid in server.pids.items()}
        burst = asyncio.run(probe.burst(server.port, start.NAME, streams, tokens, f"{label}, {name}"))
        for thread, pid in server.pids.items():
            burst[CPU[thread]] = (cpu_seconds(pid) - before[thread]) / burst["tokens"] * 1e6
        found[name] = burst
    return found


def by_start(asked: Sequence[Turn]) -> dict[str, Burst]:
    """Each start's figures: the medians of its turns."""
    bursts: dict[str, list[Burst]] = defaultdict(list)
    for turn in asked:
        for name, burst in turn.items():
            bursts[name].append(burst)
    return {name: {figure: median(b[figure] for b in mine) for figure in FIGURES} for name, mine in bursts.items()}


def relative(turn: Turn) -> Turn:
    """What each did, by the mean of the turn."""
    means = {figure: mean(burst[figure] for burst in turn.values()) for figure in FIGURES}
    return {name: {figure: burst[figure] / means[figure] for figure in FIGURES} for name, burst in turn.items()}


def side_by_side(asked: Sequence[Turn]) -> dict[str, Burst]:
    """Each start's figures by those of its turns, and the rate that it reaches in a tenth of its turns."""
    found = by_start([relative(turn) for turn in asked])
    for name, figures in found.items():
        rates = sorted(turn[name][RATE] for turn in asked if name in turn)
        figures[UNDISTURBED] = rates[int(0.9 * len(rates))]
    return found


def compared(streams: int, waves: Sequence[Wave]) -> list[str]:
    """Lines of each arm: its ratios to the first one, by all starts so far."""
    said = []
    first, *others = waves[0]
    for arm in others:
        for figure, called in TOLD.items():
            pairs = [([s[figure] for s in wave[arm]], [s[figure] for s in wave[first]]) for wave in waves]
            said.append(f"{streams:3} streams  {arm} by {first}, {called}: {ratio(pairs):.3f} ({known(pairs)})")
    return said


def known(pairs: Sequence[tuple[list[float], list[float]]]) -> str:
    """How well the mean of the pairs' ratios is known, in words."""
    mine, base = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    if min(mine, base) < LEAST or any(min(map(len, pair)) < 2 for pair in pairs):
        return f"{mine} and {base} starts: no interval"
    low, high = bootstrap(pairs)
    return f"95 %: {low:.3f} to {high:.3f}, {mine} and {base} starts"


def main() -> int:
    """Start, ask, compare; what is known is told and written after each wave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    start.options(parser, "JSON file of all turns; the logs lie beside it", "0.12")
    parser.add_argument("--waves", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, metavar="N")
    parser.add_argument("--kv-cache-memory-bytes", type=int, metavar="N")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settle", type=float, default=20.0, help="seconds from the last start to the first question")
    parser.add_argument("--streams", type=numbers, default=[1, 64])
    parser.add_argument(
        "--cpus", type=cpu_numbers, metavar="API,ENGINE,CLIENT", help="numbers of CPUs, of different cores"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("arms", nargs="+", metavar="ARM")
    given = parser.parse_args()
    if given.at_once > 1 and not given.kv_cache_memory_bytes:
        parser.error("--at-once needs --kv-cache-memory-bytes")
    bench, arms = start.opened(parser, given, given.arms)
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"GPU: {bench.gpu.name()}", flush=True)
    draw = random.Random(given.seed)  # noqa: S311 - an order
    found: dict[int, list[Turn]] = {n: [] for n in given.streams}
    waves: dict[int, list[Wave]] = {n: [] for n in given.streams}
    result: dict[str, Any] = {"gpu": bench.gpu.name(), "arms": given.arms, "tokens": given.tokens, "cpus": given.cpus,
                              "streams": found}  # fmt: skip
    for n in range(1, given.waves + 1):
        names = named(given.arms, n)
        for streams, asked_turns in one_wave(bench, arms, names, given, draw).items():
            found[streams] += asked_turns
            for name, figures in by_start(asked_turns).items():
                said = ", ".join(f"{value:.1f} {FIGURES[figure]}" for figure, value in figures.items())
                print(f"{streams:3} streams  {name:16} {said}")
            own = side_by_side(asked_turns)
            waves[streams].append({arm: [own[name] for name in mine] for arm, mine in names.items()})
            print("\n".join(compared(streams, waves[streams])), flush=True)
        bench.out.write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
