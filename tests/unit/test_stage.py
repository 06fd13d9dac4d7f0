"""The program of the Dockerfile's weights stage, and what it leaves beside the weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from blake3 import blake3

from bringup.errors import Exit, TargetUnavailable
from bringup.lock import LockedModel, read_lock, write_lock
from bringup.weights import __main__ as program
from bringup.weights.fetch import How
from bringup.weights.progress import FileProgress, Progress, now_and_then
from bringup.weights.receipt import Receipt
from bringup.weights.verify import verify_dir
from tests.unit.models import FILES, HUB, MODEL, flip, put


def call(tmp_path: Path, action: str, *more: str, model: LockedModel = MODEL, name: str = "m") -> int:
    write_lock({"m": model}, tmp_path / "weights.lock")
    lock, out = str(tmp_path / "weights.lock"), str(tmp_path / "new/dir/out")
    given = ["--model", name, "--lock", lock, "--source", str(tmp_path / "source"), "--out", out]
    return program.main([action, *given, *more])


def test_it_stages_then_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "source/m")
    assert call(tmp_path, "stage") == 0
    assert sorted(p.name for p in (tmp_path / "new/dir").iterdir()) == ["out"]
    assert call(tmp_path, "verify", "--token-file", str(tmp_path / "none")) == 0
    err = capsys.readouterr().err
    assert "m: 4 files in" in err
    assert "4 by copy (0.0 MB)" in err
    assert f"4 files, {MODEL.size} bytes, all as locked ({MODEL.digest})" in err


def test_receipt_and_lock(tmp_path: Path) -> None:
    put(tmp_path / "source/m")
    receipt, lock = tmp_path / "receipt.json", tmp_path / "out.lock"
    assert call(tmp_path, "stage", "--receipt", str(receipt), "--lock-out", str(lock)) == 0
    raw = json.loads(receipt.read_text())
    assert [(f["path"], f["by"]) for f in raw["files"]] == [(path, "copy") for path in sorted(FILES)]
    assert (raw["model"], raw["digest"]) == ("m", MODEL.digest)
    made = read_lock(lock)
    assert list(made) == ["m"]
    assert {f.path: f.blake3 for f in made["m"].files} == {p: blake3(d).hexdigest() for p, d in FILES.items()}
    assert made["m"].digest == MODEL.digest
    verify_dir(made["m"], tmp_path / "new/dir/out")


def test_it_finds_a_changed_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "source/m")
    call(tmp_path, "stage")
    flip(tmp_path / "new/dir/out", 3)
    assert call(tmp_path, "verify") == Exit.WEIGHTS_DIFFER
    err = capsys.readouterr().err
    assert "sha256 of model.safetensors" in err
    assert "[weights-hash]\n  -> fetch the files again" in err


def test_it_refuses_an_unpinned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "stage", name="other") == Exit.USAGE
    assert "'other' is not pinned" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_receipt_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "source/m")
    assert call(tmp_path, "stage", "--receipt", str(tmp_path / "no/such/file")) == Exit.USAGE
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


class Fetch:
    """Stands for `fetch`: remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[LockedModel, Path, How]] = []

    def __call__(self, model: LockedModel, directory: Path, how: How, watch: object) -> Receipt:
        assert callable(watch)
        self.seen.append((model, directory, how))
        raise TargetUnavailable("no network", id="hub-unavailable")


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Fetch:
    fake = Fetch()
    monkeypatch.setattr(program, "fetch", fake)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return fake


def test_a_hub_model_is_fetched_with_hf_transfer_or_nothing(tmp_path: Path, fetch: Fetch) -> None:
    assert call(tmp_path, "stage", model=HUB) == Exit.TARGET_UNAVAILABLE
    model, directory, how = fetch.seen[0]
    assert (model.repo, model.digest, directory) == (HUB.repo, HUB.digest, tmp_path / "new/dir/out")
    assert how == How(endpoint="https://huggingface.co", transfer="hf_transfer", stall_timeout=60, timeout=7200)


def test_what_it_is_told(tmp_path: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    call(tmp_path, "stage", "--token-file", str(tmp_path / "token"), "--transfer", "auto", "--stall-timeout", "5",
         "--timeout", "50", model=HUB)  # fmt: skip
    how = fetch.seen[0][2]
    assert how == How(endpoint="https://mirror.example", token="s3cret", transfer="auto", stall_timeout=5, timeout=50)
    assert "s3cret" not in repr(how)
    assert "s3cret" not in os.environ.values()


@pytest.mark.parametrize("content", [b"two words", b"line\nline", b"\xff", "ä".encode()])
def test_a_token_that_is_none(tmp_path: Path, fetch: Fetch, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_bytes(content)
    assert call(tmp_path, "stage", "--token-file", str(tmp_path / "token"), model=HUB) == Exit.USAGE
    assert not fetch.seen
    assert content.decode("latin-1") not in capsys.readouterr().err


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines = now_and_then(program._say)
    shown = Progress(
        "m", "http", [FileProgress("a", 10**6, 10**6, "done"), FileProgress("b", 10**7, 10**6, "fetching")]
    )
    for now in (105.0, 110.0, 111.0, 120.0):  # noqa: B007 - the clock reads it
        lines(shown)
    assert capsys.readouterr().err.splitlines() == ["m: 1 of 2 files, 2 of 11 MB: b (fetching)"] * 2
