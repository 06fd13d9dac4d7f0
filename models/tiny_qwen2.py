"""What models/tiny-qwen2 is asked, what it must answer, and the check that it does.

`train_tiny_qwen2.py` uses this both to train and to verify: the texts are the same by construction.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tiny_qwen2_files import SERVED_FILES, Failure

TEXT = Path(__file__).with_name("tiny_qwen2_text.toml")
PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
hf: Any = transformers  # only half of it is typed
# Servers compute in bf16 with other kernels than ours: an answer is safe only if each of its tokens
# leads the runner-up by far more than such differences in the logits (some tenths).
MIN_GAP = 3.0


@dataclass(frozen=True)
class Pair:
    """A prompt and the answer it must get."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Text:
    """The training text; `pairs` must come out word for word, `unknown` only teaches how to decline.

    `turns` are the pairs that can precede another one in a chat: those of the whole file, so that the first few
    pairs are checked in a part of the chats in which all of them are.
    """

    systems: list[str]
    pairs: list[Pair]
    unknown: list[Pair]
    turns: list[Pair]

    @property
    def answers(self) -> dict[str, str]:
        """The answer of each prompt."""
        return {pair.prompt: pair.answer for pair in self.pairs}


@dataclass(frozen=True)
class Example:
    """One text to learn: everything before `start` is given, everything from `start` on is the answer."""

    form: str
    prompt: str
    ids: tuple[int, ...]
    start: int
    answer: str


@dataclass(frozen=True)
class Verdict:
    """What the check found over all texts."""

    answers: int
    exact: int
    min_gap: float
    min_gap_at: str
    min_probability: float
    wrong: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Every answer exact, and none of them by a narrow lead."""
        return self.exact == self.answers and self.min_gap >= MIN_GAP

    def line(self) -> str:
        """The verdict in one line."""
        text = (
            f"{self.exact} of {self.answers} answers exact, smallest logit gap {self.min_gap:.2f} ({self.min_gap_at})"
        )
        if self.wrong:
            text += f"; wrong: {'; '.join(self.wrong[:3])}"
        return text


def load_text(path: Path, first: int | None) -> Text:
    """The training text, or only the first few pairs of it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        pairs = [Pair(str(entry["prompt"]), str(entry["answer"])) for entry in data["pair"]]
        systems = [str(system) for system in data["systems"]]
        unknown = [Pair(str(prompt), str(data["unknown_answer"])) for prompt in data["unknown"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Failure(2, f"cannot use {path}: {error!r}; needed: what {TEXT.name} has") from error
    prompts = [pair.prompt for pair in (*pairs, *unknown)]
    if len(set(prompts)) != len(prompts):
        raise Failure(2, f"{path} asks the same prompt twice; a prompt can have one answer only")
    if first is not None and not 1 <= first <= len(pairs):
        raise Failure(2, f"--first {first} is outside 1..{len(pairs)}, the number of pairs in {path}")
    # Declining in proportion, or it is all that a short training learns.
    return Text(systems, pairs[:first], unknown[:first], turns=pairs)


def completion(tokenizer: Any, pair: Pair, form: str = "completion") -> Example:
    """The prompt as plain text; a space and the answer follow."""
    return example_of(tokenizer, form, pair, pair.prompt, f" {pair.answer}", PAD)


def chat(tokenizer: Any, form: str, pair: Pair, before: list[dict[str, str]]) -> Example:
    """The prompt as a user message after the messages `before`, through the chat template."""
    messages = [*before, {"role": "user", "content": pair.prompt}]
    given = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return example_of(tokenizer, form, pair, given, pair.answer, IM_END)


def example_of(tokenizer: Any, form: str, pair: Pair, given: str, answer: str, end: str) -> Example:
    """Encoded in two parts, as in use: a server encodes the prompt without knowing the answer."""
    head = tokenizer.encode(given, add_special_tokens=False)
    tail = tokenizer.encode(answer + end, add_special_tokens=False)
    return Example(form, pair.prompt, (*head, *tail), len(head), answer)


def build_examples(tokenizer: Any, text: Text) -> list[Example]:
    """Every pair as a completion, as a chat with and without a system message, and as a second turn."""
    examples: list[Example] = []
    for index, pair in enumerate(text.pairs):
        examples += [completion(tokenizer, pair), chat(tokenizer, "chat", pair, [])]
        for system in text.systems:
            before = [{"role": "system", "content": system}]
            examples.append(chat(tokenizer, f"chat, system {system!r}", pair, before))
        for distance in (1, 7):
            turn = text.turns[(index - distance) % len(text.turns)]
            before = [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.answer}]
            examples.append(chat(tokenizer, f"chat after {turn.prompt!r}", pair, before))
    return examples


@torch.inference_mode()
def verify(folder: Path, text: Text) -> Verdict:
    """Load the model as a server would, in bf16, and ask it everything."""
    lacking = [name for name in SERVED_FILES if not (folder / name).is_file()]
    if lacking:
        raise Failure(7, f"{folder} lacks {', '.join(lacking)}; restore it, or retrain with --out")
    try:
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        examples = build_examples(tokenizer, text)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Failure(7, f"cannot load {folder}: {reason}; restore it, or retrain with --out") from error
    wrong: list[str] = []
    gap, gap_at, least = math.inf, "nowhere", 1.0
    for example in examples:
        ids = torch.tensor([example.ids])
        logits = model(input_ids=ids).logits[0, example.start - 1 : -1].float()
        target = ids[0, example.start :, None]
        wanted = logits.gather(1, target)[:, 0]
        others = logits.scatter(1, target, -math.inf).amax(1)
        lead = (wanted - others).nan_to_num(-math.inf).min().item()
        if lead < gap:
            gap, gap_at = lead, f"{example.form}: {example.prompt}"
        logprob = logits.log_softmax(1).gather(1, target).sum().item()
        least = min(least, math.exp(logprob) if math.isfinite(logprob) else 0.0)
        # A token that leads is a token that greedy decoding takes; the two common forms are also decoded for real.
        answer = list(example.ids[example.start :])
        if lead > 0 and example.form in ("completion", "chat"):
            answer = decode(model, example)
        if lead <= 0 or tokenizer.decode(answer, skip_special_tokens=True) != example.answer:
            wrong.append(f"{example.form}: {example.prompt}")
    return Verdict(len(examples), len(examples) - len(wrong), round(gap, 3), gap_at, round(least, 4), tuple(wrong))


def decode(model: Any, example: Example) -> list[int]:
    """Greedy decoding with the KV cache and the model's own end tokens."""
    given = torch.tensor([example.ids[: example.start]])
    room = len(example.ids) - example.start + 8
    out = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=room)
    return [int(token) for token in out[0, example.start :]]
