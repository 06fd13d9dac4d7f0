"""The weights lock refuses what is unsafe; a directory that differs in one byte is found; nothing half-made stays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import BuildFailed, Exit, UsageError, WeightsDiffer
from bringup.lock import LockedFile, LockedModel, read_lock
from bringup.weights import __main__ as program
from bringup.weights import fetch as fetching
from bringup.weights.fetch import hub_url, stage
from bringup.weights.verify import sha256_of, verify_dir

FILES = {
    "config.json": b'{"a": 1}\n',
    "model.safetensors": bytes(range(256)) * 40,
    "sub/tokenizer.json": b"{}",
    "empty.txt": b"",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def locked(**changes: Any) -> LockedModel:
    files = tuple(LockedFile(path, len(data), sha(data)) for path, data in FILES.items())
    return LockedModel(**({"name": "m", "source": "local:models/m", "license": "MIT", "files": files} | changes))


MODEL = locked()
HUB = locked(source="hub", repo="org/m", revision=COMMIT)


def put(directory: Path, files: dict[str, bytes] | None = None) -> Path:
    for path, data in (FILES if files is None else files).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


# ---- the lock


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
        "a//b.json", "a/./b.json", "a/", "",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_directory(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match=r"leaves the model's directory"):
        read_lock(lock_of(tmp_path, entry(file={"path": path})))


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "x.pkl", "x.pickle", "modeling_x.py", "a.npz",
        "model.gguf", "model.safetensors.bin", "safetensors", ".json", "x.JSON", "lib.so", "run.sh", ".",
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


# ---- a directory against the lock


def test_the_very_files(tmp_path: Path) -> None:
    verify_dir(MODEL, put(tmp_path))  # raises nothing


def flip(position: int) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return change


def link(directory: Path) -> None:
    real = directory.parent / "real.json"
    real.write_bytes(FILES["config.json"])  # even the right bytes
    (directory / "config.json").unlink()
    (directory / "config.json").symlink_to(real)


def link_a_directory(directory: Path) -> None:
    (directory / "sub").rename(directory.parent / "real")
    (directory / "sub").symlink_to(directory.parent / "real")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(lambda d: (d / "config.json").unlink(), "missing: config.json", id="missing"),
        pytest.param(lambda d: (d / "sub/tokenizer.json").unlink(), "missing: sub/tokenizer.json", id="missing below"),
        pytest.param(lambda d: (d / "x.json").touch(), "not in the lock: x.json", id="extra"),
        pytest.param(lambda d: (d / "sub/.hidden").touch(), "not in the lock: sub/.hidden", id="extra hidden"),
        pytest.param(lambda d: (d / "x.json").symlink_to("nowhere"), "not in the lock: x.json", id="dangling"),
        pytest.param(lambda d: (d / "config.json").write_bytes(b"{}"), "size of config.json: 2 bytes", id="shorter"),
        pytest.param(lambda d: (d / "empty.txt").write_bytes(b"x"), "size of empty.txt: 1 bytes", id="longer"),
        pytest.param(flip(0), "sha256 of model.safetensors", id="first byte"),
        pytest.param(flip(5000), "sha256 of model.safetensors", id="a byte in the middle"),
        pytest.param(flip(-1), "sha256 of model.safetensors", id="last byte"),
        pytest.param(link, "a symbolic link: config.json", id="link"),
        pytest.param(link_a_directory, "sub", id="link to a directory"),
    ],
)  # fmt: skip
def test_a_difference_is_named(tmp_path: Path, change: Callable[[Path], object], found: str) -> None:
    directory = put(tmp_path / "m")
    change(directory)
    with pytest.raises(WeightsDiffer) as caught:
        verify_dir(MODEL, directory)
    assert found in caught.value.message
    assert str(directory) in caught.value.message
    assert caught.value.exit_code is Exit.WEIGHTS_DIFFER


def test_every_difference_is_listed(tmp_path: Path) -> None:
    directory = put(tmp_path / "m", {"model.safetensors": FILES["model.safetensors"], "x.txt": b""})
    flip(9)(directory)
    with pytest.raises(WeightsDiffer, match=r"and 4 more") as caught:
        verify_dir(MODEL, directory)
    assert caught.value.detail.splitlines()[:4] == [
        "missing: config.json", "missing: empty.txt", "missing: sub/tokenizer.json", "not in the lock: x.txt",
    ]  # fmt: skip
    assert caught.value.detail.splitlines()[4].startswith("sha256 of model.safetensors: ")


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsDiffer, match=r"missing: config.json \(and 3 more\)"):
        verify_dir(MODEL, tmp_path / "nothing")


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == sha(b"abc")


# ---- staging


def test_stage_copies_and_verifies(tmp_path: Path) -> None:
    put(tmp_path / "source/m")
    (tmp_path / "source/m/README.md").write_text("not locked, so not copied")
    stage(MODEL, tmp_path / "source", tmp_path / "out")
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")} == FILES.keys()
    verify_dir(MODEL, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(flip(7), id="a byte differs"),
        pytest.param(lambda d: (d / "empty.txt").unlink(), id="the last file is missing"),
        pytest.param(lambda d: (d / "config.json").unlink(), id="the first file is missing"),
    ],
)
def test_a_stage_that_fails_leaves_nothing(tmp_path: Path, change: Callable[[Path], object]) -> None:
    change(put(tmp_path / "source/m"))
    with pytest.raises(WeightsDiffer):
        stage(MODEL, tmp_path / "source", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_an_interrupted_stage_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    put(tmp_path / "source/m")
    monkeypatch.setattr(fetching, "verify_dir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage(MODEL, tmp_path / "source", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_file_far_below(tmp_path: Path) -> None:
    files = {"a/b/c/x.json": b"{}"}
    model = locked(files=(LockedFile("a/b/c/x.json", 2, sha(b"{}")),))
    put(tmp_path / "source/m", files)
    stage(model, tmp_path / "source", tmp_path / "out")
    assert (tmp_path / "out/a/b/c/x.json").read_bytes() == b"{}"


def test_what_a_killed_stage_left_does_not_get_in(tmp_path: Path) -> None:
    put(tmp_path / "source/m")
    put(tmp_path / "out.part", {"stale.json": b"{}"})
    stage(MODEL, tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out/stale.json").exists()


def test_a_hub_model_is_fetched_file_by_file_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(url: str, target: Path, file: LockedFile, token: str | None) -> None:
        asked.append((url, token))
        target.write_bytes(FILES[file.path])

    monkeypatch.setattr(fetching, "fetch", fake)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    stage(HUB, tmp_path / "unused", tmp_path / "out", "token")
    assert asked == [(f"https://huggingface.co/org/m/resolve/{COMMIT}/{path}", "token") for path in FILES]
    verify_dir(HUB, tmp_path / "out")


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(_url: str, target: Path, file: LockedFile, _token: str | None) -> None:
        if file.path == "sub/tokenizer.json":
            raise BuildFailed("no network")
        target.write_bytes(FILES[file.path])

    monkeypatch.setattr(fetching, "fetch", fake)
    with pytest.raises(BuildFailed):
        stage(HUB, tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("endpoint", "start"),
    [(None, "https://huggingface.co/"), ("https://mirror.example/", "https://mirror.example/")],
)
def test_hub_url(endpoint: str | None, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if endpoint is None:
        monkeypatch.delenv("HF_ENDPOINT", raising=False)
    else:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert hub_url(HUB, LockedFile("d/a b.json", 1, "")) == f"{start}org/m/resolve/{COMMIT}/d/a%20b.json"


# ---- the program of the weights stage


def call(tmp_path: Path, action: str, *more: str, model: str = "m") -> int:
    raw = {
        "source": "local:models/m",
        "license": "MIT",
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in MODEL.files],
    }
    lock = lock_of(tmp_path, raw)
    out = str(tmp_path / "new/dir/out")
    return program.main([action, "--model", model, "--lock", str(lock), "--source", str(tmp_path / "source"),
                         "--out", out, *more])  # fmt: skip


def test_the_program_stages_then_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "source/m")
    assert call(tmp_path, "stage") == 0
    assert not list((tmp_path / "new").rglob("*.part"))
    assert call(tmp_path, "verify", "--token-file", str(tmp_path / "none")) == 0
    err = capsys.readouterr().err
    assert f"4 files, {MODEL.size} bytes, all as locked ({MODEL.digest})" in err


def test_the_program_finds_a_changed_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "source/m")
    call(tmp_path, "stage")
    flip(3)(tmp_path / "new/dir/out")
    assert call(tmp_path, "verify") == Exit.WEIGHTS_DIFFER
    assert "sha256 of model.safetensors" in capsys.readouterr().err


def test_the_program_refuses_an_unpinned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, "stage", model="other") == Exit.USAGE
    assert "'other' is not pinned" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_program_gives_the_tokens_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    seen: list[str | None] = []
    monkeypatch.setattr(program, "stage", lambda _m, _s, _o, token: seen.append(token))
    assert call(tmp_path, "stage", "--token-file", str(tmp_path / "token")) == 0
    assert seen == ["s3cret"]
    assert "s3cret" not in os.environ.values()
