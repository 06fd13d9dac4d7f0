"""Killed at a random moment, 100 times: only right files have names, nothing lives on, and the next fetch goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bringup.lock import LockedModel, write_lock
from tests.hub import ROOT, HubServer
from tests.weights.support import (
    WORK,
    complete,
    environment,
    files_of,
    living,
    lock_is_free,
    model_of,
    survivors,
    wrong_files,
)

SEED = 20250311
CHAINS, KILLS = 10, 10  # so many directories, each with so many fetches killed one after another
DRAWS = 40  # fetches of one chain, with those that were faster than their killer
AT_ONCE = 3
RATE = 20.0  # MB/s that the hub sends: the transfer must take some time to be killed in
LAST_CALL = 120.0  # seconds for the fetch that nobody kills

FILES = files_of(
    {"config.json": 700, "model.safetensors.index.json": 20_000, "tokenizer.json": 2_000_000, "sub/empty.txt": 0}
    | {f"model-0000{i}-of-00005.safetensors": size * 10**6 for i, size in enumerate((9, 2, 3, 2, 3), 1)}
)

PROGRAM = """
import sys
from pathlib import Path
from bringup.lock import read_lock
from bringup.weights.fetch import How, fetch

if __name__ == "__main__":
    lock, directory, endpoint = sys.argv[1:]
    how = How(endpoint=endpoint, transfer="hf_transfer", stall_timeout=30, timeout=100)
    print("begins", flush=True)
    fetch(read_lock(Path(lock))["model"], Path(directory), how)
    print("ended", flush=True)
"""


class Chain:
    """One directory that fetch after fetch is killed in."""

    def __init__(self, number: int, work: Path, model: LockedModel, endpoint: str) -> None:
        self.number, self.model, self.endpoint = number, model, endpoint
        self.random = random.Random(SEED + number)
        self.lock, self.program = work / "weights.lock", work / "program.py"
        self.directory = work / f"chain-{number}" / "model"
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def start(self, run: str) -> subprocess.Popen[str]:
        """A fetch in a process of its own; returns when it begins."""
        process = subprocess.Popen(
            [sys.executable, str(self.program), str(self.lock), str(self.directory), self.endpoint],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=environment(run, PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        assert process.stdout
        if process.stdout.readline() != "begins\n":
            raise AssertionError(f"the fetch did not begin: {process.communicate()[1]}")
        return process

    def kill(self, count: int, span: float) -> None:
        """Kill one fetch at a random moment, then look."""
        missing = sum(f.size for f in self.model.files if not (self.directory / f.path).exists()) / self.model.size
        # what is there already makes a fetch shorter, but not its start
        run, delay = f"chain-{self.number}-kill-{count}", self.random.uniform(0, span * (0.3 + 0.7 * missing))
        with self.start(run) as process:
            time.sleep(delay)
            had_children = len(living(run)) > 1
            process.send_signal(signal.SIGKILL)
            out, err = process.communicate(timeout=60)
        if process.returncode not in (-signal.SIGKILL, 0):
            self.wrong.append(f"{run}: the fetch ended by itself with {process.returncode}: {err}")
        elif process.returncode and "ended" not in out:
            self.seen["killed"] += 1
            self.seen["killed with children"] += had_children
        else:
            self.seen["too late"] += 1
        self.look(run, f"{run} (after {delay:.3f} s)")

    def look(self, run: str, name: str) -> None:
        """What must hold after every kill."""
        if left := survivors(run):
            self.wrong.append(f"{name}: these live on: {left}")
        if bad := wrong_files(self.model, self.directory):
            self.wrong.append(f"{name}: wrong under a final name: {bad}")
        if not lock_is_free(self.directory):
            self.wrong.append(f"{name}: the lock is held")
        there = {f.path for f in self.model.files if (self.directory / f.path).exists()}
        work = self.directory / WORK
        temporary = [p for p in work.iterdir() if p.name != "lock"] if work.exists() else []
        self.seen["left temp files"] += bool(temporary)
        self.seen["some files had their names"] += 0 < len(there) < len(self.model.files)
        if "config.json" in there and len(there) < len(self.model.files):
            self.wrong.append(f"{name}: config.json is there, and not all the others: {sorted(there)}")
        if complete(self.model, self.directory):  # it was faster: begin anew, or there is nothing left to kill
            for f in self.model.files:
                (self.directory / f.path).unlink()

    def finish(self) -> float:
        """A fetch that nobody kills completes what is there; the seconds it took."""
        with self.start(f"chain-{self.number}-end") as process:
            started = time.monotonic()
            err = process.communicate(timeout=LAST_CALL)[1]
            seconds = time.monotonic() - started
        if process.returncode or not complete(self.model, self.directory):
            self.wrong.append(f"chain {self.number}: the last fetch ends with {process.returncode}: {err}")
        if (self.directory / WORK).exists():
            self.wrong.append(f"chain {self.number}: {WORK} is left")
        return seconds


def run_chain(number: int, work: Path, model: LockedModel, hub_root: Path) -> Chain:
    with HubServer(hub_root) as hub:
        hub.throttle(RATE)
        chain = Chain(number, work, model, hub.endpoint)
        span = chain.finish()  # how long it takes, with this machine as busy as it is
        for f in model.files:
            (chain.directory / f.path).unlink()
        for count in range(DRAWS):
            chain.kill(count, span)
            if chain.seen["killed"] == KILLS:
                break
        chain.finish()
    return chain


@pytest.mark.timeout(900)
def test_a_hundred_kills_leave_only_right_files(tmp_path: Path, figures: list[str]) -> None:
    hub_root = tmp_path / "hub"
    hub_root.mkdir()
    model = model_of(hub_root, FILES)
    write_lock({"model": model}, tmp_path / "weights.lock")
    (tmp_path / "program.py").write_text(PROGRAM)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        chains = list(pool.map(lambda n: run_chain(n, tmp_path, model, hub_root), range(CHAINS)))
    seen = sum((c.seen for c in chains), Counter[str]())
    figures.append(f"killed at random moments, seed {SEED}, in {CHAINS} directories: {dict(seen)}")
    assert not [w for c in chains for w in c.wrong]
    assert seen["killed"] == CHAINS * KILLS
    # otherwise the kills came when there was nothing to spoil
    assert seen["killed with children"] >= CHAINS
    assert seen["left temp files"] >= CHAINS
    assert seen["some files had their names"] >= CHAINS
