"""A lock is written whole or not at all, the same text for the same content, by one writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bringup import lock
from bringup.errors import Exit, UsageError
from bringup.lock import LOCK, LockedFile, LockedModel, changing, is_plain, read_lock, render, write_lock

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model(name: str = "m", **changes: Any) -> LockedModel:
    files = (LockedFile("b.json", 3, "b" * 64, "c" * 64), LockedFile("a.safetensors", 0, "a" * 64))
    return LockedModel(
        **({"name": name, "source": "hub", "license": "MIT", "files": files, "repo": "org/m", "revision": COMMIT,
            "config": {"vocab_size": 5, "architecture": "X", "tie_word_embeddings": False}} | changes)
    )  # fmt: skip


def leftovers(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name != "weights.lock")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.lock"
    write_lock({"m": model(), "local": model("local", source="local:models/x", repo="", revision="")}, path)
    found = read_lock(path)
    assert found["m"] == model(files=tuple(sorted(model().files, key=lambda f: f.path)))
    assert found["m"].config["tie_word_embeddings"] is False
    assert found["local"].repo == ""
    assert hash(found["m"]) == hash(read_lock(path)["m"])
    assert path.stat().st_mode & 0o777 == 0o644
    assert leftovers(tmp_path) == []


def test_the_same_content_is_the_same_text() -> None:
    one, other = model("one"), model("other")
    turned = model("one", files=model().files[::-1], config=dict(reversed(list(model().config.items()))))
    assert render({"one": one, "other": other}) == render({"other": other, "one": turned})


def test_the_shipped_lock_would_be_written_as_it_is() -> None:
    assert render(read_lock()) == LOCK.read_text("utf-8")


def test_a_lock_without_config_has_none(tmp_path: Path) -> None:
    assert "config" not in render({"m": model(config={})})
    write_lock({"m": model(config={})}, tmp_path / "weights.lock")
    assert read_lock(tmp_path / "weights.lock")["m"].config == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("config", []), ("config", "x"), ("config", {"a": None}), ("config", {"a": [1]}), ("config", {"a": {"b": 1}}),
     ("config", {"a": float("nan")}), ("config", {"a": float("inf")}), ("license", None), ("license", 5),
     ("repo", 5), ("repo", "a"), ("repo", "../a"), ("repo", "a/b/c"), ("repo", "a/b?x"), ("revision", "main"),
     ("revision", 5), ("source", 5)],
    ids=str,
)  # fmt: skip
def test_an_entry_that_is_none(tmp_path: Path, key: str, value: Any) -> None:
    raw = json.loads(render({"m": model()}))
    raw["models"]["m"][key] = value
    (tmp_path / "weights.lock").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="weights lock: "):
        read_lock(tmp_path / "weights.lock")


@pytest.mark.parametrize("path", ["/a", "..", "a/../b", "a\\b", ".", "", "./a", "a//b", "a/", "a\nb", "a\0", "\x1b[2J"])
def test_a_path_that_is_not_plain(path: str) -> None:
    assert not is_plain(path)


@pytest.mark.parametrize("path", ["a", "a/b.json", ".hidden", "a b/ünï.json", "a..b"])
def test_a_plain_path(path: str) -> None:
    assert is_plain(path)


def test_a_write_that_fails_leaves_the_old_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.lock"
    write_lock({"m": model()}, path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left") as caught:
        write_lock({}, path)
    assert caught.value.exit_code is Exit.USAGE
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == []


def test_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_lock({}, tmp_path / "none/weights.lock")
    with pytest.raises(UsageError, match="cannot be written"), changing(tmp_path / "none/weights.lock"):
        pytest.fail("there is nothing to change")


# ---- one writer at a time


def test_an_entry_is_added_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "weights.lock"
    path.write_bytes(LOCK.read_bytes())
    with changing(path) as models:
        models["m"] = model()
    found = read_lock(path)
    assert found.pop("m").repo == "org/m"
    assert render(found) == LOCK.read_text("utf-8")
    assert leftovers(tmp_path) == []


def test_a_lock_that_is_not_there_is_made(tmp_path: Path) -> None:
    with changing(tmp_path / "weights.lock") as models:
        assert models == {}
        models["m"] = model()
    assert read_lock(tmp_path / "weights.lock").keys() == {"m"}


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "weights.lock"
    write_lock({"m": model()}, path)
    before = path.stat().st_ino
    with changing(path) as models:
        models["m"] = model()
    assert path.stat().st_ino == before


def test_an_error_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.lock"
    write_lock({"m": model()}, path)
    before = path.read_bytes()

    def fail() -> None:
        with changing(path) as models:
            models.clear()
            raise UsageError("of the task")

    with pytest.raises(UsageError, match="of the task"):
        fail()
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == []


def test_a_broken_lock_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "weights.lock"
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot be read"), changing(path):
        pytest.fail("there is nothing to change")
    assert path.read_text() == "{"
    assert leftovers(tmp_path) == []


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.lock"
    errors: list[BaseException] = []

    def add(name: str) -> None:
        try:
            with changing(path) as models:
                models[name] = model(name)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=add, args=(f"m{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert read_lock(path).keys() == {f"m{i}" for i in range(12)}
    assert leftovers(tmp_path) == []


def test_a_writer_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BUSY", 0.1)
    mark = tmp_path / ".weights.lock.writing"
    with mark.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(UsageError) as caught, changing(tmp_path / "weights.lock"):
            pytest.fail("it is held")
        assert caught.value.id == "lock-busy"
        assert mark.exists(), "it is not ours to remove"


@pytest.mark.parametrize("successor", [False, True])
def test_a_mark_that_its_holder_removed_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successor: bool
) -> None:
    path, real, calls = tmp_path / "weights.lock", fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        calls.append(handle)
        if len(calls) == 1:  # between our open and our flock
            (tmp_path / ".weights.lock.writing").unlink()
            if successor:
                (tmp_path / ".weights.lock.writing").touch()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with changing(path) as models:
        models["m"] = model()
    assert len(calls) == 2
    assert leftovers(tmp_path) == []


def test_what_a_killed_writer_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".weights.lock.writing").touch()
    with changing(tmp_path / "weights.lock") as models:
        models["m"] = model()
    assert leftovers(tmp_path) == []


def test_a_link_in_the_place_of_the_mark_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".weights.lock.writing").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot be written"), changing(tmp_path / "weights.lock"):
        pytest.fail("a link")
    assert not (tmp_path / "elsewhere").exists()
