"""The image as a pod runs it: by SSH, beside a volume, behind a load balancer, and to its end.

One server as root for nearly all of it, in the order of this file: what comes later does more to it. Another, as the
image's user, whose vLLM refuses its arguments and whose container is held.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import pytest
import requests

from tests.integration.canaries import canaries, leaks
from tests.integration.support import LABEL, MODEL, SESSION, execute, free_port, processes

pytestmark = pytest.mark.integration

START = 400.0  # seconds
SERVER, HEALTH, PATH = 9000, 9001, "/alive"  # in the container
NAME = "tiny in a pod"
NASTY = {
    "NASTY_QUOTES": """a"b'c\\""",
    "NASTY_RUN": "$(touch /tmp/pwned-1) `touch /tmp/pwned-2` ${HOME} !! ;touch /tmp/pwned-3",
    "NASTY_LINES": "one\n two\n\nexport OTHER=1\n",
    "PROMPT_COMMAND": "touch /tmp/pwned-4",
    "BASH_ENV": "/no/such/file",
}
VOLUMES = ("/workspace", "/runpod-volume")
LISTENING = re.compile(
    r"^bringup: ssh: listening on port (\d+) as (\w+), host key (ssh-ed25519 \S+) (SHA256:\S+)$", re.M
)


@dataclass
class Pod:
    """A container and the ways into it; ports of this host's loopback. `canaries`: each is secret."""

    container: Any
    ports: dict[int, int]
    directory: Path
    canaries: dict[str, str]
    seen: list[int] = field(default_factory=list)  # what the health port said until it said 200

    def log(self) -> str:
        return str(self.container.logs().decode())

    def until(self, pattern: str, seconds: float = START) -> str:
        """The log, as soon as it has a line that matches."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, said := self.log(), re.M):
            assert time.monotonic() < deadline, f"{pattern!r} is not in the log after {seconds} s:\n{said[-4000:]}"
            time.sleep(0.3)
        return said

    def client(self, key: str) -> list[str]:
        """What is common to ssh and sftp: the key, and the host key as the log has it and no other."""
        found = LISTENING.search(self.until(LISTENING.pattern))
        assert found
        hosts = self.directory / "known_hosts"
        hosts.write_text(f"[127.0.0.1]:{self.ports[22]} {found[3]}\n")
        options = {
            "Port": self.ports[22], "User": found[2], "IdentityFile": self.directory / key, "IdentitiesOnly": "yes",
            "UserKnownHostsFile": hosts, "StrictHostKeyChecking": "yes", "BatchMode": "yes", "LogLevel": "ERROR",
        }  # fmt: skip
        return ["-F", "none", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]

    def ssh(self, *args: str, key: str = "own", text: str = "") -> subprocess.CompletedProcess[bytes]:
        argv = ["ssh", *args[:-1], *self.client(key), "127.0.0.1", *args[-1:]]  # of two values ssh takes the first
        return subprocess.run(argv, input=text.encode(), capture_output=True, check=False, timeout=60)

    def health(self, method: str = "GET", path: str = PATH) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[HEALTH], timeout=5)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        return answer

    def until_health(self, status: int, seconds: float) -> list[int]:
        """What the health port says until it says this, each once in a row."""
        seen: list[int] = []
        deadline = time.monotonic() + seconds
        while not seen or seen[-1] != status:
            assert time.monotonic() < deadline, f"no {status} after {seconds} s, but {seen}:\n{self.log()[-4000:]}"
            try:
                now = self.health().status
            except (OSError, http.client.HTTPException):  # nobody listens yet
                now = 0
            if now and seen[-1:] != [now]:
                seen.append(now)
            time.sleep(0.1)
        return seen

    def stream(self, tokens: int) -> Stream:
        return Stream(f"http://127.0.0.1:{self.ports[SERVER]}", self.canaries["api"], tokens)


class Stream(threading.Thread):
    """A completion of so many tokens that is read as it comes."""

    def __init__(self, url: str, key: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.url, self.key, self.lines = url, key, list[bytes]()
        self.body = {"model": NAME, "prompt": "Explain", "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
        self.start()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        body = {**self.body, "stream": True}
        with (
            suppress(requests.RequestException),  # one that is too long is cut
            requests.post(f"{self.url}/v1/completions", json=body, headers=headers, stream=True, timeout=120) as answer,
        ):
            for line in filter(None, answer.iter_lines()):
                self.lines.append(line)

    def begun(self) -> None:
        deadline = time.monotonic() + 60
        while len(self.lines) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def keys(directory: Path) -> dict[str, str]:
    """Two pairs; the public halves."""
    for name in ("own", "account"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
        subprocess.run(command, check=True, timeout=60)
    return {name: (directory / f"{name}.pub").read_text() for name in ("own", "account")}


@contextmanager
def running(engine: docker.DockerClient, image: str, directory: Path, user: str, **environ: str) -> Iterator[Pod]:
    """A container as a pod's host starts it, with a public key; the volumes are new and root's."""
    secret = canaries(("api", "runpod", "hub"))
    ports = {port: free_port() for port in (22, SERVER, HEALTH)}
    given = {
        "SSH_PUBLIC_KEY": keys(directory)["own"], "RUNPOD_POD_ID": "pod-4711", "RUNPOD_API_KEY": secret["runpod"],
        "VLLM_API_KEY": secret["api"], "HF_TOKEN": secret["hub"], "PORT_HEALTH": str(HEALTH), **environ,
    }  # fmt: skip
    container = engine.containers.run(
        image, detach=True, user=user, environment=given, shm_size="1g", labels={LABEL: SESSION},
        ports={f"{port}/tcp": ("127.0.0.1", host) for port, host in ports.items()},
        volumes={f"{SESSION}-pod{user[0]}{n}": {"bind": place, "mode": "rw"} for n, place in enumerate(VOLUMES)},
    )  # fmt: skip
    try:
        yield Pod(container, ports, directory, secret)
    finally:
        container.remove(force=True, v=True)


@pytest.fixture(scope="module")
def pod(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    directory = tmp_path_factory.mktemp("pod")
    other = tmp_path_factory.mktemp("account")
    environ = {
        "PUBLIC_KEY": keys(other)["account"], "PORT": str(SERVER), "HEALTH_CHECK_PATH": PATH,
        "BRINGUP_VLLM_ARGS": f"--served-model-name '{NAME}'", "CUDA_VERSION": "13.0", **NASTY,
    }  # fmt: skip
    with running(engine, image, directory, "0:0", **environ) as made:
        (directory / "account").write_bytes((other / "account").read_bytes())
        made.seen = made.until_health(200, START)
        yield made


# The image


def names_in_layers(image: str) -> Iterator[str]:
    """The names of all files in all layers of an image, those that a later layer removes too."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout
        with tarfile.open(fileobj=saved.stdout, mode="r|") as layers:
            for layer in layers:
                content = layers.extractfile(layer)
                with suppress(tarfile.ReadError):  # no layer, but what describes them
                    if content:
                        with tarfile.open(fileobj=content, mode="r|*") as files:
                            yield from (member.name for member in files)
        while saved.stdout.read(2**16):  # the blanks behind the archive's end; docker would miss its reader
            pass
    assert saved.returncode == 0


def test_no_host_key_is_in_the_image(image: str) -> None:
    there = [name for name in names_in_layers(image) if name.startswith("etc/ssh/")]
    assert "etc/ssh/moduli" in there
    assert [name for name in there if "ssh_host_" in name] == []


# A load balancer


def test_it_loads_and_then_it_answers(pod: Pod) -> None:
    assert pod.seen == [204, 200]
    headers = {"Authorization": f"Bearer {pod.canaries['api']}"}
    found = requests.get(f"http://127.0.0.1:{pod.ports[SERVER]}/v1/models", headers=headers, timeout=30).json()
    assert [model["id"] for model in found["data"]] == [NAME]  # a quoted argument with a blank arrived
    assert found["data"][0]["root"] == f"/opt/bringup/models/{MODEL}"  # though a volume is at /workspace
    assert "health: 200 from now on: the server answers" in pod.log()


def test_the_health_port_tells_nothing_else(pod: Pod) -> None:
    assert pod.health("HEAD").status == 200
    for method, path in (("POST", PATH), ("GET", "/"), ("GET", f"{PATH}/"), ("GET", "/metrics"), ("OPTIONS", "*")):
        assert pod.health(method, path).status == 404, (method, path)
    assert {name.lower() for name, _ in pod.health().getheaders()} == {"content-length", "cache-control", "connection"}
    with socket.create_connection(("127.0.0.1", pod.ports[HEALTH]), timeout=10) as slow:
        slow.sendall(b"GET " + PATH.encode())
        assert slow.recv(99) == b""  # after a while nobody waits for the rest


def test_the_images_own_health_check_knows_the_port(pod: Pod) -> None:
    found = execute(pod.container, "/opt/venv/bin/python", "-m", "bringup.inside.health")
    assert (found.code, found.out) == (0, "/health: HTTP 200\n")


# SSH


def test_only_the_pods_own_key_may_log_in(pod: Pod) -> None:
    found = LISTENING.findall(pod.log())
    assert len(found) == 1
    port, user, key, fingerprint = found[0]
    assert (port, user) == ("22", "root")
    shown = subprocess.run(["ssh-keygen", "-l", "-f", "-"], input=key, capture_output=True, text=True, check=True)
    assert shown.stdout.split()[1] == fingerprint
    done = pod.ssh("id -un; printf '%s' \"$SHLVL\"")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"root\n1", b"")
    assert re.search(r"^bringup: ssh: Accepted publickey for root from ", pod.log(), re.M)
    for refused in (
        pod.ssh("id", key="account"),
        pod.ssh("-o", "BatchMode=no", "-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1", "id"),
        pod.ssh("-o", "User=bringup", "id"),
    ):
        assert refused.returncode == 255
        assert b"Permission denied (publickey)" in refused.stderr


def environment_of(said: bytes) -> dict[str, str]:
    return dict(entry.decode().split("=", 1) for entry in said.split(b"\0") if entry)


def test_a_session_has_the_containers_environment(pod: Pod) -> None:
    """As a command, in a login shell, and where somebody sits; and nothing of it was executed."""
    command = environment_of(pod.ssh("env -0").stdout)
    login = environment_of(pod.ssh("bash -lc 'env -0'").stdout)
    typed = pod.ssh("-tt", "", text="env -0 >/tmp/typed\nexit\n")
    assert typed.returncode == 0, typed.stderr
    person = environment_of(pod.ssh("cat /tmp/typed").stdout)
    inherited = {e.split("=", 1)[0]: e.split("=", 1)[1] for e in pod.container.attrs["Config"]["Env"]}
    for name, found in (("command", command), ("login", login), ("person", person)):
        for variable in ("NASTY_QUOTES", "NASTY_RUN", "NASTY_LINES", "RUNPOD_POD_ID", "RUNPOD_API_KEY", "CUDA_VERSION",
                         "PATH", "PORT", "BRINGUP_MODEL", "VLLM_API_KEY"):  # fmt: skip
            assert found[variable] == inherited[variable], (name, variable)
        assert found["HOME"] == "/root"
        assert found["BRINGUP_STATE_DIR"] == "/workspace/bringup"
        assert not {"PUBLIC_KEY", "SSH_PUBLIC_KEY", "PROMPT_COMMAND", "BASH_ENV", "OTHER"} & found.keys(), name
    there = pod.ssh("ls /tmp").stdout
    assert b"typed" in there
    assert b"pwned" not in there
    kept = pod.ssh("export PORT=1; bash -c 'echo $PORT'; stat -c '%a %u' /dev/shm/bringup-ssh-*{,/*}").stdout.split()
    assert kept[0] == b"1"  # what a session sets is not set back
    assert set(zip(kept[1::2], kept[2::2], strict=True)) == {(b"700", b"0"), (b"600", b"0"), (b"644", b"0")}
    assert pod.ssh("ls /dev/shm/bringup-ssh-*").stdout.split() == [
        b"authorized_keys", b"environment", b"host_key", b"host_key.pub", b"sshd_config",
    ]  # fmt: skip


def test_files_go_in_and_out(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(range(256)) * 1000)
    batch = f"put {tmp_path}/in /workspace/file\nget /workspace/file {tmp_path}/out\nls -l /workspace/bringup/run\n"
    argv = ["sftp", *pod.client("own"), "-b", "-", "127.0.0.1"]
    done = subprocess.run(argv, input=batch, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert "server.jsonl" in done.stdout


def test_only_the_servers_port_can_be_forwarded(pod: Pod) -> None:
    ways = [free_port() for _ in range(3)]
    targets = (f"127.0.0.1:{SERVER}", f"localhost:{SERVER}", f"127.0.0.1:{HEALTH}")
    forwards = [part for way, to in zip(ways, targets, strict=True) for part in ("-L", f"127.0.0.1:{way}:{to}")]
    with subprocess.Popen(
        ["ssh", *pod.client("own"), *forwards, "127.0.0.1", "echo up; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as tunnel:  # fmt: skip
        assert tunnel.stdout
        assert tunnel.stdin
        assert tunnel.stdout.readline() == b"up\n"
        for way in ways[:2]:
            assert requests.get(f"http://127.0.0.1:{way}/health", timeout=30).status_code == 200
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{ways[2]}{PATH}", timeout=30)
        tunnel.stdin.close()
    back = pod.ssh("-o", "ExitOnForwardFailure=yes", "-R", f"0:127.0.0.1:{ways[0]}", "true")
    assert back.returncode == 255


# Where things are, and what is told


def test_the_state_is_on_the_volume(pod: Pod) -> None:
    assert re.search(r"^bringup: pod pod-4711 of RunPod, state directory /workspace/bringup$", pod.log(), re.M)
    listed = pod.ssh("cd /workspace/bringup && find . -maxdepth 2").stdout.decode().split()
    assert {"./run/server.jsonl", "./run/caches-now.json", "./cache"} <= set(listed)
    assert pod.ssh("ls /runpod-volume /var/lib/bringup/run").stdout.split() == [
        b"/runpod-volume:", b"/var/lib/bringup/run:",
    ]  # fmt: skip


def test_no_secret_reaches_the_server_or_is_told(pod: Pod) -> None:
    script = "for p in /proc/[0-9]*; do printf '%s ' ${p#/proc/}; base64 -w0 $p/environ 2>/dev/null; echo; done"
    environs = {
        int(pid): base64.b64decode(text)
        for pid, _, text in (line.partition(" ") for line in pod.ssh(script).stdout.decode().splitlines())
    }
    names = processes(pod.container)
    servers = {pid: text for pid, text in environs.items() if b"BRINGUP_SERVER_LOG=" in text}
    # The API server's and the worker's, which has it of the engine (whose title has overwritten its own in /proc).
    assert {n for pid, n in names.items() if pid in servers} >= {"python", "VLLM::Worker"}, names
    hidden = {name: pod.canaries[name] for name in ("runpod", "hub")}
    assert leaks(hidden, {names.get(pid, str(pid)): text for pid, text in servers.items()}) == []
    assert leaks(hidden, {"the entry point": environs[1]})  # the search finds what is there
    files = pod.ssh("cd /workspace/bringup/run && cat *").stdout
    assert b'"args": ["entry"]' in files
    sinks = {
        "console": pod.log().encode(), "state": files,
        "processes": json.dumps(pod.container.top(ps_args="-eo pid,args")).encode(),
    }  # fmt: skip
    assert leaks(pod.canaries, sinks) == []


# What goes wrong


def test_an_sshd_that_dies_is_back(pod: Pod) -> None:
    (first,) = LISTENING.findall(pod.log())
    listener = pod.ssh("cat /proc/$PPID/status | sed -n 's/^PPid:\\t//p'").stdout.decode().strip()
    while names_parent(pod, listener) == "sshd":
        listener = parent(pod, listener)
    assert execute(pod.container, "kill", "-9", listener).code == 0
    said = pod.until(r"ssh: sshd ended \(exit -9\), and is started again in 1 s", 30)
    deadline = time.monotonic() + 30
    while len(LISTENING.findall(said)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        said = pod.log()
    assert LISTENING.findall(said) == [first, first]  # with the same host key
    assert pod.ssh("id -un").stdout == b"root\n"


def parent(pod: Pod, pid: str) -> str:
    return execute(pod.container, "sed", "-n", r"s/^PPid:\t//p", f"/proc/{pid}/status").out.strip()


def names_parent(pod: Pod, pid: str) -> str:
    return processes(pod.container).get(int(parent(pod, pid)), "")


def test_a_hanging_engine_is_seen(pod: Pod, figures: list[str]) -> None:
    """Though vLLM's own health goes on saying 200."""
    engine = [str(pid) for pid, name in processes(pod.container).items() if name.startswith("VLLM::")]
    assert len(engine) >= 2
    assert execute(pod.container, "kill", "-STOP", *engine).code == 0
    began = time.monotonic()
    try:
        assert pod.until_health(503, 90) == [200, 503]
        figures.append(f"a hanging engine: 503 on the health port after {time.monotonic() - began:.0f} s")
        assert requests.get(f"http://127.0.0.1:{pod.ports[SERVER]}/health", timeout=10).status_code == 200
    finally:
        execute(pod.container, "kill", "-CONT", *engine)
    assert pod.until_health(200, 60) == [503, 200]
    assert "health: 503 from now on: connected, but no answer within 20 s" in pod.log()


def finished(container: Any, asked: float) -> float:
    """Seconds from then to the container's end, by the engine's clock, which is this host's."""
    container.wait(timeout=60)
    container.reload()
    text = re.sub(r"(\.\d{6})\d*Z", r"\1+00:00", container.attrs["State"]["FinishedAt"])
    return datetime.fromisoformat(text).timestamp() - asked


def test_running_requests_are_finished_and_the_end_is_in_time(pod: Pod, figures: list[str]) -> None:
    long, short = pod.stream(2000), pod.stream(40)
    for stream in (long, short):
        stream.begun()
    before = len(long.lines)
    asked = time.time()
    pod.container.kill("SIGTERM")
    took = finished(pod.container, asked)
    figures.append(f"SIGTERM while a long stream runs: the container's end after {took:.1f} s")
    assert took < 10
    assert pod.container.attrs["State"]["ExitCode"] == 0, pod.log()[-4000:]
    for stream in (long, short):
        stream.join(30)
    assert b'"finish_reason":"length"' in b"".join(short.lines[-3:])
    assert len(long.lines) > before
    assert b'"error"' in b"".join(long.lines[-2:])  # it was too long, and its reader is told


# A held container


@pytest.fixture(scope="module")
def held(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    environ = {"BRINGUP_HOLD": "1", "BRINGUP_VLLM_ARGS": "--no-such-flag=1"}
    with running(engine, image, tmp_path_factory.mktemp("held"), "1000:0", **environ) as made:
        yield made


def test_a_server_that_ends_can_be_looked_into(held: Pod, figures: list[str]) -> None:
    began = time.monotonic()
    said = held.until(r"^bringup: BRINGUP_HOLD ")
    figures.append(f"an unknown argument of vLLM is refused {time.monotonic() - began:.0f} s after the start")
    (line,) = [x for x in said.splitlines() if x.startswith("bringup: BRINGUP_HOLD ")]
    assert "vLLM refused its arguments (exit 2)" in line
    assert "SIGTERM" in line
    assert "error: unrecognized arguments: --no-such-flag=1" in said  # vLLM's own message
    assert held.health(path="/ping").status == 503
    done = held.ssh('id -un; tail -n3 "$HOME/run/server.jsonl"')
    assert done.stdout.splitlines()[0] == b"bringup"
    assert b"holds the container" in done.stdout
    assert not [name for name in processes(held.container).values() if name.startswith("VLLM")]


def test_root_volumes_are_left_alone_by_the_images_user(held: Pod) -> None:
    """Docker's new volumes are root's; then the state ends with the pod, and the server starts all the same."""
    why = "bringup cannot be the state directory (Permission denied)"
    assert f"bringup: /workspace/{why}; /runpod-volume/{why}; caches and logs end with this pod\n" in held.log()


def test_a_held_container_ends_at_once_with_its_servers_code(held: Pod) -> None:
    asked = time.time()
    held.container.kill("SIGTERM")
    assert finished(held.container, asked) < 5
    assert held.container.attrs["State"]["ExitCode"] == 2


def test_what_cannot_be_is_one_line_each(engine: docker.DockerClient, image: str, tmp_path: Path) -> None:
    """A key that is none does not stop the server; an unbalanced quote does."""
    environ = {"SSH_PUBLIC_KEY": "no key", "BRINGUP_VLLM_ARGS": "--served-model-name 'a", "BRINGUP_HOLD": "1"}
    with running(engine, image, tmp_path, "1000:0", **environ) as pod:
        pod.until(
            r"^bringup: ssh: nobody can log in, the server goes on without: SSH_PUBLIC_KEY or PUBLIC_KEY holds no", 60
        )
        said = pod.until(r"^bringup: BRINGUP_HOLD .*: BRINGUP_VLLM_ARGS: No closing quotation\. SIGTERM", 60)
        assert "Traceback" not in said
        asked = time.time()
        pod.container.kill("SIGTERM")
        assert finished(pod.container, asked) < 5
        assert pod.container.attrs["State"]["ExitCode"] == 2
