"""What a run's evidence adds up to: each part by itself, and none hides the run."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from bringup import derive, ledger, observe
from bringup.errors import EvidenceMissing
from bringup.ready import Moments
from tests.unit.fakes import FakeContainer, state
from tests.unit.samples import plan


@pytest.fixture(autouse=True)
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger by itself."""
    monkeypatch.setattr(derive, "_part", lambda _: None)


ROWS = [{"PID": "7", "RSS": "2048"}]


def evidence(flavour: str = "cpu", **changed: Any) -> derive.Evidence:
    known: dict[str, Any] = {
        "plan": plan(flavour), "log": "", "moments": Moments(), "observed": ledger.Observation(), "card": None,
        "local": False,
    }  # fmt: skip
    return derive.Evidence(**known | changed)


def test_a_running_server_has_its_memory_and_the_caches_size() -> None:
    made = derive.derive(evidence(), FakeContainer(rows=ROWS, executed=(0, "4096\t/var/lib/bringup/cache\n")))
    assert made.missing == []
    assert made.ledger is not None
    when = {m["name"]: m for m in made.ledger["moments"]}
    assert (when["serving"]["rss"], when["after"]["note"]) == (2048 * 1024, "it still runs")
    assert {row["component"]: row["bytes"] for row in made.ledger["breakdown"]}["compile cache"] == 4096
    assert {f["path"] for f in made.ledger["files"]} >= {"config.json", "model.safetensors"}
    assert json.loads(made.files()["ledger.json"]) == json.loads(json.dumps(made.ledger))


def test_a_dead_server_does_not_serve() -> None:
    dead = FakeContainer(
        states=[state("exited", exit_code=1)], rows=EvidenceMissing("not running"), executed=EvidenceMissing("no")
    )
    observed = ledger.Observation((ledger.Sample(1.0, rss=5), ledger.Sample(2.0, rss=4)))
    made = derive.derive(evidence(observed=observed), dead)
    assert made.missing == []
    assert made.ledger is not None
    when = {m["name"]: m for m in made.ledger["moments"]}
    assert (when["peak"]["rss"], when["serving"]["rss"], when["after"]["rss"]) == (5, None, None)
    assert when["after"]["note"] == "no process left"
    assert {row["component"]: row["bytes"] for row in made.ledger["breakdown"]}["compile cache"] is None


def test_a_container_that_is_gone_leaves_the_samples() -> None:
    gone = FakeContainer(states=[EvidenceMissing("the container is gone")], executed=EvidenceMissing("gone"))
    made = derive.derive(evidence(observed=ledger.Observation((ledger.Sample(1.0, rss=5),))), gone)
    assert (made.missing, made.ledger is not None) == ([], True)


def test_the_samples_of_the_start_are_kept_with_their_peak() -> None:
    many = [ledger.Sample(float(n), (n, 1), {7: n, 8: 5}, 900 if n == 444 else n % 10) for n in range(1000)]
    kept = derive.curve(ledger.Observation(tuple(many), frozenset({7})))
    assert derive.CURVE / 2 <= len(kept) <= derive.CURVE
    assert kept[-1] == {"t": 999.0, "card": 1000, "server": 999, "rss": 9}
    on_cpu = derive.curve(ledger.Observation(tuple(ledger.Sample(s.t, rss=s.rss) for s in many)))
    assert max(s["rss"] for s in on_cpu) == 900
    assert (on_cpu[0]["card"], on_cpu[0]["server"]) == (None, None)


@pytest.mark.parametrize("output", [(1, "du: no such file"), (0, ""), (0, "many bytes")])
def test_a_size_that_nobody_can_read_is_none(output: tuple[int, str]) -> None:
    made = derive.derive(evidence(), FakeContainer(rows=ROWS, executed=output))
    assert made.ledger is not None
    assert made.ledger["breakdown"][1] == {"component": "compile cache", "bytes": None, "from": "on disk, no memory"}


def test_a_fault_of_ours_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("x")

    monkeypatch.setattr(ledger, "make", broken)
    made = derive.derive(evidence(), FakeContainer(rows=ROWS))
    assert made.missing == ["ledger.json (KeyError: 'x')"]
    assert "ledger.json" not in made.files()


# ---- the timeline and the caches feed it


class Line(str):
    """Stands for an event: a line whose first word may be its time."""

    __slots__ = ()

    @property
    def t(self) -> float | None:
        word = self.partition(" ")[0]
        return float(word) if word.isdigit() else None


class Reader:
    """Stands for bringup.timeline and bringup.caches."""

    def __init__(self) -> None:
        self.anchors: dict[str, Any] = {}
        self.facts = {"weights_gib": 0.5, "kv_cache_gib": 1.0}
        self.stages = [SimpleNamespace(name="load", begin=1.0, end=2.0), SimpleNamespace(name="x", begin=None, end=3.0)]
        self.judged: tuple[Any, ...] = ()

    def Anchors(self, **given: Any) -> None:  # noqa: N802
        self.anchors = given

    def read_events(self, text: str) -> list[Line]:
        return [Line(line) for line in text.splitlines()]

    def build(self, events: list[Line], _anchors: Any) -> Any:
        if "broken" in events:
            raise ValueError("no time")
        return self

    def stage_table(self, _built: Any) -> derive.Table:
        return "where the time went", ("stage",), [("load",)]

    def judge(self, *given: Any) -> Any:
        self.judged = given
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"made": True}


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    made = Reader()
    monkeypatch.setattr(derive, "_part", lambda _: made)
    return made


OBSERVED = ledger.Observation((ledger.Sample(0.5, rss=1), ledger.Sample(1.5, rss=9), ledger.Sample(1.9, rss=5)))


def test_what_vllm_stated_and_the_stages_go_into_the_ledger(reader: Reader) -> None:
    log = "a\n2 b\n3 compiled for a request"
    given = evidence(log=log, observed=OBSERVED, moments=Moments(asked=0.1, first_token=2.5))
    made = derive.derive(given, FakeContainer(rows=ROWS, executed=(0, "[1]"), file=b"[2]"))
    assert (made.missing, made.timeline, made.caches) == ([], {"made": True}, {"made": True})
    assert reader.anchors == {"asked": 0.1, "container_started": None, "first_200": None, "first_token": 2.5}
    assert reader.judged == (["a", "2 b"], [2], [1])
    assert made.tables[0] == ("where the time went", ("stage",), [("load",)])
    assert made.ledger is not None
    assert {row["name"]: row["stated"] for row in made.ledger["rows"]}["KV cache"] == 2**30
    assert made.ledger["growth_by_stage"] == [{"stage": "load", "bytes": 4}]
    assert set(made.files()) == {"timeline.json", "ledger.json", "caches.json"}


def test_a_timeline_that_cannot_be_made_is_missing_and_the_ledger_is_there(reader: Reader) -> None:
    made = derive.derive(evidence(log="broken"), FakeContainer(rows=ROWS))
    assert made.missing == ["timeline.json (ValueError: no time)"]
    assert (made.timeline, made.ledger is not None) == (None, True)


@pytest.mark.parametrize("file", [EvidenceMissing("no such file"), b"no json"])
@pytest.mark.parametrize("executed", [EvidenceMissing("it is dead"), (1, "[1]"), (0, "no json")])
def test_factors_that_nobody_can_tell_are_none(reader: Reader, file: Any, executed: Any) -> None:
    derive.derive(evidence(), FakeContainer(rows=ROWS, file=file, executed=executed))
    assert reader.judged == ([], None, None)


def test_the_tables_have_a_dash_where_nothing_is_known() -> None:
    rows, moments = derive.ledger_tables(ledger.make(ledger.Seen(flavour="gpu")))
    assert {cell for row in rows[2] for cell in row[1:4]} == {"-"}
    assert moments[1] == ("moment", "reserved GPUs", "server on GPUs", "processes (RSS)", "")
    (_, columns, lines) = derive.ledger_tables(ledger.make(ledger.Seen(flavour="cpu")))[1]
    assert columns == ("moment", "processes (RSS)", "")
    assert all(len(line) == len(columns) for line in lines)


def test_sizes() -> None:
    assert [derive.size(n) for n in (None, 0, 2**20, 2**30, 92243230720)] == [
        "-", "0.0 MiB", "1.0 MiB", "1.00 GiB", "85.91 GiB",
    ]  # fmt: skip
    assert [derive.share(x) for x in (None, 1.5, -12.0)] == ["", "+1.5 %", "-12.0 %"]


LINES = {
    "unknown": (observe.Release("unknown", reason="no"), "is not known: no"),
    "released": (
        observe.Release("released", 0.1, 3 * 2**30, 0),
        "released: the server's processes and 3,072 MiB of GPU",
    ),
    "leaked memory": (
        observe.Release("leaked", 10, 3 * 2**30, 2**30),
        "1,024 MiB of GPU memory are still",
    ),
    "leaked process": (observe.Release("leaked", 10, None, None, (7, 8)), "these processes still run: 7, 8"),
}


@pytest.mark.parametrize("name", LINES)
def test_what_became_of_the_memory_in_a_line(name: str) -> None:
    release, words = LINES[name]
    assert words in release.line
