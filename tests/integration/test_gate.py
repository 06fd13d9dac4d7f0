"""The server of `bringup up` as a stranger finds it, as an intruder finds it, and what is told about its secrets.

One server for all of it: the compose default, with two keys, started with canaries for secrets.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker
import pytest

from bringup.edge.docker import Engine
from bringup.inside import gate
from tests.integration.canaries import canaries, forms, leaks
from tests.integration.support import (
    ROOT,
    SESSION,
    Result,
    bringup,
    containers,
    environment,
    free_port,
    leftovers,
    statuses,
)
from tests.integration.test_containers import plain

pytestmark = pytest.mark.integration

PROJECT = f"{SESSION}-gate"
USER = 1000  # of the image: a key that this user may read lets the container run as it
LIMIT = 4  # MiB of a body
WORDS = ("key-1", "key-2", "hub-variable", "hub-file", "stranger", "query")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Given:
    """A running server. `canaries`: each is secret, and stands nowhere else."""

    port: int
    canaries: dict[str, str]
    keys: Path
    directory: Path
    result: Result
    container: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        return str(self.container.logs().decode())


@pytest.fixture(scope="module")
def given(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    directory = tmp_path_factory.mktemp("gate")
    told = canaries(WORDS)
    keys, token = directory / "keys", directory / "token"
    keys.write_text(f"{told['key-1']}\n{told['key-2']}\n")
    token.write_text(told["hub-file"])
    for file in (keys, token):
        file.chmod(0o600)
        os.chown(file, USER, -1)
    port = free_port()
    where = ("--project", PROJECT, "--image", image, "--flavour", "cpu", "--port", str(port))
    done = bringup(
        "up", "--json", "-v", *where, "--api-key-file", str(keys), "--hf-token-file", str(token),
        "--artifacts", str(directory / "artifacts"), "--max-body", str(LIMIT),
        env={"HF_TOKEN": told["hub-variable"], "BRINGUP_MEM_LIMIT": "12g"}, timeout=900,
    )  # fmt: skip
    try:
        assert done.code == 0, done.err
        (container,) = containers(engine, PROJECT)
        yield Given(port, told, keys, directory, done, container)
    finally:
        bringup("down", "--project", PROJECT, "--volumes")
    assert leftovers(engine, PROJECT) == []


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def by_gate(self) -> bool:
        return b'"type": "gate"' in self.body


def ask(server: Given, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Reply:
    """One request, its target sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def routes(log: str) -> dict[str, set[str]]:
    """What vLLM says that it registered: method by route."""
    found: dict[str, set[str]] = {}
    for route, methods in re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", log):
        found.setdefault(route, set()).update(methods.split(", "))
    return found


def target_of(route: str) -> str:
    return re.sub(r"\{\w+\}", "resp_1", route)


# A stranger


def test_bringup_proves_the_server_through_the_gate(given: Given) -> None:
    """Streaming, cancelling, counting and the rest: everything that `verify` asks of a vLLM without a gate."""
    seen = statuses(given.result.json()["probes"])
    assert {seen[name] for name in ("streaming", "cancel", "metrics", "requests", "auth", "version")} == {"pass"}
    second = given.directory / "second"
    second.write_text(given.canaries["key-2"])
    done = bringup("verify", "--json", given.url, "--api-key-file", str(second), "--suite", "smoke")
    assert done.code == 0, done.err


def test_every_route_of_the_running_vllm(given: Given) -> None:
    """Only health answers without a key; what is not listed is not there with one either. The table is in the docs."""
    found = routes(given.log())
    assert {"/v1/chat/completions", "/health", "/invocations", "/scale_elastic_ep"} <= found.keys()
    rows = []
    for route, methods in sorted(found.items()):
        for method in sorted(methods - {"HEAD"}):
            ways: tuple[dict[str, str], ...] = ({}, bearer("wrong"), bearer(given.canaries["key-1"]))
            none, wrong, good = (ask(given, method, target_of(route), way, b"{}") for way in ways)
            listed = method in gate.ROUTES.get(route, ())
            assert listed is not good.by_gate, (method, route, good)
            if (method, route) == ("GET", "/health"):
                assert none.status == wrong.status == good.status == 200
            else:
                assert {none.status, wrong.status} <= {401, 404, 405}, (method, route)
                assert none.by_gate
                assert wrong.by_gate
            shown = f"{good.status} by the gate" if good.by_gate else f"{good.status}"
            rows.append(f"| {method} `{route}` | {none.status} | {wrong.status} | {shown} |")
        for method in METHODS:  # those that vLLM does not register for it, too
            for way in ({}, bearer("wrong")):
                assert ask(given, method, target_of(route), way).status in (
                    (200,) if (method, route) == ("GET", "/health") else (401, 404, 405)
                ), (method, route)
    page = (ROOT / "docs" / "gate.md").read_text()
    assert "\n".join(rows) in page, "the table in docs/gate.md differs from what was seen:\n" + "\n".join(rows)


def spellings(path: str) -> list[str]:
    """A path as a careless router might read it."""
    head, _, last = path.rpartition("/")
    return [
        f"/{path}", f"{path}/", f"{path}//", path.upper(), f"/.{path}", f"/x/..{path}", f"/health/..{path}",
        f"{path};x", f"{path}%20", f"{path}%00", f"{path}%2f", f"{head}/%2e/{last}", f"/%2e%2e{path}",
        f"/%{ord(path[1]):x}{path[2:]}", path.replace("/", "%2f"), f"{path}/../health", f"\\{path}",
    ]  # fmt: skip


def test_odd_paths_are_not_there(given: Given) -> None:
    for route in (*gate.ROUTES, "/scale_elastic_ep", "/invocations", "/v1/load_lora_adapter"):
        for spelling in spellings(target_of(route)):
            for method in ("GET", "POST"):
                reply = ask(given, method, spelling, {}, b"{}")
                assert reply.status in (400, 401, 404, 405), (method, spelling, reply)


def test_an_absolute_target_is_the_route_that_it_names(given: Given) -> None:
    assert ask(given, "GET", f"{given.url}/v1/models").status in (401, 404)
    assert ask(given, "GET", "http://elsewhere/metrics").status in (401, 404)
    # The bypass of vLLM before 0.22: the path was read from the Host header.
    assert ask(given, "GET", "/v1/models", {"Host": "x/health?"}).status == 401
    assert ask(given, "GET", "/v1/models?a=/health#/health").status == 401


@pytest.mark.parametrize("path", ["/v1/realtime", "/health", "/v1/models"])
def test_no_upgrade_gets_past(given: Given, path: str) -> None:
    handshake = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }  # fmt: skip
    assert ask(given, "GET", path, handshake).status == 403
    assert ask(given, "GET", path, {**handshake, **bearer(given.canaries["key-1"])}).status == 403
    h2c = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": ""}
    assert ask(given, "GET", path, h2c).status == {"/health": 200, "/v1/models": 401}.get(path, 404)


def test_what_an_answer_says_of_itself(given: Given) -> None:
    for path, headers in (("/health", {}), ("/v1/models", {}), ("/v1/models", bearer(given.canaries["key-2"]))):
        reply = ask(given, "GET", path, {**headers, "Origin": "https://example.org", "X-Request-Id": "mine-1"})
        assert reply.headers["x-request-id"] == "mine-1"
        assert not {"server", "x-powered-by", "access-control-allow-origin"} & reply.headers.keys()


def test_sizes(given: Given) -> None:
    key = bearer(given.canaries["key-1"])
    declared = {**key, "Content-Length": str(LIMIT * 2**20 + 1)}
    assert ask(given, "POST", "/v1/completions", declared).status == 413
    with socket.create_connection(("127.0.0.1", given.port), timeout=60) as connection:
        lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in key.items()]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
        for _ in range(LIMIT):
            connection.sendall(chunk)
        connection.sendall(b"1\r\n \r\n")
        assert connection.makefile("rb").readline().split()[1] == b"413"
    assert ask(given, "GET", "/health", {f"X-{n}": "1" for n in range(gate.MAX_HEADERS)}).status == 431


def test_one_line_a_request(given: Given) -> None:
    ask(given, "GET", f"/v1/models?api_key={given.canaries['query']}", {"X-Request-Id": "audited-1"})
    ask(given, "GET", "/version", {**bearer(given.canaries["key-2"]), "X-Request-Id": "audited-2"})
    log = given.log()
    deadline = time.monotonic() + 10
    while "audited-2" not in log and time.monotonic() < deadline:  # it is written after the answer
        time.sleep(0.1)
        log = given.log()
    assert re.search(r"gate: \S+ \S+ [\d.]+ GET /v1/models 401 key - id audited-1 [\d.]+ s", log)
    assert len(re.findall(r".*GET /version 200 key 2 id audited-2 .*", log)) == 1
    assert "HTTP/1.1" not in log


def test_a_public_start_without_a_key_is_refused(image: str, engine: docker.DockerClient, figures: list[str]) -> None:
    with plain(image).with_env("BRINGUP_BIND", "0.0.0.0") as container:  # noqa: S104
        raw = container.get_wrapped_container()
        assert raw.wait(timeout=60)["StatusCode"] == 2
        raw.reload()
        begun, ended = (raw.attrs["State"][name] for name in ("StartedAt", "FinishedAt"))
        assert "BRINGUP_INSECURE=1" in raw.logs().decode()
        figures.append(f"a public start without a key was refused: started {begun}, ended {ended}")


# An intruder


def test_the_container_has_what_compose_says(given: Given) -> None:
    host, config = given.container.attrs["HostConfig"], given.container.attrs["Config"]
    assert host["ReadonlyRootfs"] is True
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
    assert host["SecurityOpt"] == ["no-new-privileges:true"]  # and so Docker's own seccomp profile
    assert (host["Privileged"], host["PidMode"], host["NetworkMode"] == "host", host["IpcMode"]) == (
        False, "", False, "private",
    )  # fmt: skip
    assert 0 < host["PidsLimit"] <= 8192
    assert host["Memory"] == 12 * 2**30
    assert host["Devices"] in (None, [])
    assert config["User"] == f"{USER}:0"
    assert {b["HostIp"] for ports in host["PortBindings"].values() for b in ports} == {"127.0.0.1"}
    assert host["LogConfig"]["Config"] == {"max-size": "20m", "max-file": "3"}
    mounts = {m["Destination"]: m for m in given.container.attrs["Mounts"]}
    assert {d for d, m in mounts.items() if m["RW"]} == {"/var/lib/bringup"}
    assert mounts["/run/secrets/api_key"]["Type"] == "bind"
    assert not [d for d in mounts if "docker.sock" in d]


def test_the_server_can_do_no_more_than_it_needs(given: Given) -> None:
    def run(*argv: str) -> tuple[int, str]:
        return Engine().execute(given.container.id, list(argv))

    # Of the server's own process: an exec would be one beside it.
    (server,) = [p for p in given.container.top(ps_args="-eo pid,args")["Processes"] if "bringup.inside.serve" in p[1]]
    _, listed = run("sh", "-c", "grep -l bringup.inside.serve /proc/[0-9]*/cmdline")
    state = [run("cat", str(Path(path).with_name("status")))[1] for path in listed.split() if "self" not in path]
    found = [s for s in state if s.startswith("Name:\tVLLM") or "python" in s.splitlines()[0]]
    assert found, (server, state)
    for status in found:
        values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert values["Uid"].split() == [str(USER)] * 4
        assert {int(values[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {0}
        assert (values["NoNewPrivs"], values["Seccomp"]) == ("1", "2")
    for place in ("/x", "/opt/bringup/x", "/etc/x", "/opt/venv/x", "/run/secrets/api_key"):
        code, said = run("sh", "-c", f"echo x >{place}")
        assert code, place
        assert "Read-only file system" in said, said
    code, said = run("cat", "/sys/fs/cgroup/pids.max")
    assert code or 0 < int(said) <= 8192  # cgroup v1 has it elsewhere
    assert run("sh", "-c", "touch /tmp/x && touch /var/lib/bringup/run/x")[0] == 0  # what it does need
    assert run("stat", "-c", "%a %u", "/run/secrets/api_key")[1].split() == ["600", str(USER)]


# What is told


def output(*argv: str, env: dict[str, str] | None = None) -> bytes:
    return subprocess.run(argv, capture_output=True, check=True, cwd=ROOT, env=environment(env), timeout=120).stdout


def test_no_secret_is_told(given: Given, engine: docker.DockerClient, image: str) -> None:
    """Each canary in four encodings, in everything that the run has left or that the engine tells."""
    for way in (bearer(given.canaries["stranger"]), {"X-Api-Key": given.canaries["stranger"]}):
        ask(given, "POST", f"/v1/completions?api_key={given.canaries['query']}", way, b"{")
        ask(given, "GET", f"/{quote(given.canaries['query'], safe='')}", way)
    where = ("--project", PROJECT, "--image", image, "--flavour", "cpu", "--port", str(given.port))
    key = ("--api-key-file", str(given.keys))
    tell = {"BRINGUP_API_KEY_FILE": str(given.keys), "BRINGUP_IMAGE": image, "HF_TOKEN": given.canaries["hub-variable"]}
    again = bringup("collect", "--json", *where, *key, "--artifacts", str(given.directory / "again"), env=tell)
    crash = bringup("up", "-v", *where[2:], *key, "--project", f"{PROJECT}-crash", "--port", str(free_port()),
                    "--artifacts", str(given.directory / "crash"), "--", "--no-such-argument", env=tell)  # fmt: skip
    wrong = given.directory / "wrong"
    wrong.write_text(given.canaries["stranger"])
    refused = bringup("verify", *where, "--api-key-file", str(wrong))
    assert (again.code, crash.code != 0, refused.code) == (0, True, 7), again.err + crash.err + refused.err
    bundles = {
        str(path.relative_to(given.directory)): path.read_bytes()
        for kind in ("artifacts", "again", "crash")
        for path in (given.directory / kind).rglob("*")
        if path.is_file() and path.stat().st_size
    }
    assert {Path(name).name for name in bundles} >= {"record.json", "server.log", "server.jsonl", "report.html"}
    compose = ["docker", "compose", "-p", PROJECT, "-f", "compose.yaml", "-f", "compose.cpu.yaml", "config"]
    sinks = {
        **bundles,
        **{f"output of {n}": (r.out + r.err).encode()
           for n, r in {"up": given.result, "collect": again, "crash": crash, "verify": refused}.items()},
        "inspect": json.dumps(engine.api.inspect_container(given.container.id)).encode(),
        "image": json.dumps(engine.images.get(image).attrs).encode(),
        "history": output("docker", "history", "--no-trunc", image),
        "compose config": output(*compose, env=tell),
        "console": given.log().encode(),
        "bringup logs": bringup("logs", *where, *key).out.encode(),
        "processes": json.dumps(given.container.top(ps_args="-eo pid,args")).encode(),
        "report": bringup("report", str(next((given.directory / "again").glob("*/")))).out.encode(),
    }  # fmt: skip
    assert leaks(given.canaries, sinks) == []


def test_the_search_finds_what_is_there(given: Given) -> None:
    """In every encoding; else the test above could not fail."""
    for word, secret in given.canaries.items():
        for form, text in forms(secret).items():
            assert f"{word} ({form}) in a file" in leaks(given.canaries, {"a file": b"x" + text + b"y"})
