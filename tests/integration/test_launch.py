"""The launcher on the real vLLM: it serves what vLLM serves, says what it did, and copes when its standby is gone.

Three starts of half a minute: with everything on, with nothing, and with the standby killed while it waits.
`docker stop` of a server whose engine is a standby is in test_containers.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from bringup import catalog
from bringup.edge.docker import Engine
from bringup.testing import VLLMContainer
from tests.integration.support import LABEL, MODEL, SESSION, execute
from tests.machine import kernel

pytestmark = pytest.mark.integration

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

# Whether the image's pack is used, who answers transformers' question about its models, and the answer.
SCAN = """
import sys
from bringup.inside import pack
used = pack.install() is not None if "pack" in sys.argv else False
import transformers.models
from transformers.utils import import_utils
scan = getattr(import_utils, pack.SCAN)
found = scan(transformers.models.__spec__.origin)
def in_order(x):
    if isinstance(x, dict):
        x = x.items()
    return x if isinstance(x, str) else sorted(map(in_order, x), key=repr)
print(used, scan.__module__, len(found), in_order(found))
"""


class Server(VLLMContainer):
    """A container of the image, and what it answered when it was asked."""

    answers: tuple[Any, ...] = ()

    @property
    def raw(self) -> Any:
        return self.get_wrapped_container()

    def processes(self) -> dict[str, int]:
        """Pids on this host by command line."""
        rows = self.raw.top(ps_args="-eo pid,args")["Processes"]
        return {args: int(pid) for pid, args in rows}

    def titled(self, title: str) -> list[int]:
        return [pid for args, pid in self.processes().items() if args.startswith(title)]

    def records(self) -> list[dict[str, Any]]:
        out = Engine().copy_out(self.raw.id, LOG)
        return [json.loads(line) for line in out.splitlines()]

    def marks(self) -> dict[int, list[str]]:
        """The launcher's marks by process of the container, in the order of the file."""
        found: dict[int, list[str]] = {}
        for r in self.records():
            if r["msg"] == "reached %s":
                found.setdefault(r["pid"], []).append(r["args"][0])
        return found

    def exit_code(self) -> int:
        return int(self.raw.wait(timeout=60)["StatusCode"])


class WithoutStandby(Server):
    """Its standby is killed before vLLM asks for an engine."""

    def _wait(self) -> None:
        done = execute(self.raw, "python3", "-c", KILL)
        assert done.code == 0, f"no standby was seen: {done.err}"
        super()._wait()


def serving(server: Server, launch: str = "") -> Iterator[Server]:
    """Start it, and ask."""
    if launch:
        server.with_env("BRINGUP_LAUNCH", launch)
    with server.with_kwargs(labels={LABEL: SESSION}):
        server.answers = tuple(ask(server, canary.prompt) for canary in catalog.load()[MODEL].canaries[:4])
        yield server


def ask(server: Server, prompt: str) -> Any:
    """Text, tokens and their log probabilities."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 3}
    key = {"Authorization": f"Bearer {server.api_key}"}
    answer = requests.post(f"{server.openai_url}/completions", json=body, headers=key, timeout=60)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"], choice["finish_reason"], choice["logprobs"]


@pytest.fixture(scope="module")
def full(image: str) -> Iterator[Server]:
    """Everything on; the last test of this file ends it."""
    yield from serving(Server(image), "all")


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


def test_the_pack_tells_what_transformers_would_find_itself(full: Server) -> None:
    packed, searched = (execute(full.raw, "/opt/venv/bin/python", "-c", SCAN, word) for word in ("pack", "search"))
    assert (packed.code, searched.code) == (0, 0), packed.err + searched.err
    used, who, count, found = packed.out.split(" ", 3)
    assert (used, who) == ("True", "bringup.inside.pack")
    assert int(count) > 100
    assert searched.out.split(" ", 3) == ["False", "transformers.utils.import_utils", count, found]


def in_large_pages(server: Server, pids: list[int]) -> list[int]:
    """KiB of these processes of the container that are in pages of 2 MiB."""
    done = execute(server.raw, "grep", "-H", "AnonHugePages", *(f"/proc/{pid}/smaps_rollup" for pid in pids))
    assert done.code == 0, done.err
    return [int(line.split()[1]) for line in done.out.splitlines()]


def test_what_serves_is_in_large_pages_after_a_while(full: Server) -> None:
    processes = [pid for pid, marks in full.marks().items() if "entry" not in marks]
    told: dict[int, str] = {}
    end = time.monotonic() + 60  # it begins 5 s after ready
    while len(told) < 2 and time.monotonic() < end:
        time.sleep(0.5)
        told = {r["pid"]: r["args"][0] for r in full.records() if str(r["args"]).startswith("['hugepages: ")}
    assert set(told) == set(processes)
    for pid, kib in zip(processes, in_large_pages(full, processes), strict=True):
        done, of = (int(n) for n in re.findall(r"\d+", told[pid])[:2])
        assert 0 <= done <= of
        assert kib >= 0.9 * done * 2048, "they stay"
        if kernel() >= (6, 1):
            assert 100 < of < 1.2 * done, told


@pytest.fixture(scope="module")
def plain(image: str, full: Server) -> Iterator[Server]:
    """vLLM's own way."""
    yield from serving(Server(image), "plain")


def test_plain_leaves_the_start_to_vllm(plain: Server) -> None:
    marks = plain.marks()
    assert list(marks.values()) == [["entry", "weights checked", "server spawned"]]
    assert not any("hugepages" in str(r["args"]) for r in plain.records())
    assert plain.titled("VLLM::standby") == []


def test_the_answers_are_those_of_vllms_own_way(full: Server, plain: Server) -> None:
    assert full.answers == plain.answers
    assert all(text.strip() for text, *_ in full.answers)


@pytest.fixture(scope="module")
def gone(image: str) -> Iterator[Server]:
    # Something that is on sys.path here and was not when the image was built.
    yield from serving(WithoutStandby(image).with_env("PYTHONPATH", "/srv"))


def test_a_pack_that_is_not_used_is_told(gone: Server, full: Server) -> None:
    told = {s: [r["args"] for r in s.records() if r["msg"] == "%s left out: %s"] for s in (full, gone)}
    assert told[full] == []
    assert [part for part, _ in told[gone]] == ["import pack", "standby"]
    assert b"bringup: import pack left out: /opt/bringup/imports.pack is damaged, or was made" in gone.raw.logs()


def test_without_its_standby_it_serves_the_same(gone: Server, full: Server) -> None:
    marks = [m for of in gone.marks().values() for m in of]
    assert "engine process asked" in marks
    assert "standby used" not in marks
    assert len(gone.titled("VLLM::EngineCore")) == 1
    assert gone.answers == full.answers


def test_it_stops_when_asked(gone: Server) -> None:
    started = time.monotonic()
    gone.raw.stop(timeout=30)
    gone.raw.reload()
    state = gone.raw.attrs["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert time.monotonic() - started < 30, "nobody waited for the kill"


def test_an_engine_killed_while_it_serves_ends_the_container(full: Server) -> None:
    """The last one: its answers are in hand by now."""
    done = execute(full.raw, "python3", "-c", KILL.replace("VLLM::standby", "VLLM::EngineCore"))
    assert done.code == 0, done.err
    assert full.exit_code() == 6
    assert "vLLM died" in full.raw.logs(tail=20).decode()
