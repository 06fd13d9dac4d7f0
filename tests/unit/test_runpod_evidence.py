"""What two ways to one server say together, and a pod as a container."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from bringup.edge.runpod import RunPod
from bringup.edge.ssh import Ssh
from bringup.errors import EvidenceMissing
from bringup.many import Outcome
from bringup.records import Status, Verdict
from bringup.runpod.container import PodContainer
from bringup.runpod.evidence import _not_after, compared


def outcome(verdict: Verdict, why: str = "") -> Outcome:
    return Outcome(url="u", verdict=verdict, started=0.0, seconds=1.5, why=why)


@pytest.mark.parametrize(
    ("proxied", "direct", "status", "said"),
    [
        (Verdict.PASS, Verdict.PASS, Status.PASS, "passes directly, as through the proxy"),
        (Verdict.FAIL, Verdict.PASS, Status.PASS, "the server is good, the way through RunPod's proxy is not (P)"),
        (Verdict.UNKNOWN, Verdict.PASS, Status.PASS, "the way through RunPod's proxy is not (P)"),
        (Verdict.PASS, Verdict.FAIL, Status.FAIL, "passes through the proxy, and not directly (D)"),
        (Verdict.PASS, Verdict.UNKNOWN, Status.UNKNOWN, "passes through the proxy, and not directly (D)"),
        (Verdict.FAIL, Verdict.FAIL, Status.FAIL, "does not pass directly either, so that it is the server (D)"),
    ],
)
def test_which_of_the_two_ways_is_at_fault(proxied: Verdict, direct: Verdict, status: Status, said: str) -> None:
    found = compared(outcome(proxied, "P"), outcome(direct, "D"))
    assert (found.name, found.status, found.seconds) == ("direct", status, 1.5)
    assert found.found.endswith(said)
    assert found.data == {"suite": "smoke", "verdict": direct, "proxy": proxied}


@pytest.mark.parametrize(("moment", "found"), [(50.0, 50.0), (103.0, 100.5), (None, None)])
def test_no_container_starts_after_its_server_spoke(moment: float | None, found: float | None) -> None:
    log = '{"t": 101.0, "msg": "b"}\n{"t": 100.5, "msg": "a"}\nno time here\n'
    assert _not_after(moment, log) == found
    assert _not_after(7.0, "") == 7.0


class Cloud:
    """An account with one pod."""

    def __init__(self, **found: Any) -> None:
        self._found = {"id": "p", "name": "bringup-a", "env": {"VLLM_API_KEY": "k"}} | found

    def pod(self, _id: str) -> dict[str, Any]:
        return self._found

    def logs(self, _id: str, _tail: int, _seconds: float) -> list[tuple[str, str]]:
        return [("2027-01-15T08:00:00Z", "one"), ("2027-01-15T08:00:09Z", "two")]


class Shell:
    """What a program said."""

    def __init__(self, code: int, output: str) -> None:
        self._said = code, output

    def execute(self, _argv: list[str]) -> tuple[int, str]:
        return self._said


def container(cloud: Cloud, code: int = 0, output: str = "") -> PodContainer:
    return PodContainer(cast("RunPod", cloud), "p", cast("Ssh", Shell(code, output)))


def test_a_pod_is_a_container_as_far_as_runpod_tells() -> None:
    seen = container(Cloud(status="RUNNING", runtime={"uptime": 60}))
    state = seen.state()
    assert (state.id, state.name, state.status) == ("p", "bringup-a", "running")
    assert 59 < datetime.now(UTC).timestamp() - datetime.fromisoformat(state.started).timestamp() < 90
    assert container(Cloud(status="EXITED", runtime=None)).state().started == ""
    assert "env" not in seen.inspect()
    assert seen.logs().splitlines() == ["2027-01-15T08:00:00Z one", "2027-01-15T08:00:09Z two"]
    since = int(datetime(2027, 1, 15, 8, 0, 5, tzinfo=UTC).timestamp())
    assert seen.logs(since=since).splitlines() == ["2027-01-15T08:00:09Z two"]


def test_processes_are_rows() -> None:
    assert container(Cloud(), 0, '{"PID": 1, "COMMAND": "vllm"}\n').top() == [{"PID": "1", "COMMAND": "vllm"}]


@pytest.mark.parametrize(("code", "output"), [(127, "sh: not found"), (0, ""), (0, "garbage"), (0, "[1]"), (1, "{}\n")])
def test_a_pod_that_does_not_list_its_processes_is_no_pod_without_any(code: int, output: str) -> None:
    with pytest.raises(EvidenceMissing, match="does not list its processes"):
        container(Cloud(), code, output).top()
