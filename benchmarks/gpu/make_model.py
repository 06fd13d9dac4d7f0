#!/usr/bin/env python3
"""Write a checkpoint with the exact shape of Qwen2.5-1.5B-Instruct and random weights, for a host without a model hub.

usage: make_model.py DIR        needs torch and safetensors (vLLM brings both), 3.1 GB of disk

Start-up, memory and decode speed are those of the real model, its text is noise: 1,543,714,304 parameters in bf16, and
a byte-level BPE tokenizer with as many entries (its merges are made up, only their number is Qwen's).
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCABULARY = 1536, 28, 12, 2, 8960, 151_936
TEXT_TOKENS = 151_643  # the special ones come after them
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": TEXT_TOKENS,
    "eos_token_id": TEXT_TOKENS + 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor; the norms' weights have one dimension and are ones."""
    head = HIDDEN // HEADS
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        for name, rows in (("q", HIDDEN), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, HIDDEN)
            yield f"{prefix}self_attn.{name}_proj.bias", (rows,)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield prefix + "mlp.gate_proj.weight", (INNER, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (INNER, HIDDEN)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INNER)


def write_weights(path: Path) -> int:
    """All tensors, from one seed; the number of parameters."""
    torch: Any = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seed = torch.Generator(device=device).manual_seed(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        made = torch.randn(shape, generator=seed, device=device, dtype=torch.float32) * CONFIG["initializer_range"]
        return made.to(torch.bfloat16).cpu()

    tensors = {name: tensor(name, shape) for name, shape in shapes()}
    importlib.import_module("safetensors.torch").save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone, and a container serves as another user
    return sum(t.numel() for t in tensors.values())


def byte_letters() -> list[str]:
    """The printable letter that stands for each of the 256 bytes, as GPT-2's tokenizer has them."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return [chr(b if b in shown else next(spare)) for b in range(256)]


def tokenizer() -> dict[str, Any]:
    """A tokenizer.json with `TEXT_TOKENS` entries: all bytes, all pairs, and as many triples as are needed."""
    letters = byte_letters()
    pairs = [(a, b) for a in letters for b in letters]
    triples = ((a + b, c) for (a, b) in pairs for c in letters)
    merges = pairs + list(itertools.islice(triples, TEXT_TOKENS - len(letters) - len(pairs)))
    words = letters + [a + b for a, b in merges]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": TEXT_TOKENS + i, "content": s, **flags} for i, s in enumerate(SPECIAL)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": merges,
        },
    }


def main(directory: Path) -> None:
    """Write the five files that a server needs."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": TEMPLATE,
    }
    stops = {"eos_token_id": [TEXT_TOKENS + 2, TEXT_TOKENS], "bos_token_id": TEXT_TOKENS}
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", stops),
        ("tokenizer_config.json", settings),
        ("tokenizer.json", tokenizer()),
    ):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    parameters = write_weights(directory / "model.safetensors")
    print(f"{directory}: {parameters:,} parameters, {(directory / 'model.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
