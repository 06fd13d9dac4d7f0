"""Which earlier start says how long this one will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from bringup import history
from bringup.edge.docker import Engine
from bringup.targets.compose import ComposeTarget
from tests.unit import timeline_logs as logs
from tests.unit.fakes import plan

PLAN = plan(project="p")


class Has:
    """An engine with these volumes, and an image with these labels."""

    def __init__(self, *volumes: str, **labels: str) -> None:
        self.volumes, self.labels = volumes, labels

    def has_volume(self, name: str) -> bool:
        return name in self.volumes

    def image(self, _reference: str) -> dict[str, Any]:
        return {"Config": {"Labels": {name.replace("_", "."): value for name, value in self.labels.items()}}}


def bundle(directory: Path, name: str, log: str, verdict: str = "pass", **changes: Any) -> None:
    """A bundle of a recorded start."""
    made = directory / name
    made.mkdir()
    caches = {"caches": [{"name": "vllm-aot", "verdict": "off"}, {"name": "inductor", "verdict": changes.pop("cache")}]}
    asked = {"project": "p", "model": "m", "flavour": "cpu"} | changes
    record = {"verdict": verdict, "plan": asked, "caches": caches, "started_to_first_token": changes.get("token", 30.0)}
    (made / "record.json").write_text(json.dumps(record))
    (made / "timeline.json").write_text(json.dumps({"anchors": logs.clock(log).__dict__}))
    (made / "server.log").write_bytes((logs.DATA / f"{log}.log").read_bytes())


def last(directory: Path, *volumes: str, **labels: str) -> tuple[str, float] | None:
    found = history.last_start(directory, PLAN, ComposeTarget(cast("Engine", Has(*volumes, **labels)), "p"))
    return (found.source, round(found.whole, 1)) if found else None


def test_the_newest_of_the_same_kind(tmp_path: Path) -> None:
    bundle(tmp_path, "1-cold", "console-cold", cache="miss")
    bundle(tmp_path, "2-warm", "console-warm", cache="hit")
    assert last(tmp_path) == ("1-cold", 58.5), "without a state volume it will be cold"
    assert last(tmp_path, "p_state") == ("2-warm", 34.8)
    assert last(tmp_path, dev_bringup_warm="x") == ("2-warm", 34.8), "caches in the image: nobody can tell"
    bundle(tmp_path, "3-none", "console-cold", cache="off")
    assert last(tmp_path, "p_state") == ("3-none", 58.5), "without caches both are the same"


@pytest.mark.parametrize(
    "other",
    [
        {"verdict": "fail"}, {"verdict": "unknown"}, {"project": "q"}, {"model": "n"}, {"flavour": "gpu"},
        {"token": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_such_start_is_passed_over(tmp_path: Path, other: dict[str, Any]) -> None:
    bundle(tmp_path, "1", "console-cold", cache="miss")
    bundle(tmp_path, "2", "console-warm", cache="miss", **other)
    assert last(tmp_path) == ("1", 58.5)


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    assert last(tmp_path) is None
    assert last(tmp_path / "nowhere") is None
    bundle(tmp_path, "1", "console-cold", cache="miss")
    for name, file, content in (
        ("2", "record.json", "{"), ("3", "record.json", "[]"), ("4", "timeline.json", "{}"), ("5", "server.log", ""),
        ("7", "timeline.json", '{"anchors": {"asked": "x", "first_token": "y"}}'),
    ):  # fmt: skip
        bundle(tmp_path, name, "console-warm", cache="miss")
        (tmp_path / name / file).write_text(content)
    bundle(tmp_path, "6", "console-warm", cache="miss")
    (tmp_path / "6" / "server.log").unlink()
    assert last(tmp_path) == ("1", 58.5)
