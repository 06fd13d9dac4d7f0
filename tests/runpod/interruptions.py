"""`python -m tests.runpod.interruptions --count 200`: interrupt `bringup runpod up` at any moment, and count the pods
that nobody knows of afterwards.

Each run is a process of its own with a seeded moment, signal and fault of the API. A pod that is still there must be in
the state file, and unless the process was killed outright the command that removes it must have been printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import click
import paramiko  # noqa: F401 - the children find it imported, and the next one

from bringup import cli
from bringup.errors import Exit
from bringup.runpod import life  # noqa: F401
from tests.runpod import FakeRunPod

WHOLE = 3.3  # seconds that an `up` takes here, about
POD, PODS = r"/v2/pods/.+", "/v2/pods"
FAULTS: dict[str, list[tuple[str, str, str, int, dict[str, float]]]] = {
    "none": [],
    "create is slow": [("slow", "POST", PODS, 1, {"seconds": 0.3})],
    "create without an answer": [("done-but-drop", "POST", PODS, 1, {})],
    "create happens late": [("done-late", "POST", PODS, 1, {"seconds": 0.8})],
    "deletes fail twice": [("status", "DELETE", POD, 2, {"code": 503})],
    "deletes fail": [("status", "DELETE", POD, -1, {"code": 503})],
    "all is slow": [("slow", "*", PODS, -1, {"seconds": 0.1}), ("slow", "DELETE", POD, -1, {"seconds": 0.2})],
}  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@dataclass(frozen=True)
class Seen:
    """One interruption. `left`: pods that are still there; `leaked`: those of them that nobody could know of."""

    seed: int
    fault: str
    number: signal.Signals
    moment: float
    code: int
    left: tuple[str, ...]
    leaked: tuple[str, ...]
    err: str

    @property
    def kind(self) -> str:
        """For the table."""
        if self.leaked or not self.left:
            return "leaked" if self.leaked else "gone"
        if self.code == Exit.PASS:
            return "left: it had passed"
        return "left, known: killed" if self.code == -signal.SIGKILL else "left, known"


def interrupt(fake: FakeRunPod, seed: int, directory: Path) -> Seen:
    """Start `up`, interrupt it, and look what is there."""
    chance = random.Random(seed)
    fault, number = chance.choice(list(FAULTS)), chance.choice(SIGNALS)
    moment, again = chance.uniform(0, WHOLE), chance.random() < 0.3
    fake.clear()
    for kind, method, path, times, given in FAULTS[fault]:
        fake.fault(kind, method, path, times, **given)
    state = directory / "state"
    pid = _start(fake, directory, state)
    time.sleep(moment)
    os.kill(pid, number)
    if again:
        time.sleep(0.05)
        os.kill(pid, number)
    _, status = os.waitpid(pid, 0)
    time.sleep(1.0)  # what happens late has happened
    err = (directory / "err").read_text("utf-8")
    entries = json.loads((state / "pods.json").read_text()) if (state / "pods.json").exists() else {}
    left = {p["id"]: p["name"] for p in fake.pods()}
    leaked = tuple(
        pod
        for pod, name in left.items()
        if name not in entries or (number != signal.SIGKILL and not _told(err, pod, name))
    )
    return Seen(seed, fault, number, moment, os.waitstatus_to_exitcode(status), tuple(left), leaked, err)


def _told(err: str, pod: str, name: str) -> bool:
    return any(f"bringup runpod down {word}" in err for word in (pod, name))


def _start(fake: FakeRunPod, directory: Path, state: Path) -> int:
    directory.mkdir()
    (directory / "err").touch()  # the child may not get so far
    argv = [
        "bringup",
        "runpod",
        "up",
        "--image",
        "x/y:z",
        "--model",
        "tiny-qwen2",
        "--suite",
        "smoke",
        "--poll",
        "0.1s",
    ]
    argv += ["--gpu-type", "NVIDIA L4", "--patience", "2s", "--artifacts", str(directory / "artifacts")]
    if pid := os.fork():
        return pid
    try:
        with (directory / "err").open("w", buffering=1) as err, mock.patch.dict(os.environ, fake.environment(state)):
            sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, err, err
            sys.argv = argv
            cli.main()
    except SystemExit as e:
        os._exit(int(e.code or 0))
    except KeyboardInterrupt:  # before `main` minds signals
        os._exit(130)
    finally:
        os._exit(99)


def interruptions(seeds: Sequence[int]) -> list[Seen]:
    """One after another, against one API."""
    with FakeRunPod() as fake, tempfile.TemporaryDirectory() as place:
        return [interrupt(fake, seed, Path(place, str(seed))) for seed in seeds]


@click.command()
@click.option("--count", default=200, show_default=True)
@click.option("--first", default=0, show_default=True, help="The first seed.")
def main(count: int, first: int) -> None:
    """Interrupt so often, and exit 1 if a pod leaked."""
    seen = interruptions(range(first, first + count))
    for (fault, kind), n in sorted(Counter((s.fault, s.kind) for s in seen).items()):
        click.echo(f"{fault:28} {kind:20} {n:4}")
    click.echo(f"exit codes: {dict(Counter(s.code for s in seen))}")
    leaks = [s for s in seen if s.leaked]
    for s in leaks:
        click.echo(f"seed {s.seed}: {s}")
    click.echo(f"{len(seen)} interruptions, {sum(len(s.leaked) for s in leaks)} pods leaked")
    sys.exit(bool(leaks))


if __name__ == "__main__":
    main()
