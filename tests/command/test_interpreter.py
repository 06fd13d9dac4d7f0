"""Where the launcher spares CPython what it need not do: in the server's process and in the standby's."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bringup.inside import interpreter
from bringup.inside.parts import VARIABLE
from tests.unit.launchfakes import fake_vllm

TELL = """
import inspect, sys
frame, room = sys._getframe(), 0
while frame:
    room, frame = max(room, frame.f_code.co_stacksize), frame.f_back
print("told", __name__, room, inspect.getmodule.__module__, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("word", "room", "by"),
    [("gc,interpreter", interpreter.ROOM, "bringup.inside.interpreter"), ("gc", None, "inspect")],
)
@pytest.mark.parametrize("process", ["serve", "standby"])
def test_both_processes_import_and_run_in_it(
    process: str, word: str, room: int | None, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    with fake_vllm(tmp_path, monkeypatch) as site, ours, theirs:
        for file in ("entrypoints/openai/api_server.py", "v1/engine/core.py"):
            with (site / "vllm" / file).open("a") as source:
                source.write(TELL)
        given = [] if process == "serve" else [str(theirs.fileno()), "", "0"]
        theirs.shutdown(socket.SHUT_RD)  # the standby is not used
        ran = subprocess.run(
            [sys.executable, "-m", f"bringup.inside.{process}", *given],
            env={"PYTHONPATH": f"{site}:{Path(interpreter.__file__).parents[2]}", VARIABLE: word},
            stderr=subprocess.PIPE, pass_fds=[theirs.fileno()], text=True, timeout=60, check=False,
        )  # fmt: skip
    told = [line.split()[1:] for line in ran.stderr.splitlines() if line.startswith("told ")]
    assert ran.returncode == 0, ran.stderr
    assert {name for name, _, _ in told} == (
        {"vllm.v1.engine.core"} if process == "standby" else {"vllm.entrypoints.openai.api_server", "__main__"}
    )
    for _, size, where in told:
        assert where == by
        assert (int(size) == room) if room else (int(size) < 1000)
