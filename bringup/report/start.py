"""The sections about a start: where its time went, what the memory went into, and how the tokens came. Pure."""

from __future__ import annotations

from typing import Any

from bringup.bundle import Bundle
from bringup.report import charts
from bringup.report.charts import Bar
from bringup.report.parts import Column, Note, Part, Section, Table, table
from bringup.report.reading import NONE, at, line, number, percent, rows, seconds, size, words
from bringup.report.scene import Level, Series

GIB = 2**30
SHOWN = 0.05  # seconds; a shorter gap is in no row of its own
WORTH = 0.01  # of the whole; a stage inside another is drawn from there on
MOST = 400  # stages, probes or samples that are drawn; a bundle of ours has fewer
ON_GPU, ON_HOST = "server on the GPUs", "processes in host memory (RSS)"


def absent(file: str, why: str = "") -> Note:
    """Said where a reader looks for it."""
    return Note(f"Not in this bundle: {file}{f' ({why})' if why else ''}.", absent=True)


def part_of(bundle: Bundle, name: str) -> dict[str, Any] | None:
    """timeline, ledger or caches: of the file, or of the record; None where there is neither."""
    for found in (bundle.json(f"{name}.json"), bundle.record.get(name)):
        if isinstance(found, dict):
            return found
    return None


def startup(bundle: Bundle) -> Section:
    """Where the time of the start went."""
    made = part_of(bundle, "timeline")
    if made is None:
        return Section("startup", "Start-up", (absent("timeline.json"),))
    begin, whole = number(made.get("begin")), number(made.get("whole_seconds"))
    stages = rows(made.get("stages"))[:MOST]
    parts: list[Part] = []
    if begin is None or not whole or whole <= 0:
        parts.append(Note("This start's log has no times, so nothing can be drawn.", absent=True))
    else:
        bars = _bars(made, stages, begin, whole)
        label = _told(made, stages, whole)
        parts.append(Note(label))
        if bars:
            parts.append(charts.waterfall(bars, whole, f"Stages of the start as bars over time. {label}"))
    if stages:
        columns = (
            Column("stage"),
            Column("begin", "number"),
            Column("took", "number"),
            Column("stated by vLLM", "number"),
        )
        listed = tuple(_row(s, begin) for s in stages)
        parts.append(table("Every stage that was seen", columns, listed, folded=True))
    if unseen := rows(made.get("not_observed")):
        why = tuple((line(u.get("name")), line(u.get("why"))) for u in unseen)
        parts.append(table("Stages that this log does not show", (Column("stage"), Column("why")), why, folded=True))
    return Section("startup", "Start-up", tuple(parts), short=True)


def _told(made: dict[str, Any], stages: list[dict[str, Any]], whole: float) -> str:
    """The start in one or two sentences."""
    path = [(n, line(s.get("name"))) for s in stages if s.get("path") and (n := number(s.get("seconds")))]
    longest = "; ".join(f"{name} {n / whole:.0%}" for n, name in sorted(path, reverse=True)[:3])
    share = number(made.get("coverage"))
    said = f"{seconds(whole)} from the first to the last moment that was seen"
    if made.get("finished"):
        said = f"{seconds(whole)} until the server was up"
    said += f", {share:.0%} of it in named stages." if share is not None else "."
    if not made.get("finished"):
        said += " The server was not seen to come up."
    return f"{said} Longest: {longest}." if longest else said


def _bars(made: dict[str, Any], stages: list[dict[str, Any]], origin: float, whole: float) -> list[Bar]:
    """The path with its gaps, each stage followed by those inside it, then what ran beside."""

    def bar(what: dict[str, Any], name: str, depth: int, tone: str) -> Bar | None:
        begin, end = number(what.get("begin")), number(what.get("end"))
        if begin is None or end is None:
            return None
        begin, end = (min(max(0.0, t - origin), whole) for t in (begin, end))
        return Bar(name, begin, max(begin, end), depth, tone, finished=what.get("finished") is not False)

    made_bars: list[Bar] = []

    def add(stage: dict[str, Any], depth: int, tone: str) -> None:
        own = bar(stage, line(stage.get("name")), depth, tone)
        if own and (tone == "accent" or own.end - own.begin >= WORTH * whole):
            made_bars.append(own)
        inside = [s for s in stages if s.get("parent") is not None and s.get("parent") == stage.get("id")]
        for child in inside if depth < 3 else ():
            add(child, depth + 1, "soft")

    path = [(number(s.get("begin")) or 0.0, 0, s) for s in stages if s.get("path")]
    gaps = [g for g in rows(made.get("gaps")) if (number(g.get("seconds")) or 0.0) >= SHOWN]
    path += [(number(g.get("begin")) or 0.0, 1, g) for g in gaps]
    for _, is_gap, what in sorted(path, key=lambda p: p[:2]):
        if not is_gap:
            add(what, 0, "accent")
        elif gap := bar(what, "(in no stage)", 0, "rule"):
            made_bars.append(gap)
    for stage in stages:
        if not stage.get("path") and stage.get("parent") is None:
            add(stage, 0, "other")
    return made_bars


def _row(stage: dict[str, Any], origin: float | None) -> tuple[str, ...]:
    begin, name = number(stage.get("begin")), line(stage.get("name"))
    if not stage.get("path"):
        name += " (inside another)" if stage.get("parent") is not None else " (beside)"
    at_ = NONE if begin is None or origin is None else f"+{begin - origin:.2f} s"
    return name, at_, seconds(stage.get("seconds")), seconds(stage.get("stated"))


def memory(bundle: Bundle) -> Section:
    """What was predicted, stated and measured, and memory through the start."""
    made = part_of(bundle, "ledger")
    if made is None:
        return Section("memory", "Memory", (absent("ledger.json"),))
    on_gpu = made.get("flavour") == "gpu"
    parts = list(_curve(bundle, made, on_gpu=on_gpu))
    if listed := rows(made.get("rows")):
        columns = (
            Column("memory"), Column("predicted", "number"), Column("stated by vLLM", "number"),
            Column("measured", "number"), Column("stated to predicted", "number"),
            Column("measured to stated", "number"), Column("note"),
        )  # fmt: skip
        cells = tuple(
            (
                line(r.get("name")), size(r.get("predicted")), size(r.get("stated")), size(r.get("measured")),
                percent(r.get("stated_to_predicted_percent")), percent(r.get("measured_to_stated_percent")),
                line(r.get("note")),
            )
            for r in listed
        )  # fmt: skip
        parts.append(table("Predicted, stated, measured", columns, cells))
    if moments := rows(made.get("moments")):
        parts.append(_moments(moments, on_gpu=on_gpu))
    parts += [Note(f"Unknown: {line(u)}.", absent=True) for u in words(made.get("unknown"))]
    return Section("memory", "Memory", tuple(parts), short=True)


def _curve(bundle: Bundle, made: dict[str, Any], *, on_gpu: bool) -> tuple[Part, ...]:
    samples = rows(made.get("samples"))[:MOST]
    known = [s for s in samples if number(s.get("t")) is not None]
    if not known:
        return (absent("memory samples of the start", "it was not watched, or an older version wrote this"),)
    timeline = part_of(bundle, "timeline") or {}
    origin = number(timeline.get("begin")) if timeline.get("zone") == "epoch" else None
    # A clock that is not the timeline's would push the curve off the page.
    first = min(number(s.get("t")) or 0.0 for s in known)
    origin = first if origin is None or not 0 <= first - origin < 3600 else origin

    def series(key: str, name: str) -> Series | None:
        points = tuple(
            ((number(s.get("t")) or 0.0) - origin, n / GIB) for s in known if (n := number(s.get(key))) is not None
        )
        return Series(name, points, "accent", soft=True) if len(points) > 1 else None

    drawn = series("server", ON_GPU) if on_gpu else series("rss", ON_HOST)
    if drawn is None:
        return (absent("memory of the server's processes through the start", "they were not seen from this host"),)
    total = next((r for r in rows(made.get("rows")) if r.get("name") == "total"), {})
    levels = [
        Level(f"{kind} total {size(n)}", n / GIB, tone)
        for kind, tone in (("predicted", "other"), ("stated", "ink"))
        if on_gpu and (n := number(total.get(kind)))
    ]
    told = f"Memory through the start, {drawn.name}: at most {size(max(y for _, y in drawn.points) * GIB)}"
    told += "".join(f"; {level.name}" for level in levels) + "."
    return Note(told), charts.memory([drawn], levels, told)


def _moments(moments: list[dict[str, Any]], *, on_gpu: bool) -> Table:
    keys = ("card", "server", "rss") if on_gpu else ("rss", "pss")
    titles = {
        "card": "GPUs, by everyone",
        "server": "GPUs, server",
        "rss": "host (RSS)",
        "pss": "shared pages once (PSS)",
    }
    columns = (Column("moment"), *(Column(titles[k], "number") for k in keys), Column("note"))
    cells = tuple(
        (
            line(m.get("name")) + (f" ({line(m['stage'])})" if m.get("stage") not in (None, "", m.get("name")) else ""),
            *(size(m.get(k)) for k in keys), line(m.get("note")),
        )
        for m in moments
    )  # fmt: skip
    return table("Before, at the peak, serving, after", columns, cells)


def tokens(bundle: Bundle) -> Section:
    """How the tokens of the streaming probe's last stream came."""
    probe = next((p for p in rows(bundle.record.get("probes")) if p.get("name") == "streaming"), {})
    first, raw = number(at(probe, "data", "first")), at(probe, "data", "gaps")
    gaps = [g * 1000 for v in (raw if isinstance(raw, list) else []) if (g := number(v)) is not None and g >= 0]
    if not gaps:
        return Section("tokens", "Tokens", (absent("token times", "the streaming probe has none"),))
    ranked = sorted(gaps)
    middle, high = ranked[len(ranked) // 2], ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    told = f"One request: {len(gaps) + 1} chunks, the first after {seconds(first)}; between chunks "
    told += f"{middle:.1f} ms (median), {high:.1f} ms (99th percentile), {ranked[-1]:.1f} ms at most."
    level = Level(f"median {middle:.1f} ms", middle, "other")
    plot = charts.tokens(gaps[: MOST * 5], [level], f"Milliseconds between one chunk and the next. {told}")
    return Section("tokens", "Tokens", (Note(told), plot), short=True)
