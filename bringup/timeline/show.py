"""The timeline as tables: title, columns, rows."""

from __future__ import annotations

from bringup.timeline.build import Gap, Row, Stage, Timeline

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
COLUMNS = ("stage", "begin", "seconds", "share", "stated by vLLM")
SHOWN = 0.05  # seconds; shorter gaps are in the last line's sum only


def tables(made: Timeline) -> list[Table]:
    """The stages, the 15 rows that people quote, and what was not observed."""
    shown = [stage_table(made)] if made.stages else []
    rows: list[tuple[str, ...]] = [(f"{row.number}. {row.title}", row_time(row), row.why) for row in made.rows]
    shown.append(("the 15 stages as they are quoted", ("stage", "time", "not told because"), rows))
    if made.missing:
        names: list[tuple[str, ...]] = [(f"{m.name}: {m.why}",) for m in made.missing]
        shown.append(("not observed", ("stage, and why it may not be seen",), names))
    return shown


def stage_table(made: Timeline) -> Table:
    """The path in its order with gaps, what lies inside each stage below it, then what ran beside."""
    rows: list[tuple[str, ...]] = []
    path = [s for s in made.stages if s.path]
    gaps = {g.before: g for g in made.gaps if g.end - g.begin >= SHOWN}
    for stage in path:
        if stage.id in gaps:
            rows.append(_gap(made, gaps[stage.id]))
        rows.append(_row(made, stage, 0))
        rows += _children(made, stage, 1)
    if "" in gaps:
        rows.append(_gap(made, gaps[""]))
    if made.whole is not None:
        none = sum(g.end - g.begin for g in made.gaps)
        rows.append(("in no stage", "", f"{none:.2f}", _share(made, none), ""))
        rows.append(("whole", "", f"{made.whole:.2f}", "", ""))
    beside = sorted((s for s in made.stages if not s.path and s.parent is None), key=lambda s: s.begin or 0.0)
    for stage in beside:
        rows.append(_row(made, stage, 0, beside=True))
        rows += _children(made, stage, 1)
    return _title(made), COLUMNS, rows


def _title(made: Timeline) -> str:
    if made.whole is None:
        return "timeline: this log has no times"
    end = "" if made.finished else "; the server was not seen to come up"
    named = "" if made.coverage is None else f", {made.coverage:.1%} of it in named stages"
    return f"timeline: {made.whole:.1f} s{named}{end}"


def _children(made: Timeline, parent: Stage, depth: int) -> list[tuple[str, ...]]:
    rows = []
    for stage in sorted((s for s in made.stages if s.parent == parent.id), key=lambda s: s.begin or 0.0):
        rows.append(_row(made, stage, depth))
        rows += _children(made, stage, depth + 1)
    return rows


def _row(made: Timeline, stage: Stage, depth: int, *, beside: bool = False) -> tuple[str, ...]:
    name = "  " * depth + ("(beside) " if beside else "") + stage.name + ("" if stage.finished else " (not finished)")
    begin = "" if stage.begin is None or made.begin is None else f"+{stage.begin - made.begin:.2f}"
    seconds = "" if stage.seconds is None else f"{'~' if stage.approximate else ''}{stage.seconds:.2f}"
    return name, begin, seconds, _share(made, stage.seconds) if stage.path else "", _stated(stage)


def _stated(stage: Stage) -> str:
    if stage.stated is None:
        return ""
    if stage.stated_coarse:
        return f"{stage.stated:.0f} s" if stage.stated else f"< {stage.stated_coarse} s"
    return f"{stage.stated:.2f} s"


def _gap(made: Timeline, gap: Gap) -> tuple[str, ...]:
    seconds = gap.end - gap.begin
    return "(in no stage)", f"+{gap.begin - (made.begin or 0.0):.2f}", f"{seconds:.2f}", _share(made, seconds), ""


def _share(made: Timeline, seconds: float | None) -> str:
    return "" if seconds is None or not made.whole else f"{seconds / made.whole:.1%}"


def row_time(row: Row) -> str:
    """A row's time for people."""
    if row.at_most is not None:
        return f"< {row.at_most:.0f} s"
    if row.seconds is not None:
        return f"{row.seconds:.2f} s"
    return "seen, no time" if row.seen else "not observed"
