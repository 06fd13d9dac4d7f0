"""A bundle is read whole, and whatever disagrees with its sums is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bringup import bundle
from bringup.artifacts import write
from bringup.errors import UsageError


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "b", {"record.json": '{"schema": 1}\n', "server.log": "hello\n"}, [])


def test_a_bundle_as_it_was_written(made: Path) -> None:
    read = bundle.read(made)
    assert read.record == {"schema": 1}
    assert read.text("server.log") == "hello\n"
    assert read.json("record.json") == {"schema": 1}
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
