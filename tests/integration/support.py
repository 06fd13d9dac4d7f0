"""What the integration tests share: the command line as a child, free ports, and what is left on the engine."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from bringup.testing import VLLMContainer

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "bringup:cpu-tiny-qwen2"
MODEL = "tiny-qwen2"
SESSION = f"bringup-it-{os.getpid()}"  # every project and label of this run starts with it
LABEL = "dev.bringup.test"
KEEP = ("BRINGUP_ENGINE_DIR", "BRINGUP_ENGINE_PREFIX", "BRINGUP_BASE")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of whoever runs the tests, and with the model that needs no hub."""
    own = re.compile(r"(BRINGUP|VLLM|COMPOSE|HF)_")
    return (
        {k: v for k, v in os.environ.items() if k in KEEP or not own.match(k)}
        | {"BRINGUP_MODEL": MODEL}
        | dict(extra or {})
    )


@dataclass(frozen=True)
class Result:
    """How a command ended; `seconds` of wall time."""

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


def bringup(*args: str, env: Mapping[str, str] | None = None, timeout: float = 400, cwd: Path | None = None) -> Result:
    """Run the command line to its end."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bringup", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=environment(env),
        cwd=cwd or ROOT / "tests",  # no bringup.toml there
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


class Child:
    """A `bringup` that runs while the test does something to it; `lines` is its standard error so far."""

    def __init__(self, *args: str, out: Path, env: Mapping[str, str] | None = None) -> None:
        self._out = out
        with out.open("wb") as f:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bringup", *args],
                stdout=f,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                env=environment(env),
                cwd=ROOT / "tests",
            )
        self.lines: list[str] = []

    def until(self, pattern: str) -> None:
        """Read until a line of standard error matches."""
        assert self._process.stderr
        for line in self._process.stderr:
            self.lines.append(line)
            if re.search(pattern, line):
                return
        raise AssertionError(f"it ended before {pattern!r}:\n{''.join(self.lines)}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone, as `kill` does."""
        self._process.send_signal(number)

    def end(self) -> Result:
        """Wait for the end; `seconds` counts from this call."""
        started = time.monotonic()
        assert self._process.stderr
        self.lines += list(self._process.stderr)
        code = self._process.wait()
        return Result(code, self._out.read_text(), "".join(self.lines), time.monotonic() - started)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)
        assert self._process.stderr
        self._process.stderr.close()


def vllm(image: str, **given: Any) -> VLLMContainer:
    """The image in a container of its own, with the label that the reaper looks for."""
    return VLLMContainer(image, **given).with_kwargs(labels={LABEL: SESSION})


def labelled(client: docker.DockerClient) -> list[Any]:
    """All containers with that label."""
    return list(client.containers.list(all=True, filters={"label": f"{LABEL}={SESSION}"}))


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def containers(client: docker.DockerClient, project: str) -> list[Any]:
    """All containers of a compose project, running or not."""
    return list(client.containers.list(all=True, filters={"label": f"com.docker.compose.project={project}"}))


def leftovers(client: docker.DockerClient, project: str) -> list[str]:
    """Names of the containers and networks that a project has."""
    label = {"label": f"com.docker.compose.project={project}"}
    return [
        *(f"container {c.name}" for c in containers(client, project)),
        *(f"network {n.name}" for n in client.networks.list(filters=label)),
    ]


def wait_running(client: docker.DockerClient, project: str, seconds: float = 60) -> Any:
    """The project's container, as soon as it runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for container in containers(client, project):
            if container.status == "running":
                return container
        time.sleep(0.05)
    raise AssertionError(f"{project} has no running container after {seconds} s")


def execute(container: Any, *argv: str) -> Result:
    """A program in a running container, by the docker command: the SDK's `exec_run` may lose the beginning of what the
    program says (docker/docker-py#3332)."""
    started = time.monotonic()
    done = subprocess.run(
        ["docker", "exec", container.id, *argv], capture_output=True, text=True, check=False, timeout=400
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def processes(container: Any) -> dict[int, str]:
    """The processes in a container, by their ids there: the first words of the kernel's name of each."""
    listing = 'for p in /proc/[0-9]*; do read -r name <"$p/comm" && echo "${p#/proc/} $name"; done 2>/dev/null'
    said = execute(container, "sh", "-c", listing).out
    return {int(pid): name for pid, name in (line.split(" ", 1) for line in said.splitlines())}


def statuses(probes: list[dict[str, Any]]) -> dict[str, str]:
    """Status by probe."""
    return {p["name"]: p["status"] for p in probes}
