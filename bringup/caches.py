"""Which caches a start was served from, proven by its log, and why one was missed. Pure.

The lines are those of vLLM 0.11 to 0.33 (vllm/compilation/{backends,decorators}.py, vllm/v1/worker/startup_plan.py,
vllm/model_executor/warmup/kernel_warmup.py) and of torch (torch/_inductor/codecache.py and
torch/_functorch/_aot_autograd/autograd_cache.py, which `bringup.inside.events` makes heard). Factors and entries are
what `bringup.inside.profile` wrote down. docs/caches.md explains them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from bringup.timeline.events import Event

SCHEMA = 1
LINE = 400  # characters of a log line that are quoted
NEW = 20  # new entries that are named

_READY = re.compile(r"^init engine \(|Application startup complete")
_EAGER = re.compile(r"^Enforce eager set|^Initializing a V1 LLM engine .*enforce_eager=True", re.DOTALL)
_DISABLED = re.compile(r"vLLM's torch\.compile cache is disabled")
_AOT_HIT = re.compile(r"Directly load AOT compilation from path ")
_AOT_REFUSED = re.compile(r"Compiling model again due to a load failure from \S+, reason: (.*)", re.DOTALL)
_AOT_MISS = re.compile(r"saved AOT compiled function to |unable to save AOT compiled function to ")
_GRAPH_HIT = re.compile(r"Directly load the compiled graph\(s\) for ")
_GRAPH_MISS = re.compile(r"Compiling a graph for |Cache the graph (of|for) ")
_TORCH_HIT = re.compile(r"^(AOTAutograd|fx graph) cache hit for key ")
_TORCH_MISS = re.compile(r"^(AOTAutograd|fx graph) cache miss for key |^Bypassing (FX Graph Cache|autograd cache) ")
_NO_TRITON = re.compile(r"Disabling Triton|Triton is not installed|^Triton not available")
_TUNE_FILE = re.compile(r"Using FlashInfer autotune cache file: (\S+)")
_TUNE_OFF = re.compile(r"Skipping FlashInfer autotune because it is disabled")
_PLAN_HIT = re.compile(r"^Applying persisted startup plan ")
_PLAN_REFUSED = re.compile(r"^Startup plan not applied: (.*)|^Ignoring unreadable startup plan (.*)", re.DOTALL)
_PLAN_MISS = re.compile(r"^Saved startup plan to |^Failed to save startup plan to ")


class Answer(StrEnum):
    """What one cache did. `OFF`: this start does not use it. `UNKNOWN`: nothing proves either."""

    HIT = "hit"
    MISS = "miss"
    OFF = "off"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A factor of the cache keys that the last successful start had otherwise; None: it was not set."""

    factor: str
    before: str | None
    now: str | None


@dataclass(frozen=True, kw_only=True)
class CacheVerdict:
    """One cache: `why` in one line, `evidence` the log lines that prove it, `differs` for a miss."""

    name: str
    verdict: Answer
    why: str
    evidence: tuple[str, ...] = ()
    differs: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class CacheVerdicts:
    """All caches of one start."""

    caches: tuple[CacheVerdict, ...]

    def to_dict(self) -> dict[str, Any]:
        """caches.json."""
        return {"schema": SCHEMA, "caches": [asdict(c) for c in self.caches]}


@dataclass(frozen=True)
class _Start:
    """What is known: log lines, factors and entries before and now (None: nobody told)."""

    texts: tuple[str, ...]
    factors_before: dict[str, str] | None
    factors_now: dict[str, str] | None
    entries_before: dict[str, dict[str, int]] | None
    entries_now: dict[str, dict[str, int]] | None

    def lines(self, pattern: re.Pattern[str]) -> tuple[str, ...]:
        return tuple(_short(t) for t in self.texts if pattern.search(t))

    def first(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return next((m for t in self.texts if (m := pattern.search(t))), None)


def judge(events: Sequence[Event], factors_before: Any, factors_now: Any) -> CacheVerdicts:
    """One verdict per cache.

    Args:
        events: the start's log; of a log that was cut off before the engine was ready, silence proves nothing.
        factors_before: caches-before.json: the factors of the last successful start, the entries before this one.
        factors_now: what `python -m bringup.inside.profile factors` prints. Either may be None or not readable.
    """
    before, now = _kept(factors_before), _kept(factors_now)
    if not before or not now or before.get("container") != now.get("container"):
        before = now = None  # of one alone nobody knows whether it is left from another container
    start = _Start(
        tuple(e.text for e in events),
        _texts((before or {}).get("factors")), _texts((now or {}).get("factors")),
        _sizes((before or {}).get("entries")), _sizes((now or {}).get("entries")),
    )  # fmt: skip
    return CacheVerdicts((
        _aot(start), _graphs(start), _inductor(start),
        _files(start, "triton", "Triton"), _autotune(start),
        _files(start, "flashinfer-jit", "FlashInfer"), _plan(start),
    ))  # fmt: skip


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[:LINE]}…"


def _kept(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def _texts(value: Any) -> dict[str, str] | None:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else None


def _sizes(value: Any) -> dict[str, dict[str, int]] | None:
    if not isinstance(value, dict):
        return None
    return {str(kind): dict(found) for kind, found in value.items() if isinstance(found, dict)}


def differences(before: dict[str, str] | None, now: dict[str, str] | None) -> tuple[Difference, ...]:
    """The factors that differ, by name; none where one side is not known."""
    if before is None or now is None:
        return ()
    names = sorted(before.keys() | now.keys())
    pairs = ((n, before.get(n), now.get(n)) for n in names)
    return tuple(Difference(factor=n, before=a, now=b) for n, a, b in pairs if a != b)


def _missed(start: _Start, name: str, evidence: tuple[str, ...], said: str = "") -> CacheVerdict:
    """A miss, and the best reason that there is: vLLM's own, an empty cache, or the factors that differ."""
    differs = differences(start.factors_before, start.factors_now)
    empty = start.entries_before is not None and not start.entries_before.get(name)
    if said:
        why = f"vLLM refused the entry: {_short(said)}"
    elif differs:
        why = "differs from the last successful start: " + ", ".join(
            f"{d.factor} ({d.before or 'unset'} -> {d.now or 'unset'})" for d in differs
        )
    elif empty:
        why = "the cache was empty before this start"
    elif start.factors_before is None:
        why = "nothing is known of an earlier start with this state directory"
    else:
        why = "no known factor differs from the last successful start"
    if empty and differs and not said:
        why = f"the cache was empty before this start; {why}"
    return CacheVerdict(name=name, verdict=Answer.MISS, why=why, evidence=evidence, differs=differs)


def _silent(start: _Start, name: str, off: str) -> CacheVerdict:
    """Not a word about it: off, if the log goes on until the engine was ready."""
    if ready := start.lines(_READY):
        return CacheVerdict(name=name, verdict=Answer.OFF, why=off, evidence=ready[:1])
    return CacheVerdict(name=name, verdict=Answer.UNKNOWN, why="the log ends before the engine was ready")


def _hit(name: str, why: str, evidence: tuple[str, ...]) -> CacheVerdict:
    return CacheVerdict(name=name, verdict=Answer.HIT, why=why, evidence=evidence)


def _switched_off(start: _Start, name: str) -> CacheVerdict | None:
    """For the caches of compilation: eager, or told not to."""
    for pattern, why in ((_EAGER, "eager: nothing is compiled"), (_DISABLED, "VLLM_DISABLE_COMPILE_CACHE is set")):
        if lines := start.lines(pattern):
            return CacheVerdict(name=name, verdict=Answer.OFF, why=why, evidence=lines[:1])
    return None


def _aot(start: _Start) -> CacheVerdict:
    """vLLM's ahead-of-time artifact: the whole compiled model, without Dynamo."""
    name = "vllm-aot"
    refused, missed, hit = start.first(_AOT_REFUSED), start.lines(_AOT_MISS), start.lines(_AOT_HIT)
    if refused:
        return _missed(start, name, (*start.lines(_AOT_REFUSED), *missed), refused[1])
    if missed:
        return _missed(start, name, missed)
    if hit:
        return _hit(name, "vLLM loaded the compiled model", hit)
    return _switched_off(start, name) or _silent(start, name, "vLLM neither loaded nor saved a compiled model")


def _graphs(start: _Start) -> CacheVerdict:
    """vLLM's cache of compiled graphs, below a directory named by the key."""
    name = "vllm-compile"
    missed, hit, aot = start.lines(_GRAPH_MISS), start.lines(_GRAPH_HIT), start.lines(_AOT_HIT)
    if missed:
        return _missed(start, name, missed)
    if hit:
        return _hit(name, "vLLM loaded the compiled graphs", hit)
    if aot and not start.first(_AOT_REFUSED):
        return _hit(name, "the graphs are part of the compiled model that was loaded", aot)
    return _switched_off(start, name) or _silent(start, name, "vLLM neither loaded nor compiled a graph of its own")


def _inductor(start: _Start) -> CacheVerdict:
    """Torch's cache below TORCHINDUCTOR_CACHE_DIR; only torch's own log tells when vLLM's caches are missed."""
    name = "inductor"
    missed, hit = start.lines(_TORCH_MISS), start.lines(_TORCH_HIT)
    if missed:
        return _missed(start, name, (*missed, *hit))
    if hit:
        return _hit(name, "torch loaded the compiled graphs", hit)
    graphs = start.lines(_GRAPH_HIT) or start.lines(_AOT_HIT)
    if graphs and not start.lines(_GRAPH_MISS) and not start.first(_AOT_REFUSED):
        return _hit(name, "nothing was left to compile: vLLM loaded what torch had compiled", graphs)
    if compiled := start.lines(_GRAPH_MISS) or start.lines(_AOT_MISS):
        why = "something was compiled, and this log has no line of torch's cache"
        return CacheVerdict(name=name, verdict=Answer.UNKNOWN, why=why, evidence=compiled[:1])
    return _switched_off(start, name) or _silent(start, name, "torch was not asked for a graph")


def _files(start: _Start, name: str, who: str) -> CacheVerdict:
    """A cache without a log line: only new entries prove something."""
    if name == "triton" and (lines := start.lines(_NO_TRITON)):
        return CacheVerdict(name=name, verdict=Answer.OFF, why="there is no Triton for this device", evidence=lines[:1])
    if start.entries_before is None or start.entries_now is None:
        return CacheVerdict(name=name, verdict=Answer.UNKNOWN, why=f"{who} logs nothing, and the entries are not known")
    before, now = start.entries_before.get(name, {}), start.entries_now.get(name, {})
    if new := sorted(now.keys() - before.keys()):
        found = _missed(start, name, tuple(f"new entry: {n}" for n in new[:NEW]))
        return CacheVerdict(**{**vars(found), "why": f"{len(new)} new entries besides {len(before)}; {found.why}"})
    if not before:
        return CacheVerdict(name=name, verdict=Answer.OFF, why="no entry before the start, and none since")
    why = f"{len(before)} entries, none of them new: {who} compiled nothing, and logs nothing of what it loads"
    return CacheVerdict(name=name, verdict=Answer.UNKNOWN, why=why)


def _autotune(start: _Start) -> CacheVerdict:
    """FlashInfer's tuned kernels: the log names the file, the entries say whether it was there."""
    name = "flashinfer-autotune"
    used = start.first(_TUNE_FILE)
    if not used:
        lines = start.lines(_TUNE_OFF)
        off = CacheVerdict(name=name, verdict=Answer.OFF, why="it is switched off", evidence=lines[:1])
        return off if lines else _silent(start, name, "vLLM did not ask FlashInfer to tune")
    lines = start.lines(_TUNE_FILE)
    if start.entries_before is None:
        why = "the file is used, and nobody knows whether it was there before"
        return CacheVerdict(name=name, verdict=Answer.UNKNOWN, why=why, evidence=lines)
    if any(used[1].endswith(f"/{entry}") for entry in start.entries_before.get(name, {})):
        return _hit(name, "the file was there before the start", lines)
    return _missed(start, name, lines)


def _plan(start: _Start) -> CacheVerdict:
    """vLLM's startup plan (0.26 and newer): the size of the KV cache, remembered."""
    name = "startup-plan"
    if hit := start.lines(_PLAN_HIT):
        return _hit(name, "vLLM took the size of the KV cache from an earlier start", hit)
    refused = start.first(_PLAN_REFUSED)
    if refused:
        return _missed(start, name, start.lines(_PLAN_REFUSED), refused[1] or refused[2])
    if missed := start.lines(_PLAN_MISS):
        return _missed(start, name, missed)
    return _silent(start, name, "vLLM neither applied nor saved one")
