"""The memory ledger: what was predicted, what vLLM says it took, what NVML or the kernel measured. Pure.

Bytes everywhere; None is a figure that nobody gave, and `unknown` says why. docs/memory.md explains each row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bringup import fit
from bringup.lock import LockedModel

GIB = 2**30
NO_NVML = "NVML shows no memory of the server's processes"
NO_RSS = "the container's processes were not seen from this host"
CONTEXT = "CUDA context, other"
MARGIN = "margin"
LOAD = "model load"  # the stage's name in data/timeline.toml
TOTAL = "total"
AS_LOCKED = "weights of %s are as locked"  # how the entry point's record begins (bringup/inside/weights.py)
PURPOSES = {
    "config.json": "architecture and dimensions",
    "generation_config.json": "default sampling",
    "tokenizer.json": "tokenizer",
    "tokenizer.model": "tokenizer (SentencePiece)",
    "tokenizer_config.json": "tokenizer's settings",
    "special_tokens_map.json": "special tokens",
    "added_tokens.json": "special tokens",
    "vocab.json": "vocabulary",
    "merges.txt": "merges of byte pairs",
    "chat_template.jinja": "chat template",
    "chat_template.json": "chat template",
}


@dataclass(frozen=True)
class Sample:
    """What was in use at one moment.

    `t`: epoch seconds. `used`: bytes in use on each GPU, by whomever; `by_pid`: bytes of GPU memory by process id of
    this host, over all GPUs. `rss`: bytes of the container's processes in host memory, with shared pages counted in
    each; `pss`: the same with shared pages counted once (read only when asked for, and where the kernel lets us).
    """

    t: float
    used: tuple[int, ...] | None = None
    by_pid: Mapping[int, int] | None = None
    rss: int | None = None
    pss: int | None = None

    def held(self, pids: frozenset[int]) -> int | None:
        """Bytes of GPU memory that these processes hold."""
        return None if self.by_pid is None else sum(n for pid, n in self.by_pid.items() if pid in pids)


@dataclass(frozen=True)
class Observation:
    """Samples in the order of time, and the process ids that the container was seen to have."""

    samples: tuple[Sample, ...] = ()
    pids: frozenset[int] = frozenset()
    fault: str = ""


@dataclass(frozen=True)
class Stage:
    """A named interval of the start, epoch seconds."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of memory, in bytes."""

    name: str
    predicted: int | None = None
    stated: int | None = None
    measured: int | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """With the differences in percent: of what was stated from the prediction, of the measured from the stated."""
        return dataclasses.asdict(self) | {
            "stated_to_predicted_percent": percent(self.stated, self.predicted),
            "measured_to_stated_percent": percent(self.measured, self.stated),
        }


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Memory at a named moment, in bytes: on all GPUs by everyone, by the server on the GPUs, by it on the host."""

    name: str
    t: float | None = None
    stage: str = ""
    card: int | None = None
    server: int | None = None
    rss: int | None = None
    pss: int | None = None
    note: str = ""


@dataclass(frozen=True)
class File:
    """One file that was loaded; `verified`: compared with the lock by this start; None: nobody said so."""

    path: str
    size: int
    purpose: str
    sha256: str
    verified: bool | None


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All of it; `unknown`: what is missing, and why."""

    flavour: str
    card: int | None
    rows: tuple[Row, ...]
    moments: tuple[Moment, ...]
    growth: tuple[tuple[str, int], ...]
    on_disk: int | None
    files: tuple[File, ...]
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """ledger.json."""
        return {
            "flavour": self.flavour,
            "card_bytes": self.card,
            "rows": [row.to_dict() for row in self.rows],
            "moments": [dataclasses.asdict(m) for m in self.moments],
            "growth_by_stage": [{"stage": name, "bytes": grown} for name, grown in self.growth],
            "breakdown": [{"component": name, "bytes": size, "from": source} for name, size, source in breakdown(self)],
            "files": [dataclasses.asdict(f) for f in self.files],
            "unknown": list(self.unknown),
        }


def percent(value: int | None, base: int | None) -> float | None:
    """How far a value is from another, in percent of the other."""
    return round(100 * (value - base) / base, 1) if value is not None and base else None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a ledger is made from.

    `observation`: samples of the start. `serving`, `after`: one sample of each, None when there was none to take.
    `facts`: `timeline.Timeline.facts`. `weights`: bytes of the model's weights by its dimensions. `card`: bytes of the
    GPU. `on_disk`: bytes of the compile caches.
    """

    flavour: str
    observation: Observation = Observation()
    serving: Sample | None = None
    after: Sample | None = None
    facts: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    stages: Sequence[Stage] = ()
    predicted: fit.Fit | None = None
    weights: int | None = None
    card: int | None = None
    on_disk: int | None = None
    files: tuple[File, ...] = ()


def make(seen: Seen) -> Ledger:
    """The ledger of one run."""
    on_gpu = seen.flavour == "gpu"
    moments = _moments(seen)
    rows = _gpu_rows(seen) if on_gpu else _cpu_rows(seen)
    own = (MARGIN, CONTEXT, TOTAL)  # nothing that vLLM could state
    unknown = [f"{row.name}: not stated by vLLM" for row in rows if row.stated is None and row.name not in own]
    if all((m.server if on_gpu else m.rss) in (None, 0) for m in moments):
        unknown.append(NO_NVML if on_gpu else NO_RSS)
    if on_gpu and seen.predicted is None:
        unknown.append("predicted: the model's dimensions or the card's size are not known")
    if seen.observation.fault:
        unknown.append(f"sampling ended early: {seen.observation.fault}")
    if any(f.verified is None for f in seen.files):
        unknown.append("files: no record of this start says that they are as locked")
    return Ledger(
        flavour=seen.flavour, card=seen.card, rows=rows, moments=moments, growth=_growth(seen), on_disk=seen.on_disk,
        files=seen.files, unknown=tuple(unknown),
    )  # fmt: skip


def _held(seen: Seen) -> Callable[[Sample], int | None]:
    """What is followed through the start: the server's memory on the GPUs, or on the host."""
    pids = seen.observation.pids
    return (lambda sample: sample.held(pids)) if seen.flavour == "gpu" else (lambda sample: sample.rss)


def _stated(seen: Seen, key: str) -> int | None:
    value = seen.facts.get(key)
    return round(value * GIB) if isinstance(value, int | float) else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _gpu_rows(seen: Seen) -> tuple[Row, ...]:
    made = seen.predicted
    grown = dict(_growth(seen))
    # The load alone stands apart from its neighbours: the KV cache and the first graphs come within one sample.
    weights = Row(
        name="weights", predicted=round(made.weights + fit.LOADED) if made else None,
        stated=_stated(seen, "weights_gib"), measured=grown.get(LOAD), note="measured: growth while they were loaded",
    )  # fmt: skip
    parts = (
        weights,
        Row(name="peak activation", predicted=made.activation if made else None,
            stated=_stated(seen, "activation_gib"), note="kept free for the largest step"),
        Row(name="non-torch", predicted=round(fit.NON_TORCH) if made else None,
            stated=_stated(seen, "non_torch_gib"), note="libraries' own memory"),
        Row(name="CUDA graphs", predicted=made.graphs if made else None,
            stated=_stated(seen, "graphs_gib")),
        Row(name="KV cache", predicted=made.kv_cache if made else None, stated=_stated(seen, "kv_cache_gib")),
    )  # fmt: skip
    essential = parts[0].stated is not None and parts[-1].stated is not None
    stated = _sum(row.stated for row in parts) if essential else None
    lacking = [row.name for row in parts if row.stated is None]
    measured = seen.serving.held(seen.observation.pids) if seen.serving else None
    measured = measured or None  # a serving process without a byte on the GPU was not seen
    other = measured - stated if measured is not None and stated is not None else None
    margin = Row(name=MARGIN, predicted=round(fit.MARGIN) if made else None, note="vLLM gives it to the KV cache")
    context = Row(name=CONTEXT, predicted=round(fit.CONTEXT) if made else None, measured=other,
                  note="measured: what NVML shows beyond all that vLLM states")  # fmt: skip
    total = Row(
        name=TOTAL, predicted=_sum(row.predicted for row in (*parts, margin, context)), stated=stated,
        measured=measured, note=f"stated: without {', '.join(lacking)}" if stated and lacking else "",
    )  # fmt: skip
    return (*parts, margin, context, total)


def _cpu_rows(seen: Seen) -> tuple[Row, ...]:
    parts = (
        Row(name="weights", predicted=seen.weights, stated=_stated(seen, "weights_gib")),
        Row(name="KV cache", stated=_stated(seen, "kv_cache_gib"), note="set; resident as far as it was written"),
    )
    resident = None
    if seen.serving:
        resident = seen.serving.pss if seen.serving.pss is not None else seen.serving.rss
    shared = "shared pages once (PSS)" if seen.serving and seen.serving.pss is not None else "shared pages in each"
    return (*parts, Row(name=TOTAL, measured=resident, note=f"processes in memory, {shared}"))


def _moments(seen: Seen) -> tuple[Moment, ...]:
    """Before, peak, serving, after."""
    pids, held, samples = seen.observation.pids, _held(seen), seen.observation.samples

    def moment(name: str, sample: Sample | None, missing: str, stage: str = "") -> Moment:
        if sample is None:
            return Moment(name=name, note=missing)
        card = None if sample.used is None else sum(sample.used)
        note = "no process yet" if sample is first else ""
        if sample is seen.after and sample.rss is None and any(s.rss for s in samples):
            note = "no process left"
        return Moment(name=name, t=sample.t, stage=stage, card=card, server=sample.held(pids), rss=sample.rss,
                      pss=sample.pss, note=note)  # fmt: skip

    known = [s for s in samples if held(s) is not None]
    peak = max((*known, *((seen.serving,) if seen.serving else ())), key=lambda s: held(s) or 0, default=None)
    peak = peak if peak and held(peak) else None
    first = samples[0] if samples and not held(samples[0]) else None
    unseen = "not observed: it ran before" if not samples else "not seen"
    stage = stage_at(seen.stages, peak.t) if peak else ""
    if peak is not None and peak is seen.serving:
        stage = "serving"
    return (
        moment("before", first, unseen),
        moment("peak", peak, unseen, stage),
        moment("serving", seen.serving, "it does not serve", "serving" if seen.serving else ""),
        moment("after", seen.after, "it still runs" if seen.serving else "not seen"),
    )


def stage_at(stages: Sequence[Stage], t: float) -> str:
    """The shortest stage that was under way, else empty."""
    under_way = [s for s in stages if s.begin <= t <= s.end]
    return min(under_way, key=lambda s: s.end - s.begin).name if under_way else ""


def _growth(seen: Seen) -> tuple[tuple[str, int], ...]:
    """How many bytes more the server held when a stage ended than when it began, by the samples next before each."""
    held = _held(seen)
    known = [(s.t, n) for s in seen.observation.samples if (n := held(s)) is not None]

    def at(t: float) -> int | None:
        return next((n for when, n in reversed(known) if when <= t), None)

    made = []
    for stage in seen.stages:
        begin, end = at(stage.begin), at(stage.end)
        if begin is not None and end is not None and end != begin:
            made.append((stage.name, end - begin))
    return tuple(made)


def predict(shape: fit.Shape | None, weights: int | None, argv: Sequence[str], card: int | None) -> fit.Fit | None:
    """`models fit` for the arguments that vLLM was given; None when the dimensions or the card are not known."""
    if shape is None or not weights or not card:
        return None
    utilization, length, requests = (_argument(argv, name) for name in (
        "--gpu-memory-utilization", "--max-model-len", "--max-num-seqs",
    ))  # fmt: skip
    asked = fit.Asked(
        vram=card,
        utilization=fit.UTILIZATION if utilization is None else utilization,
        max_model_len=int(length) if length else None,
        max_num_seqs=int(requests) if requests else None,
        eager=any(a.replace("_", "-") == "--enforce-eager" for a in argv),
    )
    return fit.fit(shape, weights, asked)


def _argument(argv: Sequence[str], name: str) -> float | None:
    """The last value of a flag, in either spelling; None where there is none, or one that only vLLM understands."""
    found = None
    for n, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == name:
            found = value if equals else (*argv, "")[n + 1]
    try:
        return float(found) if found else None
    except ValueError:
        return None


def files(model: LockedModel | None, log: str) -> tuple[File, ...]:
    """The model's files as the lock has them. `log`: the text of server.jsonl, where the entry point says so if it
    compared every byte of them."""
    if model is None:
        return ()
    verified = any(_says_as_locked(line, model) for line in log.splitlines()) or None
    return tuple(File(f.path, f.size, purpose(f.path), f.sha256, verified) for f in model.files)


def _says_as_locked(line: str, model: LockedModel) -> bool:
    if AS_LOCKED not in line:
        return False
    try:
        record = json.loads(line)
        ours = str(record["logger"]).startswith("bringup.inside") and str(record["msg"]).startswith(AS_LOCKED)
        return bool(ours and record["args"][0] == model.name and record["args"][-1] == model.digest)
    except (ValueError, LookupError, TypeError):
        return False


def purpose(path: str) -> str:
    """What a file of a model is for, by its name."""
    name = PurePosixPath(path).name
    if name.endswith(".safetensors"):
        return "weights"
    return "which file holds which weight" if name.endswith(".index.json") else PURPOSES.get(name, "other")


def breakdown(made: Ledger) -> tuple[tuple[str, int | None, str], ...]:
    """The short table: weights, compile cache, KV cache, CUDA graphs, total; bytes and where each comes from."""
    rows = {row.name: row for row in made.rows}
    total, known = rows[TOTAL].measured, []
    for title, name in (("model weights", "weights"), ("KV cache", "KV cache"), ("CUDA graphs", "CUDA graphs")):
        if name in rows:
            known.append((title, rows[name].stated, "stated by vLLM"))
    rest = total - sum(size or 0 for _, size, _ in known) if total is not None else None
    by = "NVML" if made.flavour == "gpu" else "kernel"
    return (
        known[0],
        ("compile cache", made.on_disk, "on disk, no memory"),
        *known[1:],
        ("all else", rest, f"total ({by}) less the rows above"),
        (TOTAL, total, f"measured ({by})"),
    )
