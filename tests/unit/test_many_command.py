"""`bringup verify URL URL`: what is refused before anyone is asked, the two outputs, the exit code."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup import address, many
from bringup.records import ProbeRecord, Status, Verdict
from tests.unit.test_cli import Invoke, invoke

__all__ = ["invoke"]
GOOD, BAD, ODD = "http://good:1", "http://bad:2", "http://odd:3"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes answer as they are called; which were asked."""
    seen: list[str] = []
    says = {GOOD: Status.PASS, BAD: Status.FAIL, ODD: Status.UNKNOWN}

    def verify(url: str, _s: Any, _n: Any, _a: Any, on_probe: Callable[[str], None]) -> many.Outcome:
        seen.append(url)
        on_probe("ready")
        status = says.get(url, Status.PASS)
        records = (ProbeRecord(name="ready", status=status, expected="a token", found="so it is"),)
        why = "" if status is Status.PASS else "ready: so it is"
        return many.Outcome(
            url=url, verdict=Verdict(status), started=1.7e9, seconds=0.5, model="m", why=why, records=records
        )

    monkeypatch.setattr(many, "verify", verify)
    monkeypatch.setattr(many, "processes_for", lambda _: 1)
    monkeypatch.setattr(address, "verify_address", lambda *_: pytest.fail("this is for one address"))
    return seen


@pytest.mark.parametrize(
    ("urls", "code", "verdict"),
    [((GOOD, "http://more:4"), 0, "pass"), ((GOOD, ODD), 9, "unknown"), ((ODD, BAD, GOOD), 7, "fail")],
)
def test_the_exit_code_of_the_worst(
    invoke: Invoke, asked: list[str], urls: tuple[str, ...], code: int, verdict: str
) -> None:
    got, out, err = invoke("verify", "--json", *urls)
    made = json.loads(out)
    assert (got, made["verdict"], sorted(asked)) == (code, verdict, sorted(urls))
    assert f"verdict: {verdict}" in err
    for node in made["nodes"]:
        assert json.loads(Path(node["bundle"], "record.json").read_text())["verdict"] == node["verdict"]
    kept = json.loads(Path(made["directory"], "summary.json").read_text())
    assert kept["counts"] == made["counts"]


def test_the_table_names_what_is_not_pass_first_and_not_everyone_who_passes(invoke: Invoke, asked: list[str]) -> None:
    urls = [GOOD, BAD, *(f"http://n{n}:1" for n in range(20))]
    code, out, err = invoke("verify", *urls)
    assert (code, out) == (7, "")
    rows = [line.split() for line in err.splitlines() if line.strip().startswith(("fail ", "pass "))]
    assert rows[0][:2] == ["fail", BAD]
    assert len(rows) == 12
    assert rows[-1] == ["pass", "and", "11", "more"]
    assert "22 nodes in" in err


def test_addresses_of_a_file_and_of_standard_input(
    invoke: Invoke, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nodes").write_text(f"{GOOD}  # one is enough\n")
    assert invoke("verify", "--from", "nodes")[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{ODD}\n".encode())))
    assert invoke("verify", "--from", "-", BAD)[0] == 7
    assert asked[0] == GOOD
    assert sorted(asked[1:]) == [BAD, ODD]


def test_artifacts_say_where(invoke: Invoke, asked: list[str], tmp_path: Path) -> None:
    made = json.loads(invoke("verify", "--json", "--artifacts", "there", GOOD, BAD)[1])
    assert {Path(n["bundle"]).parents[1] for n in made["nodes"]} == {tmp_path / "there"}


@pytest.mark.parametrize(
    "argv",
    [
        (GOOD, GOOD), (GOOD, "nonsense"), ("--from", "nowhere"), ("--from", "empty"), ("--from", "binary"),
        (GOOD, BAD, "--jobs", "0"), (GOOD, BAD, "--probe", "none"), (GOOD, BAD, "--api-key-file", "nowhere"),
        (GOOD, "http://user:secret-word@bad"),
    ],
)  # fmt: skip
def test_refused_before_anyone_is_asked(
    invoke: Invoke, asked: list[str], tmp_path: Path, argv: tuple[str, ...]
) -> None:
    (tmp_path / "empty").write_text("# nobody\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    code, _, err = invoke("verify", *argv)
    assert (code, asked) == (2, [])
    assert "secret-word" not in err
    assert not (tmp_path / "artifacts").exists()
