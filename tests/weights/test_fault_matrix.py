"""Every fault through the real command line: how it ends, and what must hold however it ends."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bringup.lock import LockedModel
from tests.hub import ROOT, HubServer
from tests.weights.acts import SIZES, make_repos
from tests.weights.rows import ROWS, Row
from tests.weights.scene import Outcome, Scene
from tests.weights.support import complete, files_of, model_of

AT_ONCE = 6  # rows side by side: most of their time is spent waiting
GRACE = 2.0  # seconds after the deadline in which everything must have ended
HEADER = f"{'fault':42} {'transfer':12} {'error id':24} exit      time"


@dataclass
class Seen:
    """A row as it was seen: its end, what did not hold then, and the fetch after it."""

    outcome: Outcome
    broken: list[str]


def startup() -> float:
    """Seconds that the command line takes to start, as busy as this machine is with `AT_ONCE` of them."""
    started = time.monotonic()
    argv = [sys.executable, "-m", "bringup", "weights", "fetch", "--help"]
    children = [subprocess.Popen(argv, cwd=ROOT / "tests", stdout=subprocess.DEVNULL) for _ in range(AT_ONCE)]
    assert not any(child.wait(120) for child in children)
    return time.monotonic() - started


def play(row: Row, work: Path, hub_root: Path, model: LockedModel) -> Seen:
    """Make the fault, run the command, look; then mend it, and fetch again."""
    name = re.sub(r"\W+", "-", row.key)
    (work / name).mkdir()
    with HubServer(hub_root) as hub:
        scene = Scene(
            name=name, work=work / name, hub=hub, model=model, transfer=row.transfer, stall=row.stall,
            timeout=row.timeout,
        )  # fmt: skip
        try:
            row.arrange(scene)
            outcome = scene.run(scene.action)
            for act in scene.after:
                act()
            broken = scene.broken(outcome, row.theirs)
            if row.also and outcome.code == row.code and not row.also(scene, outcome):
                broken.append(f"what should hold in this row does not; the hub saw {hub.requests()}")
            scene.mend()
            again = scene.run("fetch")
            broken += [f"the next fetch: {b}" for b in scene.broken(again, ())]
            if again.code or not complete(model, scene.directory):
                broken.append(f"the next fetch does not complete it: exit {again.code}: {again.err}")
        finally:
            scene.close()
    return Seen(outcome, broken)


@dataclass
class Played:
    """What becomes of the rows, and how long the command line takes to start meanwhile."""

    rows: dict[str, Future[Seen]]
    startup: float


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Each row that was chosen to run; those that wait for every attempt to stall begin first."""
    items = [i for i in request.session.items if isinstance(i, pytest.Function) and i.function is test_fault]
    rows: list[Any] = sorted((i.callspec.params["row"] for i in items), key=lambda row: row.id != "transfer-stalled")
    work, hub_root = tmp_path_factory.mktemp("matrix"), tmp_path_factory.mktemp("hub")
    files = files_of(SIZES)
    model = model_of(hub_root, files)
    make_repos(hub_root, files)
    before = startup()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield Played({row.key: pool.submit(play, row, work, hub_root, model) for row in rows}, before)
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_fault(row: Row, played: Played, matrix: list[str]) -> None:
    seen = played.rows[row.key].result()
    found = seen.outcome
    name = found.said.get("id") or "-"
    if not any(line.startswith(HEADER[:5]) for line in matrix):
        matrix.append(HEADER)
    matrix.append(f"{row.name:42} {row.transfer:12} {name:24} {found.code:4} {found.seconds:7.1f} s")
    assert found.code == row.code, found.err
    assert not seen.broken
    assert found.seconds <= row.timeout + GRACE + played.startup
    if row.code and row.code < 128:
        assert found.said["id"] == row.id
        assert found.said["exit_code"] == row.code
        assert row.remedy in found.said["hint"]
        assert "\n" not in found.said["error"]


def test_rows_have_names_of_their_own() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
