"""The weights lock refuses what is unsafe or incomplete, and its digest says what a tree is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import UsageError
from bringup.lock import LockedFile, read_lock
from tests.unit.models import COMMIT, FILES, MODEL, locked


def entry(**changes: Any) -> dict[str, Any]:
    """A good entry of the lock, with some keys changed; `file` changes keys of its one file."""
    file = {"path": "model.safetensors", "size": 3, "sha256": "a" * 64} | changes.pop("file", {})
    return {"source": "hub", "repo": "org/m", "revision": COMMIT, "license": "MIT", "files": [file]} | changes


def write_lock(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "weights.lock"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lock_of(tmp_path: Path, raw: Any, name: str = "m") -> Path:
    return write_lock(tmp_path, {"schema": 1, "models": {name: raw}})


def test_a_good_lock(tmp_path: Path) -> None:
    model = read_lock(lock_of(tmp_path, entry(), "qwen2.5-1.5b-instruct"))["qwen2.5-1.5b-instruct"]
    assert model.files == (LockedFile("model.safetensors", 3, "a" * 64),)
    assert (model.repo, model.revision, model.license, model.size) == ("org/m", COMMIT, "MIT", 3)


def test_a_local_model_needs_no_commit(tmp_path: Path) -> None:
    raw = entry(source="local:models/m")
    del raw["repo"], raw["revision"]
    assert read_lock(lock_of(tmp_path, raw))["m"].revision == ""


@pytest.mark.parametrize(
    "path",
    [
        "../model.safetensors", "a/../../b.json", "a/../b.json", "..", "/etc/passwd.json", "//x.json", "./a.json",
        "a//b.json", "a/./b.json", "a/", "", ".",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_directory(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match=r"leaves the model's directory"):
        read_lock(lock_of(tmp_path, entry(file={"path": path})))


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "x.pkl", "x.pickle", "modeling_x.py", "a.npz",
        "model.gguf", "model.safetensors.bin", "safetensors", ".json", "x.JSON", "lib.so", "run.sh",
    ],
)  # fmt: skip
def test_a_file_that_may_carry_code(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="not safetensors, JSON or plain text"):
        read_lock(lock_of(tmp_path, entry(file={"path": path})))


@pytest.mark.parametrize("path", ["a.safetensors", "a.json", "merges.txt", "chat_template.jinja", "d/tokenizer.model"])
def test_a_file_that_carries_data(tmp_path: Path, path: str) -> None:
    assert read_lock(lock_of(tmp_path, entry(file={"path": path})))["m"].files[0].path == path


@pytest.mark.parametrize("digest", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "a" * 40])
def test_a_hash_that_is_not_a_full_sha256(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UsageError, match="no full sha256"):
        read_lock(lock_of(tmp_path, entry(file={"sha256": digest})))


def test_a_negative_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="size"):
        read_lock(lock_of(tmp_path, entry(file={"size": -1})))


@pytest.mark.parametrize(
    "changes",
    [{"repo": ""}]
    + [{"revision": r} for r in ("main", "v1.0", "", COMMIT[:12], COMMIT.upper(), COMMIT + "0", "refs/pr/1")],
    ids=str,
)
def test_a_hub_model_without_a_commit(tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="40-hex commit"):
        read_lock(lock_of(tmp_path, entry(**changes)))


@pytest.mark.parametrize("name", ["", "../m", "a/b", ".m", "-m", "M", "a b", "m\n"])
def test_a_name_that_is_no_directory_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no usable model name"):
        read_lock(lock_of(tmp_path, entry(), name))


def without(*keys: str) -> dict[str, Any]:
    return {k: v for k, v in entry().items() if k not in keys}


@pytest.mark.parametrize(
    "raw",
    [
        without("source"), without("license"), without("files"), entry(files=[{"path": "a.json", "size": 1}]),
        entry(files=["a.json"]), entry(files=None), entry(file={"size": "many"}), entry(file={"size": None}),
        entry(file={"path": 5}), entry(file={"sha256": 5}), [], "text", None,
    ],
    ids=lambda raw: json.dumps(raw)[-60:],
)  # fmt: skip
def test_an_incomplete_entry(tmp_path: Path, raw: Any) -> None:
    with pytest.raises(UsageError, match="incomplete"):
        read_lock(lock_of(tmp_path, raw))


def test_a_model_without_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files"):
        read_lock(lock_of(tmp_path, entry(files=[])))


def test_one_file_locked_twice(tmp_path: Path) -> None:
    file = entry()["files"][0]
    with pytest.raises(UsageError, match="twice"):
        read_lock(lock_of(tmp_path, entry(files=[file, file | {"sha256": "b" * 64}])))


@pytest.mark.parametrize(
    "content",
    ["", "{", "\x00", [], {}, {"schema": 2, "models": {}}, {"schema": 1}, {"schema": 1, "models": []}],
    ids=str,
)
def test_what_is_no_lock(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UsageError, match="the weights lock"):
        read_lock(write_lock(tmp_path, content))


def test_no_lock_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_lock(tmp_path / "weights.lock")


def test_digest_and_size_of_a_tree() -> None:
    assert MODEL.size == sum(len(d) for d in FILES.values())
    assert len(MODEL.digest) == 64
    assert MODEL.digest == locked(files=tuple(reversed(MODEL.files))).digest  # the order means nothing
    moved = LockedFile("other.json", MODEL.files[0].size, MODEL.files[0].sha256)
    assert MODEL.digest != locked(files=(moved, *MODEL.files[1:])).digest
