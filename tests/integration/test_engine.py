"""scripts/engine: private engines in directories of their own, beside whatever else runs on this host."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engines import PREFIX, SCRIPTS, Engine, chains, failing_docker, ip

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="starting an engine needs root"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the private engine is for Debian and Ubuntu"),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory with a short name: sockets lie below it."""
    name = tempfile.mkdtemp(prefix="bu", dir="/var/tmp")
    Path(name).chmod(0o755)
    yield Path(name)
    shutil.rmtree(name)


@pytest.fixture(scope="module")
def no_docker(place: Path) -> Path:
    return failing_docker(place / "no-docker")


@pytest.fixture(scope="module")
def prefix(place: Path) -> Path:
    return PREFIX if (PREFIX / "versions").exists() else place / "prefix"


@pytest.fixture(scope="module")
def first(place: Path, prefix: Path, no_docker: Path) -> Iterator[Engine]:
    """An engine brought up by two calls at the same time."""
    engine = Engine(place / "a", prefix, no_docker)
    try:
        calls = [engine.start("up"), engine.start("up")]
        for call in calls:
            _, err = call.communicate(timeout=300)
            assert call.returncode == 0, err
        engine.load_image()
        yield engine
    finally:
        engine.call("down", "--purge")


@pytest.fixture
def second(place: Path, prefix: Path, no_docker: Path) -> Iterator[Engine]:
    """A directory for another engine, not started."""
    engine = Engine(place / "b", prefix, no_docker)
    yield engine
    engine.call("down", "--purge")
    shutil.rmtree(engine.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def outside() -> tuple[str, int]:
    """A host and port that this machine reaches by name: its own package mirror."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for scheme, host in re.findall(r"^(https?)://([^/:\s]+)/", listed, re.MULTILINE):
        port = 443 if scheme == "https" else 80
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            continue
        return host, port
    pytest.skip("this host reaches none of its package mirrors, so a container cannot either")


def test_two_ups_at_once_give_one_daemon(first: Engine) -> None:
    assert len(first.processes("dockerd")) == 1
    assert len(first.processes("containerd")) == 1


def test_up_again_changes_nothing(first: Engine) -> None:
    before, began = first.processes("dockerd"), time.monotonic()
    done = first.call("up")
    assert done.returncode == 0, done.stderr
    assert first.processes("dockerd") == before
    assert time.monotonic() - began < 10


def test_env_selects_an_engine_with_both_plugins(first: Engine) -> None:
    assert int(first.docker("version", "--format", "{{.Server.Version}}").split(".")[0]) >= 27
    assert first.docker("info", "--format", "{{.DockerRootDir}}") == f"{first.directory}/data"
    assert "2." in first.docker("compose", "version", "--short")
    assert "buildx" in first.docker("buildx", "version")


def test_status_is_one_line_that_names_socket_and_data(first: Engine) -> None:
    done = first.call("status")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("private engine ")
    assert f"unix://{first.directory}/run/docker.sock" in done.stdout
    assert f"{first.directory}/data" in done.stdout


def test_containers_use_the_uplinks_mtu(first: Engine) -> None:
    device = re.search(r" dev (\S+)", ip("-o", "-4", "route", "show", "default"))
    if device is None:
        pytest.skip("this host has no default route")
    uplink = Path(f"/sys/class/net/{device[1]}/mtu").read_text().strip()
    first.docker("network", "create", "mtu")
    for network in ("bridge", "mtu"):
        seen = first.docker("run", "--rm", "--network", network, "probe", "/bin/cat", "/sys/class/net/eth0/mtu")
        assert seen == uplink, network
    assert Path(f"/sys/class/net/{first.bridge}/mtu").read_text().strip() == uplink


def test_containers_reach_the_network_by_name(first: Engine, outside: tuple[str, int]) -> None:
    first.docker("network", "create", "egress")
    for network in ("bridge", "egress"):
        assert first.reaches(*outside, network=network), network
    assert not first.reaches(*outside, network="none")


def test_a_second_engine_leaves_the_first_its_network(first: Engine, second: Engine, outside: tuple[str, int]) -> None:
    done = second.call("up")
    assert done.returncode == 0, done.stderr
    assert first.bridge != second.bridge
    assert first.config()["default-address-pools"] != second.config()["default-address-pools"]
    second.load_image()
    assert first.reaches(*outside)
    assert second.reaches(*outside)
    assert second.call("down").returncode == 0
    assert first.answers()
    assert first.reaches(*outside)


def test_down_leaves_its_data_and_nothing_else(first: Engine, second: Engine) -> None:
    assert second.call("up").returncode == 0
    second.load_image()
    network = second.docker("network", "create", "left")
    second.docker("run", "--init", "--detach", "--network", "left", "probe", "/bin/sleep", "600")
    bridges = (second.bridge, f"br-{network[:12]}")
    assert all(bridge in ip("-o", "-br", "link") for bridge in bridges)
    assert second.bridge in chains()
    done = second.call("down")
    assert done.returncode == 0, done.stderr
    assert second.processes() == []
    assert str(second.directory) not in Path("/proc/self/mountinfo").read_text()
    assert not any(bridge in ip("-o", "-br", "link") for bridge in bridges)
    assert second.bridge not in chains()
    assert second.call("up").returncode == 0
    assert second.docker("images", "--format", "{{.Repository}}") == "probe"
    assert second.call("down", "--purge").returncode == 0
    assert not (second.directory / "data").exists()
    assert first.answers()


def test_the_hosts_network_is_given_back_as_it_was(first: Engine, second: Engine) -> None:
    """In a network namespace of its own, where nobody else changes anything meanwhile."""
    path = f"{second.environment['PATH']}:{first.prefix}/bin"
    script = f"""
        set -e
        state() {{ PATH={path} ip -o -br address; PATH={path} iptables -S; PATH={path} iptables -t nat -S
            cat /proc/sys/net/ipv4/ip_forward; }}
        echo 0 >/proc/sys/net/ipv4/ip_forward
        before=$(state)
        {SCRIPTS}/engine up >/dev/null
        during=$(state)
        {SCRIPTS}/engine down
        after=$(state)
        [[ $during != "$before" && $during == *$'\n1' ]]
        [[ $after == "$before" ]] && echo same
    """
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script],
        env=second.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_up_after_a_killed_daemon_and_a_reused_pid(first: Engine, second: Engine) -> None:
    assert second.call("up").returncode == 0
    second.load_image()
    second.docker("run", "--init", "--detach", "--name", "orphan", "probe", "/bin/sleep", "600")
    for program in ("dockerd", "containerd"):
        for pid in second.processes(program):
            if "shim" not in Path(f"/proc/{pid}/exe").readlink().name:
                os.kill(pid, signal.SIGKILL)
    assert second.call("status").returncode == 8
    # The number in the pid file is now somebody else's: ours.
    (second.directory / "run" / "docker.pid").write_text(str(os.getpid()))
    done = second.call("up")
    assert done.returncode == 0, done.stderr
    assert second.docker("inspect", "--format", "{{.State.Running}}", "orphan") == "false"
    assert len(second.processes("containerd-shim")) == 0
    assert second.call("down").returncode == 0
    assert second.processes() == []


def test_a_daemon_that_fails_shows_why_and_leaves_nothing(first: Engine, second: Engine, place: Path) -> None:
    broken = place / "broken"
    (broken / "bin").mkdir(parents=True)
    for program in (first.prefix / "bin").iterdir():
        (broken / "bin" / program.name).symlink_to(program)
    (broken / "cli-plugins").symlink_to(first.prefix / "cli-plugins")
    shutil.copy(first.prefix / "versions", broken / "versions")
    (broken / "bin" / "dockerd").unlink()
    (broken / "bin" / "dockerd").write_text("#!/bin/sh\necho 'failed to mount overlay: no such device' >&2\nexit 1\n")
    (broken / "bin" / "dockerd").chmod(0o755)
    engine = Engine(second.directory, broken, second.no_docker)
    done = engine.call("up")
    assert done.returncode == 8
    assert "failed to mount overlay: no such device" in done.stderr
    assert "dockerd did not start" in done.stderr
    assert engine.processes() == []
    assert engine.bridge not in ip("-o", "-br", "link")
    assert engine.bridge not in chains()


def test_an_engine_named_by_docker_host_is_used_and_never_stopped(first: Engine, second: Engine) -> None:
    socket_path, config = f"unix://{first.directory}/run/docker.sock", str(first.directory / "config")
    path = f"{first.prefix}/bin:{first.environment['PATH']}"
    second.extra = {"DOCKER_HOST": socket_path, "DOCKER_CONFIG": config, "PATH": path}
    done = second.call("up")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("foreign engine ")
    assert second.call("env").stdout.startswith("#")
    assert second.call("down", "--purge").returncode == 0
    assert not second.directory.exists()
    assert first.answers()


@pytest.mark.parametrize(
    ("extra", "arguments", "code", "says"),
    [
        ({"DOCKER_HOST": "unix:///nowhere.sock"}, ["up"], 8, "DOCKER_HOST is unix:///nowhere.sock"),
        ({"BRINGUP_ENGINE_DIR": "relative"}, ["up"], 2, "absolute path"),
        ({"BRINGUP_ENGINE_DIR": "/" + "x" * 80}, ["up"], 2, "81 characters"),
        ({"BRINGUP_ENGINE_DIR": "/etc"}, ["up"], 2, "files that are not an engine's"),
        ({}, ["upp"], 2, "unknown command 'upp'"),
        ({}, ["down", "--all"], 2, "unknown command 'down --all'"),
        ({}, ["status"], 8, "no engine is running"),
    ],
)
def test_refusals(second: Engine, extra: dict[str, str], arguments: list[str], code: int, says: str) -> None:
    second.extra = extra
    done = second.call(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr.splitlines()[-1]
    assert not second.directory.exists()


def test_env_without_an_engine_fails_in_the_shell_that_evaluates_it(second: Engine) -> None:
    done = second.call("env")
    assert (done.returncode, done.stdout) == (8, "false\n")


def test_another_system_is_told_what_to_install(second: Engine, place: Path) -> None:
    release = place / "os-release"
    release.write_text('ID=fedora\nVERSION_ID=42\nPRETTY_NAME="Fedora Linux 42"\n')
    second.extra = {"BRINGUP_OS_RELEASE": str(release)}
    done = second.call("up")
    assert done.returncode == 8
    assert "this is 'Fedora Linux 42'" in done.stderr
    assert "install Docker Engine >= 27" in done.stderr


def test_an_old_engine_is_named_before_another_is_started(second: Engine, place: Path) -> None:
    old = place / "old"
    old.mkdir()
    (old / "docker").write_text("#!/bin/sh\necho 20.10.24\n")
    (old / "docker").chmod(0o755)
    release = place / "old-release"
    release.write_text("ID=debian\nVERSION_ID=11\n")
    second.extra = {"PATH": f"{old}:{second.environment['PATH']}", "BRINGUP_OS_RELEASE": str(release)}
    done = second.call("up")
    assert done.returncode == 8
    assert "the engine is 20.10.24, older than 27" in done.stderr


def test_without_root_it_says_so(second: Engine, place: Path) -> None:
    copy = place / "scripts"
    shutil.copytree(SCRIPTS, copy)
    place.chmod(0o755)
    done = subprocess.run(
        [copy / "engine", "up"],
        env=second.environment,
        capture_output=True,
        text=True,
        check=False,
        user="nobody",
        group="nogroup",
        extra_groups=[],
    )
    assert done.returncode == 8
    assert "root is needed" in done.stderr
