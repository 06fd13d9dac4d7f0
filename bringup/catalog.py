"""The catalogue: models by name, and what the locks say about them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bringup import fit
from bringup.errors import UsageError
from bringup.fingerprint import Fingerprint, fingerprint
from bringup.lock import LockedModel, read_lock

DATA = Path(__file__).parent / "data"
# The one version of both flavours; a test holds it against locks/*.lock.
VLLM_VERSION = "0.32.0"
TINY = "tiny-qwen2"  # lies in this repository: served where nothing else is pinned


@dataclass(frozen=True)
class Canary:
    """A prompt and the text that greedy decoding must give, to the letter."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """One catalogue entry; `lock` is None while nobody has pinned the model's files.

    `context` is in tokens, 0 where nobody knows it; `source` is a directory of this repository or a repository of the
    Hub, `revision` the commit that is pinned unless told otherwise. `prompt`: how it is asked (chatml, gemma,
    instruct-output), empty where nobody said. `tools`: vLLM's parser of its tool calls, empty where it makes none.
    `default`: the flavour that serves it where no model was named.
    """

    name: str
    source: str
    license: str
    gated: bool
    architecture: str = ""
    context: int = 0
    revision: str = ""
    prompt: str = ""
    chat_template: bool = True
    tools: str = ""
    default: str = ""
    notes: str = ""
    config: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)
    canaries: tuple[Canary, ...] = ()
    fingerprint: Fingerprint | None = None
    lock: LockedModel | None = None

    @property
    def shape(self) -> fit.Shape | None:
        """Its dimensions, as far as they are known."""
        return fit.shape(self.config)

    @property
    def parameters(self) -> int | None:
        """How many it has, where that can be computed."""
        return self.shape.parameters if self.shape else None

    @property
    def weights(self) -> int | None:
        """Bytes of its weights in memory."""
        files = self.lock.files if self.lock else ()
        return fit.weights(self.shape, sum(f.size for f in files if f.path.endswith(".safetensors")))


def load(data: Path = DATA) -> dict[str, Model]:
    """All models by name: the catalogue's, in the file's order, then what the user has locked beside them.

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
            seen = raw.pop("fingerprint", None)
            known = fingerprint(json.loads((data / seen).read_text("utf-8"))) if seen else None
            models[name] = _model(name, locked.get(name), canaries=canaries, fingerprint=known, **raw)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UsageError(f"the catalogue in {data} cannot be used: {e!r}", hint="restore it from git") from e
    for name in locked.keys() - models.keys():
        lock = locked[name]
        source = lock.repo or lock.source.removeprefix("local:")
        models[name] = _model(name, lock, source=source, license=lock.license, gated=False)
    return models


def _model(name: str, lock: LockedModel | None, **raw: Any) -> Model:
    """An entry; what its files were seen to say goes before what the catalogue says of them."""
    config = dict(lock.config) if lock and lock.config else raw.pop("config", {})
    raw.pop("config", None)
    context = config.get("max_position_embeddings")
    return Model(
        name=name, lock=lock, config=config, architecture=str(config.get("architecture", "")),
        context=context if isinstance(context, int) else 0, **raw,
    )  # fmt: skip


def choose(models: dict[str, Model], name: str) -> Model:
    """The model of that name.

    Raises:
        UsageError: no such model, or nothing pins it.
    """
    if name not in models:
        raise UsageError(f"no model is named {name!r}", hint=f"`bringup models` lists them: {', '.join(models)}")
    if models[name].lock is None:
        token = " (gated: accept its terms on its page and set HF_TOKEN first)" if models[name].gated else ""
        raise UsageError(
            f"{name} is in the catalogue, but bringup/data/weights.lock does not pin its files",
            hint=f"`bringup lock {name}` pins it{token}; pinned already: "
            + ", ".join(m.name for m in models.values() if m.lock),
            id="model-not-pinned",
        )
    return models[name]


def default(models: dict[str, Model], flavour: str) -> tuple[str, str]:
    """The model to serve where none was named, and why it is that one."""
    meant = next((m for m in models.values() if m.default == flavour), None)
    if meant is None:
        return TINY, f"the catalogue has no default for {flavour}"
    if meant.lock is None:
        return TINY, f"{meant.name}, the default on {flavour}, is not pinned: `bringup lock {meant.name}` pins it"
    return meant.name, f"the default on {flavour}"
