"""The state directory, and what happens when it cannot be written."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

from bringup.inside import pod
from bringup.inside import state as state_module
from bringup.inside.state import DEFAULT, open_state

DOCKERFILE = (Path(__file__).parents[2] / "Dockerfile").read_text("utf-8")


def test_a_writable_directory_is_used(tmp_path: Path) -> None:
    state = open_state({"BRINGUP_STATE_DIR": str(tmp_path / "state")})
    assert state.log == tmp_path / "state" / "run" / "server.jsonl"
    assert state.log.read_text() == ""
    assert (state.problem, state.environment) == ("", {})


def test_the_last_start_is_kept(tmp_path: Path) -> None:
    environ = {"BRINGUP_STATE_DIR": str(tmp_path)}
    open_state(environ).log.write_text("last")
    assert open_state(environ).log.with_name("server.previous.jsonl").read_text() == "last"


def test_without_a_writable_directory_the_caches_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()  # root may write anywhere, but nobody makes a directory below a file
    wanted = tmp_path / "file" / "state"
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    state = open_state({
        "BRINGUP_STATE_DIR": str(wanted),
        "HOME": str(wanted),
        "VLLM_CACHE_ROOT": f"{wanted}/cache",
        "PATH": "/usr/bin",
        "NAME": "relative",
        "NEAR": f"{wanted}-2",
    })  # fmt: skip
    assert state.directory.parent == tmp_path / "tmp"
    assert state.log == state.directory / "run" / "server.jsonl"
    assert state.environment == {
        "BRINGUP_STATE_DIR": str(state.directory),
        "HOME": str(state.directory),
        "VLLM_CACHE_ROOT": f"{state.directory}/cache",
    }
    assert str(wanted) in state.problem
    assert "Not a directory" in state.problem


@pytest.mark.parametrize(
    "name",
    ["HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE",
     "CUDA_CACHE_PATH"],
)  # fmt: skip
def test_every_cache_is_below_the_state_directory(name: str) -> None:
    (value,) = re.findall(rf"^(?:ENV)? +{name}=(\S+)", DOCKERFILE, re.MULTILINE)
    assert value == DEFAULT or value.startswith(f"{DEFAULT}/cache")


# In a pod


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The two places of a pod's volumes; both are mounted."""
    made = (tmp_path / "workspace", tmp_path / "runpod-volume")
    for place in made:
        place.mkdir()
    monkeypatch.setattr(pod, "VOLUMES", made)
    monkeypatch.setattr(os.path, "ismount", lambda path: path in made)
    return made


INSIDE = {pod.POD: "p1", "HOME": DEFAULT, "VLLM_CACHE_ROOT": f"{DEFAULT}/cache", "PATH": "/bin"}


def test_a_pods_volume_has_the_caches_and_the_logs(volumes: tuple[Path, Path]) -> None:
    state = open_state(INSIDE)
    place = volumes[0] / "bringup"
    assert (state.directory, state.log, state.problem) == (place, place / "run/server.jsonl", "")
    assert state.environment == {
        "BRINGUP_STATE_DIR": str(place), "HOME": str(place), "VLLM_CACHE_ROOT": f"{place}/cache",
    }  # fmt: skip


def test_what_is_only_a_directory_is_no_volume(
    volumes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == volumes[1])
    assert open_state(INSIDE).directory == volumes[1] / "bringup"
    assert not (volumes[0] / "bringup").exists()
    own = {**INSIDE, "BRINGUP_STATE_DIR": str(tmp_path / "own")}
    assert open_state(own).directory == tmp_path / "own"
    assert pod.volumes({"HOME": DEFAULT}) == ()  # not in a pod


def test_a_volume_that_another_pod_uses_is_left_to_it(
    volumes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel has it: the lock of another open file of the same path."""
    monkeypatch.setattr(state_module, "DEFAULT", str(tmp_path / "default"))
    monkeypatch.setattr(os.path, "ismount", lambda path: path == volumes[0])
    first = open_state(INSIDE)
    first.log.write_text("theirs")
    second = open_state(INSIDE)
    assert second.directory == tmp_path / "default"
    assert "another pod uses it" in second.problem
    assert first.log.read_text() == "theirs"


def test_a_volume_that_cannot_be_written(
    volumes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "DEFAULT", str(tmp_path / "default"))
    for place in volumes:
        (place / "bringup").touch()  # root may write anywhere, but not below a file
    state = open_state(INSIDE)
    assert state.directory == tmp_path / "default"
    assert state.environment == {}
    assert str(volumes[1]) in state.problem
