"""`bringup weights fetch|verify`: settings in, one call, a summary or JSON out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bringup.commands import weights
from bringup.console import Console
from bringup.errors import UsageError, WeightsDiffer
from bringup.lock import write_lock
from bringup.targets import compose
from bringup.weights import fetch as fetching
from bringup.weights.fetch import How
from bringup.weights.progress import FileProgress, Progress
from bringup.weights.receipt import Carried, Receipt
from tests.unit.models import HUB, MODEL, flip, put

RECEIPT = Receipt(
    model="h", repo="org/m", revision="c", digest="d", endpoint="https://hub.example", transfer="auto", started="now",
    seconds=2.0, files=(Carried(path="a", size=10**7, sha256="s", by="hf_transfer", seconds=1.0),), versions={},
)  # fmt: skip


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "BRINGUP_HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compose, "project_root", lambda: tmp_path / "root")
    write_lock({"m": MODEL, "h": HUB}, tmp_path / "weights.lock")
    return tmp_path / "weights.lock"


def call(lock: Path, *argv: str) -> Result:
    """Run it; an error of ours is raised."""
    result = CliRunner().invoke(weights.weights, [*argv, "--lock", str(lock)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result


def test_a_local_model_comes_from_the_repository(lock: Path) -> None:
    put(lock.parent / "root/models/m")
    result = call(lock, "fetch", "--model", "m", "--receipt", "r.json")
    assert result.return_value == 0
    assert "weights/m: all as locked" in result.stderr
    assert json.loads(Path("r.json").read_text())["transfer"] == "copy"
    assert call(lock, "verify", "weights/m", "--model", "m").return_value == 0
    flip(Path("weights/m"), 3)
    with pytest.raises(WeightsDiffer):
        call(lock, "verify", "weights/m", "--model", "m")


def test_verify_as_json(lock: Path) -> None:
    put(lock.parent / "d")
    found = json.loads(call(lock, "verify", "d", "--model", "m", "--json").stdout)
    assert (found["files"], found["bytes"], found["digest"]) == (4, MODEL.size, MODEL.digest)


def test_a_hub_model_is_fetched_as_told(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fetch(model: Any, directory: Path, how: How, watch: Any) -> Receipt:
        watch(Progress("h", "auto"))
        seen.append((model.repo, directory, how))
        return RECEIPT

    monkeypatch.setattr(fetching, "fetch", fetch)
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    given = ["--hf-endpoint", "https://hub.example/", "--transfer", "auto", "--stall-timeout", "5"]
    result = call(lock, "fetch", "--model", "h", "--to", "x", *given, "--fetch-timeout", "1m", "--json")
    how = How(endpoint="https://hub.example", token="s3cret", transfer="auto", stall_timeout=5, timeout=60)
    assert seen == [("org/m", Path("x"), how)]
    assert json.loads(result.stdout)["files"][0]["rate"] == 10.0
    assert "h: 1 files in 2.0 s, 5.0 MB/s: 1 by hf_transfer (10.0 MB)" in result.stderr
    assert "s3cret" not in result.output


def test_a_model_that_is_not_pinned(lock: Path) -> None:
    with pytest.raises(UsageError, match="not pinned") as caught:
        call(lock, "fetch", "--model", "other")
    assert caught.value.hint == "bringup lock other"


def test_a_receipt_that_has_no_place_is_refused_before_the_fetch(lock: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        call(lock, "fetch", "--model", "m", "--receipt", "no/r.json")
    assert not Path("weights").exists()


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console as Rich

    console = Console()
    console._rich = Rich(stderr=True, force_terminal=True, width=150)
    files = [FileProgress("a", 100, 100, "done"), FileProgress("b", 100, 50, "fetching"), FileProgress("c", 100)]
    with console.transfer("fetching m") as show:
        show(Progress("m", "http", files))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "fetching m" in text
    assert re.search(r"all files .*150/300 bytes", text)
    assert re.search(r"\bb .*50/100 bytes.*fetching", text)


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Console().transfer("fetching m") as show:
        for now in (1.0, 10.0, 11.0, 20.0):  # noqa: B007 - the clock reads it
            show(Progress("m", "http", [FileProgress("b", 10**6, 5 * 10**5, "fetching")]))
    assert capsys.readouterr().err.splitlines() == ["fetching m"] + ["m: 0 of 1 files, 0 of 1 MB: b (fetching)"] * 2
