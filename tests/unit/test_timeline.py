"""The timeline of every release's log and of recorded starts; and that any log has one which adds up."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from bringup import ledger
from bringup.ledger import Seen
from bringup.timeline import Anchors, Timeline, build, read_events, rules, stage_table, tables
from bringup.timeline.build import Stage
from tests.unit import timeline_logs as logs

NOTHING = Anchors()
RECORDED = ["plain-cold", "plain-warm", "eager", "cpu-0.32", "launcher-cold", "launcher-warm", "launcher-cpu"]
CONSOLES = ["plain-cold.log", "container.log", "failed-no-flashinfer.log"]


def of(text: str, anchors: Anchors = NOTHING) -> Timeline:
    return build(read_events(text), anchors)


def stages(made: Timeline) -> dict[str, Stage]:
    return {s.id: s for s in made.stages}


def adds_up(made: Timeline) -> None:
    """Path stages and gaps are the whole, in order and without overlap; each stage lies in the one it is part of."""
    known = stages(made)
    assert len(known) == len(made.stages)
    assert not known.keys() & {m.id for m in made.missing}
    json.dumps(made.to_dict(), allow_nan=False)
    if made.whole is None:
        return
    assert made.begin is not None
    assert made.end is not None
    parts = [(s.begin, s.end) for s in made.stages if s.path] + [(g.begin, g.end) for g in made.gaps]
    assert all(b is not None and e is not None for b, e in parts)
    at = made.begin
    for begin, end in sorted((b or 0.0, e or 0.0) for b, e in parts):
        assert begin == pytest.approx(at, abs=1e-3)
        assert end >= begin
        at = end
    assert at == pytest.approx(made.end, abs=1e-3)
    assert made.named + sum(g.end - g.begin for g in made.gaps) == pytest.approx(made.whole, rel=0.01, abs=1e-3)
    for s in made.stages:
        if s.parent and s.begin is not None and s.end is not None:
            parent = known[s.parent]
            assert (parent.begin or 0.0) <= s.begin <= s.end <= (parent.end or 0.0)


# ---- every release

SECONDS = {  # of the path, as tests/data/timeline/templates.toml has them
    "container": 0.5, "api-imports": 8.5, "config": 1.0, "engine-start-plain": 4.0, "executor": 1.0,
    "distributed": 1.0, "device-init": 1.0, "model-load": 4.0, "memory-profiling": 12.0, "kv-size": 1.0,
    "graph-capture": 4.0, "kernel-warmup": 3.0, "handover": 1.0, "server-built": 1.0, "server-up": 1.0,
    "first-token": 0.25,
}  # fmt: skip
INSIDE = {"weights-read": 1.25, "compile": 8.0, "dynamo": 2.0, "inductor": 5.0, "attention": 0.0, "architecture": 0.4}


@pytest.mark.parametrize(("release", "runner"), logs.STARTS)
def test_the_records_of_every_release_give_the_same_stages(release: str, runner: str) -> None:
    made = of(logs.as_records(release, runner), logs.CLOCK)
    adds_up(made)
    known = stages(made)
    assert {name: known[name].seconds for name in SECONDS} == pytest.approx(SECONDS)
    assert {name: known[name].seconds for name in INSIDE} == pytest.approx(INSIDE)
    assert made.coverage == pytest.approx(1.0)
    assert (made.whole, made.zone, made.finished, made.recognised) == (46.25, "epoch", True, True)
    assert not any(s.approximate for s in made.stages)
    assert known["compile"].parent == "memory-profiling"
    assert known["dynamo"].parent == known["inductor"].parent == "compile"


@pytest.mark.parametrize(("release", "runner"), logs.STARTS)
@pytest.mark.parametrize("zone", [0.0, 5.75, -8.0])
def test_the_console_of_every_release_gives_them_within_its_seconds(release: str, runner: str, zone: float) -> None:
    made = of(logs.as_console(release, runner, zone), logs.CLOCK)
    adds_up(made)
    known = stages(made)
    assert {name: known[name].seconds for name in SECONDS} == pytest.approx(SECONDS, abs=1.01)
    assert {name: known[name].stated for name in ("compile", "weights-read")} == {"compile": 8.0, "weights-read": 1.25}
    assert made.coverage is not None
    assert made.coverage > 0.99
    assert (made.whole, made.zone, made.finished) == (46.25, "epoch", True)
    assert known["config"].approximate


@pytest.mark.parametrize(("release", "runner"), logs.STARTS)
@pytest.mark.parametrize("form", [logs.as_records, logs.as_console])
def test_what_every_release_states_is_read(form: Any, release: str, runner: str) -> None:
    facts = of(form(release, runner), logs.CLOCK).facts
    aot = {"aot": "saved"} if logs.RELEASES.index(release) >= logs.RELEASES.index("0.17.1") else {}
    assert facts == {
        "vllm_version": release, "weights_gib": 2.8871, "load_seconds": 4.0, "attention_backend": "FLASH_ATTN",
        "compile_seconds": 8.0, "kv_cache_gib": 5.03, "kv_tokens": 188512, "max_concurrency": 5.75,
        "graphs_gib": 0.49, **aot,
    }  # fmt: skip


def test_what_came_with_a_release_is_there_from_it_on() -> None:
    def seen(release: str, runner: str) -> set[str]:
        return set(stages(of(logs.as_records(release, runner), logs.CLOCK)))

    assert {"first-run", "graph-estimate"} & seen("0.17.1", "V1") == set()
    assert {"first-run", "graph-estimate"} <= seen("0.18.1", "V1")
    assert "graph-rehearsal" not in seen("0.26.0", "V2")
    assert "graph-rehearsal" in seen("0.28.0", "V2")
    assert {"jit-warmup", "attention-warmup"} & seen("0.28.0", "V2") == set()
    assert {"jit-warmup", "attention-warmup"} <= seen("0.30.0", "V2")
    assert stages(of(logs.as_records("0.30.0", "V2"), logs.CLOCK))["graph-capture"].stated == 4.0


def test_the_releases_are_those_of_the_rules() -> None:
    data = rules.load()
    assert list(data.releases) == logs.RELEASES
    assert {f.first for r in data.rules for f in r.forms} | {f.last for r in data.rules for f in r.forms} <= set(
        data.releases
    )


# ---- recorded starts


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_starts_are_named_nearly_whole(name: str) -> None:
    made = of(logs.recorded(f"{name}.jsonl"), logs.clock(name))
    adds_up(made)
    assert made.coverage is not None
    assert made.coverage >= 0.95
    clock = logs.clock(name)
    assert clock.asked is not None
    assert clock.first_token is not None
    assert made.whole == pytest.approx(clock.first_token - clock.asked)
    assert made.finished
    assert made.facts["vllm_version"] == ("0.32.0" if "cpu" in name else "0.26.0")


def test_a_cold_start_on_a_gpu() -> None:
    """Figures of the records themselves: what took how long is told by vLLM, or lies between two of its records."""
    known = stages(of(logs.recorded("plain-cold.jsonl"), logs.clock("plain-cold")))
    want = {"api-imports": 19.25, "model-load": 1.82, "compile": 17.89, "graph-capture": 4.10, "kernel-warmup": 14.78}
    assert {name: known[name].seconds for name in want} == pytest.approx(want, abs=0.006)
    assert {known[n].parent for n in ("weights-read", "attention")} == {"model-load"}
    assert known["inductor"].parent == "compile"


def test_the_launchers_marks_divide_what_vllm_does_not_tell() -> None:
    made = of(logs.recorded("launcher-warm.jsonl"), logs.clock("launcher-warm"))
    known = stages(made)
    assert "engine-start-plain" not in known
    assert {"engine-ask", "engine-start", "api-arguments"} <= {s.id for s in made.stages if s.path}
    beside = {s.id for s in made.stages if not s.path and s.parent is None}
    assert beside == {"standby-imports", "tokenizer"}, "they ran beside the path, and are not in it"
    assert made.facts["aot"] == "loaded"


def test_the_entry_points_marks_begin_the_path_and_a_check_beside_the_imports_is_not_in_it() -> None:
    made = of(logs.recorded("launcher-entry.jsonl"))
    adds_up(made)
    path = [s.id for s in made.stages if s.path]
    assert path[:3] == ["entry-start", "server-spawn", "api-imports"]
    known = stages(made)
    assert known["entry-start"].seconds == pytest.approx(1.0, abs=0.01)
    assert known["weights-check"].seconds == pytest.approx(0.074, abs=0.001)
    assert not known["weights-check"].path
    assert made.coverage == pytest.approx(1.0)
    assert made.rows[0].stage == "weights-check"


def test_a_tokenizer_that_keeps_the_engine_waiting_is_on_the_path() -> None:
    at = [("process started at %.3f", 1.0), ("config made", 5.0), ("tokenizer", 7.0), ("engine process asked", 7.5)]
    log = "".join(
        json.dumps({"t": 1.0 + t, "pid": 5, "logger": "bringup.inside.marks", "level": "INFO"}
                   | ({"msg": name, "args": [t]} if "%" in name else {"msg": "reached %s", "args": [name]})) + "\n"
        for name, t in at
    )  # fmt: skip
    known = stages(of(log))
    assert known["tokenizer"].path
    assert known["tokenizer"].seconds == pytest.approx(2.0)


def test_a_log_without_a_clock_outside_is_told_by_its_own_times() -> None:
    made = of(logs.recorded("plain-cold.log"))
    adds_up(made)
    assert (made.zone, made.whole) == ("log", 66.0)
    assert {"container", "api-imports", "first-token"} <= {m.id for m in made.missing}


def test_a_start_that_died_says_where() -> None:
    made = of(logs.recorded("failed-no-flashinfer.log"))
    adds_up(made)
    last = [s for s in made.stages if s.path][-1]
    assert (made.finished, last.id, last.finished) == (False, "memory-profiling", False)
    assert "not seen to come up" in stage_table(made)[0]
    assert any(row[0] == "memory profiling (not finished)" for row in stage_table(made)[2])


def test_of_two_starts_in_one_log_the_last_counts() -> None:
    first, second = logs.recorded("launcher-cold.jsonl"), logs.recorded("launcher-warm.jsonl")
    alone = of(second, logs.clock("launcher-warm"))
    assert of(first + second, logs.clock("launcher-warm")).stages == alone.stages


def test_a_refused_artifact_is_not_called_saved() -> None:
    text = "Compiling model again due to a load failure from %s, reason: %s"
    record = {"t": 2.0, "pid": 1, "level": "WARNING", "logger": "vllm.x", "msg": text, "args": ["/c", "x"]}
    saved = record | {"t": 3.0, "msg": "saved AOT compiled function to %s", "args": ["/c"]}
    assert of(json.dumps(record) + "\n" + json.dumps(saved)).facts["aot"] == "recompiled"


# ---- the trace that a guide quotes

QUOTED = [
    ("Environment", None), ("Config Download", (0, 1)), ("Architecture Resolution", None),
    ("Tokenizer Download", (0, 4)), ("Engine Init", None), ("Distributed Init", None),
    ("Weights Download", (15, 15)), ("Load to GPU", (2.46, 2.46)), ("Attention Backend", None),
    ("Torch Compile", (15.09, 15.09)), ("KV Cache Alloc", None), ("CUDA Graph Capture", (4, 4)), ("Warmup", None),
    ("API Server Start", None), ("Ready", None),
]  # fmt: skip


def test_the_quoted_trace_gives_its_15_rows() -> None:
    made = of(logs.recorded("runbook-0.11.2.log"))
    adds_up(made)
    assert (made.zone, made.whole) == ("none", None)
    assert [row.title for row in made.rows] == [title for title, _ in QUOTED]
    assert [row.number for row in made.rows] == list(range(1, 16))
    for row, (title, bounds) in zip(made.rows, QUOTED, strict=True):
        assert row.seen is (title != "Environment"), "nothing in vLLM's log tells of its environment"
        low, high = bounds or (None, None)
        if row.at_most is not None:  # a bar of whole seconds that shows none
            assert (low, row.at_most) == (0, high)
        else:
            assert row.seconds == low == high


def test_the_quoted_trace_gives_its_memory() -> None:
    """2.9, 5.0 and 0.5; the compile cache's 0.5 stands in no line: it is on disk and takes no GPU memory."""
    facts = of(logs.recorded("runbook-0.11.2.log")).facts
    made = ledger.make(Seen(flavour="gpu", facts=facts))
    rows = {name: size for name, size, _ in ledger.breakdown(made)}
    gib = {name: round(size / 2**30, 1) if size is not None else None for name, size in rows.items()}
    assert {name: gib[name] for name in ("model weights", "compile cache", "KV cache", "CUDA graphs")} == {
        "model weights": 2.9, "compile cache": None, "KV cache": 5.0, "CUDA graphs": 0.5,
    }  # fmt: skip
    assert facts["kv_tokens"] == 188512
    assert facts["max_concurrency"] == 5.75
    assert facts["vllm_version"] == "0.11.2"
    known = ledger.make(Seen(flavour="gpu", facts=facts, on_disk=2**29))
    assert {name: size for name, size, _ in ledger.breakdown(known)}["compile cache"] == 2**29


# ---- any log

ALL = [f"{name}.jsonl" for name in RECORDED] + [*CONSOLES, "runbook-0.11.2.log"]


def damaged(text: str, seed: int) -> str:
    """The log shuffled, cut off, or with bytes changed, by chance."""
    rng = random.Random(seed)
    rows = text.splitlines()
    kind = seed % 4
    if kind == 0:
        rng.shuffle(rows)
    elif kind == 1:
        rows = rows[rng.randrange(len(rows)) : rng.randrange(len(rows))] or rows[: rng.randrange(len(rows))]
    elif kind == 2:
        rows = [row for row in rows if rng.random() < 0.6]
    made = "\n".join(rows)
    if kind == 3:
        letters = list(made)
        for _ in range(len(letters) // 50):
            letters[rng.randrange(len(letters))] = rng.choice('0123456789"{}[]:,. \n\r\x00é%s-')
        made = "".join(letters)
    return made


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("name", ALL)
def test_any_damage_leaves_a_timeline_that_adds_up(name: str, seed: int) -> None:
    rng = random.Random(seed)
    known = logs.clock(name.removesuffix(".jsonl")) if name.endswith(".jsonl") else NOTHING
    some = replace(known, **{f: None for f in ("asked", "first_200", "first_token") if rng.random() < 0.4})
    made = of(damaged(logs.recorded(name), seed), some)
    adds_up(made)
    tables(made)


@pytest.mark.parametrize("text", ["", "\n", "{", "[1]", "{}", '{"t": 1e400, "msg": 3}', "\x00" * 99, "INFO [", "100%|"])
def test_no_log_has_an_empty_timeline(text: str) -> None:
    made = of(text)
    adds_up(made)
    assert (made.recognised, made.whole, made.coverage, made.finished) == (False, None, None, False)
    assert len(made.missing) > 10
    tables(made)


@pytest.mark.parametrize("t", [0, -5, 1e11, True, None, "x", 10**400])
def test_times_that_are_none_do_not_break_it(t: Any) -> None:
    record = {"t": t, "pid": 1, "level": "INFO", "logger": "vllm.x", "msg": "Supported tasks: %s", "args": [[]]}
    made = of(logs.as_records("0.26.0", "V2") + json.dumps(record), logs.CLOCK)
    adds_up(made)
    assert made.whole == 46.25


def test_anchors_alone_are_a_whole_in_no_stage_of_vllm() -> None:
    made = of("", Anchors(1.0, 3.0, 8.0, 9.0))
    adds_up(made)
    assert {s.id for s in made.stages} == {"container", "first-token"}
    assert made.coverage == pytest.approx(3 / 8)
    assert (made.whole, made.recognised) == (8.0, False)


# ---- as tables


def test_the_table_has_stages_gaps_and_the_whole() -> None:
    made = of(logs.recorded("launcher-warm.jsonl"), logs.clock("launcher-warm"))
    title, columns, rows = stage_table(made)
    assert title == "timeline: 17.5 s, 98.8% of it in named stages"
    assert all(len(row) == len(columns) for row in rows)
    assert [row for row in rows if row[0] in ("(in no stage)", "in no stage", "whole")] == [
        ("(in no stage)", "+0.00", "0.21", "1.2%", ""), ("in no stage", "", "0.21", "1.2%", ""),
        ("whole", "", "17.47", "", ""),
    ]  # fmt: skip
    assert ("  weights read", "+9.00", "0.51", "", "0.51 s") in rows
    assert ("(beside) tokenizer", "+7.21", "2.94", "", "") in rows
    assert len(rows) == len(made.stages) + 3


def test_the_rows_of_a_log_without_times() -> None:
    shown = tables(of(logs.recorded("runbook-0.11.2.log")))
    assert [title for title, _, _ in shown] == [
        "timeline: this log has no times", "the 15 stages as they are quoted", "not observed",
    ]  # fmt: skip
    assert [row[1] for row in shown[1][2]] == [
        "not observed", "< 1 s", "seen, no time", "< 4 s", "seen, no time", "seen, no time", "15.00 s", "2.46 s",
        "seen, no time", "15.09 s", "seen, no time", "4.00 s", "seen, no time", "seen, no time", "seen, no time",
    ]  # fmt: skip
    assert shown[1][2][5][2] == "it began, and its end is not in this log"
