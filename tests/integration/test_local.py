"""`bringup up --target local` in a container of the real image: no Docker, no package for it, real vLLM.

The container is one that sleeps, as a pod is that somebody works in. A start takes a while, so all tests share it, in
the order of the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bringup.edge.docker import Engine
from tests.integration.support import LABEL, MODEL, ROOT, SESSION, Result, environment, execute, statuses

pytestmark = pytest.mark.integration

BUNDLES = "/tmp/bundles"  # in the container
FILES = {
    "SHA256SUMS", "caches.json", "image.json", "ledger.json", "nvidia_smi_serving.txt", "plan.json", "record.json",
    "report.html", "sample_response.json", "server.jsonl", "server.log", "summary.md", "timeline.json",
    "vllm_process.txt",
}  # fmt: skip
UP = ("up", "--suite", "smoke", "--artifacts", BUNDLES)
# Starts `bringup ARGS`, waits until vLLM's process runs, sends a signal to bringup itself (0) or to that process.
DRIVE = """
import os, pathlib, signal, subprocess, sys, time
number, who, *argv = sys.argv[1:]
child = subprocess.Popen(["bringup", *argv], stdin=subprocess.DEVNULL)
def found():
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b".".join((b"bringup", b"inside", b"serve")) in path.read_bytes():
                return int(path.parent.name)
        except OSError:
            pass
while not (pid := found()):
    assert child.poll() is None
    time.sleep(0.05)
os.kill(child.pid if who == "bringup" else pid, int(number))
sys.exit(child.wait())
"""


class Pod:
    """The container, by what runs in it."""

    def __init__(self, client: docker.DockerClient, image: str) -> None:
        self.container = client.containers.run(
            image, entrypoint=["/usr/bin/tini", "-s", "--"], command=["sleep", "infinity"], detach=True,
            network_mode="none", shm_size="1g", labels={LABEL: SESSION},
        )  # fmt: skip

    def run(self, *argv: str) -> Result:
        """A program in it."""
        return execute(self.container, *argv)

    def bringup(self, *args: str) -> Result:
        """The command that the image has."""
        return self.run("bringup", *args)

    def drive(self, number: int, who: str, *args: str) -> Result:
        """The command, and a signal when vLLM runs; see DRIVE."""
        return self.run("/opt/venv/bin/python", "-c", DRIVE, str(number), who, *args)

    def file(self, path: str) -> bytes:
        """One file of it, through the filter that bundles come out by."""
        return Engine().copy_out(str(self.container.id), path)

    def processes(self) -> list[str]:
        """What runs, but for what shows it."""
        found = self.container.top(ps_args="-eo pid,stat,args")
        return [row[2] for row in found["Processes"]]


NOTHING = ["/usr/bin/tini -s -- sleep infinity", "sleep infinity"]


@pytest.fixture(scope="module")
def pod(engine: docker.DockerClient, image: str) -> Iterator[Pod]:
    made = Pod(engine, image)
    yield made
    made.container.remove(force=True, v=True)


@pytest.fixture(scope="module")
def up(pod: Pod) -> Result:
    return pod.bringup(*UP, "--json")


def test_there_is_no_engine_and_no_package_to_ask_one(pod: Pod) -> None:
    missing = "import importlib.util as u; print([n for n in ('docker', 'pynvml') if u.find_spec(n)])"
    assert pod.run("/opt/venv/bin/python", "-c", missing).out == "[]\n"
    help_ = pod.bringup("--help")
    assert (help_.code, help_.out.startswith("Usage: bringup ")) == (0, True)
    assert pod.bringup("models").code == 0


@pytest.mark.parametrize("args", [("build",), ("up", "--target", "compose"), ("down", "--target", "compose")])
def test_what_needs_docker_says_so(pod: Pod, args: tuple[str, ...]) -> None:
    done = pod.bringup(*args)
    assert done.code == 8
    assert "bringup: the Docker Engine cannot be asked without the Python package docker" in done.err
    assert "pip install 'bringup[docker]'; in a pod or on a bare box: --target local" in done.err
    assert "Traceback" not in done.err


def test_doctor_judges_what_a_container_can_know(pod: Pod) -> None:
    done = pod.bringup("doctor", "--json")
    assert done.code == 0, done.err
    checks = {r["name"]: r for r in done.json()}
    assert {name: r["status"] for name, r in checks.items() if r["status"] != "pass"} == {
        "engine": "skip", "gpu": "skip", "volume": "skip",
    }  # fmt: skip
    assert "a container (/.dockerenv)" in checks["engine"]["found"]
    assert checks["shm"]["found"] == "1.0 GiB"
    assert "vLLM 0.32.0 for a CPU in /opt/venv/bin/python" in checks["interpreter"]["found"]


def test_up_passes(pod: Pod, up: Result) -> None:
    assert up.code == 0, up.err
    record = up.json()
    assert record["verdict"] == "pass"
    probes = statuses(record["probes"])
    assert {probes[name] for name in ("reachable", "ready", "models", "completion", "evidence")} == {"pass"}
    assert record["started_to_first_token"] > 0
    assert "process start to first token: " in up.err
    assert (record["plan"]["target"], record["plan"]["image"]) == ("local", "")
    assert record["container"]["argv"][1:3] == ["-m", "bringup.inside"]
    assert record["container"]["environment"]["BRINGUP_STATE_DIR"] == "/var/lib/bringup/local/bringup"
    labels = record["image"]["labels"]
    assert labels["dev.bringup.flavour"] == "cpu"
    assert labels["dev.bringup.wheels-lock-sha256"] == record["locks"]["wheels"]
    assert record["clocks"]["engine"]["offset_seconds"] is not None
    assert "http://127.0.0.1:8000" in up.err


def test_its_processes_have_no_terminal_and_outlive_it(pod: Pod, up: Result) -> None:
    running = pod.processes()
    for word in ("bringup.edge.keeper", "bringup.inside --host 127.0.0.1", "bringup.inside.serve", "VLLM::EngineCore"):
        assert any(word in line for line in running), word
    assert not any("bringup up" in line for line in running)


def test_the_bundle_is_whole(pod: Pod, up: Result, tmp_path: Path) -> None:
    bundle = up.json()["bundle"]
    assert set(pod.run("ls", bundle).out.split()) == FILES
    for name in FILES:
        (tmp_path / name).write_bytes(pod.file(f"{bundle}/{name}"))
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path, check=False)
    assert sums.returncode == 0
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    when = {m["name"]: m for m in ledger["moments"]}
    assert when["serving"]["rss"] > 10**8, "its processes are known, and their memory"
    timeline = json.loads((tmp_path / "timeline.json").read_text())
    assert {s["name"] for s in timeline["stages"]} >= {"entry point started", "model load"}
    assert " bringup: starting vLLM" in (tmp_path / "server.log").read_text()
    assert {"vllm", "bringup"} <= {
        json.loads(line)["logger"].split(".")[0] for line in (tmp_path / "server.jsonl").read_text().splitlines()
    }
    read_here = subprocess.run(
        [sys.executable, "-m", "bringup", "timeline", str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment(), cwd=ROOT / "tests",
    )  # fmt: skip
    assert (read_here.returncode, "first token" in read_here.stdout) == (0, True)


def test_a_second_up_leaves_it_running(pod: Pod, up: Result) -> None:
    again = pod.bringup(*UP, "--json")
    assert again.code == 0, again.err
    assert again.json()["container"]["id"] == up.json()["container"]["id"]
    assert again.json()["started_to_first_token"] is None, "its start was not observed"


def test_the_other_commands_find_it(pod: Pod, up: Result) -> None:
    seen = pod.bringup("verify", "--suite", "smoke", "--json")
    assert (seen.code, seen.json()["verdict"]) == (0, "pass"), seen.err
    by_address = pod.bringup("verify", "http://127.0.0.1:8000", "--suite", "smoke", "--json")
    assert by_address.code == 0, by_address.err
    collected = pod.bringup("collect", "--suite", "smoke", "--artifacts", BUNDLES, "--json")
    assert collected.code == 0, collected.err
    bundle = collected.json()["bundle"]
    assert pod.bringup("report", bundle).code == 0
    assert "model load" in pod.bringup("timeline", up.json()["bundle"]).out
    assert "verdict: unknown" in pod.bringup("compare", up.json()["bundle"], bundle).out, "one start was not observed"
    assert "POST /v1/completions 200" in pod.bringup("logs").out
    assert pod.bringup("plan", "--json").json()["model"] == MODEL
    elsewhere = pod.bringup("verify", "--port", "8001")
    assert (elsewhere.code, "give --port 8000" in elsewhere.err) == (8, True)


def test_a_port_that_is_taken_is_told_before_anything_starts(pod: Pod, up: Result) -> None:
    before = pod.processes()
    done = pod.bringup(*UP, "--project", "another")
    assert done.code == 3
    assert "check port: found 127.0.0.1:8000: python (pid " in done.err
    assert pod.processes() == before


def test_down_leaves_nothing_but_the_caches(pod: Pod, up: Result) -> None:
    down = pod.bringup("down")
    assert down.code == 0
    assert "released: the server's processes are gone" in down.err
    assert pod.processes() == NOTHING
    assert set(pod.run("ls", "/var/lib/bringup/local/bringup").out.split()) == {"cache", "lock", "run"}
    gone = pod.bringup("verify")
    assert (gone.code, "has no running server: it has no process" in gone.err) == (8, True)
    assert pod.bringup("down", "--volumes").code == 0
    assert pod.run("ls", "/var/lib/bringup/local").out == ""


def test_ctrl_c_leaves_nothing(pod: Pod) -> None:
    done = pod.drive(2, "bringup", *UP)
    assert done.code == 130, done.err
    assert pod.processes() == NOTHING


def test_a_server_that_is_killed_is_told_with_its_last_lines(pod: Pod) -> None:
    done = pod.drive(9, "server", *UP)
    assert done.code == 6, done.err
    assert "| bringup: vLLM was ended by SIGKILL" in done.err
    assert "bringup: the server died while starting: the process is exited, exit code 137" in done.err
    assert f"the evidence is in {BUNDLES}/" in done.err
    assert pod.processes() == NOTHING
