"""Engine, image and cleaning up. A missing engine or image is a failure with the command to run, never a skip."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import docker
import docker.errors
import pytest
from testcontainers.core.config import ConnectionMode, testcontainers_config

from tests.integration.support import IMAGE, LABEL, MODEL, ROOT, SESSION, bringup, environment

# Its reaper is an image of a registry, which this project does not need; `reaped` cleans up instead.
testcontainers_config.ryuk_disabled = True
# In a container it takes the engine for its host's; `scripts/engine` runs one beside us, whose loopback is ours.
testcontainers_config.connection_mode_override = ConnectionMode.docker_host
testcontainers_config.tc_host_override = "127.0.0.1"

_FIGURES: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured on the way; times depend on the machine and are told, not asserted."""
    if _FIGURES:
        terminalreporter.section("figures")
        for line in _FIGURES:
            terminalreporter.line(line)


@pytest.fixture
def figures() -> list[str]:
    """Lines for the summary."""
    return _FIGURES


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """The real engine; at the end of the session nothing of it is left there."""
    try:
        client = docker.from_env(timeout=120)
        client.ping()
    except docker.errors.DockerException as e:
        pytest.fail(f'no Docker Engine answers ({e}): run ./scripts/engine up; eval "$(./scripts/engine env)"')
    try:
        yield client
    finally:
        left = reap(client)
        client.close()
    assert not left, f"tests left these behind (removed now): {', '.join(left)}"


def reap(client: docker.DockerClient) -> list[str]:
    """Remove whatever this session made; what containers and networks there still were."""
    left = []
    for container in client.containers.list(all=True, ignore_removed=True):
        project = container.labels.get("com.docker.compose.project", "")
        if project.startswith(f"{SESSION}-") or container.labels.get(LABEL) == SESSION:
            left.append(f"container {container.name}")
            container.remove(force=True, v=True)
    for network in client.networks.list():
        if str(network.name).startswith(f"{SESSION}-"):
            left.append(f"network {network.name}")
            network.remove()
    for volume in client.volumes.list():
        if str(volume.name).startswith(f"{SESSION}-"):
            volume.remove(force=True)
    return left


@pytest.fixture(scope="session")
def base() -> str:
    """The base that builds on this machine stand on; empty is the Dockerfile's own."""
    if given := environment().get("BRINGUP_BASE"):
        return given
    done = subprocess.run(
        [str(ROOT / "scripts" / "choose-base"), "--flavour", "cpu"],
        capture_output=True, text=True, check=False, env=environment(), timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"scripts/choose-base: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient, base: str) -> str:
    """The real CPU image, built when it is missing."""
    try:
        engine.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        built = bringup("build", "--flavour", "cpu", "--model", MODEL, env={"BRINGUP_BASE": base}, timeout=1800)
        if built.code:
            pytest.fail(f"{IMAGE} is missing and `bringup build --flavour cpu` ends with {built.code}:\n{built.err}")
    return IMAGE
