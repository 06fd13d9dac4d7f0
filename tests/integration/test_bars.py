"""The figures that the project promises of itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from tests.integration.support import ROOT, SESSION, bringup, environment

pytestmark = pytest.mark.integration

HEAVY = ("docker", "requests", "torch", "rich", "pynvml", "urllib3")


def test_help_takes_under_0_3_seconds_of_cpu(figures: list[str]) -> None:
    used = []
    for _ in range(3):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "bringup", "--help"],
            check=True, capture_output=True, env=environment(), cwd=ROOT / "tests",
        )  # fmt: skip
        after = os.times()
        used.append(after.children_user + after.children_system - before.children_user - before.children_system)
    figures.append(f"bringup --help: {min(used):.2f} s of CPU")
    assert min(used) < 0.3, used


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, bringup.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def layers(engine: docker.DockerClient, tag: str) -> list[str]:
    return list(engine.images.get(tag).attrs["RootFS"]["Layers"])


def test_rebuilds(engine: docker.DockerClient, base: str, image: str, tmp_path: Path, figures: list[str]) -> None:
    """Nothing changed: the same image. A line of our code changed: only our code's layer is another."""
    tag, touched = f"{SESSION}:same", f"{SESSION}:touched"
    env = {"BRINGUP_BASE": base}
    copy = tmp_path / "checkout"
    kept = shutil.ignore_patterns(".git", ".venv", ".*_cache", "artifacts", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, ignore=kept)
    try:
        times, ids = [], []
        for _ in range(2):
            done = bringup("build", "--json", "--flavour", "cpu", "--image", tag, env=env, cwd=copy, timeout=900)
            assert done.code == 0, done.err
            times.append(done.seconds)
            ids.append(done.json()["id"])
        assert ids[0] == ids[1]
        figures.append(f"rebuild with nothing changed: {times[1]:.1f} s")

        with (copy / "bringup" / "console.py").open("a") as f:
            f.write("# one more line\n")
        done = bringup("build", "--json", "--flavour", "cpu", "--image", touched, env=env, cwd=copy, timeout=900)
        assert done.code == 0, done.err
        figures.append(f"rebuild after a change in bringup/: {done.seconds:.1f} s")
        before, after = layers(engine, tag), layers(engine, touched)
        differ = [number for number, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert differ == [len(before) - 2], "another layer than our code's (the last but WORKDIR) was built again"
    finally:
        for name in (tag, touched):
            if engine.images.list(name):
                engine.images.remove(name)
