"""The image and the compose files by themselves, as somebody without `bringup` uses them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import docker
import pytest
import requests
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from bringup.records import verdict_of
from bringup.testing import VLLMContainer
from tests.integration.support import (
    LABEL,
    MODEL,
    ROOT,
    SESSION,
    bringup,
    environment,
    execute,
    free_port,
    leftovers,
    processes,
    statuses,
)

pytestmark = pytest.mark.integration

START = 400.0  # seconds; a busy machine with two cores needs most of it


def wait_for_answer(url: str, container: Any) -> None:
    """Return as soon as /health answers 200, as long as the container lives."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        container.reload()
        assert container.status == "running", container.logs(tail=20).decode()
        try:
            if requests.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer after {START} s:\n{container.logs(tail=20).decode()}")


def plain(image: str) -> DockerContainer:
    """The image as `docker run` has it, with the label that the reaper looks for; nobody waits for an answer."""
    return DockerContainer(image).with_env("BRINGUP_BIND", "127.0.0.1").with_kwargs(labels={LABEL: SESSION})


def test_the_image_serves_read_only_and_as_any_user(image: str) -> None:
    container = VLLMContainer(image).with_kwargs(
        labels={LABEL: SESSION},
        user="4711:0",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
    )
    container.tmpfs["/tmp"] = "exec,mode=1777"
    with container as server:
        records = server.verify("smoke")  # the tiny model's answers are known word for word
        assert verdict_of(records) == "pass", records
        raw = server.get_wrapped_container()
        assert {row[1] for row in raw.top(ps_args="-eo pid,uid,args")["Processes"]} == {"4711"}
        assert execute(raw, "touch", "/opt/bringup/x").code != 0
        # The signal arrives, and a server that hangs in all its processes is killed before Docker's own 10 s are over.
        hanging = [str(pid) for pid, name in processes(raw).items() if name.startswith("VLLM::")]
        marked = execute(raw, "sh", "-c", "grep -ls BRINGUP_SERVER_LOG= /proc/[0-9]*/environ").out
        assert execute(raw, "kill", "-STOP", *hanging, *(path.split("/")[2] for path in marked.split())).code == 0
        raw.kill("SIGTERM")
        started = time.monotonic()
        assert raw.wait(timeout=20)["StatusCode"] == 137
        assert time.monotonic() - started < 10
        assert "vLLM did not end within 8 s, and is killed" in raw.logs().decode()


def test_changed_weights_are_refused(image: str, tmp_path: Path) -> None:
    """One bit of the weights, the size unchanged."""
    changed = tmp_path / "model.safetensors"
    shutil.copy(ROOT / "models" / MODEL / "model.safetensors", changed)
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    changed.chmod(0o644)
    container = plain(image).with_volume_mapping(str(changed), f"/opt/bringup/models/{MODEL}/model.safetensors", "ro")
    with container:
        raw = container.get_wrapped_container()
        assert raw.wait(timeout=60)["StatusCode"] == 5
        said = raw.logs().decode()
    assert "model.safetensors" in said
    assert blake3.blake3(bytes(data)).hexdigest() in said
    assert "serving model" not in said  # the server imported meanwhile, and got no word to go on


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"BRINGUP_MODEL": "nope"}, "does not hold the model 'nope'"),
        ({"BRINGUP_MAX_MODEL_LEN": "many"}, "BRINGUP_MAX_MODEL_LEN: 'many' is not a number"),
        ({"BRINGUP_BIND": "0.0.0.0"}, "not loopback, and no API key is set"),  # noqa: S104
        ({"BRINGUP_VLLM_ARGS": "--api-key abc"}, "--api-key is among the vLLM arguments"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(image: str, variables: dict[str, str], words: str) -> None:
    with plain(image).with_envs(**variables) as container:
        raw = container.get_wrapped_container()
        assert raw.wait(timeout=60)["StatusCode"] == 2
        said = raw.logs().decode()
    assert words in said
    assert "Traceback" not in said


def test_a_foreign_variable_does_not_stop_the_entry_point(image: str) -> None:
    """Container hosts set HF_HUB_ENABLE_HF_TRANSFER for everybody."""
    container = plain(image).with_env("HF_HUB_ENABLE_HF_TRANSFER", "1")
    with container.waiting_for(LogMessageWaitStrategy("starting vLLM").with_startup_timeout(60)):
        assert "hf_transfer" in container.get_wrapped_container().logs().decode()


PROJECT = f"{SESSION}-byhand"


@pytest.fixture(scope="module")
def by_hand(engine: docker.DockerClient, image: str) -> Iterator[str]:
    """`docker compose up` as the README has it, on a free port."""
    port = free_port()
    compose = ["docker", "compose", "-p", PROJECT, "-f", "compose.yaml", "-f", "compose.cpu.yaml"]
    env = environment({"BRINGUP_PORT": str(port)})
    subprocess.run([*compose, "up", "-d"], cwd=ROOT, env=env, check=True, timeout=120)
    yield f"http://127.0.0.1:{port}"
    subprocess.run([*compose, "down", "--volumes"], cwd=ROOT, env=env, check=True, timeout=120)
    assert leftovers(engine, PROJECT) == []


def test_compose_by_hand_serves(by_hand: str, engine: docker.DockerClient) -> None:
    wait_for_answer(by_hand, engine.containers.get(f"{PROJECT}-server-1"))
    done = bringup("verify", "--json", by_hand)
    assert done.code == 0, done.err
    seen = statuses(done.json()["probes"])
    assert seen["completion"] == seen["streaming"] == "pass"


def test_compose_by_hand_is_healthy_and_hardened(by_hand: str, engine: docker.DockerClient) -> None:
    container = engine.containers.get(f"{PROJECT}-server-1")
    deadline = time.monotonic() + 60
    while container.attrs["State"]["Health"]["Status"] != "healthy" and time.monotonic() < deadline:
        time.sleep(1)
        container.reload()
    assert container.attrs["State"]["Health"]["Status"] == "healthy"
    host = container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert container.attrs["Config"]["User"] == "1000:0"
    assert {b["HostIp"] for b in host["PortBindings"]["8000/tcp"]} == {"127.0.0.1"}
