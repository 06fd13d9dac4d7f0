"""`build --warm`: one start of the image in a project of its own, and a layer made of what it packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bringup import image, warm, workflow
from bringup.edge import process
from bringup.errors import BuildFailed, NeverReady
from bringup.inside import warm as inside
from tests.unit.fakes import FakeContainer
from tests.unit.runs import a_run
from tests.unit.samples import plan

TOLD = {"schema": 1, "factors": {"vllm": "0.32.0"}, "sha256": "ab" * 32, "files": 2, "bytes": 5000}


def packing(told: dict[str, Any], code: int = 0) -> FakeContainer:
    return FakeContainer(executed=(code, json.dumps(told)))


def test_the_trial_is_the_same_server_elsewhere() -> None:
    asked = plan("cpu")
    trial = warm.trial_plan(asked, 1234)
    assert (trial.project, trial.port, trial.base_url) == (f"{asked.project}-warm", 1234, "http://127.0.0.1:1234")
    assert (trial.bind, trial.environment["BRINGUP_BIND"]) == ("127.0.0.1", "127.0.0.1")
    assert (trial.argv, trial.image, trial.compose_files) == (asked.argv, asked.image, asked.compose_files)


@pytest.mark.parametrize(
    "container", [packing({**TOLD, "files": 0}), packing(TOLD, 1), FakeContainer(executed=(0, "no json"))]
)
def test_a_start_without_caches_is_no_layer(container: FakeContainer) -> None:
    with pytest.raises(BuildFailed, match="filled no cache") as caught:
        warm.packed(container)
    assert "--profile default" in caught.value.hint


def test_the_context_of_the_layer(tmp_path: Path) -> None:
    image.write_warm(tmp_path, "bringup:x", dict(TOLD), b"tar")
    assert json.loads((tmp_path / "warm/factors.json").read_text()) == TOLD
    assert (tmp_path / "warm/caches.tar").read_bytes() == b"tar"
    assert {p.stat().st_mtime for p in (tmp_path / "warm").iterdir()} == {0}
    lines = (tmp_path / "Dockerfile").read_text().splitlines()
    assert lines[0] == "FROM bringup:x"
    assert lines[1] == f"COPY warm/ {inside.WARM}/"  # with --chmod=0644 nobody could enter the directory
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "warm").iterdir()} == {0o644}
    assert {inside.FACTORS, inside.ARCHIVE} == {p.name for p in (tmp_path / "warm").iterdir()}


def test_a_layer_that_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: process.Outcome((), 1, "", "ERROR: no room", 1.0))
    with pytest.raises(BuildFailed, match="no room") as caught:
        image.build_warm(tmp_path, "bringup:x", lambda _: None)
    assert caught.value.hint == "bringup:x is there without it"


class Target:
    """Stands for the compose project of the trial."""

    def __init__(self) -> None:
        self.downs: list[bool] = []

    def down(self, *, volumes: bool = False) -> None:
        self.downs.append(volumes)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_trial_is_left(fails: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, target, built = a_run(tmp_path), Target(), list[str]()

    def start(trial: Any, _target: Any, _before: Any) -> Any:
        assert trial.plan.project.endswith("-warm")
        if fails:
            raise NeverReady("it died")
        told = {**TOLD, "archive": "/var/lib/bringup/run/caches.tar"}
        return FakeContainer(executed=(0, json.dumps(told)), file=b"tar"), None

    monkeypatch.setattr(warm, "ComposeTarget", lambda *_: target)
    monkeypatch.setattr(warm, "_free_port", lambda: 1)
    monkeypatch.setattr(workflow, "start", start)
    monkeypatch.setattr(image, "build_warm", lambda _, tag, __: built.append(tag))
    if fails:
        with pytest.raises(NeverReady):
            warm.bake(run)
    else:
        assert warm.bake(run) == run.engine.image(run.plan.image)
    assert (target.downs, built) == ([True], [] if fails else [run.plan.image])
