"""The launcher on the real vLLM: it serves what vLLM serves, says what it did, and copes when its standby is gone.

Three starts of half a minute: with everything on, with nothing, and with the standby killed while it waits.
`docker stop` of a server whose engine is a standby is in test_containers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker
import pytest
import requests

from bringup import catalog
from tests.integration.support import LABEL, MODEL, SESSION

pytestmark = pytest.mark.integration

START = 240  # s, the most that a start may take on a busy machine
LOG = "/var/lib/bringup/run/server.jsonl"
# The marks of a process, in order. The tokenizer's thread writes one more, whenever it is done.
API = ["api imports", "config made", "engine process asked", "engine ready"]
STANDBY = ["standby imports", "standby used"]
# Ends the standby as soon as there is one, and says so; run in the container, where its pid is known.
KILL = """
import os, signal, sys, time
end = time.monotonic() + 30
while time.monotonic() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            continue
        if int(pid) != os.getpid() and (b"bringup.inside.standby" in words or b"VLLM::standby" in words):
            os.kill(int(pid), signal.SIGKILL)
            sys.exit(0)
    time.sleep(0.02)
sys.exit(1)
"""


@dataclass
class Server:
    """A container of the image, its address, and what it answered when it was asked."""

    container: Any
    url: str
    answers: list[Any]

    def processes(self) -> dict[str, int]:
        """Pids on this host by command line."""
        rows = self.container.top(ps_args="-eo pid,args")["Processes"]
        return {args: int(pid) for pid, args in rows}

    def titled(self, title: str) -> list[int]:
        return [pid for args, pid in self.processes().items() if args.startswith(title)]

    def records(self) -> list[dict[str, Any]]:
        code, out = self.container.exec_run(["cat", LOG])
        assert code == 0, out
        return [json.loads(line) for line in out.splitlines()]

    def marks(self) -> dict[int, list[str]]:
        """The launcher's marks by process of the container, in the order of the file."""
        found: dict[int, list[str]] = {}
        for r in self.records():
            if r["msg"] == "reached %s":
                found.setdefault(r["pid"], []).append(r["args"][0])
        return found

    def exit_code(self) -> int:
        return int(self.container.wait(timeout=60)["StatusCode"])


def run(engine: docker.DockerClient, image: str, **environment: str) -> Server:
    container = engine.containers.run(
        image,
        detach=True,
        labels={LABEL: SESSION},
        environment={"BRINGUP_BIND": "127.0.0.1", **environment},
        ports={"8000/tcp": ("127.0.0.1", 0)},  # any free one
        shm_size="1g",
    )
    container.reload()
    port = container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"]
    return Server(container, f"http://127.0.0.1:{port}", [])


def serve(server: Server) -> None:
    """Wait until it answers, and ask."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        server.container.reload()
        assert server.container.status == "running", server.container.logs(tail=30).decode()
        try:
            if requests.get(f"{server.url}/health", timeout=2).status_code == 200:
                break
        except requests.RequestException:
            pass
        time.sleep(0.5)
    server.answers = [ask(server.url, canary.prompt) for canary in catalog.load()[MODEL].canaries[:4]]


def ask(url: str, prompt: str) -> Any:
    """Text, tokens and their log probabilities."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 3}
    answer = requests.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"], choice["finish_reason"], choice["logprobs"]


@pytest.fixture(scope="module")
def full(engine: docker.DockerClient, image: str) -> Iterator[Server]:
    """Everything on; the last test of this file ends it."""
    server = run(engine, image, BRINGUP_LAUNCH="all")
    try:
        serve(server)
        yield server
    finally:
        server.container.remove(force=True, v=True)


def test_the_engine_is_the_standby_and_every_mark_is_there_in_order(full: Server) -> None:
    marks = full.marks()
    entry, api, engine = (
        next(pid for pid, m in marks.items() if name in m) for name in ("entry", *API[:1], *STANDBY[:1])
    )
    assert set(marks) == {entry, api, engine}
    assert {"entry", "weights checked", "server spawned"} == set(marks[entry])
    assert marks[entry][0] == "entry"
    assert [m for m in marks[api] if m != "tokenizer"] == API
    assert "tokenizer" in marks[api]
    assert marks[engine] == STANDBY
    order = [r["args"][0] for r in full.records() if r["msg"] == "reached %s"]
    assert order.index("engine process asked") < order.index("standby used") < order.index("engine ready")
    # vLLM knows the same process as its engine.
    assert engine in {r["pid"] for r in full.records() if r["proc"] == "EngineCore" and r["logger"].startswith("vllm")}


def test_each_process_says_first_when_the_kernel_started_it(full: Server) -> None:
    records = full.records()
    born = {r["pid"]: r for r in records if r["msg"] == "process started at %.3f"}
    assert set(born) == set(full.marks())
    for pid, said in born.items():
        first = min(r["t"] for r in records if r["pid"] == pid)
        assert said["args"][0] <= said["t"] <= first + 0.001
    starts = [said["args"][0] for said in born.values()]
    assert starts == sorted(starts), "entry point, API server, standby"


def test_each_process_has_the_title_that_vllm_gives_it(full: Server) -> None:
    assert len(full.titled("VLLM::EngineCore")) == 1
    assert full.titled("VLLM::standby") == []
    assert len([args for args in full.processes() if " -m bringup.inside.serve" in args]) == 1


@pytest.fixture(scope="module")
def plain(engine: docker.DockerClient, image: str, full: Server) -> Iterator[Server]:
    """vLLM's own way."""
    server = run(engine, image, BRINGUP_LAUNCH="plain")
    try:
        serve(server)
        yield server
    finally:
        server.container.remove(force=True, v=True)


def test_plain_leaves_the_start_to_vllm(plain: Server) -> None:
    marks = plain.marks()
    assert list(marks.values()) == [["entry", "weights checked", "server spawned"]]
    assert plain.titled("VLLM::standby") == []


def test_the_answers_are_those_of_vllms_own_way(full: Server, plain: Server) -> None:
    assert full.answers == plain.answers
    assert all(text.strip() for text, *_ in full.answers)


@pytest.fixture(scope="module")
def gone(engine: docker.DockerClient, image: str) -> Iterator[Server]:
    """Its standby is killed before vLLM asks for an engine."""
    server = run(engine, image)
    try:
        code, out = server.container.exec_run(["python3", "-c", KILL])
        assert code == 0, f"no standby was seen: {out.decode()}"
        serve(server)
        yield server
    finally:
        server.container.remove(force=True, v=True)


def test_without_its_standby_it_serves_the_same(gone: Server, full: Server) -> None:
    marks = [m for of in gone.marks().values() for m in of]
    assert "engine process asked" in marks
    assert "standby used" not in marks
    assert len(gone.titled("VLLM::EngineCore")) == 1
    assert gone.answers == full.answers


def test_it_stops_when_asked(gone: Server) -> None:
    started = time.monotonic()
    gone.container.stop(timeout=30)
    gone.container.reload()
    state = gone.container.attrs["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert time.monotonic() - started < 30, "nobody waited for the kill"


def test_an_engine_killed_while_it_serves_ends_the_container(full: Server) -> None:
    """The last one: its answers are in hand by now."""
    code, out = full.container.exec_run(["python3", "-c", KILL.replace("VLLM::standby", "VLLM::EngineCore")])
    assert code == 0, out.decode()
    assert full.exit_code() == 6
    assert "vLLM died" in full.container.logs(tail=20).decode()
