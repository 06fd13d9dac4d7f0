"""Caches of the image: put in place when they fit, left alone with a line when not."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from pathlib import Path

import pytest

from bringup.inside import profile, warm

FACTORS = {"vllm": "0.32.0", "gpu": "NVIDIA H200", "argument --max-model-len": "2048"}
FILES = {
    "inductor/ab/c.so": b"code", "torch_compile_cache/k/x": b"graph", "triton/K/k.cubin": b"kernel",
    "modelinfos/m.json": b"{}",
}  # fmt: skip
LOG = logging.getLogger("bringup.inside")


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level(logging.INFO)


def fill(cache: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(content)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """/opt/bringup/warm of an image."""
    fill(tmp_path / "built", {**FILES, "inductor/locks/a.lock": b"", "startup_plan/p.json": b"{}"})
    (tmp_path / "built/inductor/ab/c.so").chmod(0o755)
    made = tmp_path / "warm"
    made.mkdir()
    assert warm.pack(tmp_path / "built", made / warm.ARCHIVE) == len(FILES)
    digest = hashlib.sha256((made / warm.ARCHIVE).read_bytes()).hexdigest()
    (made / warm.FACTORS).write_text(json.dumps({"schema": 1, "factors": FACTORS, "sha256": digest}))
    return made


def held(cache: Path) -> dict[str, bytes]:
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def test_empty_caches_are_filled(image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    (cache / ".warm-killed/inductor").mkdir(parents=True)
    assert warm.seed(image, cache, FACTORS, LOG)
    assert held(cache) == FILES
    assert (cache / "inductor/ab/c.so").stat().st_mode & 0o100
    assert not list(cache.glob(".warm-*"))
    assert "the image's were put in place" in caplog.text


def test_the_same_caches_are_the_same_archive(image: Path, tmp_path: Path) -> None:
    fill(tmp_path / "again", dict(reversed(FILES.items())))
    (tmp_path / "again/inductor/ab/c.so").chmod(0o700)
    warm.pack(tmp_path / "again", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (image / warm.ARCHIVE).read_bytes()


def test_what_a_start_has_is_kept(image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "cache", {"triton/OWN/k": b"mine"})
    assert not warm.seed(image, tmp_path / "cache", FACTORS, LOG)
    assert held(tmp_path / "cache") == {"triton/OWN/k": b"mine"}
    assert "kept from earlier starts" in caplog.text


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"gpu": "NVIDIA L4"}, "gpu was NVIDIA H200, here NVIDIA L4"),
        ({"argument --dtype": "half"}, "argument --dtype was unset, here half"),
        ({"a": "1", "b": "2", "c": "3", "vllm": "0.33.0"}, "c was unset, here 3; and 1 more"),
    ],
)
def test_another_key_is_named(
    image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, str], told: str
) -> None:
    assert not warm.seed(image, tmp_path / "cache", FACTORS | changed, LOG)
    assert held(tmp_path) == held(tmp_path)
    assert not (tmp_path / "cache").exists()
    assert told in caplog.text


def archive_of(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish" * 1000, archive_of("../out"), archive_of("/out"), archive_of("inductor/l", tarfile.SYMTYPE)],
)
def test_a_broken_archive_is_left_alone(
    image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (image / warm.ARCHIVE).write_bytes(content)
    assert not warm.seed(image, tmp_path / "cache", FACTORS, LOG)
    assert "is not what was packed" in caplog.text
    made = json.loads((image / warm.FACTORS).read_text())
    made["sha256"] = hashlib.sha256(content).hexdigest()  # and one that was packed like that
    (image / warm.FACTORS).write_text(json.dumps(made))
    assert not warm.seed(image, tmp_path / "cache", FACTORS, LOG)
    assert held(tmp_path / "cache") == {}
    assert not (tmp_path / "out").exists()
    assert caplog.text.count("cannot be used") == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"factors": 5}', "no json"])
def test_factors_that_cannot_be_read(image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    (image / warm.FACTORS).write_text(text)
    assert not warm.seed(image, tmp_path / "cache", FACTORS, LOG)
    assert "cannot be used" in caplog.text


def test_an_archive_that_is_gone(image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (image / warm.ARCHIVE).unlink()
    assert not warm.seed(image, tmp_path / "cache", FACTORS, LOG)
    assert "cannot be used" in caplog.text


def test_factors_that_nobody_may_read(image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (image / warm.FACTORS).unlink()
    (image / warm.FACTORS).mkdir()  # root may read anything, but nobody reads a directory
    assert not warm.seed(image, tmp_path / "cache", FACTORS, LOG)
    assert "the image's cannot be used" in caplog.text


def test_an_image_without_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not warm.seed(tmp_path, tmp_path / "cache", FACTORS, LOG)
    assert caplog.text == ""


# ---- before a start


def test_a_seeded_start_knows_what_its_caches_were_made_with(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "factors", lambda *_: dict(FACTORS))
    run = tmp_path / "state/run"
    run.mkdir(parents=True)
    warm.before_start((), {}, tmp_path / "state", LOG, image)
    before = json.loads((run / profile.BEFORE).read_text())
    assert before["factors"] == FACTORS
    assert before["entries"]["inductor"] == {"inductor/ab": 4}


def test_what_cannot_be_written_down_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(profile, "factors", lambda *_: dict(FACTORS))
    warm.before_start((), {}, tmp_path / "nowhere", LOG, tmp_path)
    assert "a miss cannot be explained" in caplog.text


def test_packing_tells_what_the_image_is_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"BRINGUP_STATE_DIR": str(tmp_path)}
    assert warm.main(["pack"], environ) == 1
    monkeypatch.setattr(profile, "factors", lambda *_: dict(FACTORS))
    (tmp_path / "run").mkdir()
    fill(tmp_path / "cache", FILES)
    warm.before_start((), {}, tmp_path, LOG, tmp_path)
    capsys.readouterr()
    assert warm.main(["pack"], environ) == 0
    told = json.loads(capsys.readouterr().out)
    archive = Path(told["archive"])
    assert (told["factors"], told["files"], told["bytes"]) == (FACTORS, len(FILES), archive.stat().st_size)
    assert told["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert warm.main([], environ) == 2
