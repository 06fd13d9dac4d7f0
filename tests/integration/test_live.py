"""What `bringup up` shows while the server starts: lines on a pipe, stages on a terminal, little with --quiet.

Three starts, in the order of the file; the last is interrupted.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from bringup.console import START_HEARTBEAT
from tests.integration.support import MODEL, ROOT, SESSION, Result, bringup, environment, free_port, leftovers

pytestmark = pytest.mark.integration

PROJECT = f"{SESSION}-live"
FIRST, LAST = "API process: start and imports", "API server up"
STAGE = re.compile(r"^  (?P<name>\S.*): (?P<seconds>\d+\.\d) s(?: \(last time (?P<before>\d+\.\d) s\))?$")


@dataclass(frozen=True)
class Place:
    """Where the server of this file is, and where its bundles go."""

    artifacts: Path
    port: int

    @property
    def argv(self) -> list[str]:
        return [
            "up", "--model", MODEL, "--flavour", "cpu", "--project", PROJECT, "--port", str(self.port),
            "--artifacts", str(self.artifacts), "--suite", "smoke",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def place(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    try:
        yield Place(tmp_path_factory.mktemp("live") / "artifacts", free_port())
    finally:
        down("--volumes")


def down(*more: str) -> None:
    assert bringup("down", "--project", PROJECT, *more).code == 0


def on_a_terminal(argv: list[str], until: str = "", key: bytes = b"", **variables: str) -> tuple[int, str]:
    """Run it on a terminal of its own; press a key when `until` was shown. Its exit code and what it drew."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))

    def session() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    env = {k: v for k, v in environment().items() if k not in ("NO_COLOR", "FORCE_COLOR")} | {"TERM": "xterm-256color"}
    child = subprocess.Popen(
        [sys.executable, "-m", "bringup", *argv], stdin=slave, stdout=slave, stderr=slave,
        preexec_fn=session, env=env | variables, cwd=ROOT / "tests",  # noqa: PLW1509 - no thread runs here
    )  # fmt: skip
    os.close(slave)
    drawn = b""
    try:
        while True:
            try:
                got = os.read(master, 65536)
            except OSError:  # the other end is closed: it ended
                break
            if not got:
                break
            drawn += got
            if until and until.encode() in drawn:
                os.write(master, key)
                until = ""
        return child.wait(60), drawn.decode("utf-8", "replace")
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait(60)
        os.close(master)


def stages(lines: list[str]) -> dict[str, str | None]:
    """The stages that were told, and what they took the time before."""
    return {found["name"]: found["before"] for line in lines if (found := STAGE.match(line))}


@pytest.fixture(scope="module")
def piped(place: Place) -> Result:
    return bringup(*place.argv)


def test_a_pipe_gets_one_line_for_each_stage(piped: Result, place: Place) -> None:
    assert piped.code == 0, piped.err
    lines = piped.err.splitlines()
    told = stages(lines)
    assert next(iter(told)) == "container started"
    assert {FIRST, LAST} <= set(told)
    assert set(told.values()) == {None}, "no start before it"
    named = [STAGE.match(line) for line in lines]
    assert len([n for n in named if n]) == len(told), "each once"
    assert "\x1b" not in piped.err
    alive = [line for line in lines if line.startswith("wait for the first token ...")]
    assert len(alive) <= piped.seconds / START_HEARTBEAT, "no line a second"
    (bundle,) = place.artifacts.iterdir()
    path = {s["name"] for s in json.loads((bundle / "timeline.json").read_text())["stages"] if s["path"]}
    assert {FIRST, "executor and worker", "model load", LAST} <= path & set(told), "the words are the timeline's"


def test_quiet_says_where_the_evidence_is_and_the_verdict(piped: Result, place: Place) -> None:
    done = bringup(*place.argv, "--quiet")
    assert done.code == 0, done.err
    evidence, verdict = done.err.splitlines()
    assert Path(evidence.removeprefix("evidence: ")).is_dir()
    assert verdict.startswith("verdict: pass   endpoint: http://127.0.0.1:")


def test_a_terminal_shows_the_stage_under_way_beside_what_is_expected(piped: Result, place: Place) -> None:
    down()
    code, drawn = on_a_terminal(place.argv, NO_COLOR="1")
    assert code == 0, drawn
    assert re.search(r"wait for the first token \.\.\. \d+ s of about \d+ s  " + FIRST + r" \d+ s \(of about", drawn)
    told = stages(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").split("\n"))
    assert {FIRST, LAST} <= set(told)
    assert told[FIRST] is not None, "held against the start before"
    assert "expected: " in drawn
    assert not re.search(r"\x1b\[[0-9;]*3\dm", drawn), "NO_COLOR"


def test_ctrl_c_cleans_up_and_gives_the_terminal_back(engine: docker.DockerClient, place: Place) -> None:
    down()
    code, drawn = on_a_terminal(place.argv, until=FIRST, key=b"\x03")
    assert code == 130, drawn
    assert "interrupted; what was started is stopped" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "the cursor is shown again"
    assert leftovers(engine, PROJECT) == []
