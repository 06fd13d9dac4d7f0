"""bench start: cold and warm in turns, each in its own group, and nothing left however it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click
import pytest

from bringup import artifacts, observe, schema, workflow
from bringup.benchmark import machine, start
from bringup.benchmark.start import COLD, MISSED, PRIME, READY, TOKEN, WARM, Asked
from bringup.commands.bench import Counts
from bringup.edge import pagecache, process
from bringup.errors import CheckFailed, EvidenceMissing, NeverReady, TargetUnavailable, UsageError
from bringup.ready import Moments
from bringup.records import ProbeRecord, Status, Verdict
from bringup.settings import VOLUME
from tests.unit import samples
from tests.unit.fakes import FakeContainer, state
from tests.unit.runs import FakeEngine, Silent, a_run

# ---- the plan of the starts

ORDERS: dict[tuple[int, int], list[str]] = {
    (2, 2): [COLD, WARM, COLD, WARM],
    (1, 3): [COLD, WARM, WARM, WARM],
    (3, 1): [COLD, WARM, COLD, COLD],
    (2, 0): [COLD, COLD],
    (0, 2): [PRIME, WARM, WARM],
    (0, 0): [],
}


@pytest.mark.parametrize("asked", ORDERS)
def test_cold_and_warm_take_turns_and_a_warm_one_is_never_first(asked: tuple[int, int]) -> None:
    assert list(start.order(*asked)) == ORDERS[asked]


@pytest.mark.parametrize(
    ("kind", "caches", "expected"),
    [
        (WARM, {"aot": "hit"}, WARM),
        (WARM, {}, WARM),
        (WARM, {"aot": "hit", "triton": "miss"}, MISSED),
        (WARM, {"aot": "unknown"}, WARM),
        (COLD, {"aot": "miss"}, COLD),
        (PRIME, {"aot": "miss"}, PRIME),
    ],
)
def test_a_warm_start_that_missed_a_cache_counts_apart(kind: str, caches: dict[str, str], expected: str) -> None:
    assert start.group(kind, caches) == expected


# ---- figures


@pytest.mark.parametrize(
    ("moments", "ready", "token"),
    [
        (Moments(container_started=100.0, first_200=110.5, first_token=111.0), 10.5, 11.0),
        (Moments(first_200=110.5, first_token=111.0), None, None),
        (Moments(container_started=100.0, first_200=110.5), 10.5, None),
        (Moments(container_started=200.0, first_200=110.5, first_token=211.0), None, 11.0),
    ],
)
def test_times_count_from_the_containers_start(moments: Moments, ready: float | None, token: float | None) -> None:
    assert start.durations(moments) == {READY: ready, TOKEN: token}


def entry(group: str, ready: float | None, token: float | None, status: str = "pass") -> dict[str, Any]:
    return {"number": 1, "kind": group, "group": group, "status": status, "page_cache": "kept", "caches": {},
            READY: ready, TOKEN: token}  # fmt: skip


def test_groups_are_kept_apart_and_neither_prime_nor_failed_starts_count() -> None:
    found = start.summary([
        entry(PRIME, 50.0, 51.0), entry(COLD, 20.0, 21.0), entry(WARM, 10.0, 11.0), entry(WARM, 12.0, None),
        entry(WARM, 1.0, 1.0, "fail"), entry(MISSED, 15.0, 16.0),
    ])  # fmt: skip
    assert list(found) == [COLD, WARM, MISSED]
    assert (found[WARM][READY].n, found[WARM][READY].p50, found[WARM][TOKEN].n) == (2, 11.0, 1)
    assert found[COLD][READY].high == 20.0
    assert start.ratios(found) == {READY: 0.55, TOKEN: round(11 / 21, 3)}
    assert [r[:3] for r in start.group_rows(found)][:3] == [("ready", COLD, "1"), ("ready", WARM, "2"),
                                                            ("ready", MISSED, "1")]  # fmt: skip


def test_there_is_no_ratio_of_one_kind() -> None:
    assert start.ratios(start.summary([entry(COLD, 1.0, 2.0)])) == {}
    assert start.summary([]) == {}


SEEN: dict[str, float | None] = {READY: 1.0, TOKEN: 2.0}
JUDGED: dict[str, tuple[dict[str, float | None], Verdict, Status]] = {
    "proven": (SEEN, Verdict.PASS, Status.PASS),
    "a probe failed": (SEEN, Verdict.FAIL, Status.FAIL),
    "evidence is missing": (SEEN, Verdict.UNKNOWN, Status.UNKNOWN),
    "a time was not seen": ({READY: None, TOKEN: 2.0}, Verdict.PASS, Status.UNKNOWN),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_start_counts_as_good_when_it_is_proven_and_both_times_were_seen(name: str) -> None:
    seen, verdict, status = JUDGED[name]
    assert start.judge(1, COLD, seen, verdict, "b").status is status


# ---- the page cache


def test_dropping_writes_the_kernels_word(tmp_path: Path) -> None:
    assert pagecache.drop(tmp_path / "drop_caches") == ""
    assert (tmp_path / "drop_caches").read_text() == "3\n"


def test_a_page_cache_that_may_not_be_dropped_says_why(tmp_path: Path) -> None:
    assert "No such file" in pagecache.drop(tmp_path / "none" / "drop_caches")


# ---- the whole


class Target:
    """A compose project that notes what is done with it."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def down(self, *, volumes: bool = False) -> None:
        self.done.append("empty" if volumes else "down")


class Engine(FakeEngine):
    def __init__(self, found: Any = None) -> None:
        self.found = found

    def find(self, _project: str, _service: str) -> Any:
        return self.found


Behave = Callable[[int], None]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The seams; `done` is what happened, in order; `behave` is called at each start, `release` at each stop."""
    made: dict[str, Any] = {"done": [], "behave": lambda _: None, "volumes": "", "dropped": "", "verdict": "pass",
                            "release": "released", "code": 0}  # fmt: skip
    done = made["done"]

    def starts(run: workflow.Run, _target: Any, _before: Any) -> tuple[Any, Any]:
        number = done.count("start") + 1
        done.append("start")
        made["project"] = run.plan.project
        run.moments = Moments(container_started=100.0, first_200=100.0 + 10 * number, first_token=101.0 + 10 * number)
        made["behave"](number)
        return FakeContainer(), object()

    def probe(run: workflow.Run, _server: Any) -> None:
        run.probes = (ProbeRecord(name="p", status=Status(made["verdict"]), expected="", found=""),)

    def collect(run: workflow.Run, _server: Any, _container: Any, raw: Any) -> Any:
        run.derived.caches = made.get("caches")
        bundle = run.settings.artifacts / f"start-{done.count('start')}"
        bundle.mkdir(parents=True)
        return run.record(None, raw), bundle

    def stop(*_: Any, **__: Any) -> observe.Release:
        done.append("stop")
        return observe.Release(verdict=made["release"])

    def docker(argv: list[str], **_: Any) -> process.Outcome:
        assert argv[:3] == ["docker", "volume", "ls"]
        return process.Outcome(tuple(argv), made["code"], made["volumes"], "said", 0.0)

    def drop() -> str:
        done.append("drop")
        return str(made["dropped"])

    for name, fake in {"start": starts, "probe": probe, "collect": collect, "stop": stop,
                       "require": lambda _: None}.items():  # fmt: skip
        monkeypatch.setattr(workflow, name, fake)
    monkeypatch.setattr(process, "run", docker)
    monkeypatch.setattr(pagecache, "drop", drop)
    monkeypatch.setattr(start, "ComposeTarget", lambda *_: Target(done))
    monkeypatch.setattr(machine, "machine", lambda *_: {"gpus": [], "cpu": "C", "cpus": 2})
    monkeypatch.setattr(machine, "load", lambda _: made.get("load"))
    monkeypatch.setattr(machine, "server", lambda *_: {"image": "sha256:1"})
    return made


def a_bench(tmp_path: Path, **settings: Any) -> workflow.Run:
    run = a_run(tmp_path, **settings)
    run.engine = cast("Any", Engine())
    return run


def written(tmp_path: Path) -> dict[str, Any]:
    (found,) = tmp_path.glob("*-bench-start/summary/bench-start.json")
    return cast("dict[str, Any]", json.loads(found.read_text()))


def test_cold_starts_from_nothing_warm_from_what_it_left(tmp_path: Path, fakes: dict[str, Any]) -> None:
    record, report, bundle = start.bench(a_bench(tmp_path), Asked(cold=2, warm=2))
    cold, warm = ["empty", "drop", "start", "stop"], ["start", "stop"]
    assert fakes["done"] == [*cold, *warm, *cold, *warm, "empty"]
    assert record.verdict is Verdict.PASS
    assert [(s["kind"], s[READY], s["page_cache"]) for s in report["starts"]] == [
        (COLD, 10.0, "dropped"), (WARM, 20.0, "kept"), (COLD, 30.0, "dropped"), (WARM, 40.0, "kept"),
    ]  # fmt: skip
    assert report["summary"][COLD][READY] == {"n": 2, "p50": 20.0, "min": 10.0, "max": 30.0, "iqr": None}
    assert report["warm_to_cold"][READY] == 1.5
    assert report["machine"]["cpu"] == "C"
    assert written(tmp_path) == report
    schema.require(json.loads((bundle / "record.json").read_text()))
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["start-1", "start-2", "start-3", "start-4", "summary"]


def test_it_works_in_a_project_of_its_own(tmp_path: Path, fakes: dict[str, Any]) -> None:
    run = a_bench(tmp_path)
    theirs = run.plan.project
    start.bench(run, Asked(cold=1, warm=0))
    assert fakes["project"] == f"{theirs}-bench"


@pytest.mark.parametrize(("ask", "why", "told"), [
    (True, "/proc/sys/vm/drop_caches: Permission denied", "not dropped: /proc/sys/vm/drop_caches: Permission denied"),
    (False, "", "not dropped: not asked for"),
])  # fmt: skip
def test_a_page_cache_that_stays_is_told(tmp_path: Path, fakes: dict[str, Any], ask: bool, why: str, told: str) -> None:
    fakes["dropped"] = why
    _, report, _ = start.bench(a_bench(tmp_path), Asked(cold=1, warm=0, drop_page_cache=ask))
    assert report["starts"][0]["page_cache"] == told
    assert ("drop" in fakes["done"]) == ask


def test_another_hosts_page_cache_is_left(tmp_path: Path, fakes: dict[str, Any]) -> None:
    run = a_bench(tmp_path)
    run.host = replace(run.host, local=False)
    _, report, _ = start.bench(run, Asked(cold=1, warm=0))
    assert report["starts"][0]["page_cache"] == "not dropped: the engine is on another host"
    assert "drop" not in fakes["done"]


def test_a_miss_on_a_warm_start_is_no_warm_start(tmp_path: Path, fakes: dict[str, Any]) -> None:
    fakes["caches"] = {"aot": {"verdict": "miss"}}
    _, report, _ = start.bench(a_bench(tmp_path), Asked(cold=1, warm=1))
    assert [s["group"] for s in report["starts"]] == [COLD, MISSED]
    assert report["warm_to_cold"] == {}


def test_the_caches_are_shown_by_what_was_found_of_them() -> None:
    caches = {"aot": "hit", "triton": "miss", "x": "off", "y": "off", "z": "unknown"}
    assert start.told(caches) == "hit aot; miss triton; 2 off; 1 unknown"
    assert start.told({}) == "-"


@pytest.mark.parametrize(("load", "told"), [(None, False), (0.3, False), (4.0, False), (4.5, True)])
def test_a_machine_that_is_busy_with_something_else_is_told(
    tmp_path: Path, fakes: dict[str, Any], load: float | None, told: bool
) -> None:
    fakes["load"] = load
    run = a_bench(tmp_path)  # of 8 CPUs
    _, report, _ = start.bench(run, Asked(cold=1, warm=0))
    assert report["load_before"] == load
    assert any("busy" in line for line in cast("Silent", run.watch).said) == told


def fail_at(number: int, error: BaseException) -> Behave:
    def behave(now: int) -> None:
        if now == number:
            raise error

    return behave


FAILURES: dict[str, tuple[BaseException, str]] = {
    "never ready": (NeverReady("it died"), "start 3 of 4: it died"),
    "no engine": (TargetUnavailable("no engine"), "start 3 of 4: no engine"),
    "Ctrl-C": (KeyboardInterrupt(), "interrupted"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_start_that_fails_ends_it_with_what_there_was_and_nothing_left(
    tmp_path: Path, fakes: dict[str, Any], name: str
) -> None:
    error, told = FAILURES[name]
    fakes["behave"] = fail_at(3, error)
    run = a_bench(tmp_path)
    with pytest.raises(type(error)):
        start.bench(run, Asked(cold=2, warm=2))
    assert fakes["done"][-3:] == ["start", "stop", "empty"]
    report = written(tmp_path)
    assert [s["number"] for s in report["starts"]] == [1, 2]
    assert (report["error"], report["verdict"]) == (told, "fail")
    assert "2 of 4 starts succeeded" in cast("Silent", run.watch).said


def test_a_first_start_that_fails_has_a_summary_too(tmp_path: Path, fakes: dict[str, Any]) -> None:
    fakes["behave"] = fail_at(1, NeverReady("it died"))
    with pytest.raises(NeverReady):
        start.bench(a_bench(tmp_path), Asked(cold=1, warm=1))
    assert written(tmp_path)["summary"] == {}


def test_a_summary_that_cannot_be_written_does_not_hide_why_it_ended(
    tmp_path: Path, fakes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes["behave"] = fail_at(1, NeverReady("it died"))

    def full(*_: Any) -> Path:
        raise EvidenceMissing("no room")

    monkeypatch.setattr(artifacts, "write", full)
    with pytest.raises(NeverReady, match="it died"):
        start.bench(a_bench(tmp_path), Asked(cold=1, warm=1))
    fakes["behave"] = lambda _: None
    with pytest.raises(EvidenceMissing, match="no room"):
        start.bench(a_bench(tmp_path / "2"), Asked(cold=1, warm=0))


def test_memory_that_is_not_given_back_ends_it(tmp_path: Path, fakes: dict[str, Any]) -> None:
    fakes["release"] = "leaked"
    with pytest.raises(CheckFailed, match="after the end of the server") as e:
        start.bench(a_bench(tmp_path), Asked(cold=1, warm=1))
    assert e.value.id == "memory-leaked"
    report = written(tmp_path)
    assert report["starts"][0]["released"] == "leaked"
    assert report["error"].startswith("start 1 of 2: ")


@pytest.mark.parametrize(("verdict", "counted"), [("fail", 0), ("unknown", 2)])
def test_a_start_that_is_not_proven_is_no_pass(
    tmp_path: Path, fakes: dict[str, Any], verdict: str, counted: int
) -> None:
    fakes["verdict"] = verdict
    record, report, _ = start.bench(a_bench(tmp_path), Asked(cold=1, warm=1))
    assert record.verdict == verdict
    assert len(report["summary"]) == counted, "figures of a server that answers wrongly are none"


# ---- what is refused before anything starts


def test_nothing_to_measure_is_a_usage_error(tmp_path: Path, fakes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        start.bench(a_bench(tmp_path), Asked(cold=0, warm=0))


def test_weights_that_each_start_would_fetch_are_refused(tmp_path: Path, fakes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the network would be measured"):
        start.bench(a_bench(tmp_path, weights=VOLUME), Asked())
    assert fakes["done"] == []


@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_server_that_runs_is_not_measured_beside(tmp_path: Path, fakes: dict[str, Any], status: str) -> None:
    run = a_bench(tmp_path)
    run.host = replace(run.host, own_container=replace(samples.OWN, status=status))
    with pytest.raises(CheckFailed, match=f"is {status}") as e:
        start.bench(run, Asked())
    assert (e.value.id, "bringup down" in e.value.hint, fakes["done"]) == ("server-running", True, [])


INHABITED: dict[str, tuple[Any, str, str]] = {
    "a volume": (None, "p-bench_state\n", "p-bench_state"),
    "a container": (state("exited"), "", "the container p-server-1"),
}


@pytest.mark.parametrize("name", INHABITED)
def test_somebodys_caches_are_never_emptied(tmp_path: Path, fakes: dict[str, Any], name: str) -> None:
    container, fakes["volumes"], told = INHABITED[name]
    run = a_bench(tmp_path)
    run.engine = cast("Any", Engine(container))
    with pytest.raises(CheckFailed, match=told) as e:
        start.bench(run, Asked())
    assert e.value.id == "bench-project-in-use"
    assert fakes["done"] == []


def test_an_engine_that_does_not_list_its_volumes_may_have_some(tmp_path: Path, fakes: dict[str, Any]) -> None:
    fakes["code"] = 1
    with pytest.raises(TargetUnavailable, match="did not list its volumes"):
        start.bench(a_bench(tmp_path), Asked())
    assert fakes["done"] == []


# ---- the command line


def test_a_list_of_numbers() -> None:
    assert Counts().convert("1,64", None, None) == (1, 64)


@pytest.mark.parametrize("text", ["", "1,", "x", "0", "-1,2", "1,1", "1.5"])
def test_anything_else_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Counts().convert(text, None, None)
