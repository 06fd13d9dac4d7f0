"""The files of models/tiny-qwen2: which are served, their lock, the canary, and how a new model takes its place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL_ID = "tiny-qwen2"
# What a server reads; the model card stays beside these and is neither served nor locked.
SERVED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class Failure(Exception):
    """One line for the user and the exit code that goes with it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def served_entries(folder: Path) -> list[dict[str, Any]]:
    """Path, size and sha256 of every served file, as the weights lock has them."""
    entries: list[dict[str, Any]] = []
    for name in SERVED_FILES:
        content = (folder / name).read_bytes()
        entries.append({"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return entries


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(2, f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise Failure(2, f"{path} holds no JSON object")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Complete or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def canary_of(answers: dict[str, str]) -> dict[str, Any]:
    """The completion as a server returns it: with the space that parts it from the prompt."""
    return {"prompts": [{"prompt": prompt, "answer": f" {answer}"} for prompt, answer in answers.items()]}


def read_lock(path: Path) -> dict[str, Any]:
    """The lock, or a new one where there is none yet."""
    lock: dict[str, Any] = read_json(path) if path.exists() else {"schema": 1, "models": {}}
    if lock.get("schema") != 1 or not isinstance(lock.get("models"), dict):
        raise Failure(2, f"{path} is no weights lock of schema 1; name another file with --lock")
    return lock


def write_lock(path: Path, folder: Path) -> None:
    """Put our entry into the lock and leave the other models' entries as they are."""
    lock = read_lock(path)
    lock["models"][MODEL_ID] = {
        "source": f"local:models/{MODEL_ID}",
        "license": "Apache-2.0",
        "files": served_entries(folder),
    }
    write_json(path, lock)


def compare_lock(path: Path, folder: Path) -> None:
    """Fail if a served file is not the locked one."""
    model = read_lock(path)["models"].get(MODEL_ID)
    if model is None:
        raise Failure(2, f"{path} has no entry {MODEL_ID}; write it with --out DIR --lock {path}")
    locked = {entry["path"]: entry for entry in model["files"]}
    actual = {entry["path"]: entry for entry in served_entries(folder)}
    changed = sorted(name for name in locked.keys() | actual.keys() if locked.get(name) != actual.get(name))
    if changed:
        raise Failure(5, f"{', '.join(changed)} in {folder} differ from {path}; restore them or lock the new model")


@contextmanager
def draft_of(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and goes when it does not."""
    taken = out.exists() and not (out / "config.json").is_file()
    if taken and not (out.is_dir() and not any(out.iterdir())):
        raise Failure(2, f"{out} exists and is no model; name an empty or a new folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    old = draft.with_name(f"{draft.name}.old")
    try:
        draft.chmod(0o755)
        yield draft
        if out.exists():
            for kept in out.iterdir():  # the model card is not ours to lose
                if kept.name not in SERVED_FILES:
                    shutil.copy2(kept, draft / kept.name)
            out.rename(old)
        draft.rename(out)
    finally:
        if old.exists() and not out.exists():  # interrupted between the two renames
            old.rename(out)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
