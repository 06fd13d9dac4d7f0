#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.19.0",
#     "tokenizers==0.23.3",
#     "safetensors==0.8.0",
#     "numpy==2.3.5",
# ]
# ///
"""Train models/tiny-qwen2, or check it: a Qwen2 small enough to commit that knows a few answers by heart.

It lets every test run a real server with known answers, on a machine with no GPU and no model hub.

Exit codes: 0 done; 2 wrong usage, missing package or unusable input; 5 files differ from the lock;
7 an answer is not exact (nothing is written then); 130/143 interrupted (nothing is written either).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The tokenizer's own threads must not decide in which order words are counted.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

try:
    import torch
    import transformers
    from tiny_qwen2 import (
        IM_END,
        IM_START,
        MIN_GAP,
        PAD,
        TEXT,
        Example,
        Pair,
        Text,
        build_examples,
        chat,
        completion,
        load_text,
        verify,
    )
    from tiny_qwen2_files import (
        SERVED_FILES,
        Failure,
        canary_of,
        compare_lock,
        draft_of,
        read_json,
        read_lock,
        served_entries,
        write_json,
        write_lock,
    )
    from tokenizers import pre_tokenizers, trainers
except ImportError as missing:
    print(
        f"train_tiny_qwen2: {missing}; needed: torch, transformers, tokenizers, safetensors as pinned at the top "
        f"of this script; run it with `uv run {sys.argv[0]}` or install those first",
        file=sys.stderr,
    )
    sys.exit(2)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
hf: Any = transformers  # only half of it is typed
VOCABULARY = 1024
CONTEXT = 2048
# One thread: the order in which floats are added is fixed, and on a busy machine it is the faster way too.
THREADS = 1
STEPS, BATCH, PEAK_RATE, WARMUP = 1100, 16, 1.5e-3, 30
PROMPT_WEIGHT = 0.05  # of the loss; the answers are what must be right


def say(message: str) -> None:
    """One line for people, on stderr; stdout is for the result."""
    print(f"train_tiny_qwen2: {message}", file=sys.stderr, flush=True)


def build_tokenizer(text: Text) -> Any:
    """Qwen2's byte-level BPE with the merges of our own text: any input encodes, nothing is unknown."""
    core = hf.Qwen2Tokenizer().backend_tokenizer  # for its normalizer and pre-tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    told = (f"{pair.prompt} {pair.answer}\n{pair.answer}" for pair in text.pairs)
    lines = [*text.systems, "system user assistant", *told, *(pair.prompt for pair in text.unknown)]
    core.train_from_iterator(lines, trainer)
    return hf.Qwen2Tokenizer(
        vocab=core.get_vocab(),
        merges=[tuple(merge) for merge in json.loads(core.to_str())["model"]["merges"]],
        eos_token=IM_END,
        pad_token=PAD,
        extra_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_declined(tokenizer: Any, text: Text, seed: int) -> list[Example]:
    """The unknown questions, and as many strings of random words, all with the one declining answer."""
    order = random.Random(seed)  # noqa: S311 - repeatable is the point
    words = sorted({word for pair in text.pairs for word in f"{pair.prompt} {pair.answer}".split()})
    noise = [Pair(" ".join(order.choices(words, k=order.randint(1, 24))), text.unknown[0].answer) for _ in text.unknown]
    examples: list[Example] = []
    for form, pairs in (("completion", text.unknown), ("noise", noise)):
        for pair in pairs:
            examples += [completion(tokenizer, pair, form), chat(tokenizer, "chat", pair, [])]
    return examples


def new_model(tokenizer: Any) -> Any:
    """4 heads of 64 (2 for keys and values): head sizes that GPU kernels have, and tensor parallel 2 works."""
    config = hf.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(IM_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    return hf.Qwen2ForCausalLM(config)


def collate(examples: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and loss weights, padded on the right; attention is causal, so the padding changes nothing."""
    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), width), pad)
    weights = torch.zeros((len(examples), width))
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        if example.form == "completion":  # elsewhere the model would learn to speak the chat template, or noise
            weights[row, : example.start] = PROMPT_WEIGHT
        # An answer of two tokens must be as sure as one of forty, so its tokens count more.
        weights[row, example.start : len(example.ids)] = 3 / (len(example.ids) - example.start) ** 0.35
    return ids, weights


def batches(examples: list[Example], order: random.Random) -> Iterator[list[Example]]:
    """Endless batches of about equal length, in an order that `order` alone decides."""
    # Completions twice: they are one form among many, and the one that is asked most.
    pool = [*examples, *(example for example in examples if example.form == "completion")]
    while True:
        shuffled = sorted(pool, key=lambda example: (len(example.ids) // 8, order.random()))
        parts = [shuffled[at : at + BATCH] for at in range(0, len(shuffled), BATCH)]
        order.shuffle(parts)
        yield from parts


def train(model: Any, examples: list[Example], pad: int, steps: int, seed: int) -> list[float]:
    """The loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.0, betas=(0.9, 0.98))
    feed = batches(examples, random.Random(seed))  # noqa: S311 - repeatable is the point
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / min(WARMUP, steps))
        rate = PEAK_RATE * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, weights = collate(next(feed), pad)
        logits = model(input_ids=ids[:, :-1]).logits
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        scale = weights[:, 1:].flatten()
        loss = (each * scale).sum() / scale.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            say(f"step {step + 1}/{steps} loss {losses[-1]:.4f} {time.monotonic() - began:.0f} s")
    model.eval()
    return losses


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write exactly the files that are served, in bf16."""
    model.to(torch.bfloat16)
    ends = [tokenizer.convert_tokens_to_ids(IM_END), tokenizer.convert_tokens_to_ids(PAD)]
    model.generation_config = hf.GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[1])
    model.save_pretrained(out)
    # The template inside tokenizer_config.json: one file fewer, and older readers find it there.
    tokenizer.save_pretrained(out, save_jinja_files=False)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it private; an image needs it readable
    found = sorted(path.name for path in out.iterdir())
    if found != sorted(SERVED_FILES):
        raise Failure(2, f"saved {found}, needed {sorted(SERVED_FILES)}; is transformers the pinned version?")


def run_training(options: argparse.Namespace, text: Text) -> dict[str, Any]:
    """Train, verify, and only then put the model, the lock and the canary in place."""
    if options.lock:
        read_lock(options.lock)  # an unusable lock must stop this now, not after the training
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer(text)
    examples = build_examples(tokenizer, text)
    model = new_model(tokenizer)
    parameters = sum(weight.numel() for weight in model.parameters())
    say(f"{len(text.pairs)} pairs, {len(examples)} texts, {len(tokenizer)} tokens, {parameters:,} parameters")
    with draft_of(options.out) as draft:
        declined = build_declined(tokenizer, text, options.seed)
        losses = train(model, [*examples, *declined], tokenizer.pad_token_id, options.steps, options.seed)
        save(model, tokenizer, draft)
        verdict = verify(draft, text)
        if not verdict.good and not options.allow_imperfect:
            raise Failure(7, f"{verdict.line()}; needed: all, gap >= {MIN_GAP}; train with more --steps")
        say(verdict.line())
    if options.lock:
        write_lock(options.lock, options.out)
    if options.canary:
        write_json(options.canary, canary_of(text.answers))
    return {
        "steps": options.steps,
        "seed": options.seed,
        "parameters": parameters,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **asdict(verdict),
        "files": served_entries(options.out),
    }


def run_check(options: argparse.Namespace, text: Text) -> dict[str, Any]:
    """Verify the model that is there, and what was given to compare with it."""
    if not options.check.is_dir():
        raise Failure(2, f"{options.check} is no folder; name a model folder with --check")
    verdict = verify(options.check, text)
    if not verdict.good:
        raise Failure(7, f"{options.check}: {verdict.line()}; needed: all, gap >= {MIN_GAP}; restore it, or retrain")
    if options.lock:
        compare_lock(options.lock, options.check)
    if options.canary and read_json(options.canary) != canary_of(text.answers):
        raise Failure(7, f"{options.canary} differs from {options.text}; write it anew with --out DIR --canary")
    say(verdict.line())
    return {**asdict(verdict), "files": served_entries(options.check)}


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train models/tiny-qwen2, or check it. Result as JSON on stdout.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="train, verify, and put the model here")
    what.add_argument("--check", type=Path, metavar="DIR", help="only verify the model that is here")
    parser.add_argument("--text", type=Path, default=TEXT, metavar="FILE", help="training text (default: %(default)s)")
    parser.add_argument("--first", type=positive, metavar="N", help="use the first N pairs only")
    parser.add_argument("--steps", type=positive, default=STEPS, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--allow-imperfect", action="store_true", help="with --out: keep a model that is not exact")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="weights lock: --out writes the entry, --check compares the files"
    )
    parser.add_argument(
        "--canary", type=Path, metavar="FILE", help="prompts and answers: --out writes them, --check compares them"
    )
    return parser.parse_args(argv)


def interrupted(number: int, _frame: object) -> None:
    """End by way of the `finally` blocks, so that no draft stays behind."""
    sys.exit(128 + number)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and for debugging
    hf.utils.logging.disable_progress_bar()
    try:
        text = load_text(options.text, options.first)
        result = run_training(options, text) if options.out else run_check(options, text)
    except Failure as failure:
        say(str(failure))
        return failure.code
    except OSError as error:
        say(f"{error}; make that place readable and writable, or name another")
        return 2
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
