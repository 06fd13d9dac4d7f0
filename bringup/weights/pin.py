"""Pin a model: which files of a commit it needs, and what each must be. And look whether a pin still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bringup.errors import UsageError
from bringup.lock import SAFE, LockedFile, LockedModel
from bringup.weights.remote import Entry, Repository, is_link, plain
from bringup.weights.verify import sha256_of

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")  # to read one is to run what it says
DOCUMENTS = ("readme", "license", "licence", "notice", "requirements")
SIZES = (
    "max_position_embeddings", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Pin:
    """A model as the lock will hold it, and the files of the repository that it does without."""

    model: LockedModel
    left_out: tuple[str, ...]


def pin(repository: Repository, commit: str, name: str, license_: str) -> Pin:
    """What the files of a model are at a commit; small ones are fetched, of the large ones the Hub says the sha256.

    Raises:
        UsageError: the repository is none that can be served safely: no-config, needs-remote-code, no-safetensors,
            not-a-file, shard-missing, or what `Repository` finds.
        WeightsDiffer: a small file is not what the list of files says.
    """
    entries = {e.path: e for e in repository.tree(commit)}
    content = _reader(repository, commit, entries)
    if "config.json" not in entries:
        raise UsageError(f"{repository.name} has no config.json: vLLM cannot load it", id="no-config",
                         hint="name the repository of a whole model; GGUF and adapters cannot be pinned")  # fmt: skip
    config = _object(content("config.json"), "config.json", repository.name)
    if config.get("auto_map"):
        raise UsageError(
            f"{repository.name} needs code of its own (auto_map in its config.json), and trust_remote_code is off",
            hint="name a model whose architecture vLLM has itself", id="needs-remote-code",
        )  # fmt: skip
    index = _object(content(INDEX), INDEX, repository.name) if INDEX in entries else None
    kept = choose(entries, index, repository.name)
    files = tuple(
        LockedFile(path, entries[path].size, entries[path].sha256 or hashlib.sha256(content(path)).hexdigest())
        for path in kept
    )
    model = LockedModel(name, "hub", license_, files, repository.name, commit, sizes(config))
    return Pin(model, tuple(sorted(entries.keys() - set(kept))))


def _reader(repository: Repository, commit: str, entries: Mapping[str, Entry]) -> Callable[[str], bytes]:
    """Fetches a small file of the commit, once."""
    contents: dict[str, bytes] = {}

    def content(path: str) -> bytes:
        if path not in contents:
            contents[path] = repository.content(commit, entries[path])
            if is_link(contents[path], path, frozenset(entries)):
                raise UsageError(f"{path} of {repository.name} is a symbolic link", id="not-a-file",
                                 hint="pin another repository or commit")  # fmt: skip
        return contents[path]

    return content


def choose(entries: Mapping[str, Entry], index: Mapping[str, Any] | None, repo: str) -> list[str]:
    """The files that a server needs: of the root directory, in a safe format, and each weight once.

    Raises:
        UsageError: there are no such weights.
    """
    root = [path for path in sorted(entries) if "/" not in path]
    tensors = [path for path in root if PurePosixPath(path).suffix == ".safetensors"]
    if index is not None:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UsageError(f"{repo}: {INDEX} names no shards", hint="pin another commit", id="shard-missing")
        named = {str(shard) for shard in weight_map.values()}
        if missing := sorted(named - set(tensors)):
            raise UsageError(f"{repo}: {INDEX} names {plain(missing[0])}, which is not in the root directory of the "
                             "commit", hint="pin another commit", id="shard-missing")  # fmt: skip
        tensors = sorted(named)
    elif "model.safetensors" in tensors:
        tensors = ["model.safetensors"]
    if not tensors:
        pickles = [path for path in sorted(entries) if path.endswith(PICKLES)]
        found = (
            f"its weights are pickles ({plain(pickles[0])}), which run code when they are read"
            if pickles
            else ("it has no weights in its root directory")
        )
        raise UsageError(f"{repo} has no .safetensors file: {found}", id="no-safetensors",
                         hint="name a repository that has the weights as safetensors")  # fmt: skip
    return tensors + [path for path in root if _wanted(path)]


def _wanted(path: str) -> bool:
    """Is it configuration, or of the tokenizer? Weights are chosen otherwise; an index of pickles is of no use."""
    of_weights = path.endswith((".safetensors", ".index.json")) and path != INDEX
    return PurePosixPath(path).suffix in SAFE and not of_weights and not path.lower().startswith(DOCUMENTS)


def sizes(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The part of config.json that memory is computed from; a multimodal model has it under `text_config`."""
    text = config.get("text_config")
    both = (text if isinstance(text, dict) else {}) | {k: v for k, v in config.items() if v is not None}
    architectures = config.get("architectures")
    given = {key: both.get(key) for key in SIZES}
    given["architecture"] = architectures[0] if isinstance(architectures, list) and architectures else None
    given["dtype"] = both.get("torch_dtype") or both.get("dtype")
    return {k: v for k, v in sorted(given.items()) if isinstance(v, str | int)}


def _object(content: bytes, path: str, repo: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} of {repo} is no JSON object", hint="pin another repository or commit",
                         id="not-json") from e  # fmt: skip
    return raw


def with_known_hashes(new: LockedModel, old: LockedModel | None) -> LockedModel:
    """`new` with the BLAKE3 of each file that `old` has with the same sha256: it is of the same bytes."""
    known = {(f.size, f.sha256): f.blake3 for f in old.files} if old else {}
    return replace(new, files=tuple(replace(f, blake3=known.get((f.size, f.sha256), "")) for f in new.files))


def changes(old: LockedModel | None, new: LockedModel) -> list[str]:
    """What is new in an entry, a line each; nothing if it is the same."""
    if old is None:
        return [f"new: {len(new.files)} files, {new.size} bytes"]
    found = [f"commit {old.revision} -> {new.revision}"] if old.revision != new.revision else []
    found += [f"license {plain(old.license)} -> {new.license}"] if old.license != new.license else []
    found += ["config: " + _said(new.config)] if old.config != new.config else []
    before, after = ({f.path: f for f in m.files} for m in (old, new))
    found += [f"added: {path} ({after[path].size} bytes)" for path in sorted(after.keys() - before.keys())]
    found += [f"removed: {path}" for path in sorted(before.keys() - after.keys())]
    for path in sorted(before.keys() & after.keys()):
        if (before[path].size, before[path].sha256) != (after[path].size, after[path].sha256):
            found.append(f"changed: {path} ({before[path].size} -> {after[path].size} bytes)")
    return found


def _said(config: Mapping[str, object]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(config.items())) or "none"


def compare(model: LockedModel, repository: Repository) -> list[str]:
    """How an entry of the lock differs from what the Hub has at its commit, a line each.

    Raises:
        UsageError, TargetUnavailable, WeightsDiffer: it cannot be told, or the Hub contradicts itself.
    """
    entries = {e.path: e for e in repository.tree(model.revision)}
    content = _reader(repository, model.revision, entries)
    found = [line for f in model.files if (line := _compare_file(f, entries.get(f.path), content))]
    index = _object(content(INDEX), INDEX, repository.name) if INDEX in entries else None
    locked = {f.path for f in model.files}
    needed = [p for p in choose(entries, index, repository.name) if p not in locked]
    found += [f"{path}: the model needs it, the lock has not" for path in needed]
    if model.config and "config.json" in entries:
        config = sizes(_object(content("config.json"), "config.json", repository.name))
        if dict(model.config) != config:
            found.append(f"config: {_said(model.config)} in the lock, {_said(config)} on the Hub")
    return found


def _compare_file(f: LockedFile, e: Entry | None, content: Callable[[str], bytes]) -> str:
    if e is None:
        return f"{f.path}: the commit has no such file"
    if e.size != f.size:
        return f"{f.path}: {f.size} bytes in the lock, {e.size} on the Hub"
    sha256 = e.sha256 or hashlib.sha256(content(f.path)).hexdigest()
    return f"{f.path}: sha256 {f.sha256} in the lock, {sha256} on the Hub" if sha256 != f.sha256 else ""


def compare_here(model: LockedModel, directory: Path) -> list[str]:
    """How an entry differs from the directory of this repository that it is of; more files there are no difference."""
    found = []
    for f in model.files:
        path = directory / f.path
        if path.is_symlink() or not path.is_file():
            found.append(f"{f.path}: {directory} has no such file")
        elif path.stat().st_size != f.size:
            found.append(f"{f.path}: {f.size} bytes in the lock, {path.stat().st_size} in {directory}")
        elif (sha256 := sha256_of(path)) != f.sha256:
            found.append(f"{f.path}: sha256 {f.sha256} in the lock, {sha256} in {directory}")
    return found
