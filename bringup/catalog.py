"""The catalogue: models by name, and what the locks say about them."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from bringup.errors import UsageError
from bringup.lock import LockedModel, read_lock

DATA = Path(__file__).parent / "data"
# The one version of both flavours; a test holds it against locks/*.lock.
VLLM_VERSION = "0.32.0"


@dataclass(frozen=True)
class Canary:
    """A prompt and the text that greedy decoding must give, to the letter."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """One catalogue entry; `lock` is None while nobody has pinned the model's files.

    `context` is in tokens; `source` is a directory of this repository or a repository of the Hub.
    """

    name: str
    source: str
    architecture: str
    context: int
    license: str
    gated: bool
    notes: str = ""
    canaries: tuple[Canary, ...] = ()
    lock: LockedModel | None = None


def load(data: Path = DATA) -> dict[str, Model]:
    """All models of the catalogue, by name, in the file's order.

    Raises:
        UsageError: catalogue or lock cannot be used.
    """
    locked = read_lock(data / "weights.lock")
    models = {}
    try:
        for name, raw in tomllib.loads((data / "models.toml").read_text("utf-8")).items():
            canary = raw.pop("canary", None)
            pairs = json.loads((data / canary).read_text("utf-8"))["prompts"] if canary else []
            canaries = tuple(Canary(p["prompt"], p["answer"]) for p in pairs)
            models[name] = Model(name=name, canaries=canaries, lock=locked.get(name), **raw)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UsageError(f"the catalogue in {data} cannot be used: {e!r}", hint="restore it from git") from e
    return models


def choose(models: dict[str, Model], name: str) -> Model:
    """The model of that name.

    Raises:
        UsageError: no such model, or nothing pins it.
    """
    if name not in models:
        raise UsageError(f"no model is named {name!r}", hint=f"`bringup models` lists them: {', '.join(models)}")
    if models[name].lock is None:
        raise UsageError(
            f"{name} is in the catalogue, but bringup/data/weights.lock does not pin its files",
            hint="add its repo, 40-hex commit and each file's size and sha256 to the lock, or serve a pinned model: "
            + ", ".join(m.name for m in models.values() if m.lock),
        )
    return models[name]
