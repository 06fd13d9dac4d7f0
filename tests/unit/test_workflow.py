"""The order of things: what is started is waited for, watched, proven or stopped; and whose fault is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bringup import artifacts, bundle, ledger, observe, probes, ready, signature, workflow
from bringup.catalog import TINY
from bringup.checks import facts
from bringup.edge import gpu
from bringup.edge.docker import Engine, EngineFacts
from bringup.edge.gpu import GpuState
from bringup.edge.http import NoAnswer
from bringup.errors import BringupError, CheckFailed, EvidenceMissing, NeverReady, TargetUnavailable, UsageError
from bringup.key import make_key
from bringup.records import ProbeRecord, Status, Verdict
from bringup.settings import Settings
from bringup.targets.compose import EngineContainer
from tests.unit import samples
from tests.unit.fakes import FakeContainer, FakeHttp, answer, make_server, plan, state
from tests.unit.runs import Silent, a_run

TOKEN = answer({"usage": {"completion_tokens": 1}})
ELSEWHERE = replace(samples.FACTS, local=False)  # so that nobody looks at the processes of this machine
UP = {"/health": answer(b""), "/v1/completions": TOKEN}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "POLL", 0.0)


# ---- waiting


def wait(
    http: FakeHttp,
    container: FakeContainer | None = None,
    timeout: float = 5.0,
    moments: ready.Moments | None = None,
    seen: ready.Seen | None = None,
) -> float:
    server = make_server(http, deadline=1.0)
    made = cast("EngineContainer", container or FakeContainer())
    return ready.wait_ready(server, made, timeout, moments or ready.Moments(), seen)


def test_ready_is_the_first_token_and_counts_from_the_containers_start() -> None:
    http = FakeHttp(dict(UP))
    seconds = wait(http)
    started = 1767225600.0  # 2026-01-01T00:00:00Z, what the fake container says
    assert seconds == pytest.approx(time.time() - started, abs=5)
    assert [path for path, _ in http.asked] == ["/health", "/v1/completions"]
    assert http.asked[1][1]["max_tokens"] == 1


NOT_YET: dict[str, Any] = {
    "refused": NoAnswer("connection refused"),
    "error": answer({"error": "loading"}, status=503),
    "no token": answer({"usage": {"completion_tokens": 0}}),
    "no usage": answer({"usage": None}),
    "a list": answer([]),
    "html": answer(b"<html>", content_type="text/html"),
}


@pytest.mark.parametrize("name", NOT_YET)
def test_no_token_is_not_ready(name: str) -> None:
    replies = [NOT_YET[name], TOKEN]

    def later(_payload: Any, _timeout: float) -> Any:
        reply = replies.pop(0)
        if isinstance(reply, NoAnswer):
            raise reply
        return reply

    assert wait(FakeHttp({**UP, "/v1/completions": later})) > 0
    assert replies == []


def test_health_alone_is_not_ready() -> None:
    seen = ready.Moments(asked=1.0)
    with pytest.raises(NeverReady, match=r"no token within 0\.05 s; the container is running, the last try: refused"):
        wait(FakeHttp({**UP, "/v1/completions": NoAnswer("refused")}), timeout=0.05, moments=seen)
    assert seen.first_200 is not None, "what was seen of a start that failed is kept"
    assert seen.first_token is None


def test_the_moments_stand_in_their_order() -> None:
    seen = ready.Moments()
    before = time.time()
    wait(FakeHttp(dict(UP)), moments=seen)
    assert seen.first_200 is not None
    assert seen.first_token is not None
    assert seen.asked is None, "that is for who asked to know"
    assert seen.container_started == pytest.approx(1767225600.123456)
    assert before <= seen.first_200 <= seen.first_token


class Growing(FakeContainer):
    """A console that has two more lines at each look; keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int | None] = []

    def logs(self, tail: int | None = None, since: int | None = None) -> str:
        self.asked.append(since)
        last = 2 * len(self.asked)
        self.logs_ = "".join(f"2026-01-01T00:00:{n:02}.000000001Z line {n}\n" for n in range(last))
        return super().logs(tail, since)


def test_each_line_of_the_console_is_read_once() -> None:
    container = Growing()
    tail = ready.Tail(container)
    read = [line for _ in range(4) for line in tail.read().splitlines()]
    assert [line.rpartition(" ")[2] for line in read] == [str(n) for n in range(8)]
    assert container.asked == [None, 1767225601, 1767225603, 1767225605], "no look reads the whole again"


def test_who_watches_sees_every_line_up_to_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "LOOK", 0.0)
    told: list[tuple[str, float | None]] = []
    replies = [answer(b"", status=503), answer(b"", status=503), answer(b"")]
    http = FakeHttp({**UP, "/health": lambda *_: replies.pop(0)})
    wait(http, Growing(), seen=lambda text, moments: told.append((text, moments.first_token)))
    assert [text.count("\n") for text, _ in told] == [2, 2, 2, 2]
    assert [token is None for _, token in told] == [True, True, True, False]


def test_who_watches_sees_the_lines_of_a_death() -> None:
    told: list[str] = []
    container = FakeContainer(states=[state("exited", exit_code=1)])
    with pytest.raises(NeverReady):
        wait(FakeHttp({}), container, seen=lambda text, _: told.append(text))
    assert "".join(told).count("\n") == 2


def test_nobody_watching_reads_no_console() -> None:
    container = Growing()
    wait(FakeHttp(dict(UP)), container)
    assert container.asked == []


def test_a_container_that_never_started_has_no_start() -> None:
    assert ready.started(state(started="0001-01-01T00:00:00Z")) is None
    assert ready.started(state(started="")) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_request_is_not_waited_out(status: int) -> None:
    with pytest.raises(NeverReady, match=f"not this request: HTTP {status}"):
        wait(FakeHttp({**UP, "/v1/completions": answer({"error": "x"}, status=status)}))


DEATHS: dict[str, tuple[Any, str]] = {
    "exited": (state("exited", exit_code=5), "the container is exited, exit code 5"),
    "restarting": (state("restarting", exit_code=1), "is restarting"),
    "dead": (state("dead"), "is dead"),
    "paused": (state("paused"), "the container is paused"),
    "out of memory": (state("exited", exit_code=137, oom_killed=True), "want of memory"),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_death_ends_the_wait_with_the_last_lines(name: str) -> None:
    last, words = DEATHS[name]
    container = FakeContainer(states=[state(), state(), last], logs_="2026-01-01T00:00:00Z HF_TOKEN=abcdefgh died\n")
    with pytest.raises(NeverReady) as e:
        wait(FakeHttp({}), container)
    assert words in e.value.message
    assert e.value.detail == "HF_TOKEN=[redacted] died"


def test_a_created_container_is_waited_for() -> None:
    assert wait(FakeHttp(dict(UP)), FakeContainer(states=[state("created"), state()])) > 0


def test_an_answer_from_a_dead_container_is_no_answer() -> None:
    """Somebody else has the port."""
    with pytest.raises(NeverReady):
        wait(FakeHttp(dict(UP)), FakeContainer(states=[state("exited")]))


# ---- a whole run


class FakeTarget:
    """Stands for the compose target: what was there before, what `up` makes, whether `down` was called."""

    def __init__(self, before: FakeContainer | None, made: FakeContainer | Exception) -> None:
        self.before, self.made = before, made
        self.now = before
        self.downs = 0

    def container(self) -> FakeContainer | None:
        return self.now

    def up(self, _plan: Any, _on_line: Any) -> FakeContainer:
        if isinstance(self.made, Exception):
            raise self.made
        self.now = self.made
        return self.made

    def down(self, *, volumes: bool) -> None:
        assert not volumes, "the caches stay"
        self.downs += 1
        self.now = None


@pytest.fixture
def bring_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[FakeTarget, Any]]:
    """Run the main job with fakes at each seam; the target, and the record or the error."""

    def go(
        made: FakeContainer | Exception,
        seen: Status = Status.PASS,
        before: FakeContainer | None = None,
        waiting: BaseException | float = 3.0,
        **settings: Any,
    ) -> tuple[FakeTarget, Any]:
        target = FakeTarget(before, made)

        def wait_ready(*_: Any) -> float:
            if isinstance(waiting, BaseException):
                raise waiting
            return waiting

        record = ProbeRecord(name="completion", status=seen, expected="x", found="y")
        monkeypatch.setattr(workflow, "ComposeTarget", lambda *_: target)
        monkeypatch.setattr(workflow, "wait_ready", wait_ready)
        monkeypatch.setattr(probes, "verify", lambda *_: iter([record]))
        monkeypatch.setattr(artifacts, "gather", lambda *_: ({"server.log": "x"}, []))
        try:
            return target, workflow.bring_up(a_run(tmp_path, ELSEWHERE, **settings))[0]
        except (BringupError, KeyboardInterrupt) as e:
            return target, e

    return go


Go = Callable[..., tuple[FakeTarget, Any]]


def test_a_pass_is_left_running(bring_up: Go, tmp_path: Path) -> None:
    target, record = bring_up(FakeContainer())
    assert (record.verdict, record.started_to_first_token, target.downs) == (Verdict.PASS, 3.0, 0)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [(Status.FAIL, Verdict.FAIL), (Status.UNKNOWN, Verdict.UNKNOWN)],
)
def test_anything_else_is_stopped(bring_up: Go, seen: Status, verdict: Verdict) -> None:
    target, record = bring_up(FakeContainer(), seen)
    assert (record.verdict, target.downs) == (verdict, 1)


@pytest.mark.parametrize("waiting", [3.0, NeverReady("it died")])
def test_with_a_key_every_bundle_is_signed(
    bring_up: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: BaseException | float
) -> None:
    """That of a start that failed, too."""
    signed: list[tuple[Path, Path]] = []
    monkeypatch.setattr(signature, "sign", lambda at, key: signed.append((at.parent, key)))
    bring_up(FakeContainer(), waiting=waiting, sign_key=Path("key"))
    trial, bundle = signed
    assert (trial[1], bundle) == (Path("key"), (tmp_path, Path("key")))


def test_keep_leaves_what_failed(bring_up: Go) -> None:
    assert bring_up(FakeContainer(), Status.FAIL, keep=True)[0].downs == 0


@pytest.mark.parametrize("status", ["running", "paused"])
def test_what_ran_before_is_left_and_its_start_was_not_observed(bring_up: Go, status: str) -> None:
    before = FakeContainer(states=[state(status)])
    target, record = bring_up(before, Status.FAIL, before=before)
    assert (target.downs, record.started_to_first_token) == (0, None)
    assert [step.name for step in record.steps if step.name.startswith("wait")] != []


def test_what_replaced_a_running_server_is_stopped(bring_up: Go) -> None:
    target, record = bring_up(FakeContainer(id="c2"), Status.FAIL, before=FakeContainer(id="c1"))
    assert (target.downs, record.started_to_first_token) == (1, 3.0)


def test_what_lay_there_stopped_is_cleared(bring_up: Go) -> None:
    before = FakeContainer(states=[state("exited")])
    assert bring_up(before, Status.FAIL, before=before)[0].downs == 1


def test_a_start_that_the_engine_refuses_is_cleared(bring_up: Go, tmp_path: Path) -> None:
    target, error = bring_up(NeverReady("port is already allocated"))
    assert isinstance(error, NeverReady)
    assert target.downs == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [NeverReady("it died", detail="last lines"), EvidenceMissing("the container is gone")]
)
def test_a_death_while_waiting_leaves_a_bundle_that_says_fail(bring_up: Go, tmp_path: Path, error: Exception) -> None:
    target, seen = bring_up(FakeContainer(), waiting=error)
    assert isinstance(seen, NeverReady)
    assert seen.message == str(error)
    assert target.downs == 1
    (bundle,) = tmp_path.iterdir()
    assert str(bundle) in seen.hint
    assert '"verdict": "fail"' in (bundle / "record.json").read_text()


def test_no_bundle_does_not_hide_the_death(bring_up: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Path:
        raise EvidenceMissing("No space left on device")

    monkeypatch.setattr(artifacts, "write", full)
    target, seen = bring_up(FakeContainer(), waiting=NeverReady("it died", detail="last lines"))
    assert isinstance(seen, NeverReady)
    assert (seen.message, seen.detail, target.downs) == ("it died", "last lines", 1)
    assert "No space left" in seen.hint


def test_no_bundle_after_a_pass_is_no_pass(bring_up: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Path:
        raise EvidenceMissing("No space left on device")

    monkeypatch.setattr(artifacts, "write", full)
    target, seen = bring_up(FakeContainer())
    assert isinstance(seen, EvidenceMissing)
    assert target.downs == 1


def test_ctrl_c_while_waiting_stops_it(bring_up: Go) -> None:
    target, seen = bring_up(FakeContainer(), waiting=KeyboardInterrupt())
    assert isinstance(seen, KeyboardInterrupt)
    assert target.downs == 1


def test_memory_is_sampled_while_it_starts_and_shown(
    bring_up: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [{"PID": "7", "RSS": "2048"}]
    _, record = bring_up(FakeContainer(rows=rows))
    assert record.ledger is not None
    when = {m["name"]: m for m in record.ledger["moments"]}
    assert when["before"]["note"] == "no process yet", "the sampler runs before the container does"
    assert when["serving"]["rss"] == 2048 * 1024
    (bundle,) = tmp_path.iterdir()
    assert json.loads((bundle / "ledger.json").read_text()) == json.loads(json.dumps(record.ledger))
    assert "ledger.json" in (bundle / "SHA256SUMS").read_text()


def test_a_failed_start_has_its_ledger(bring_up: Go, tmp_path: Path) -> None:
    bring_up(FakeContainer(states=[state("exited", exit_code=1)], rows=[]), waiting=NeverReady("it died"))
    (bundle,) = tmp_path.iterdir()
    when = {m["name"]: m for m in json.loads((bundle / "ledger.json").read_text())["moments"]}
    assert (when["before"]["note"], when["serving"]["note"]) == ("no process yet", "it does not serve")


@pytest.mark.parametrize("waiting", [KeyboardInterrupt(), NeverReady("it died"), 3.0])
def test_the_sampler_ends_whatever_happens(bring_up: Go, waiting: BaseException | float) -> None:
    bring_up(FakeContainer(), waiting=waiting)
    bring_up(NeverReady("port is already allocated"))
    assert not [t for t in threading.enumerate() if t.name == "sampler"]


def test_a_ledger_that_cannot_be_made_is_missing_evidence_and_no_crash(
    bring_up: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(ledger, "make", broken)
    target, record = bring_up(FakeContainer())
    assert (record.verdict, record.ledger, target.downs) == (Verdict.UNKNOWN, None, 1)
    assert "ledger.json (ZeroDivisionError: x)" in record.probes[-1].found


# ---- after the end


RELEASED = observe.Release("released", 0.1, 2**30, 0)
LEAKED = observe.Release("leaked", 10.0, 2**30, 2**29, (7,))
UNSEEN = observe.Release("unknown", reason="no NVML")


def take_down(
    monkeypatch: pytest.MonkeyPatch, release: observe.Release, container: FakeContainer | None
) -> tuple[FakeTarget, list[str], Any]:
    target, watch = FakeTarget(container, EvidenceMissing("x")), Silent()
    monkeypatch.setattr(workflow, "ComposeTarget", lambda *_: target)
    monkeypatch.setattr(observe, "held", lambda *_, **__: observe.Held("c", frozenset({7}), 2**30))
    monkeypatch.setattr(observe, "release", lambda *_: release)
    try:
        return target, watch.said, workflow.take_down(Settings(), cast("Any", watch), volumes=False)
    except BringupError as e:
        return target, watch.said, e


def test_down_says_what_became_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for release in (RELEASED, UNSEEN):
        target, said, seen = take_down(monkeypatch, release, FakeContainer())
        assert (target.downs, seen, said) == (1, release, ["down", release.line])


def test_a_leak_is_a_failed_check_after_all_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    target, _, seen = take_down(monkeypatch, LEAKED, FakeContainer())
    assert (target.downs, target.now) == (1, None)
    assert isinstance(seen, CheckFailed)
    assert (seen.id, int(seen.exit_code)) == ("memory-leaked", 3)
    assert "512 MiB of GPU memory are still held" in seen.message
    assert "processes still run: 7" in seen.message


def test_nothing_to_take_down_has_released_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_down(monkeypatch, LEAKED, None)[1:] == (["down"], None)


def test_a_container_that_cannot_be_looked_at_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise EvidenceMissing("gone")

    target = FakeTarget(FakeContainer(), EvidenceMissing("x"))
    monkeypatch.setattr(observe, "held", gone)
    released = workflow.stop(cast("Any", target), local=True)
    assert target.downs == 1
    assert released is not None
    assert released.verdict == "unknown"


def test_a_leak_after_a_failure_is_a_line_beside_it(bring_up: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda _, text: said.append(text))
    monkeypatch.setattr(observe, "release", lambda *_: LEAKED)
    _, seen = bring_up(FakeContainer(), waiting=NeverReady("it died"))
    assert isinstance(seen, NeverReady)
    assert LEAKED.line in said


def test_missing_evidence_makes_a_pass_unknown(bring_up: Go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = a_run(tmp_path, ELSEWHERE)
    run.probes = (ProbeRecord(name="completion", status=Status.PASS, expected="x", found="y"),)
    monkeypatch.setattr(artifacts, "gather", lambda *_: ({"a": "x"}, ["server.log (gone)"]))
    container = cast("EngineContainer", FakeContainer())
    record, _ = workflow.collect(run, make_server(FakeHttp({})), container, {})
    assert record.verdict is Verdict.UNKNOWN
    assert "server.log (gone)" in record.probes[-1].found


def test_a_bundle_has_its_page_and_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = a_run(tmp_path, ELSEWHERE, api_key="a<key>&more")
    monkeypatch.setattr(artifacts, "gather", lambda *_: ({"server.log": "Bearer a<key>&more\n"}, ["the rest"]))
    container = cast("EngineContainer", FakeContainer())
    _, made = workflow.collect(run, make_server(FakeHttp({})), container, {}, "it died of a<key>&more")
    page, summary = ((made / name).read_text("utf-8") for name in ("report.html", "summary.md"))
    assert bundle.read(made).faults == ()
    assert "it died of [redacted]" in page
    assert r"it died of \[redacted\]" in summary
    for text in (page, summary):
        assert "key&gt;" not in text, "it was taken out before it was escaped"


# ---- what stops before anything is started


def test_a_failed_check_stops_and_names_the_remedy(tmp_path: Path) -> None:
    host = replace(samples.FACTS, port_holder="nginx (pid 5)")
    with pytest.raises(CheckFailed, match=r"check port: found 127\.0\.0\.1:8000: nginx \(pid 5\)") as e:
        workflow.require(a_run(tmp_path, host))
    assert "--port" in e.value.hint


def test_no_engine_is_unavailable_and_not_a_failed_check(tmp_path: Path) -> None:
    host = replace(samples.FACTS, engine=samples.NO_ENGINE)
    for what in (workflow.require, workflow.build, workflow.attach):
        with pytest.raises(TargetUnavailable, match="does not answer"):
            what(a_run(tmp_path, host))


def test_a_bad_destination_stops_before_the_checks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = a_run(tmp_path / "file" / "x")
    with pytest.raises(UsageError, match="cannot be written"):
        workflow.bring_up(run)
    assert run.checks == ()


def test_a_key_that_cannot_sign_stops_before_the_checks(tmp_path: Path) -> None:
    run = a_run(tmp_path / "out", sign_key=tmp_path / "none")
    with pytest.raises(UsageError, match=r"the key .*none cannot be read"):
        workflow.bring_up(run)
    assert run.checks == ()
    assert not (tmp_path / "out").exists()


def test_a_host_without_engine_or_driver_can_still_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "facts", lambda _: EngineFacts(reachable=False, error="no"))
    monkeypatch.setattr(gpu, "read", lambda: GpuState(available=False, error="no library"))
    monkeypatch.setattr(facts, "gather", lambda *_: replace(samples.FACTS, engine=samples.NO_ENGINE))
    run = workflow.prepare("plan", Settings(model=TINY), {}, cast("Any", Silent()))
    assert (run.plan.flavour, run.host.engine.reachable) == ("cpu", False)
    assert plan().flavour == "cpu"


@pytest.mark.parametrize("command", ["up", "verify", "collect", "logs", "plan", "doctor"])
def test_a_public_server_has_a_key_of_its_own(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` makes it, once; the other commands use what is there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "bringup" / "p.key"
    public = Settings(bind="192.0.2.1", project="p")
    said: list[str] = []
    watch: Any = SimpleNamespace(say=said.append)
    first, _ = workflow.keyed(command, public, {}, watch)
    assert file.exists() == (command == "up")
    assert first.api_key_file == (file if command in ("up", "plan", "doctor") else None)
    assert [str(file) in line for line in said] == ([True] if command == "up" else [])
    make_key(file)
    made = file.read_text()
    second, sources = workflow.keyed(command, public, {"port": "flag"}, watch)
    assert (second.api_key_file, sources) == (file, {"port": "flag", "api_key_file": "generated"})
    assert file.read_text() == made
    assert made.strip() not in "".join(said)


@pytest.mark.parametrize("given", [{"bind": "127.0.0.1"}, {"bind": "192.0.2.1", "api_key_file": Path("own")}])
def test_no_key_is_made_where_none_is_missing(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = Settings(**given)
    assert workflow.keyed("up", settings, {}, cast("Any", None)) == (settings, {})
    assert list(tmp_path.iterdir()) == []
