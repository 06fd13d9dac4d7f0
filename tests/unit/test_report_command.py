"""`bringup report`: what it writes where, what it refuses, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bringup.errors import Exit
from tests.unit import bundles
from tests.unit.test_cli import Invoke, invoke

__all__ = ["invoke"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return bundles.written(tmp_path / "kept" / "b", bundles.on_a_gpu())


def test_without_options_the_summary_is_on_standard_output(invoke: Invoke, made: Path) -> None:
    code, out, err = invoke("report", str(made))
    assert code == Exit.PASS
    assert out.startswith("## ✅ pass: tiny-qwen2 on a GPU")
    assert err == ""


def test_every_rendering_is_written_where_it_was_asked_for(invoke: Invoke, made: Path, tmp_path: Path) -> None:
    at = tmp_path / "new"
    code, out, _ = invoke(
        "report", str(made / "record.json"), "--html", f"{at}/r.html", "--markdown", f"{at}/r.md",
        "--junit", f"{at}/r.xml", "--png", f"{at}/plots", "--json",
    )  # fmt: skip
    told = json.loads(out)
    names = ["r.html", "r.md", "r.xml", "plots/waterfall.png", "plots/memory.png", "plots/tokens.png"]
    assert (code, told["written"]) == (Exit.PASS, [str(at / n) for n in names])
    assert (told["verdict"], told["faults"], told["verified"]) == ("pass", [], "")
    assert (at / "r.html").read_text("utf-8").startswith("<!doctype html>")
    assert (at / "r.xml").read_text("utf-8").startswith("<?xml")
    assert (at / "plots" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_dash_is_standard_output(invoke: Invoke, made: Path) -> None:
    _, out, _ = invoke("report", str(made), "--junit", "-")
    assert out.startswith("<?xml")
    assert "</testsuites>" in out
    assert "## " not in out


def test_a_failed_run_is_rendered_all_the_same(invoke: Invoke, tmp_path: Path) -> None:
    failed = bundles.written(tmp_path / "f", bundles.changed(bundles.on_a_gpu(), verdict="fail", error="it died"))
    code, out, _ = invoke("report", str(failed))
    assert code == Exit.PASS
    assert out.startswith("## ❌ fail")
    assert "it died" in out


def test_nothing_is_written_into_a_bundle(invoke: Invoke, made: Path) -> None:
    for option, file in (("--html", "r.html"), ("--png", "plots")):
        code, _, err = invoke("report", str(made), option, str(made / file))
        assert code == Exit.USAGE
        assert "SHA256SUMS would not hold" in err
    assert not list(made.glob("*.html"))
    assert not (made / "plots").exists()


def test_a_changed_bundle_is_told_and_with_verify_refused(invoke: Invoke, made: Path, tmp_path: Path) -> None:
    (made / "server.log").write_text("changed\n")
    code, out, err = invoke("report", str(made))
    assert code == Exit.PASS
    assert "Not as it was written" in out
    assert "server.log differs from its sum" in err
    code, _, err = invoke("report", str(made), "--verify", "--html", str(tmp_path / "r.html"))
    assert code == Exit.BUNDLE_DIFFERS
    assert "server.log differs from its sum" in err
    assert not (tmp_path / "r.html").exists()


def test_what_verify_says_is_in_the_rendering(invoke: Invoke, made: Path) -> None:
    code, out, err = invoke("report", str(made), "--verify")
    assert code == Exit.PASS
    assert "files are as SHA256SUMS says" in err
    assert "it has no signature" in out


def test_signers_without_verify_are_refused(invoke: Invoke, made: Path) -> None:
    code, _, err = invoke("report", str(made), "--allowed-signers", str(made / "record.json"))
    assert code == Exit.USAGE
    assert "give --verify" in err


def test_a_job_at_github(invoke: Invoke, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code, out, _ = invoke("report", str(made), "--github")
    assert code == Exit.PASS
    assert out.splitlines() == [
        "::warning title=bringup%3A check check-warn::found 13 GiB free; expected 16 GiB free; to do: end the other one"
    ]
    assert summary.read_text("utf-8").startswith("before\n## ✅ pass")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "such"))
    code, _, err = invoke("report", str(made), "--github")
    assert code == Exit.USAGE
    assert "GITHUB_STEP_SUMMARY" in err


def test_no_bundle_and_no_place_to_write(invoke: Invoke, made: Path, tmp_path: Path) -> None:
    code, _, err = invoke("report", str(tmp_path / "none"))
    assert code == Exit.USAGE
    assert "is no bundle" in err
    (tmp_path / "file").write_text("x")
    code, _, err = invoke("report", str(made), "--html", str(tmp_path / "file" / "r.html"))
    assert code == Exit.USAGE
    assert "cannot be written" in err
