"""A bundle is read whole, and whatever disagrees with its sums is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bringup import bundle, signature
from bringup.artifacts import write
from bringup.errors import BundleDiffers, UsageError

RECORD = (Path(__file__).resolve().parents[1] / "data/records/v1-up.json").read_text("utf-8")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "b", {"record.json": RECORD, "server.log": "hello\n"}, [])


def test_a_bundle_as_it_was_written(made: Path) -> None:
    read = bundle.read(made)
    assert read.record == json.loads(RECORD)
    assert read.text("server.log") == "hello\n"
    assert read.json("record.json") == read.record
    assert read.faults == ()
    assert bundle.read(made / "record.json") == read


def test_what_is_not_there_or_no_json(made: Path) -> None:
    read = bundle.read(made)
    assert read.text("other") is None
    assert read.json("other") is None
    assert read.json("server.log") is None


def test_each_disagreement_is_named(made: Path) -> None:
    (made / "server.log").write_text("hullo\n")
    (made / "more.txt").write_text("x")
    assert bundle.read(made).faults == ("more.txt is not in SHA256SUMS", "server.log differs from its sum")
    (made / "server.log").unlink()
    assert "server.log is missing" in bundle.read(made).faults
    (made / "SHA256SUMS").unlink()
    assert bundle.read(made).faults == ("SHA256SUMS is missing",)


def test_what_is_no_regular_file_is_named(made: Path, tmp_path: Path) -> None:
    (made / "deep").mkdir()
    (made / "server.log").rename(tmp_path / "server.log")
    (made / "server.log").symlink_to(tmp_path / "server.log")
    assert bundle.read(made).faults == ("deep is no regular file", "server.log is no regular file")


def test_sums_that_are_none_are_named(made: Path) -> None:
    sums = (made / "SHA256SUMS").read_text()
    for extra, line in (("x\n", 1), ("\n", 1), (f"{'0' * 64}  server.log\n", 3), (f"{'0' * 63}  other\n", 1)):
        (made / "SHA256SUMS").write_text(extra + sums)
        said = [f for f in bundle.read(made).faults if f.endswith("of SHA256SUMS is no sum of another file")]
        assert said == [f"line {line} of SHA256SUMS is no sum of another file"]


# ---- verified


def test_a_verified_bundle_says_what_was_looked_at(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        bundle.verify(made, None) == "2 files are as SHA256SUMS says; it has no signature; who wrote it was not checked"
    )
    (made / "SHA256SUMS.sig").write_text("x")
    assert bundle.verify(made, None) == "2 files are as SHA256SUMS says; its signature was not checked"
    monkeypatch.setattr(signature, "check", lambda at, file: f"{at.name} {file}")
    assert bundle.verify(made / "record.json", Path("f")) == "2 files are as SHA256SUMS says, signed by b f"


def test_each_file_that_differs_is_in_the_error(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "check", lambda *_: "somebody")
    (made / "server.log").write_text("hullo\n")
    (made / "record.json").unlink()
    (made / "more").touch()
    with pytest.raises(BundleDiffers) as e:
        bundle.verify(made, Path("f"))
    for words in ("server.log differs from its sum", "record.json is missing", "more is not in SHA256SUMS"):
        assert words in e.value.message


def test_a_record_that_is_no_json_any_more_differs(made: Path) -> None:
    (made / "record.json").write_text("{")
    with pytest.raises(BundleDiffers, match=r"record\.json differs"):
        bundle.verify(made, None)


def test_nothing_to_verify(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").touch()
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="is no bundle"):
            bundle.verify(path, None)


# ---- not a bundle


@pytest.mark.parametrize(("text", "said"), [(None, "no record.json"), ("{", "Expecting"), ("[]", "holds no object")])
def test_no_bundle(made: Path, text: str | None, said: str) -> None:
    (made / "record.json").unlink()
    if text is not None:
        (made / "record.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        bundle.read(made)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no bundle"):
        bundle.read(tmp_path / "none")
