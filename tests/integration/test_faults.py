"""What goes wrong on a real machine, done to the real thing: a fault has its exit code and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest

from bringup import bundle
from bringup.edge import gpu
from tests.integration.support import (
    ROOT,
    SESSION,
    Child,
    Result,
    bringup,
    containers,
    environment,
    free_port,
    leftovers,
    wait_running,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("image")]


@pytest.fixture
def project(engine: docker.DockerClient, request: pytest.FixtureRequest) -> Iterator[str]:
    """A project of this test alone; whatever happened in the test, its volumes go too."""
    name = f"{SESSION}-{abs(hash(request.node.name)) % 10**8}"
    yield name
    bringup("down", "--project", name, "--volumes")


def up_args(project: str, tmp_path: Path, port: int | None = None) -> tuple[str, ...]:
    return (
        "up", "--flavour", "cpu", "--project", project, "--port", str(port or free_port()),
        "--artifacts", str(tmp_path / "artifacts"),
    )  # fmt: skip


def bundles(tmp_path: Path) -> list[Path]:
    """Complete bundles; nothing else may lie there."""
    found = sorted((tmp_path / "artifacts").iterdir()) if (tmp_path / "artifacts").exists() else []
    assert all((p / "SHA256SUMS").is_file() for p in found), found
    return found


def assert_said(done: Result, *words: str) -> None:
    """The failure is told in the project's own words, and not by a traceback."""
    assert "Traceback" not in done.err, done.err
    said = " ".join(done.err.split())
    assert all(word in said for word in words), done.err


# Before anything is started


def test_an_unknown_model_is_usage(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    done = bringup(*up_args(project, tmp_path), "--model", "nope")
    assert done.code == 2
    assert_said(done, "no model is named 'nope'", "tiny-qwen2")
    assert leftovers(engine, project) == []


def test_a_port_in_use_is_found_before_the_start(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = bringup(*up_args(project, tmp_path, port))
    assert done.code == 3
    assert_said(done, "check port", f"pid {os.getpid()}", "--port")
    assert leftovers(engine, project) == []
    assert bundles(tmp_path) == []


def test_the_gpu_flavour_without_a_gpu_is_refused(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    if gpu.read().gpus:
        pytest.skip("this host has a GPU")
    done = bringup(*up_args(project, tmp_path), "--flavour", "gpu", "--image", "bringup:cpu-tiny-qwen2")
    assert done.code == 3
    assert_said(done, "check gpu", "no NVIDIA driver answers", "--flavour cpu")
    assert leftovers(engine, project) == []


COMMANDS = {
    "up": ("--artifacts", "artifacts"),
    "verify": (),
    "collect": ("--artifacts", "artifacts"),
    "down": (),
    "logs": (),
    "doctor": (),
    "build": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_engine_is_exit_8(command: str, tmp_path: Path) -> None:
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock"}
    args = [] if command == "down" else ["--flavour", "cpu"]
    done = bringup(command, *args, *COMMANDS[command], env=nowhere, cwd=tmp_path)
    assert done.code == 8, done.err
    assert_said(done, "ngine")
    assert "scripts/engine up" in done.err


def test_no_docker_command_is_exit_8(tmp_path: Path) -> None:
    done = bringup("down", env={"PATH": str(tmp_path)})
    assert done.code == 8
    assert_said(done, "'docker' is not on the PATH")


def test_artifacts_below_a_file_are_refused(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = bringup(*up_args(project, tmp_path), "--artifacts", str(tmp_path / "file" / "below"))
    assert done.code == 2
    assert_said(done, "cannot be written", "--artifacts")
    assert leftovers(engine, project) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB with nothing free."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "bringup-test", str(place)], check=True)
    with suppress(OSError), (place / "ballast").open("wb", buffering=0) as f:
        f.write(bytes(128 * 1024))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_artifacts_on_a_full_disk_are_refused(
    engine: docker.DockerClient, project: str, tmp_path: Path, full_disk: Path
) -> None:
    done = bringup(*up_args(project, tmp_path), "--artifacts", str(full_disk))
    assert done.code == 2
    assert_said(done, "No space left on device", "--artifacts")
    assert [p.name for p in full_disk.iterdir()] == ["ballast"]
    assert leftovers(engine, project) == []


# While it starts


@pytest.fixture
def port_thief(tmp_path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A port that is free when `bringup` looks, and taken when `docker compose up` starts: port, environment."""
    port, pid = free_port(), tmp_path / "thief.pid"
    thief = tmp_path / "thief.py"
    thief.write_text(
        "import os, pathlib, socket, sys, time\n"
        "s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()\n"
        "pathlib.Path(sys.argv[2]).write_text(str(os.getpid())); time.sleep(300)\n"
    )
    shim = tmp_path / "bin" / "docker"
    shim.parent.mkdir()
    real = shutil.which("docker")
    shim.write_text(
        "#!/usr/bin/env bash\n"
        f'case " $* " in *" compose "*" up "*) {sys.executable} {thief} {port} {pid} >/dev/null 2>&1 &\n'
        f"  while [[ ! -s {pid} ]]; do sleep 0.1; done ;;\nesac\n"
        f'exec {real} "$@"\n'
    )
    shim.chmod(0o755)
    yield port, {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_port_taken_meanwhile_is_explained(
    engine: docker.DockerClient, project: str, tmp_path: Path, port_thief: tuple[int, dict[str, str]]
) -> None:
    port, env = port_thief
    done = bringup(*up_args(project, tmp_path, port), env=env)
    assert done.code == 8
    assert_said(done, "the engine did not start the container", f"127.0.0.1:{port} is taken", "[port-taken]")
    assert leftovers(engine, project) == []


def test_killed_while_it_loads(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    with Child(*up_args(project, tmp_path), "--json", out=tmp_path / "out") as child:
        container = wait_running(engine, project)
        child.until(r"^start the container: ")
        time.sleep(3)
        container.kill()
        done = child.end()
    assert done.code == 6, done.err
    assert done.seconds <= 5
    assert_said(done, "the server died while starting", "exit code 137", "starting vLLM")
    (made,) = bundles(tmp_path)
    assert str(made) in done.err
    assert "starting vLLM" in (made / "server.log").read_text()
    record = bundle.read(made).record
    assert record["verdict"] == "fail"
    assert "exit code 137" in record["error"]
    assert record["clocks"]["engine"]["offset_seconds"] is not None
    assert "not running" in record["clocks"]["container"]["reason"]
    assert done.json()["exit_code"] == 6
    assert leftovers(engine, project) == []


def test_removed_while_it_loads(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    with Child(*up_args(project, tmp_path), out=tmp_path / "out") as child:
        child.until(r"^start the container: ")
        wait_running(engine, project).remove(force=True)
        done = child.end()
    assert done.code == 6, done.err
    assert done.seconds <= 5
    assert_said(done, "gone")
    assert leftovers(engine, project) == []


def test_paused_while_it_loads(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    with Child(*up_args(project, tmp_path), "--request-timeout", "5s", out=tmp_path / "out") as child:
        child.until(r"^start the container: ")
        wait_running(engine, project).pause()
        done = child.end()
    assert done.code == 6, done.err
    assert_said(done, "the container is paused")
    assert leftovers(engine, project) == []


def test_a_bad_argument_kills_the_server_and_its_words_are_shown(
    engine: docker.DockerClient, project: str, tmp_path: Path
) -> None:
    done = bringup(*up_args(project, tmp_path), "--", "--no-such-argument")
    assert done.code == 6
    assert_said(done, "the server died while starting", "unrecognized arguments: --no-such-argument")
    (bundle,) = bundles(tmp_path)
    assert "--no-such-argument" in (bundle / "server.log").read_text()
    assert leftovers(engine, project) == []


def test_no_token_before_the_deadline(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    done = bringup(*up_args(project, tmp_path), "--timeout", "4s")
    assert done.code == 6
    assert_said(done, "no token within 4 s; the container is running")
    assert len(bundles(tmp_path)) == 1
    assert leftovers(engine, project) == []


def test_keep_leaves_the_failed_server(engine: docker.DockerClient, project: str, tmp_path: Path) -> None:
    done = bringup(*up_args(project, tmp_path), "--timeout", "2s", "--keep")
    assert done.code == 6
    (container,) = containers(engine, project)
    assert container.status == "running"


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        (r"Network .*Creating", signal.SIGINT, 130),
        (r"Container .*Creating", signal.SIGINT, 130),
        (r"Container .*Starting", signal.SIGTERM, 143),
        (r"^start the container: ", signal.SIGINT, 130),
        (r"are as locked", signal.SIGTERM, 143),
    ],
)
def test_a_signal_during_up_leaves_nothing(
    engine: docker.DockerClient, project: str, tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    with Child(*up_args(project, tmp_path), "-v", out=tmp_path / "out") as child:
        child.until(moment)
        child.signal(number)
        done = child.end()
    assert done.code == code, done.err
    assert_said(done, "interrupted")
    assert leftovers(engine, project) == []
    time.sleep(2)  # whatever the engine still had in hand
    assert leftovers(engine, project) == []


# The compose files without bringup


def test_compose_alone_without_a_gpu_gives_the_engines_own_error(engine: docker.DockerClient, project: str) -> None:
    if gpu.read().gpus:
        pytest.skip("this host has a GPU")
    env = environment({"BRINGUP_IMAGE": "bringup:cpu-tiny-qwen2", "BRINGUP_PORT": str(free_port())})
    done = subprocess.run(
        ["docker", "compose", "-p", project, "up", "-d"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "could not select device driver" in done.stderr
