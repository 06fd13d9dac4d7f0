"""What a step of vLLM's engine costs when its process's memory is in pages of 2 MiB, by what it costs otherwise.

    eval "$(./scripts/engine env)"
    python benchmarks/hugepages.py --image bringup:cpu-tiny-qwen2 --json hugepages.json

In each process of the image runs a whole engine, scheduler and model runner in one thread, which makes tokens of one
stream with the tiny model: nearly all of it is Python, as it is on a GPU with a small model. The processes of a wave
live at the same time and are asked in turns, in drawn order, on one CPU, so that the machine's moods hit all. A start
counts once, the median of its steps' CPU time by the mean of the turn. No GPU is needed, but 2 GiB a process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

spread: Any = importlib.import_module("gpu.spread")  # beside this file
WAYS = ("as it is", "hugepages")
WARM_UP = 2  # rounds
INSIDE = """
import gc, os, sys, time
from bringup.inside import hugepages, interpreter, marks
from vllm import LLM, SamplingParams

def serve(way):
    model = "/opt/bringup/models/" + os.environ["BRINGUP_MODEL"]
    engine = LLM(model, enforce_eager=True, max_model_len=512, distributed_executor_backend="uni").llm_engine
    gc.collect()
    gc.freeze()  # as vLLM's server does
    if way == "hugepages":
        marks.told = lambda text: print(text, flush=True, file=sys.__stdout__)
        hugepages.settle(0)
    print("ready", flush=True, file=sys.__stdout__)
    for number, line in enumerate(sys.stdin):
        params = SamplingParams(max_tokens=int(line), ignore_eos=True, temperature=0)
        engine.add_request(str(number), {"prompt_token_ids": [5, 6, 7, 8]}, params)
        engine.step()
        begun, steps = time.thread_time(), 0
        while engine.has_unfinished_requests():
            engine.step()
            steps += 1
        print("us", (time.thread_time() - begun) / steps * 1e6, flush=True, file=sys.__stdout__)
    os._exit(0)

interpreter.run(serve, sys.argv[1])
"""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Process:
    """One engine, in a container of its own on the first CPU."""

    def __init__(self, image: str, way: str) -> None:
        self.way = way
        given = [word for k, v in ENVIRONMENT.items() for word in ("--env", f"{k}={v}")]
        argv = ["docker", "run", "--rm", "--interactive", "--workdir", "/tmp", "--cpuset-cpus", "0", *given,  # noqa: S108
                "--entrypoint", "/opt/venv/bin/python", image, "-c", INSIDE, way]  # fmt: skip
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def line(self, word: str) -> str:
        """The next line that begins with this word.

        Raises:
            SystemExit: it ended before.
        """
        for line in self._process.stdout or ():
            if line.startswith(word):
                return line.strip()
        raise SystemExit(f"an engine ({self.way}) ended: exit {self._process.wait()}")

    def step(self, tokens: int) -> float:
        """Microseconds of CPU time a step, over so many tokens."""
        if self._process.stdin:
            self._process.stdin.write(f"{tokens}\n")
            self._process.stdin.flush()
        return float(self.line("us").split()[1])

    def end(self) -> None:
        """End it: it reads its questions to the end."""
        self._process.communicate()


def one_wave(image: str, starts: int, rounds: int, tokens: int, draw: random.Random) -> dict[str, list[list[float]]]:
    """Microseconds a step: way -> start -> round."""
    processes = []
    try:
        for way in draw.sample(WAYS * starts, len(WAYS) * starts):
            processes.append(Process(image, way))
            if way == WAYS[1]:
                print(processes[-1].line("hugepages"), flush=True)
            processes[-1].line("ready")
        took: dict[Process, list[float]] = {p: [] for p in processes}
        for number in range(WARM_UP + rounds):
            for process in draw.sample(processes, len(processes)):
                us = process.step(tokens)
                if number >= WARM_UP:
                    took[process].append(us)
    finally:
        for process in processes:
            process.end()
    return {way: [us for process, us in took.items() if process.way == way] for way in WAYS}


def by_turn(wave: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Each start's median of its rounds by the mean of the round."""
    means = [fmean(us) for us in zip(*(us for starts in wave.values() for us in starts), strict=True)]
    return {w: [median(a / b for a, b in zip(us, means, strict=True)) for us in starts] for w, starts in wave.items()}


def told(waves: Sequence[dict[str, list[list[float]]]]) -> str:
    """The line with the ratio: the mean of the waves' ratios of the means of their starts."""
    pairs = [(found[WAYS[1]], found[WAYS[0]]) for found in map(by_turn, waves)]
    low, high = spread.bootstrap(pairs)
    us = median(u for wave in waves for starts in wave[WAYS[0]] for u in starts)
    return (f"CPU time a step, {WAYS[1]} by {WAYS[0]}: {spread.ratio(pairs):.3f} (95 %: {low:.3f} to {high:.3f}; "
            f"{sum(len(above) for above, _ in pairs)} starts of each; {us:.0f} us)")  # fmt: skip


def main() -> None:
    """Measure in turns, tell after each wave."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--waves", type=int, default=3)
    parser.add_argument("--starts", type=int, default=4, help="of each way in a wave, two at least (4)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=60, help="in a turn")
    parser.add_argument("--json", type=Path, help="where every sample goes")
    args = parser.parse_args()
    draw = random.Random(0)  # noqa: S311 - an order
    waves: list[dict[str, list[list[float]]]] = []
    for _ in range(args.waves):
        waves.append(one_wave(args.image, args.starts, args.rounds, args.tokens, draw))
        print(told(waves), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"image": args.image, "waves": waves}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
