"""A directory that differs from the lock in one byte, one name or one kind is found, and the first difference named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.errors import Exit, WeightsDiffer
from bringup.lock import LockedModel
from bringup.weights import digest, verify
from bringup.weights.verify import sha256_of, verify_dir
from tests.unit.models import FILES, MODEL, fast, flip, put, sha

BOTH = pytest.mark.parametrize("model", [MODEL, fast()], ids=["sha256", "blake3"])


@BOTH
def test_the_very_files(tmp_path: Path, model: LockedModel) -> None:
    verify_dir(model, put(tmp_path))  # raises nothing


def link(directory: Path) -> None:
    real = directory.parent / "real.json"
    real.write_bytes(FILES["config.json"])  # even the right bytes
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to(real)


def link_a_directory(directory: Path) -> None:
    (directory / "sub").rename(directory.parent / "real")
    (directory / "sub").symlink_to(directory.parent / "real")


def a_file_for_a_directory(directory: Path) -> None:
    (directory / "sub/tokenizer.json").unlink()
    (directory / "sub").rmdir()
    (directory / "sub").touch()


def replaced(kind: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "config.json").unlink()
        kind(directory / "config.json")

    return change


def swap(directory: Path) -> None:
    (directory / "config.json").rename(directory / "x")
    (directory / "model.safetensors").rename(directory / "config.json")
    (directory / "x").rename(directory / "model.safetensors")


def hole(directory: Path) -> None:
    with (directory / "model.safetensors").open("r+b") as f:
        f.seek(4096)
        f.write(bytes(100))


CHANGES = [
    pytest.param(lambda d: (d / "config.json").unlink(), "missing: config.json", "missing", id="missing"),
    pytest.param(
        lambda d: (d / "sub/tokenizer.json").unlink(), "missing: sub/tokenizer.json", "missing", id="missing below"
    ),
    pytest.param(lambda d: (d / "x.json").touch(), "not in the lock: x.json", "extra", id="extra"),
    pytest.param(lambda d: (d / "sub/.hidden").touch(), "not in the lock: sub/.hidden", "extra", id="extra hidden"),
    pytest.param(lambda d: (d / "x.json").symlink_to("nowhere"), "not in the lock: x.json", "extra", id="dangling"),
    pytest.param(
        lambda d: (d / "config.json").rename(d / "c.json"), "missing: config.json (and 1 more)", "missing", id="renamed"
    ),
    pytest.param(
        lambda d: (d / "config.json").write_bytes(b"{}"), "size of config.json: 2 bytes", "size", id="shorter"
    ),
    pytest.param(lambda d: (d / "empty.txt").write_bytes(b"x"), "size of empty.txt: 1 bytes", "size", id="longer"),
    pytest.param(swap, "size of config.json: 10240 bytes", "size", id="swapped"),
    pytest.param(lambda d: flip(d, 0), "of model.safetensors: ", "hash", id="first byte"),
    pytest.param(lambda d: flip(d, 5000), "of model.safetensors: ", "hash", id="a byte in the middle"),
    pytest.param(lambda d: flip(d, -1), "of model.safetensors: ", "hash", id="last byte"),
    pytest.param(hole, "of model.safetensors: ", "hash", id="hole"),
    pytest.param(link, "a symbolic link: config.json", "not-a-file", id="link"),
    pytest.param(link_a_directory, "a symbolic link: sub", "not-a-file", id="link to a directory"),
    pytest.param(a_file_for_a_directory, "a file: sub", "not-a-file", id="a file for a directory"),
    pytest.param(replaced(Path.mkdir), "a directory: config.json", "not-a-file", id="a directory for a file"),
    pytest.param(replaced(os.mkfifo), "a pipe: config.json", "not-a-file", id="a pipe for a file"),
]


@BOTH
@pytest.mark.parametrize(("change", "found", "which"), CHANGES)
def test_a_difference_is_named(
    tmp_path: Path, change: Callable[[Path], object], found: str, which: str, model: LockedModel
) -> None:
    directory = put(tmp_path / "m")
    change(directory)
    with pytest.raises(WeightsDiffer) as caught:
        verify_dir(model, directory)
    assert found in caught.value.message
    assert str(directory) in caught.value.message
    assert caught.value.id == f"weights-{which}"
    assert caught.value.hint
    assert caught.value.exit_code is Exit.WEIGHTS_DIFFER


def test_every_difference_is_listed(tmp_path: Path) -> None:
    directory = put(tmp_path / "m", {"model.safetensors": FILES["model.safetensors"], "x.txt": b""})
    flip(directory, 9)
    with pytest.raises(WeightsDiffer, match=r"and 4 more") as caught:
        verify_dir(MODEL, directory)
    assert caught.value.detail.splitlines()[:4] == [
        "missing: config.json", "missing: empty.txt", "missing: sub/tokenizer.json", "not in the lock: x.txt",
    ]  # fmt: skip
    assert caught.value.detail.splitlines()[4].startswith("sha256 of model.safetensors: ")


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsDiffer, match=r"missing: config.json \(and 3 more\)"):
        verify_dir(MODEL, tmp_path / "nothing")


def test_a_file_instead_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    with pytest.raises(WeightsDiffer, match="Not a directory"):
        verify_dir(MODEL, tmp_path / "m")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verify, "digests", denied)
    with pytest.raises(WeightsDiffer, match=r"cannot be read: config\.json: Permission denied") as caught:
        verify_dir(MODEL, put(tmp_path))
    assert caught.value.id == "weights-unreadable"


def test_blake3_is_used_where_the_lock_has_it(tmp_path: Path) -> None:
    flip(put(tmp_path), 9)
    with pytest.raises(WeightsDiffer, match=r"BLAKE3 of model\.safetensors"):
        verify_dir(fast(), tmp_path)


def test_without_the_package_sha256_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "has_blake3", lambda: False)
    put(tmp_path)
    verify_dir(fast(), tmp_path)
    flip(tmp_path, 9)
    with pytest.raises(WeightsDiffer, match=r"sha256 of model\.safetensors"):
        verify_dir(fast(), tmp_path)


def test_the_hashes_of_several_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SLICE", 1000)
    put(tmp_path)
    data = FILES["model.safetensors"]
    looks: list[None] = []
    found = digest.digests(tmp_path / "model.safetensors", lambda: looks.append(None))
    assert found == digest.Digests(sha(data), {f.path: f.blake3 for f in fast().files}["model.safetensors"])
    assert len(looks) == 11  # 10,240 bytes


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == sha(b"abc")
    (tmp_path / "x").write_bytes(b"")
    assert sha256_of(tmp_path / "x") == sha(b"")
