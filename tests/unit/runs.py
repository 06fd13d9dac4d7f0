"""A run with fakes at its seams, for the tests of the workflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from bringup import workflow
from bringup.checks import facts
from bringup.edge.docker import Engine
from bringup.ready import Seen
from bringup.records import CheckRecord, ProbeRecord
from bringup.settings import Settings
from bringup.timeline.live import Expected
from bringup.watch import Watch
from tests.unit import samples


class Silent:
    """Watches a run and says nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        self.said.append(name)
        yield lambda _: None

    @contextmanager
    def start(self, name: str, _expected: Expected | None) -> Iterator[Seen]:
        self.said.append(name)
        yield lambda *_: None

    def say(self, text: str) -> None:
        self.said.append(text)

    def checks(self, _records: tuple[CheckRecord, ...]) -> None:
        self.said.append("checks")

    def probes(self, _records: tuple[ProbeRecord, ...]) -> None:
        self.said.append("probes")

    def table(self, title: str, _columns: tuple[str, ...], _rows: Iterable[tuple[str, ...]]) -> None:
        self.said.append(title)


class FakeEngine:
    def clock(self) -> float:
        return time.time()

    def image(self, _reference: str) -> dict[str, Any] | None:
        return {"Id": "sha256:1"}

    def has_volume(self, _name: str) -> bool:
        return False


def a_run(tmp_path: Path, host: facts.HostFacts = samples.FACTS, **settings: Any) -> workflow.Run:
    made = Settings(model="tiny-qwen2", artifacts=tmp_path, **settings)
    return workflow.Run("up", made, samples.plan(), cast("Engine", FakeEngine()), host, cast("Watch", Silent()))
