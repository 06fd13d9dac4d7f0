"""The README's commands, in its order, as a reader would run them. A line that nobody runs here fails the test."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import docker
import pytest

from tests.integration.support import ROOT, SESSION, environment, free_port, leftovers

pytestmark = pytest.mark.integration
PROJECT = f"{SESSION}-readme"
# Lines that cannot be run from inside the test suite, and why.
ELSEWHERE = {
    "git clone <this repository> bringup && cd bringup": "this checkout is the result",
    "./scripts/test": "it is what runs this test",
    "docker compose up": "needs a GPU; its configuration is read below, the CPU override is started elsewhere",
    "bringup compare before after": "needs two sides of several starts: tests/unit/test_compare_command.py has them",
    "bringup up --target local": "needs vLLM in this interpreter: test_local.py runs it in the image, which has it",
}
CLOUD = ("export RUNPOD_API_KEY", "bringup runpod ")  # an account, and money: test_runpod.py has a fake of the API


def commands() -> list[str]:
    """The lines of all console blocks, without their comments."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]


def test_the_commands_work_in_their_order(engine: docker.DockerClient, image: str, base: str, tmp_path: Path) -> None:
    port = free_port()
    env = environment({
        "BRINGUP_PROJECT": PROJECT, "BRINGUP_PORT": str(port), "BRINGUP_ARTIFACTS": str(tmp_path), "BRINGUP_BASE": base,
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
    })  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    (nodes := tmp_path / "nodes.txt").write_text(f"{url}\n")
    ran = []
    for line in commands():
        if line in ELSEWHERE or line.startswith(CLOUD):
            continue
        argv = [url if word.startswith("http://") else word for word in shlex.split(line)]
        if "DIR" in argv:
            argv[argv.index("DIR")] = str(max(tmp_path.glob("*/record.json")).parent)
        if "nodes.txt" in argv:
            argv[argv.index("nodes.txt")] = str(nodes)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=env, cwd=ROOT, timeout=900)
        assert done.returncode == 0, f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        ran.append(argv[:2])
    assert ["./scripts/quickstart"] in ran
    assert {"doctor", "up", "verify", "collect", "report", "down"} <= {argv[1] for argv in ran if argv[0] == "bringup"}
    assert leftovers(engine, PROJECT) == []
    # quickstart, `up` twice on the running server, and `collect` each left a bundle; `verify --from` one for its node.
    assert len(list(tmp_path.glob("*/record.json"))) == 4
    assert len(list(tmp_path.glob("*-verify/*/record.json"))) == 1


def test_compose_up_alone_is_a_valid_configuration_with_a_gpu(engine: docker.DockerClient) -> None:
    assert "docker compose up" in commands()
    shown = subprocess.run(
        ["docker", "compose", "config"], capture_output=True, text=True, check=True, env=environment(), cwd=ROOT
    ).stdout
    assert "driver: nvidia" in shown
    assert "host_ip: 127.0.0.1" in shown
