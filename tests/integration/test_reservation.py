"""`--gpus` on the real engine: the devices that are reserved are in the container and no others; refusals explained.

The GPUs are made up: a CDI spec gives three devices of the host that every host has other names. What a host without a
GPU cannot pass, the checks before the start, is left out; all else is the command line as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from bringup.edge.docker import Engine
from bringup.targets import refusals
from tests.integration.support import (
    LABEL,
    ROOT,
    SESSION,
    Result,
    bringup,
    containers,
    environment,
    free_port,
    leftovers,
)

pytestmark = pytest.mark.integration

PROJECT = f"{SESSION}-gpus"
PROGRAM = """
from bringup import workflow
workflow.require = lambda run: None
from bringup.cli import main
raise SystemExit(main())
"""
HOST = {"0": "/dev/null", "1": "/dev/zero", "2": "/dev/full"}
NUMBERS = {"0": "1:3", "1": "1:5", "2": "1:7"}  # major and minor of these, the same on every Linux
SPEC = f"{SESSION}.json"


def up(image: str, artifacts: Path, *more: str) -> Result:
    """`bringup up` for the gpu flavour, which waits for a second; a container that started is left running."""
    argv = [
        "up", "--flavour", "gpu", "--image", image, "--project", PROJECT, "--port", str(free_port()), "--timeout", "1s",
        "--keep", "--json", "--artifacts", str(artifacts), *more,
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *argv],
        capture_output=True, text=True, check=False, timeout=200, env=environment(), cwd=ROOT / "tests",
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def host_shell(engine: docker.DockerClient, image: str, directory: str, script: str) -> None:
    """Write where the engine is, which need not be where the tests are, and where the engine may and they may not."""
    engine.containers.run(
        image, entrypoint=["sh", "-c"], command=[script], user="0", network_mode="none", remove=True,
        volumes={directory: {"bind": "/cdi", "mode": "rw"}}, labels={LABEL: SESSION},
    )  # fmt: skip


def devices(engine: docker.DockerClient) -> list[str]:
    """CDI names of NVIDIA GPUs that the engine has now."""
    found = [str(d["ID"]) for d in engine.info().get("DiscoveredDevices") or []]
    return [name for name in found if name.startswith("nvidia.com/gpu=")]


@pytest.fixture(scope="module")
def without_gpus(engine: docker.DockerClient) -> docker.DockerClient:
    """The engine, if it has no real GPU to give."""
    info = engine.info()
    if "nvidia" in info["Runtimes"] or devices(engine):
        pytest.skip("this engine can give real GPUs")
    return engine


@pytest.fixture(scope="module")
def gpus(without_gpus: docker.DockerClient, image: str) -> Iterator[docker.DockerClient]:
    """Three made-up GPUs, `all` of them, and one whose device file is not there (9)."""
    engine = without_gpus
    directories = engine.info().get("CDISpecDirs") or []
    known = engine.version()
    api = tuple(int(part) for part in known["ApiVersion"].split("."))
    if not directories or api < (1, 50):  # of Docker 28.2; an engine without devices leaves the list of them out
        pytest.skip(f"Docker {known['Version']} has CDI off or does not list its devices; 28.2 and newer do")
    nodes = {name: {"path": f"/dev/nvidia{name}", "hostPath": path} for name, path in HOST.items()}
    made = {name: [node] for name, node in nodes.items()} | {
        "all": list(nodes.values()),
        "9": [{"path": "/dev/nvidia9", "hostPath": "/dev/nvidia-not-there"}],
    }
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": n, "containerEdits": {"deviceNodes": d}} for n, d in made.items()],
    }
    host_shell(engine, image, directories[0], f"echo '{json.dumps(spec)}' > /cdi/{SPEC}")
    try:
        deadline = time.monotonic() + 20
        while len(devices(engine)) < len(made):
            assert time.monotonic() < deadline, f"the engine does not list the devices of {directories[0]}/{SPEC}"
            time.sleep(0.2)
        yield engine
    finally:
        host_shell(engine, image, directories[0], f"rm /cdi/{SPEC}")


@pytest.fixture
def clean(engine: docker.DockerClient) -> Iterator[None]:
    """Nothing is left of the project."""
    yield
    bringup("down", "--project", PROJECT, "--volumes")
    assert leftovers(engine, PROJECT) == []


@pytest.mark.usefixtures("clean")
def test_an_engine_without_the_toolkit_is_explained(
    without_gpus: docker.DockerClient, image: str, tmp_path: Path
) -> None:
    assert not devices(without_gpus), "this test comes before those with made-up GPUs"
    done = up(image, tmp_path, "--gpus", "all")
    assert done.code == 8, done.err
    assert "[no-gpu-driver]" in done.err
    assert "nvidia-container-toolkit" in " ".join(done.err.split())


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("asked", "names"),
    [((), "0"), (("--gpus", "device=0,2"), "02"), (("--gpus", "all"), "012"), (("--gpus", "2"), "01")],
)
def test_the_reserved_devices_are_in_the_container_and_no_others(
    gpus: docker.DockerClient, image: str, tmp_path: Path, asked: tuple[str, ...], names: str
) -> None:
    done = up(image, tmp_path, *asked)
    assert done.code == 6, done.err  # no token within a second
    (container,) = containers(gpus, PROJECT)
    code, out = Engine(client=gpus).execute(container.id, ["sh", "-c", "stat -c '%n %t:%T' /dev/nvidia*"])
    assert code == 0, out
    assert out.split("\n")[:-1] == [f"/dev/nvidia{name} {NUMBERS[name]}" for name in names]
    (request,) = container.attrs["HostConfig"]["DeviceRequests"]
    assert request["Driver"] == "cdi"
    (record,) = tmp_path.glob("*/plan.json")
    assert json.loads(record.read_text())["gpus"] == (asked[1] if asked else None)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("asked", "id_", "words"),
    [
        ("device=0,7", "cdi-device-unknown", "no CDI spec of the engine names nvidia.com/gpu=7"),
        ("device=9", "device-node-missing", "the host has no /dev/nvidia-not-there"),
    ],
)
def test_a_device_that_is_not_there_is_explained(
    gpus: docker.DockerClient, image: str, tmp_path: Path, asked: str, id_: str, words: str
) -> None:
    done = up(image, tmp_path, "--gpus", asked)
    assert done.code == 8, done.err
    assert f"[{id_}]" in done.err
    assert words in " ".join(done.err.split())
    assert "nvidia-ctk cdi generate" in " ".join(done.err.split())


def test_a_runtime_that_is_not_there_is_explained(without_gpus: docker.DockerClient, image: str) -> None:
    with pytest.raises(docker.errors.APIError) as e:
        without_gpus.containers.create(image, runtime="nvidia", labels={LABEL: SESSION})
    found = refusals.find(str(e.value.explanation))
    assert found is not None
    assert (found.id, found.found) == ("runtime-unknown", "the engine has no runtime nvidia")


def test_gpus_without_a_gpu_flavour_are_refused_before_anything_starts(engine: docker.DockerClient) -> None:
    done = bringup("up", "--flavour", "cpu", "--gpus", "1", "--project", PROJECT)
    assert done.code == 2
    assert "--gpus 1 asks for GPUs" in " ".join(done.err.split())
    assert leftovers(engine, PROJECT) == []
