"""The state directory, and what happens when it cannot be written."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

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
