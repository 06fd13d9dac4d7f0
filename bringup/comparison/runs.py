"""What a comparison takes from one bundle. A bundle of an older release, or of an address, has less of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bringup.benchmark.figures import verdicts
from bringup.bundle import Bundle
from bringup.fingerprint import Fingerprint, fingerprint

HIDDEN = ("org.opencontainers.image.title", "org.opencontainers.image.description")  # say nothing that others do not
LABEL = "dev.bringup."
NAMES = {
    f"{LABEL}wheels-lock-sha256": "wheels lock (sha256)",
    f"{LABEL}weights-lock-sha256": "weights lock (sha256)",
    f"{LABEL}weights-digest": "weights digest",
    f"{LABEL}model": "model baked in",
    f"{LABEL}vllm": "vLLM of the lock",
    "org.opencontainers.image.revision": "revision",
    "org.opencontainers.image.version": "version",
}
GIB = 2**30


@dataclass(frozen=True)
class Stage:
    """One stage of a start: its place in the file, its name, seconds, and the stage that it is part of."""

    id: str
    name: str
    seconds: float
    parent: str | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    `whole`: seconds from the container's start to the first token, None when the start was not seen. `started`: it is
    the kind of run that has a start to compare (an address has none). `timed`: its bundle has a timeline. `caches`:
    verdict by cache. `state`: see `cache_state`. `facts`: by area and name. `memory`: bytes by row and by who says it
    (predicted, stated, measured). `probes`: status and seconds by name.
    """

    name: str
    verdict: str
    error: str
    faults: tuple[str, ...]
    started: bool
    timed: bool
    whole: float | None
    stages: dict[str, Stage] = field(default_factory=dict)
    caches: dict[str, str] = field(default_factory=dict)
    facts: dict[tuple[str, str], str] = field(default_factory=dict)
    memory: dict[tuple[str, str], int] = field(default_factory=dict)
    probes: dict[str, tuple[str, float]] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None

    def seconds_of(self, stage: str) -> float | None:
        """How long a stage took; None where it was not seen."""
        return self.stages[stage].seconds if stage in self.stages else None

    @property
    def state(self) -> str:
        """Of its caches, in one word."""
        return cache_state(self.caches)


def cache_state(caches: Mapping[str, str]) -> str:
    """Warm: what was used was hit. Cold: missed. Partly: both. Unused: every cache was off. Unknown: nobody said."""
    said = set(caches.values())
    if {"hit", "miss"} <= said:
        return "partly"
    if "hit" in said or "miss" in said:
        return "warm" if "hit" in said else "cold"
    return "unused" if "off" in said else "unknown"


def from_bundle(bundle: Bundle) -> Run:
    """The run that a bundle is the evidence of."""
    record = bundle.record
    timeline = _dict(record.get("timeline") or bundle.json("timeline.json"))
    stages = {s.id: s for s in _stages(timeline)}
    probes = {p["name"]: (str(p.get("status")), _number(p.get("seconds")) or 0.0) for p in _named(record.get("probes"))}
    return Run(
        name=bundle.directory.resolve().name,
        verdict=str(record.get("verdict", "unknown")),
        error=str(record.get("error") or ""),
        faults=bundle.faults,
        started=bool(record.get("container")) or bool(stages),
        timed=bool(stages),
        whole=_number(record.get("started_to_first_token")),
        stages=stages,
        caches=verdicts(record.get("caches") or bundle.json("caches.json")),
        facts=dict(_facts(record)),
        memory=dict(_memory(_dict(record.get("ledger") or bundle.json("ledger.json")))),
        probes=probes,
        fingerprint=_fingerprint(record),
    )


def _fingerprint(record: Mapping[str, Any]) -> Fingerprint | None:
    """Of the probe that asked for it; before there was `given`, nothing of the text was scored."""
    data = next((_dict(p.get("data")) for p in _named(record.get("probes")) if p["name"] == "logprobs"), {})
    try:
        return fingerprint({"given": 0} | data)
    except ValueError:
        return None


def _stages(timeline: Mapping[str, Any]) -> Iterator[Stage]:
    for s in _list(timeline.get("stages")):
        seconds = _number(s.get("seconds"))
        if seconds is not None and isinstance(s.get("id"), str):
            yield Stage(s["id"], str(s.get("name") or s["id"]), seconds, s.get("parent"))


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """What a run was made of, each with its area: image, weights, host, vLLM, settings."""
    image, plan, host = (_dict(record.get(name)) for name in ("image", "plan", "host"))
    if image.get("id"):
        yield ("image", "id"), str(image["id"])
    for label, text in sorted(_dict(image.get("labels")).items()):
        if label not in HIDDEN and text:
            yield ("weights" if "weights" in label else "image", NAMES.get(label, label)), str(text)
    yield from _weights(record)
    yield from _host(host)
    said = next(
        (_dict(p.get("data")).get("said") for p in _named(record.get("probes")) if p["name"] == "version"), None
    )
    if said:
        yield ("vLLM", "vLLM version"), str(said)
    for name in ("flavour", "weights", "gpus", "image", "compose_files"):
        if plan.get(name):
            yield ("settings", name), _text(plan[name])
    yield from ((("settings", name), text) for name, text in _argv(plan.get("argv")))
    for name, value in sorted(_dict(plan.get("environment")).items()):
        yield ("settings", name), str(value)


def _weights(record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    model = _dict(record.get("plan")).get("model")
    if model:
        yield ("weights", "model"), str(model)
    pin = _dict(record.get("model"))
    for key, name in (("repo", "repository"), ("revision", "commit"), ("digest", "digest of the pinned files")):
        if pin.get(key):
            yield ("weights", name), str(pin[key])
    for f in _list(_dict(record.get("ledger")).get("files")):
        if f.get("purpose") == "weights":
            yield ("weights", f"{f.get('path')} (sha256)"), str(f.get("sha256"))


def _host(host: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    gpu, system, engine = (_dict(host.get(name)) for name in ("gpu", "system", "engine"))
    names = [str(g.get("name")) for g in _list(gpu.get("gpus"))]
    found: dict[str, Any] = {
        "GPUs": ", ".join(f"{names.count(n)} x {n}" for n in dict.fromkeys(names)),
        "GPU driver": gpu.get("driver"),
        "CUDA of the driver": gpu.get("cuda"),
        "system": system.get("system"),
        "kernel": system.get("kernel"),
        "architecture": system.get("architecture"),
        "CPUs": system.get("cpus"),
        "memory": f"{memory / GIB:.0f} GiB" if (memory := _number(_dict(host.get("memory")).get("total"))) else None,
        "Docker Engine": engine.get("version"),
        "container toolkit": _dict(host.get("node")).get("toolkit"),
    }
    return ((("host", name), str(value)) for name, value in found.items() if value)


def _argv(argv: Any) -> Iterator[tuple[str, str]]:
    """Flags with their values; a flag that is given twice has both."""
    found: dict[str, list[str]] = {}
    flag = "(argument)"
    for word in _texts(argv):
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            found.setdefault(flag, [])
            if not value:
                continue
            word = value  # noqa: PLW2901
        found.setdefault(flag, []).append(word)
    return ((flag, " ".join(words) or "set") for flag, words in found.items())


def _memory(ledger: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], int]]:
    for row in _named(ledger.get("rows")):
        for who in ("predicted", "stated", "measured"):
            if (size := _number(row.get(who))) is not None:
                yield (row["name"], who), int(size)
    if (size := _number(ledger.get("card_bytes"))) is not None:
        yield ("card", "measured"), int(size)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _named(value: Any) -> list[dict[str, Any]]:
    return [v for v in _list(value) if isinstance(v.get("name"), str)]


def _texts(value: Any) -> Iterable[str]:
    return (v for v in value if isinstance(v, str)) if isinstance(value, list) else ()


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
