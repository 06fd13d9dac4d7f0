"""Many addresses: what is an address, that none hides another, and what all of them come to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup import artifacts, bundle, many
from bringup.console import Console
from bringup.console_nodes import line, shown
from bringup.edge import children, descriptors
from bringup.errors import EvidenceMissing, UsageError
from bringup.records import ProbeRecord, Status, Verdict
from bringup.settings import Settings

A, B, C = "http://10.0.0.1:8000", "http://10.0.0.2:8000", "https://c.example/base"


def outcome(url: str = A, verdict: Verdict = Verdict.PASS, seconds: float = 1.0, **more: Any) -> many.Outcome:
    return many.Outcome(url=url, verdict=verdict, started=1.7e9, seconds=seconds, **more)


def test_addresses_of_a_file() -> None:
    text = f"# the rack\n\n{A}\n  {B}/v1   # the new one\n{C}#x\n"
    assert many.addresses((), text.replace("#x", "")) == (A, B, C)
    assert many.addresses((C,), f"{A}\r\n") == (C, A)


@pytest.mark.parametrize(
    ("urls", "text", "said"),
    [
        ((A, f"{A}/"), "", "named twice"),
        ((A,), f"{A}/v1", "named twice"),
        ((A, "10.0.0.2:8000"), "", "no http"),
        ((), "ftp://10.0.0.1", "no http"),
        ((), "# nobody\n\n", "no address"),
        ((A,), f"{B} {C}", "no http"),
    ],
)
def test_what_is_no_list_of_addresses(urls: tuple[str, ...], text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("no http", "is not an http|two addresses")):
        many.addresses(urls, text)


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [("pass pass", "pass"), ("pass unknown", "unknown"), ("unknown fail pass", "fail"), ("fail", "fail")],
)
def test_the_worst_is_the_verdict_of_all(verdicts: str, worst: str) -> None:
    made = many.summary([outcome(str(n), Verdict(v)) for n, v in enumerate(verdicts.split())], 2.0, 8)
    assert made.verdict == worst
    assert sum(made.counts.values()) == len(verdicts.split())


def test_what_is_not_pass_stands_first_and_the_slowest_of_each() -> None:
    nodes = [
        outcome("a", seconds=1), outcome("b", seconds=9), outcome("c", Verdict.UNKNOWN), outcome("d", Verdict.FAIL),
        outcome("e", Verdict.FAIL, 5),
    ]  # fmt: skip
    made = many.summary(nodes, 2.0, 8)
    assert [n.url for n in made.nodes] == ["e", "d", "c", "b", "a"]
    assert [n.url for n in made.slowest] == ["b", "e", "d", "c", "a"]
    assert made.to_dict()["counts"] == {"pass": 2, "unknown": 1, "fail": 2}


def test_none_waits_for_another_and_none_hides_the_rest() -> None:
    release = threading.Event()
    told: list[tuple[str, str]] = []

    def ask(url: str, on_probe: Callable[[str], None]) -> many.Outcome:
        on_probe("ready")
        if url == "hangs":
            release.wait(60)
        if url == "breaks":
            raise ZeroDivisionError("a bug")
        if url == "missing":
            raise EvidenceMissing("nothing there")
        return outcome(url)

    found = many.sweep(["hangs", "breaks", "missing", "fine"], 4, ask, lambda *what: told.append(what))
    first = {o.url: o for o in (next(found), next(found), next(found))}
    assert set(first) == {"breaks", "missing", "fine"}
    assert (first["breaks"].verdict, first["missing"].why) == (Verdict.UNKNOWN, "nothing there")
    assert "ZeroDivisionError" in first["breaks"].why
    release.set()
    assert [o.url for o in found] == ["hangs"]
    assert sorted(told) == [(url, "ready") for url in ("breaks", "fine", "hangs", "missing")]


def test_no_more_at_once_than_asked_for() -> None:
    lock, now, most = threading.Lock(), 0, 0
    both = threading.Barrier(2)

    def ask(url: str, _: Callable[[str], None]) -> many.Outcome:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        both.wait(60)  # two there are, or this breaks
        with lock:
            now -= 1
        both.wait(60)
        return outcome(url)

    found = list(many.sweep([str(n) for n in range(8)], 2, ask, lambda *_: None))
    assert len(found) == 8
    assert {o.verdict for o in found} == {Verdict.PASS}
    assert most == 2


def test_jobs_are_bounded_by_nodes_and_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert many.at_once(256, 3) == 3
    monkeypatch.setattr(descriptors, "room", lambda wanted: min(wanted, 105))
    assert many.at_once(256, 200) == 10
    assert many.at_once(256, 200, processes=2) == 20
    monkeypatch.setattr(descriptors, "room", lambda _: 1)
    assert many.at_once(256, 200) == 1


def test_a_process_for_sixteen_nodes_and_not_more_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "cores", lambda: 4)
    assert [many.processes_for(n) for n in (1, 16, 31, 32, 200)] == [1, 1, 1, 2, 4]


def test_each_address_has_a_directory_of_its_own() -> None:
    urls = [
        A,
        "http://10.0.0.1-8000",
        "http://h/a-b",
        "http://h/a/b",
        "http://h/a_b",
        "http://[::1]:8000",
        "http://h/../x",
        "https://h",
        "http://h",
    ]
    names = [many.slug(url) for url in urls]
    assert len(set(names)) == len(urls)
    assert not any(set("/:") & set(name) or name.startswith(".") for name in names)


def probe(status: Status = Status.PASS, found: str = "it is there") -> ProbeRecord:
    return ProbeRecord(name="ready", status=status, expected="a token", found=found)


def test_the_bundle_of_an_address(tmp_path: Path) -> None:
    made = many.kept(tmp_path, outcome(records=(probe(),), sample="{}\n", model="m"), Settings(), ("ready",))
    read = bundle.read(Path(made.bundle or ""))
    assert read.faults == ()
    assert set(read.files) == {"record.json", "sample_response.json"}
    assert (read.record["verdict"], read.record["plan"]["base_url"]) == ("pass", A)
    assert read.record["probes"][0]["name"] == "ready"


def test_no_key_in_a_bundle(tmp_path: Path) -> None:
    settings = Settings(api_key="a-key-of-some-length")
    says = outcome(records=(probe(found="who is a-key-of-some-length?"),), sample="a-key-of-some-length")
    made = many.kept(tmp_path, says, settings, ("ready",))
    assert not any(b"a-key-of" in data for data in bundle.read(Path(made.bundle or "")).files.values())


def test_without_its_bundle_a_node_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise EvidenceMissing("no space left")

    monkeypatch.setattr(artifacts, "write", full)
    made = many.kept(tmp_path, outcome(), Settings(), ())
    assert (made.verdict, made.why, made.bundle) == (Verdict.UNKNOWN, "no space left", None)
    assert many.kept(tmp_path, outcome(verdict=Verdict.FAIL, why="dead"), Settings(), ()).why == "dead"


def test_without_a_terminal_there_is_a_line_for_each_node(capsys: pytest.CaptureFixture[str]) -> None:
    with shown(Console(), 2) as nodes:
        nodes.at(A, "ready")
        nodes.done(outcome(A))
        nodes.done(outcome(B, Verdict.FAIL, 2.5, why="ready: HTTP 500"))
    assert capsys.readouterr().err.splitlines() == [
        f"[1/2] pass  {A}  1.0 s", f"[2/2] fail  {B}  2.5 s: ready: HTTP 500",
    ]  # fmt: skip
    assert line(outcome(C)) == f"pass  {C}  1.0 s"


def test_the_living_table_fits_the_terminal() -> None:
    import io

    from rich.console import Console as Rich

    console = Console()
    page = io.StringIO()
    console._rich = Rich(file=page, force_terminal=True, width=100, height=12, color_system=None)
    with shown(console, 100) as nodes:
        for n in range(40):
            nodes.done(outcome(f"http://bad-{n}", Verdict.FAIL, why="w " * 100))
            nodes.at(f"http://running-{n}", "chat")
        shot = Rich(file=io.StringIO(), width=100, height=12)
        lines = shot.render_lines(nodes, pad=False)
    text = ["".join(s.text for s in row).rstrip() for row in lines]
    assert len(text) <= 12
    assert text[0] == "40 of 100 nodes done: 40 fail; 60 to go"
    assert any("running-0" in row for row in text)
    assert any("bad-39" in row for row in text)
