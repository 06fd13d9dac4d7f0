"""How long starts take: container start to ready to first token, with the caches dropped (cold) and kept (warm)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup import artifacts, image, workflow
from bringup.benchmark import machine
from bringup.benchmark.figures import Spread, spread, verdicts
from bringup.edge import pagecache, process
from bringup.errors import BringupError, CheckFailed, TargetUnavailable, UsageError
from bringup.key import secrets
from bringup.plan import SERVICE
from bringup.ready import Moments, Seen
from bringup.records import CheckRecord, ProbeRecord, RunRecord, Status, Verdict
from bringup.settings import VOLUME
from bringup.targets.compose import ComposeTarget, require_weights
from bringup.timeline.live import Expected
from bringup.watch import Watch
from bringup.workflow import Run

COLD, WARM, PRIME, MISSED = "cold", "warm", "prime", "warm, but a cache missed"
SUFFIX = "-bench"  # of the compose project: what a benchmark starts and empties is never somebody's server
READY, TOKEN = "to_ready", "to_first_token"
STARTS = ("start", "", "to ready s", "to first token s", "page cache", "caches")
GROUPS = ("container start to", "", "n", "p50 s", "min s", "max s", "IQR s")
TITLES = {READY: "ready", TOKEN: "first token"}


@dataclass(frozen=True)
class Asked:
    """How many starts of each kind, and whether a cold one may drop the host's page cache."""

    cold: int = 5
    warm: int = 5
    drop_page_cache: bool = True


@dataclass(frozen=True)
class Quiet:
    """A watch that shows no tables: each start's are in its bundle."""

    watch: Watch

    def step(self, name: str) -> AbstractContextManager[Callable[[str], None]]:
        """As the watch inside."""
        return self.watch.step(name)

    def start(self, name: str, expected: Expected | None) -> AbstractContextManager[Seen]:
        """As the watch inside."""
        return self.watch.start(name, expected)

    def say(self, text: str) -> None:
        """As the watch inside."""
        self.watch.say(text)

    def checks(self, records: tuple[CheckRecord, ...]) -> None:
        """As the watch inside."""
        self.watch.checks(records)

    def probes(self, records: tuple[ProbeRecord, ...]) -> None:
        """Nothing."""

    def table(self, title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        """Nothing."""


def order(cold: int, warm: int) -> Iterator[str]:
    """In turns, so that a machine that changes changes both; without a cold start, an uncounted one first. Pure."""
    if warm and not cold:
        yield PRIME
    for index in range(max(cold, warm)):
        if index < cold:
            yield COLD
        if index < warm:
            yield WARM


def group(kind: str, caches: dict[str, str]) -> str:
    """Where a start counts: a warm one that missed a cache is no warm start. Pure."""
    return MISSED if kind == WARM and "miss" in caches.values() else kind


def durations(moments: Moments) -> dict[str, float | None]:
    """Seconds from the container's start to the first 200 and to the first token; None: not seen after it. Pure."""

    def since(moment: float | None) -> float | None:
        if moment is None or moments.container_started is None or moment < moments.container_started:
            return None
        return round(moment - moments.container_started, 3)

    return {READY: since(moments.first_200), TOKEN: since(moments.first_token)}


def summary(starts: list[dict[str, Any]]) -> dict[str, dict[str, Spread]]:
    """By group: the spread of the seconds to ready, and to the first token, of the starts that did not fail. Pure."""
    found: dict[str, dict[str, Spread]] = {}
    good = [s for s in starts if s["status"] != Status.FAIL and s["group"] != PRIME]
    for name in dict.fromkeys(s["group"] for s in good):
        for what in (READY, TOKEN):
            made = spread(s[what] for s in good if s["group"] == name and s[what] is not None)
            if made:
                found.setdefault(name, {})[what] = made
    return found


def ratios(groups: dict[str, dict[str, Spread]]) -> dict[str, float]:
    """Median warm / median cold, where there are both. Pure."""
    cold, warm = groups.get(COLD, {}), groups.get(WARM, {})
    return {what: round(warm[what].p50 / cold[what].p50, 3) for what in cold if what in warm and cold[what].p50}


def judge(number: int, kind: str, seen: dict[str, float | None], verdict: Verdict, bundle: str) -> ProbeRecord:
    """One start's record: it must have been proven, and both times seen. Pure."""
    name, expected = f"start {number} {kind}", "a proven server, with the times to ready and to the first token"
    absent = [TITLES[k] for k, v in seen.items() if v is None]
    if verdict is not Verdict.PASS:
        status, found = Status(verdict), f"its verdict is {verdict}: see {bundle}"
    elif absent:
        status, found = Status.UNKNOWN, f"not seen after the container's start: {', '.join(absent)}"
    else:
        status, found = Status.PASS, f"ready after {seen[READY]:.2f} s, first token after {seen[TOKEN]:.2f} s"
    return ProbeRecord(name=name, status=status, expected=expected, found=found, data=dict(seen))


def bench(run: Run, asked: Asked) -> tuple[RunRecord, dict[str, Any], Path]:
    """Start, prove and stop the server, cold and warm in turns; nothing is left, however it ends.

    Each start has its own bundle; `summary` beside them holds bench-start.json and the record.

    Raises:
        BringupError: a start failed, which ends the benchmark; what was measured before is in the summary.
    """
    kinds = list(order(asked.cold, asked.warm))
    if not kinds:
        raise UsageError("nothing to measure: neither a cold nor a warm start", hint="give -n N")
    target, raw_image = _prepared(run)
    root = (run.settings.artifacts / f"{artifacts.name(run.plan, time.time())}-bench-start").absolute()
    report: dict[str, Any] = {
        "kind": "start", "model": run.plan.model, "load_before": machine.load(run),
        "machine": None, "server": None, "planned": kinds, "starts": [],
        "error": "interrupted",
    }  # fmt: skip
    machine.warn_if_busy(run, report["load_before"])
    try:
        for number, kind in enumerate(kinds, 1):
            run.watch.say(f"start {number} of {len(kinds)}: {kind}")
            _once(run, target, number, asked, raw_image, root, report)
        report["error"] = ""
    except BringupError as e:
        report["error"] = f"start {number} of {len(kinds)}: {e.line}"
        raise
    finally:
        try:
            target.down(volumes=True)
        finally:
            record, bundle = _conclude(run, raw_image, report, root)
    return record, report, bundle


def _prepared(run: Run) -> tuple[ComposeTarget, dict[str, Any]]:
    """All that could refuse a start, asked before the first one; the plan goes to a project of its own."""
    if run.settings.weights == VOLUME:
        raise UsageError(
            "--weights volume: each cold start would fetch the weights, and the network would be measured",
            hint="give an image with the weights in it (--weights baked), or a directory: --weights DIR",
            id="weights-not-here",
        )
    require_weights(run.plan)
    artifacts.check_destination(run.settings.artifacts)
    own = run.host.own_container
    if own is not None and own.status in ("running", "paused"):
        raise CheckFailed(
            f"the server of the project {run.plan.project} is {own.status}; a start beside it would be another start",
            hint=f"bringup down --project {run.plan.project}", id="server-running",
        )  # fmt: skip
    workflow.require(run)
    run.plan = dataclasses.replace(run.plan, project=run.plan.project + SUFFIX)
    _require_unused(run)
    raw_image = run.engine.image(run.plan.image) or workflow.build(run)
    return ComposeTarget(run.engine, run.plan.project, run.plan.compose_files), raw_image


def _require_unused(run: Run) -> None:
    """Nobody's container and nobody's caches are in the project that will be emptied."""
    project = run.plan.project
    listed = process.run(
        ["docker", "volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={project}"], timeout=60
    )
    if listed.code:
        raise TargetUnavailable(f"the engine did not list its volumes: {listed.tail}")
    container = run.engine.find(project, SERVICE)
    found = [*([f"the container {container.name}"] if container else []), *listed.out.split()]
    if found:
        raise CheckFailed(
            f"the benchmark's project {project} must be empty, and has {', '.join(found)}",
            hint=f"if it is of a benchmark that was killed: bringup down --project {project} --volumes",
            id="bench-project-in-use",
        )


def _once(
    run: Run, target: ComposeTarget, number: int, asked: Asked, raw_image: dict[str, Any], root: Path,
    report: dict[str, Any],
) -> None:  # fmt: skip
    """One start from nothing to nothing; its entry goes into the report, its record into the run."""
    kind = report["planned"][number - 1]
    mine = Run(run.command, dataclasses.replace(run.settings, artifacts=root), run.plan, run.engine, run.host,
               Quiet(run.watch), checks=run.checks)  # fmt: skip
    page_cache = "kept"
    if kind == COLD:
        target.down(volumes=True)
        page_cache = _page_cache(run, asked)
    released = None
    try:
        container, server = workflow.start(mine, target, None)
        if report["machine"] is None:
            report["machine"], report["server"] = machine.machine(run, container), machine.server(run, container)
        workflow.probe(mine, server)
        record, bundle = workflow.collect(mine, server, container, raw_image)
    finally:
        released = workflow.stop(target, local=run.host.local, known=mine.observed.pids)
    seen, caches = durations(mine.moments), verdicts(record.caches)
    judged = judge(number, kind, seen, record.verdict, bundle.name)
    run.probes = (*run.probes, judged)
    report["starts"].append({
        "number": number, "kind": kind, "group": group(kind, caches), "status": judged.status, "page_cache": page_cache,
        "caches": caches, "released": released.verdict if released else None, "bundle": bundle.name, **seen,
    })  # fmt: skip
    if released and released.verdict == "leaked":
        raise CheckFailed(released.line, id="memory-leaked",
                          hint="`nvidia-smi` shows who holds GPU memory; end these processes first")  # fmt: skip


def _page_cache(run: Run, asked: Asked) -> str:
    if not asked.drop_page_cache:
        return "not dropped: not asked for"
    why = pagecache.drop() if run.host.local else "the engine is on another host"
    if why:
        run.watch.say(f"the page cache is not dropped ({why}): this start is cold but for it")
    return f"not dropped: {why}" if why else "dropped"


def _conclude(run: Run, raw_image: dict[str, Any], report: dict[str, Any], root: Path) -> tuple[RunRecord, Path]:
    """Show and write what there is; after a failure, not being able to write must not hide it."""
    groups = summary(report["starts"])
    report["summary"] = {g: {k: v.to_dict() for k, v in found.items()} for g, found in groups.items()}
    report["warm_to_cold"] = ratios(groups)
    _show(run, report, groups)
    record = run.record(None, raw_image, report["error"])
    report["verdict"] = record.verdict
    files = {
        "plan.json": artifacts.as_json(run.plan.to_dict()), "image.json": artifacts.as_json(image.summary(raw_image)),
        "bench-start.json": artifacts.as_json(report), "record.json": artifacts.as_json(record.to_dict()),
    }  # fmt: skip
    try:
        bundle = artifacts.write(root / "summary", files, secrets(run.settings))
    except BringupError as e:
        if not report["error"]:
            raise
        run.watch.say(f"there is no summary: {e.message}")
        return record, root
    if report["error"]:
        run.watch.say(f"the benchmark is not whole ({report['error']}); what there is: {bundle}")
    return record, bundle


def _show(run: Run, report: dict[str, Any], groups: dict[str, dict[str, Spread]]) -> None:
    done = [s for s in report["starts"] if s["status"] != Status.FAIL]
    if report["machine"]:
        run.watch.say(machine.line(report["machine"]))
    run.watch.table(f"{len(done)} of {len(report['planned'])} starts succeeded", STARTS,
                    [row(s) for s in report["starts"]])  # fmt: skip
    if groups:
        run.watch.table("by kind", GROUPS, group_rows(groups))
    for what, ratio in report["warm_to_cold"].items():
        run.watch.say(f"warm / cold, medians, to {TITLES[what]}: {ratio:.2f}")


def row(start: dict[str, Any]) -> tuple[str, ...]:
    """One start for people."""
    return (f"{start['number']} {start['kind']}", start["status"], seconds(start[READY]), seconds(start[TOKEN]),
            start["page_cache"].partition(":")[0], told(start["caches"]))  # fmt: skip


def told(caches: dict[str, str]) -> str:
    """The caches by what was found of them; those that were hit or missed by name."""
    by = {v: [name for name, verdict in caches.items() if verdict == v] for v in dict.fromkeys(caches.values())}
    named = [f"{v} {', '.join(by[v])}" for v in ("hit", "miss") if v in by]
    counted = [f"{len(names)} {v}" for v, names in by.items() if v not in ("hit", "miss")]
    return "; ".join([*named, *counted]) or "-"


def group_rows(groups: dict[str, dict[str, Spread]]) -> list[tuple[str, ...]]:
    """The groups' spreads for people."""
    return [
        (TITLES[what], name, str(s.n), seconds(s.p50), seconds(s.low), seconds(s.high), seconds(s.iqr))
        for what in (READY, TOKEN) for name, found in groups.items() if (s := found.get(what))
    ]  # fmt: skip


def seconds(value: float | None) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.2f}"
