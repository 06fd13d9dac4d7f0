"""Forty servers at once: some dead, some hung, some lying; each has its verdict, and none keeps the others waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from bringup import bundle, many
from bringup.records import Verdict
from tests.integration.support import Child, Result, bringup, free_port
from tests.stub.deep_lies import LIARS
from tests.stub.server import Sampled, serving

DEADLINE = 8.0  # seconds; of one probe, on a machine that serves all of them too
HUNG = ("health hangs", "healthy but hung", "models hang", "chats hang", "drips")
LYING = ("degenerate", "error with 200", "no usage in chats", "login page", "answers as another model", "canned text")
HONEST = 24
KEY = "the-key-of-all-of-them"


@pytest.fixture(scope="module")
def rack() -> Iterator[dict[str, str]]:
    """What each address is: pass, or why it must not."""
    with ExitStack() as stack:
        nodes = {stack.enter_context(serving(Sampled(key=KEY))): "pass" for _ in range(HONEST)}
        for name in (*HUNG, *LYING):
            nodes[stack.enter_context(serving(Sampled([LIARS[name].tell], KEY)))] = name
        for _ in range(3):
            nodes[f"http://127.0.0.1:{free_port()}"] = "dead"
        nodes["http://no-such-host.invalid:8000"] = "dead"
        for _ in range(1):  # takes connections, and never says a word
            mute = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            nodes[f"http://127.0.0.1:{mute.getsockname()[1]}"] = "mute"
        yield nodes


@pytest.fixture(scope="module")
def swept(rack: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    directory = tmp_path_factory.mktemp("rack")
    (directory / "nodes").write_text("\n".join(f"{url}  # {what}" for url, what in rack.items()))
    return bringup(
        "verify", "--json", "--suite", "smoke", "--request-timeout", f"{DEADLINE:g}s", "--artifacts", str(directory),
        "--from", str(directory / "nodes"), env={"BRINGUP_API_KEY": KEY},
    )  # fmt: skip


def test_every_node_has_its_own_verdict(rack: dict[str, str], swept: Result) -> None:
    assert swept.code == 7, swept.err
    assert len(rack) == 40
    found = {n["url"]: n for n in swept.json()["nodes"]}
    assert found.keys() == rack.keys()
    wrong = {
        rack[u]: (n["verdict"], n["why"]) for u, n in found.items() if (n["verdict"] == "pass") != (rack[u] == "pass")
    }
    assert not wrong
    assert swept.json()["counts"] == {"pass": HONEST, "unknown": 0, "fail": 40 - HONEST}
    assert [n["verdict"] for n in swept.json()["nodes"]] == ["fail"] * (40 - HONEST) + ["pass"] * HONEST
    for url, what in rack.items():
        if what in LIARS:
            assert found[url]["why"].partition(":")[0] in ("reachable", *LIARS[what].probes), found[url]["why"]


def test_none_kept_the_others_waiting(swept: Result) -> None:
    """A hung node has its verdict a deadline after it hung; all of them together take no more than one of them."""
    assert max(n["seconds"] for n in swept.json()["nodes"]) < 3 * DEADLINE
    assert swept.json()["seconds"] < 4 * DEADLINE


def test_each_has_its_bundle_and_no_key_is_in_any(swept: Result) -> None:
    for node in swept.json()["nodes"]:
        kept = bundle.read(Path(node["bundle"]))
        assert kept.faults == ()
        assert kept.record["verdict"] == node["verdict"]
        assert ("sample_response.json" in kept.files) == (node["verdict"] == "pass")
        assert not any(KEY.encode() in data for data in kept.files.values())
    assert KEY not in swept.out + swept.err


def test_each_is_told_when_it_is_done(rack: dict[str, str], swept: Result) -> None:
    told = [line for line in swept.err.splitlines() if line.startswith("[")]
    assert len(told) == 40
    assert all(any(url in line for line in told) for url in rack)


def test_its_bundles_are_nodes_to_compare(swept: Result) -> None:
    done = bringup("compare", "--json", swept.json()["directory"])
    assert done.code == 1, done.err
    assert len([n for n in done.json()["nodes"] if n["worse"]]) == 40 - HONEST


def test_interrupted_it_ends_at_once_and_leaves_no_half_bundle(tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(Sampled([LIARS["models hang"].tell]))) for _ in range(34)]
        urls += [stack.enter_context(serving(Sampled()))]
        argv = ("verify", "--suite", "smoke", "--artifacts", str(tmp_path / "a"), *urls)
        with Child(*argv, out=tmp_path / "out") as child:
            child.until(r"^\[1/35\] pass")
            child.signal(signal.SIGINT)
            done = child.end()
    assert done.code == 130
    left = sorted(p.name for p in (tmp_path / "a").glob("*/*"))
    assert len(left) == 1
    record = json.loads(next((tmp_path / "a").glob("*/*/record.json")).read_text())
    assert record["verdict"] == "pass"


def test_a_process_that_dies_takes_only_its_own_nodes_with_it() -> None:
    told: list[tuple[str, str]] = []

    def ask(url: str, on_probe: Callable[[str], None]) -> many.Outcome:
        on_probe("ready")
        if url == "deadly":
            os._exit(9)
        return many.Outcome(url=url, verdict=Verdict.PASS, started=0.0, seconds=0.0)

    urls = ["deadly", "other share", "same share", "other share too"]  # dealt out in turns, one at a time
    found = {o.url: o for o in many.sweep(urls, 2, ask, lambda *what: told.append(what), processes=2)}
    assert found.keys() == set(urls)
    assert {url for url, o in found.items() if o.verdict is Verdict.PASS} == {"other share", "other share too"}
    assert found["deadly"].why == found["same share"].why == "the process that asked it died"
    assert ("deadly", "ready") in told
