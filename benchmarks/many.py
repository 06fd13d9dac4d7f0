"""How long many servers take beside one: `bringup verify` of one address and of all of a farm, in turns.

`python -m benchmarks.many --nodes 200 --token 0.01 --rounds 3 [--json FILE]`; the farm (benchmarks/farm.py) is a
process of its own on the same machine, and takes its part of it. Every node must pass, or there is no figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bringup.edge.http import Http

REQUESTS = 500
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sample:
    """One run: nodes, seconds of wall time of the whole command, CPU seconds of it, and of the farm meanwhile."""

    nodes: int
    wall: float
    cpu: float
    farm: float


@contextmanager
def farm(nodes: int, token: float) -> Iterator[tuple[int, list[str]]]:
    """A farm's process id and its addresses."""
    argv = [sys.executable, "-m", "benchmarks.farm", str(nodes), "--token", str(token)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        yield process.pid, [line.strip() for line in iter(process.stdout.readline, "\n")]
        process.communicate("")


def cpu_of(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def verify(urls: Sequence[str], suite: str, pid: int) -> Sample:
    """One run of the command over these.

    Raises:
        SystemExit: a node did not pass.
    """
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "urls")
        source.write_text("\n".join(urls))
        argv = [sys.executable, "-m", "bringup", "verify", "--json", "--suite", suite, "--from", str(source)]
        before, began = cpu_of(pid), time.monotonic()
        process = subprocess.Popen(
            [*argv, "--artifacts", directory], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None  # noqa: S101
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            bad = [n["why"] for n in json.loads(out)["nodes"] if n["verdict"] != "pass"]
            sys.exit(f"{len(bad)} of {len(urls)} nodes did not pass, the first: {bad[0]}")
    return Sample(len(urls), wall, usage.ru_utime + usage.ru_stime, cpu_of(pid) - before)


def doors(url: str) -> None:
    """CPU of one request by the two ways that bringup.edge.http has, to one server of the farm."""
    for name, direct in (("requests", False), ("http.client", True)):
        http = Http(url)
        http._direct = direct
        http.get("/health", 10)
        began = time.process_time()
        for _ in range(REQUESTS):
            http.get("/health", 10)
        print(f"{name}: {1000 * (time.process_time() - began) / REQUESTS:.2f} ms of CPU a request", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--token", type=float, default=0.01, help="seconds that a token takes")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="every sample, into this file")
    asked = parser.parse_args()
    samples: list[Sample] = []
    with farm(asked.nodes, asked.token) as (pid, urls):
        doors(urls[0])
        for number in range(asked.rounds):
            for some in (urls[number : number + 1], urls):
                samples.append(verify(some, asked.suite, pid))
                s, load = samples[-1], os.getloadavg()[0]
                print(
                    f"{s.nodes:4} nodes {s.wall:6.1f} s, CPU {s.cpu:5.1f} s, farm {s.farm:5.1f} s, load {load:.1f}",
                    flush=True,
                )
    one, all_ = ([s.wall for s in samples if s.nodes == n] for n in (1, asked.nodes))
    ratio = statistics.median(all_) / statistics.median(one)
    print(
        f"{asked.nodes} nodes take {ratio:.2f} times as long as one (medians of {asked.rounds}), {os.cpu_count()} CPUs"
    )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(s) for s in samples], indent=1))


if __name__ == "__main__":
    main()
