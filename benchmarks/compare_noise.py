"""How often `bringup compare` claims a slower or faster start that is none, and sees one that is 30 % slower.

`python -m benchmarks.compare_noise [--trials N]`: seconds drawn at random, the rule of bringup/comparison/noise.py.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable

from bringup.comparison.noise import MANY, ONE, Call, judge

THRESHOLD = 10.0
SLOWER = 1.3


def bell(chance: random.Random, scatter: float) -> float:
    """A normal distribution about 1."""
    return max(chance.gauss(1, scatter), 0.01)


def stragglers(chance: random.Random, scatter: float) -> float:
    """A long tail, and every tenth run half as long again."""
    return math.exp(chance.gauss(0, scatter)) * (1.5 if chance.random() < 0.1 else 1.0)


def share(trials: int, runs: int, draw: Callable[[], float], factor: float, spreads: float) -> tuple[float, float]:
    """The shares of trials in which it is called slower, and faster."""
    calls = []
    for _ in range(trials):
        base, other = ([f * draw() for _ in range(runs)] for f in (1.0, factor))
        calls.append(judge(base, other, THRESHOLD, spreads=spreads).call)
    return calls.count(Call.SLOWER) / trials, calls.count(Call.FASTER) / trials


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    chance = random.Random(1)  # noqa: S311 - a seed, so that the table comes out again
    print("| runs a side | scatter | whole: false slower | whole: 30 % slower seen | a stage: false slower | seen |")
    print("|---|---|---|---|---|---|")
    for draw in (bell, stragglers):
        for runs in (3, 5, 8):
            for scatter in (0.03, 0.1):
                cells = []
                for spreads in (ONE, MANY):
                    for factor in (1.0, SLOWER):
                        slower, _ = share(trials, runs, lambda: draw(chance, scatter), factor, spreads)  # noqa: B023
                        cells.append(f"{100 * slower:.1f} %")
                print(f"| {runs} | {draw.__name__}, {100 * scatter:.0f} % | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
