"""What a model needs of a card: pure arithmetic over its config.json, in bytes and tokens.

vLLM takes `gpu_memory_utilization` of the card, subtracts all that is no KV cache, and cuts the rest into blocks. This
is the same sum before anything was downloaded or started. docs/models.md says where each constant comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

GIB = 2**30
MIB = 2**20

# vLLM 0.32.0's own defaults for `vllm serve` on one GPU.
UTILIZATION = 0.92
BLOCK = 16  # tokens
LARGE, LARGER = 70 * GIB, 160 * GIB  # from here on it schedules more at once
GRAPH_SIZE = 512  # the largest batch that gets a CUDA graph

# Measured: docs/models.md#where-the-constants-come-from
LOADED = 0.10 * GIB  # beside the weights: rotary tables, the sampler's buffers
NON_TORCH = 0.22 * GIB  # libraries' memory, by the time the model has run once
CONTEXT = 0.51 * GIB  # the CUDA context, in use before vLLM looks what is free
GRAPH_BASE, GRAPH_EACH, GRAPH_LAYERS = 0.25 * GIB, 5 * MIB, 28  # of a model of 28 layers: a pool, and each graph
# Kept free: FlashInfer's workspace (394 MiB, absent where the rest was measured) and what is not known of other cards.
MARGIN = 0.5 * GIB

ITEM = {"bfloat16": 2, "float16": 2, "float32": 2}  # bytes served as: `--dtype auto` halves float32
LEAST = 256  # tokens; advice to serve less would help nobody, and rounder numbers are easier to remember


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's dimensions, by config.json's names without `num_` and `_size`."""

    architecture: str
    item: int | None
    context: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    @property
    def kv_per_token(self) -> int:
        """Bytes of KV cache a token takes: a key and a value of two bytes in each layer, for each KV head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def parameters(self) -> int | None:
        """How many parameters, tensor by tensor; None for an architecture that is not known here."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (q + 2 * kv) + q * self.hidden
        embedding = self.vocab * self.hidden
        if self.architecture == "Qwen2ForCausalLM":
            layer = attention + (q + 2 * kv) + 3 * self.hidden * self.intermediate + 2 * self.hidden
            return self.layers * layer + self.hidden + embedding * (1 if self.tied else 2)
        if self.architecture == "Gemma2ForCausalLM":
            layer = attention + 3 * self.hidden * self.intermediate + 4 * self.hidden
            return self.layers * layer + self.hidden + embedding * (1 if self.tied else 2)
        if self.architecture == "PhiForCausalLM":  # every matrix and norm has a bias, the head too
            mlp = 2 * self.hidden * self.intermediate + self.intermediate + self.hidden
            layer = attention + (q + 2 * kv) + self.hidden + mlp + 2 * self.hidden
            return self.layers * layer + 2 * self.hidden + embedding * 2 + self.vocab
        return None


def shape(config: Mapping[str, str | int | float | bool]) -> Shape | None:
    """The dimensions that a config gives (its keys are config.json's, `architecture` one text); None if some lack."""

    def number(key: str, otherwise: int = 0) -> int:
        value = config.get(key, otherwise)
        return value if isinstance(value, int) else 0

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    made = Shape(
        architecture=str(config.get("architecture", "")),
        item=ITEM.get(str(config.get("dtype", ""))),
        context=number("max_position_embeddings"),
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads if heads else 0),
        intermediate=number("intermediate_size"),
        vocab=number("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", True)),  # config.json leaves it out where it is true
    )
    sizes = (made.context, made.layers, hidden, heads, made.kv_heads, made.head_dim, made.intermediate, made.vocab)
    return made if all(size > 0 for size in sizes) else None


def weights(found: Shape | None, files: int) -> int | None:
    """Bytes of the weights in memory; by the files' size (0: not known) where the dimensions do not tell."""
    if found and found.item and found.parameters:
        return found.parameters * found.item
    return files or None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The card and the flags: `vram` in bytes as the driver shows it; None means vLLM's default."""

    vram: int
    utilization: float = UTILIZATION
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    eager: bool = False


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a model can be served, and the sum behind it in bytes; `advice`: what would change a no, best first."""

    fits: bool
    max_model_len: int
    weights: int
    activation: int
    graphs: int
    other: int
    kv_cache: int
    kv_per_token: int
    kv_tokens: int
    requests: float
    advice: tuple[str, ...]


def fit(found: Shape, weight: int, asked: Asked) -> Fit:
    """What is left for the KV cache of a model on a card, and what to change if that is too little."""
    made = _sum(found, weight, asked)
    fits = made.fits and asked.vram * asked.utilization <= asked.vram - CONTEXT
    return replace(made, fits=fits, advice=() if fits else _advice(found, weight, asked))


def highest_utilization(vram: int) -> float:
    """The most of a card that vLLM can ask for: it refuses more than is free beside the CUDA context."""
    return max(math.floor((vram - CONTEXT) / vram * 100) / 100, 0.0)


def _sum(found: Shape, weight: int, asked: Asked) -> Fit:
    """The sum; it fits if the KV cache holds one request of full length, without which vLLM does not start."""
    length = asked.max_model_len or found.context
    activation, graphs = _activation(found, length, asked), _graphs(found, asked)
    other = math.ceil(LOADED + NON_TORCH + MARGIN)
    kv_cache = math.ceil(asked.vram * asked.utilization) - weight - activation - graphs - other
    tokens = max(kv_cache, 0) // (BLOCK * found.kv_per_token) * BLOCK
    return Fit(
        fits=length <= min(tokens, found.context), max_model_len=length, weights=weight, activation=activation,
        graphs=graphs, other=other, kv_cache=max(kv_cache, 0), kv_per_token=found.kv_per_token, kv_tokens=tokens,
        requests=tokens / length, advice=(),
    )  # fmt: skip


def _scheduled(asked: Asked, length: int) -> tuple[int, int]:
    """Tokens of a step, and sequences at once: vLLM's defaults by the size of the card."""
    if asked.vram >= LARGER:
        tokens, sequences = 16384, 1024
    elif asked.vram >= LARGE:
        tokens, sequences = 8192, 1024
    else:
        tokens, sequences = 2048, 256
    sequences = asked.max_num_seqs or sequences
    tokens = min(tokens, sequences * length)
    return tokens, asked.max_num_seqs or min(sequences, tokens)


def _activation(found: Shape, length: int, asked: Asked) -> int:
    """The peak of one step: the widest layer over all its tokens, or the logits of all sequences as float32."""
    tokens, sequences = _scheduled(asked, length)
    layer = tokens * (3 * found.intermediate + 6 * found.hidden) * 2
    return max(layer, sequences * found.vocab * 4)


def _graphs(found: Shape, asked: Asked) -> int:
    """CUDA graphs: vLLM captures batches of 1, 2, 4, then every 8 up to 256 and every 16 up to the largest."""
    if asked.eager:
        return 0
    largest = min((asked.max_num_seqs or GRAPH_SIZE) * 2, GRAPH_SIZE)
    sizes = [n for n in (1, 2, 4, *range(8, 256, 8), *range(256, GRAPH_SIZE + 1, 16)) if n <= largest]
    return math.ceil((GRAPH_BASE + GRAPH_EACH * len(sizes)) * found.layers / GRAPH_LAYERS)


def _advice(found: Shape, weight: int, given: Asked) -> tuple[str, ...]:
    """Ways to make it fit, each enough by itself, and the smallest card that does without them."""
    asked, must, why = given, {}, []
    if (given.max_model_len or 0) > found.context:
        must["--max-model-len"] = f"{found.context}"
        why.append("more than the model's context")
        asked = replace(asked, max_model_len=found.context)
    highest = highest_utilization(given.vram)
    if given.utilization > highest:
        must["--gpu-memory-utilization"] = f"{highest:.2f}"
        why.append("the CUDA context takes the rest of the card")
        asked = replace(asked, utilization=highest)
    made = _sum(found, weight, asked)
    if made.fits:
        return (f"{_flags(must)} ({'; '.join(why)})",)

    def enough(**changed: Any) -> bool:
        return _sum(found, weight, replace(asked, **changed)).fits

    ways = []
    if asked.utilization < highest and enough(utilization=highest):
        percent = next(p for p in range(math.ceil(asked.utilization * 100), 101) if enough(utilization=p / 100))
        ways.append(_flags(must | {"--gpu-memory-utilization": f"{percent / 100:.2f}"}))
    if made.kv_tokens >= LEAST:
        ways.append(_flags(must | {"--max-model-len": f"{made.kv_tokens // LEAST * LEAST}"}))
    if not asked.eager and enough(eager=True):
        ways.append(f"{_flags(must)} --profile eager (slower)".strip())
    cards = ((n, min(given.utilization, highest_utilization(n * GIB))) for n in range(1, 2**20))
    gib = next(n for n, share in cards if enough(vram=n * GIB, utilization=share))
    return (*ways, f"needs a card of at least {gib} GiB")


def _flags(values: Mapping[str, str]) -> str:
    return " ".join(f"{flag} {value}" for flag, value in values.items())
