"""The stub in a container of the real image, in the server's place: what process, version and evidence say then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.integration.support import LABEL, ROOT, SESSION, bringup, free_port, statuses

pytestmark = pytest.mark.integration

PYTHON = "/opt/venv/bin/python"
# Processes with the names of vLLM's; the server itself is the stub.
NAMED = 'exec -a "bringup.inside.serve" sleep 600 & exec -a "VLLM::EngineCore" sleep 600 &'


@contextmanager
def stub(client: docker.DockerClient, image: str, *lies: str, names: str = NAMED) -> Iterator[tuple[str, str]]:
    """The stub as the container of a project: the project's name and the port."""
    project, port = f"{SESSION}-stub", str(free_port())
    argv = [PYTHON, "-m", "tests.stub", "--bind", "0.0.0.0", "--port", "8000"]  # noqa: S104 - the container's own
    for lie in lies:
        argv += ["--lie", f"'{lie}'"]
    container = client.containers.run(
        image,
        ["-c", f"{names} exec {' '.join(argv)}"],
        entrypoint="/bin/bash",
        detach=True,
        init=True,
        working_dir="/repo",
        environment={"PYTHONPATH": "/repo", "PYTHONDONTWRITEBYTECODE": "1"},
        volumes={str(ROOT): {"bind": "/repo", "mode": "ro"}},
        ports={"8000/tcp": ("127.0.0.1", int(port))},
        labels={
            LABEL: SESSION,
            "com.docker.compose.project": project,
            "com.docker.compose.service": "server",
        },
    )
    try:
        said = next(container.logs(stream=True, follow=True), b"")
        assert said.startswith(b"http://"), container.logs().decode()
        yield project, port
    finally:
        container.remove(force=True)


def ask(command: str, project: str, port: str, *more: str) -> tuple[int, dict[str, str], Any]:
    done = bringup(command, "--json", "--project", project, "--port", port, "--flavour", "cpu", *more)
    assert done.out, done.err
    told = done.json()
    return done.code, statuses(told["probes"]), told


def test_one_that_has_all_processes_and_the_version_passes(engine: docker.DockerClient, image: str) -> None:
    """What the probes of a container accept; that names of processes can be given to anything is known (0004)."""
    with stub(engine, image) as (project, port):
        code, seen, _ = ask("verify", project, port)
    assert (code, {n for n, s in seen.items() if s != "pass"}) == (0, {"auth", "vram"}), seen


@pytest.mark.parametrize(
    ("lies", "names", "probe"),
    [
        ((), "", "process"),
        ((), NAMED.partition("&")[0] + "&", "process"),
        (("another version",), NAMED, "version"),
        (("no version",), NAMED, "version"),
    ],
    ids=["no process of vLLM", "no engine", "another version", "no version"],
)
def test_what_lies_behind_is_told(
    engine: docker.DockerClient, image: str, lies: tuple[str, ...], names: str, probe: str
) -> None:
    with stub(engine, image, *lies, names=names) as (project, port):
        code, seen, _ = ask("verify", project, port, "--suite", "smoke")
    assert (code, seen[probe]) == (7, "fail"), seen


def test_evidence_that_is_not_there_is_unknown(engine: docker.DockerClient, image: str, tmp_path: Path) -> None:
    """All probes pass, and the log records that a real server writes are not there."""
    with stub(engine, image) as (project, port):
        code, seen, told = ask("collect", project, port, "--artifacts", str(tmp_path))
    assert (code, seen["evidence"], told["verdict"]) == (9, "unknown", "unknown")
    found = next(p["found"] for p in told["probes"] if p["name"] == "evidence")
    assert "server.jsonl" in found
