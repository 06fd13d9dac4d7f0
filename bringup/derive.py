"""What the evidence of a run adds up to: timeline, memory ledger and the caches' verdicts, and their tables.

One that cannot be made is named in `missing`; it never hides the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bringup import catalog, ledger, observe
from bringup.artifacts import as_json
from bringup.errors import BringupError
from bringup.plan import Plan
from bringup.ready import Moments
from bringup.server import Container

CACHES, FACTORS = "cache", "run/caches-before.json"  # in the state directory
CURVE = 400  # samples in ledger.json; more than a plot can show
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What it is made from.

    `log`: server.jsonl, or the console's text where there is none. `observed`: the samples of the start; empty when it
    was not watched. `card`: bytes of the GPU, None without one. `local`: the engine runs on this host.
    """

    plan: Plan
    log: str
    moments: Moments
    observed: ledger.Observation
    card: int | None
    local: bool


@dataclass
class Derived:
    """The three, as JSON types, and how to show them."""

    timeline: dict[str, Any] | None = None
    ledger: dict[str, Any] | None = None
    caches: dict[str, Any] | None = None
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def files(self) -> dict[str, str]:
        """The bundle's files, of those that could be made."""
        made = {"timeline.json": self.timeline, "ledger.json": self.ledger, "caches.json": self.caches}
        return {name: as_json(value) for name, value in made.items() if value is not None}


def derive(evidence: Evidence, container: Container) -> Derived:
    """Make all three, each for itself."""
    made = Derived()
    facts: dict[str, float | int | str] = {}
    stages: list[ledger.Stage] = []

    def attempt(name: str, make: Callable[[], None]) -> None:
        try:
            make()
        except Exception as e:  # noqa: BLE001, RUF100 - a fault of ours here is a finding, and the run is told
            made.missing.append(f"{name}.json ({type(e).__name__}: {e})")

    reader = _part("bringup.timeline")
    if reader:
        attempt("timeline", lambda: _timeline(reader, made, evidence, facts, stages))
        judge = _part("bringup.caches")
        if judge:
            attempt("caches", lambda: _caches(reader, judge, made, evidence, container))
    attempt("ledger", lambda: _ledger(made, evidence, container, facts, stages))
    return made


def _part(name: str) -> Any:
    """A module of ours that this checkout may not have yet."""
    return import_module(name) if find_spec(name) else None


def _timeline(
    reader: Any, made: Derived, evidence: Evidence, facts: dict[str, float | int | str], stages: list[ledger.Stage]
) -> None:
    """The timeline; what vLLM stated goes to `facts`, and the stages that were seen from end to end to `stages`."""
    m = evidence.moments
    anchors = reader.Anchors(
        asked=m.asked, container_started=m.container_started, first_200=m.first_200, first_token=m.first_token
    )
    built = reader.build(reader.read_events(evidence.log), anchors)
    made.timeline = built.to_dict()
    made.tables.append(reader.stage_table(built))
    facts |= built.facts
    whole = (s for s in built.stages if s.begin is not None and s.end is not None)
    stages.extend(ledger.Stage(s.name, s.begin, s.end) for s in whole)


def _caches(reader: Any, judge: Any, made: Derived, evidence: Evidence, container: Container) -> None:
    """Which cache was hit; the factors of the keys before the start and now, None where nobody can tell."""
    # A request may compile something that no start does (log probabilities): the verdicts are about the start.
    until = evidence.moments.first_token
    events = [e for e in reader.read_events(evidence.log) if until is None or e.t is None or e.t <= until]
    made.caches = judge.judge(events, _factors_before(container), _factors_now(container)).to_dict()
    rows: list[tuple[str, ...]] = [(c["name"], str(c["verdict"]), c["why"]) for c in made.caches.get("caches", [])]
    made.tables.append(("caches", ("cache", "verdict", "why"), rows))


def _factors_before(container: Container) -> Any:
    try:
        return json.loads(container.copy_out(f"{container.state_dir}/{FACTORS}"))
    except (BringupError, ValueError):
        return None


def _factors_now(container: Container) -> Any:
    try:
        code, output = container.execute([container.python, "-m", "bringup.inside.profile", "factors"])
        return json.loads(output) if code == 0 else None
    except (BringupError, ValueError):
        return None


def _ledger(
    made: Derived,
    evidence: Evidence,
    container: Container,
    facts: dict[str, float | int | str],
    stages: list[ledger.Stage],
) -> None:
    plan = evidence.plan
    model = catalog.load().get(plan.model)
    now, pids, serves = _look(evidence, container)
    seen = ledger.Seen(
        flavour=plan.flavour,
        observation=replace(evidence.observed, pids=evidence.observed.pids | pids),
        serving=now if serves else None,
        after=None if serves else now,
        facts=facts,
        stages=stages,
        predicted=ledger.predict(model.shape, model.weights, plan.argv, evidence.card) if model else None,
        weights=model.weights if model else None,
        card=evidence.card,
        on_disk=_size_of_caches(container),
        files=ledger.files(model.lock if model else None, evidence.log),
    )
    result = ledger.make(seen)
    made.ledger = result.to_dict() | {"samples": curve(seen.observation)}
    made.tables += ledger_tables(result)


def curve(seen: ledger.Observation) -> list[dict[str, Any]]:
    """Memory through the start: epoch seconds, bytes on all GPUs by everyone, on them by the server, on the host."""
    samples = list(seen.samples)
    while len(samples) > CURVE:
        samples = observe.thinned(samples)
    return [
        {"t": round(s.t, 3), "card": None if s.used is None else sum(s.used), "server": s.held(seen.pids), "rss": s.rss}
        for s in samples
    ]


def _look(evidence: Evidence, container: Container) -> tuple[ledger.Sample, frozenset[int], bool]:
    """One sample of now, the container's processes, and whether it serves; one that is gone has none of them."""
    plan = evidence.plan
    with observe.eye(on_gpu=plan.flavour == "gpu", local=evidence.local, gpus=plan.gpus) as eye:
        try:
            serves = container.state().status == "running"
            eye.follow(container)
        except BringupError:
            serves = False
        return eye.look(closely=True), eye.pids, serves


def _size_of_caches(container: Container) -> int | None:
    """Bytes of files below the cache directory; None where nobody can look."""
    try:
        code, output = container.execute(["du", "--summarize", "--bytes", f"{container.state_dir}/{CACHES}"])
    except BringupError:
        return None
    word = output.split(maxsplit=1)[0] if output.strip() else ""
    return int(word) if code == 0 and word.isdigit() else None


def ledger_tables(made: ledger.Ledger) -> list[Table]:
    """The rows and the moments, for people."""
    rows: list[tuple[str, ...]] = [
        (
            row.name, size(row.predicted), size(row.stated), size(row.measured),
            share(ledger.percent(row.stated, row.predicted)), share(ledger.percent(row.measured, row.stated)),
        )
        for row in made.rows
    ]  # fmt: skip
    columns = ("memory", "predicted", "stated", "measured", "stated vs predicted", "measured vs stated")
    return [("memory: predicted, stated by vLLM, measured", columns, rows), _moments(made)]


def _moments(made: ledger.Ledger) -> Table:
    """On a GPU: the cards and the server's part of them; else host memory."""
    on_gpu = made.flavour == "gpu"
    rows: list[tuple[str, ...]] = []
    for m in made.moments:
        name = f"{m.name} ({m.stage})" if m.stage not in ("", m.name) else m.name
        figures = (size(m.card), size(m.server)) if on_gpu else ()
        rows.append((name, *figures, size(m.rss), m.note))
    columns = ("reserved GPUs", "server on GPUs") if on_gpu else ()
    return "memory: when", ("moment", *columns, "processes (RSS)", ""), rows


def size(value: int | None) -> str:
    """Bytes for people; a figure that nobody gave is a dash."""
    if value is None:
        return "-"
    return f"{value / 2**30:.2f} GiB" if abs(value) >= 2**30 // 10 else f"{value / 2**20:.1f} MiB"


def share(value: float | None) -> str:
    """A difference in percent."""
    return "" if value is None else f"{value:+.1f} %"
