"""The local target with real processes, but without vLLM: what is started is kept, watched and ended as a whole."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bringup import catalog
from bringup.edge import keeper, proc
from bringup.errors import NeverReady, TargetUnavailable, UsageError
from bringup.plan import Plan, make_plan
from bringup.settings import Settings
from bringup.targets import local
from bringup.targets.local import LocalServer, LocalTarget

# In place of the entry point: it says something, and has a child in a session of its own, as vLLM's server is.
SERVER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("first\\nsecond", flush=True)
print("on the other stream", file=sys.stderr, flush=True)
time.sleep(600)
"""
STUBBORN = SERVER.replace("import os,", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nimport os,")


def until(seen: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def a_plan(**settings: object) -> Plan:
    made = Settings(model="tiny-qwen2", target="local", **settings)  # type: ignore[arg-type]
    return make_plan(made, catalog.load()["tiny-qwen2"], ("cpu", "test"), {})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalTarget]]:
    """Targets with that program; at the end nothing of them runs."""
    made: list[LocalTarget] = []
    environ = {**os.environ, "BRINGUP_STATE_DIR": str(tmp_path / "state")}

    def make(name: str = "p", program: str = SERVER) -> LocalTarget:
        monkeypatch.setattr(local, "ENTRY", ("-c", program))
        made.append(LocalTarget(name, environ))
        return made[-1]

    yield make
    for target in made:
        target.down(volumes=True)
        assert not target.directory.exists()


def started(target: LocalTarget, **settings: object) -> LocalServer:
    """A server whose two processes run."""
    server = target.up(a_plan(**settings))
    until(lambda: len(server.members().pids()) == 2 and "other" in server.logs())
    return server


def gone(pids: frozenset[int]) -> bool:
    return all(proc.identity(pid) is None for pid in pids)


def test_a_server_is_started_told_of_and_ended(project: Callable[..., LocalTarget]) -> None:
    target = project()
    server = started(target)
    state, pids = server.state(), server.members().pids()
    assert (state.status, state.id) == ("running", server.id)
    assert abs(time.time() - proc_time(state.started)) < 60
    lines = server.logs().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["first", "second", "on the other stream"]
    times = [line.partition(" ")[0] for line in lines]
    assert times == sorted(set(times)), "each line has a time of its own"
    assert {row["PID"] for row in server.top()} == {str(pid) for pid in pids}
    assert server.execute([sys.executable, "-c", "import os; print(os.environ['BRINGUP_STATE_DIR'])"]) == (
        0, f"{target.directory}\n",
    )  # fmt: skip
    sessions = {os.getsid(pid) for pid in pids} | {os.getsid(0)}
    assert len(sessions) == 3, "no terminal's signal reaches it"
    assert target.up(a_plan()).id == server.id, "what runs as asked is left"
    target.down()
    assert gone(pids)
    assert target.container() is None
    target.down()


def proc_time(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_another_plan_is_another_server_and_projects_are_side_by_side(project: Callable[..., LocalTarget]) -> None:
    one, two = project("one"), project("two")
    first, beside = started(one), started(two, port=8001)
    pids = first.members().pids()
    assert not pids & beside.members().pids()
    second = started(one, max_model_len=128)
    assert second.id != first.id
    assert gone(pids)
    assert beside.state().status == "running"


def test_what_does_not_heed_is_killed(project: Callable[..., LocalTarget]) -> None:
    target = project(program=STUBBORN)
    pids = started(target).members().pids()
    target.down()
    assert gone(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_server_dies_nothing_of_it_is_left(
    project: Callable[..., LocalTarget], number: signal.Signals
) -> None:
    server = started(project())
    pids = server.members().pids()
    os.kill(min(pids), number)
    until(lambda: server.state().status == "exited")
    assert (server.state().exit_code, server.state().oom_killed) == (128 + number, False)
    assert gone(pids)
    assert "second" in server.logs(), "of a stopped server too"


def test_who_kills_the_keeper_ends_the_server(project: Callable[..., LocalTarget]) -> None:
    target = project()
    server = started(target)
    pids, keeping = server.members().pids(), server.keeper()
    assert keeping
    os.kill(keeping.pid, signal.SIGKILL)
    until(lambda: proc.identity(min(pids)) is None)
    assert (server.state().status, server.state().exit_code) == ("dead", -1)
    target.down()
    assert gone(pids), "what the keeper can no longer end, `down` does"


def test_a_number_that_is_another_process_now_is_let_be(project: Callable[..., LocalTarget]) -> None:
    target = project()
    server = started(target)
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        told = json.loads((target.directory / keeper.STARTED).read_text())
        mine = server.members().pids()
        keeper.write(target.directory / keeper.STARTED, told | {"pid": bystander.pid})
        assert server.state().status == "dead"
        target.down()
        assert bystander.poll() is None
        assert gone(mine), "its processes are known by their pipe"
    finally:
        bystander.kill()
        bystander.wait()


def test_two_starts_at_once_are_one(project: Callable[..., LocalTarget]) -> None:
    target = project()
    server = started(target)
    (target.directory / local.REQUEST).rename(target.directory / "aside")  # as if it had not written it yet
    try:
        with pytest.raises(TargetUnavailable, match="another `bringup up` starts the server of p"):
            target.up(a_plan())
    finally:
        (target.directory / "aside").replace(target.directory / local.REQUEST)
    assert server.state().status == "running"


def test_an_interpreter_that_cannot_keep_is_told(
    project: Callable[..., LocalTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NeverReady, match="could not be started: no answer"):
        project().up(a_plan())


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Not a directory") as e:
        LocalTarget("p", {"BRINGUP_STATE_DIR": str(tmp_path / "file")}).up(a_plan())
    assert "BRINGUP_STATE_DIR" in e.value.hint


def test_an_interrupted_start_leaves_nothing(
    project: Callable[..., LocalTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = project()
    pids: list[int] = []

    def interrupted(seen: Callable[[], object], seconds: float) -> None:
        until(seen, seconds)
        pids.extend(target.container().members().pids())  # type: ignore[union-attr]
        raise KeyboardInterrupt

    real = local._wait
    monkeypatch.setattr(local, "_wait", interrupted)
    with suppress(KeyboardInterrupt):
        target.up(a_plan())
    monkeypatch.setattr(local, "_wait", real)
    until(lambda: gone(frozenset(pids)))
    server = target.container()
    assert server is None or server.keeper() is None


def test_the_console_is_bounded(tmp_path: Path) -> None:
    console = keeper.Console(tmp_path)
    line = b"x" * 2**16 + b"\n"
    console.follow(iter([line] * (keeper.LARGEST // len(line) + 2)))  # type: ignore[arg-type]
    kept = LocalServer(tmp_path, {"id": "a"}).logs()
    assert kept.count("\n") == keeper.LARGEST // len(line) + 2, "what is no longer in one file is in the other"
    assert (tmp_path / keeper.OLDER).stat().st_size > keeper.LARGEST > (tmp_path / keeper.CONSOLE).stat().st_size


def test_plans_of_two_ports_are_two_servers() -> None:
    """The port is no argument of the entry point but a variable."""
    one, two = a_plan(), a_plan(port=8001)
    digests = {local._digest([], local.environment(plan, Path("/d"), {}), plan) for plan in (one, two)}
    assert len(digests) == 2
    assert dataclasses.asdict(one)["target"] == "local"
