"""The guard of the unit tests: no process, no connection, no changed environment.

An audit hook sees every way to spawn or connect, however the code imported it. The failure is raised at the call
(and is no `Exception`, so that `except Exception` does not hide it) and again when the test ends, for code that
swallows everything or calls from a thread. There is no exception for loopback: such a test is an integration test.
"""

from __future__ import annotations

import _posixsubprocess
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

FORBIDDEN = {
    "subprocess.Popen": "spawns a process",
    "os.posix_spawn": "spawns a process",
    "os.fork": "spawns a process",
    "os.forkpty": "spawns a process",
    "os.system": "spawns a process",
    "os.exec": "replaces this process",
    "fork_exec": "spawns a process",
    "socket.connect": "opens a connection",
    "socket.bind": "binds an address",
    "socket.sendto": "sends to the network",
    "socket.sendmsg": "sends to the network",
    "socket.getaddrinfo": "asks for an address",
    "socket.gethostbyname": "asks for an address",
    "socket.gethostbyaddr": "asks for an address",
}
_active: list[list[str]] = []  # attempts of the guards that are open; the innermost gets them
_installed = False


def _refuse(event: str) -> None:
    what = f"a unit test {FORBIDDEN[event]} ({event})"
    _active[-1].append(what)
    pytest.fail(f"{what}: fake the edge, or make it a test of tests/command or tests/integration")


def _audit(event: str, args: tuple[Any, ...]) -> None:
    # sendmsg passes None when the socket is connected already (a socketpair)
    if event in FORBIDDEN and _active and not (event.startswith("socket.send") and args[1] is None):
        _refuse(event)


@contextmanager
def guarded() -> Iterator[list[str]]:
    """Fail on any attempt to spawn or connect, and on an environment that differs at the end."""
    global _installed  # noqa: PLW0603 - an audit hook can be added once and never removed
    if not _installed:
        sys.addaudithook(_audit)
        _installed = True
    before = _environment()
    attempts: list[str] = []
    _active.append(attempts)
    try:
        # multiprocessing's spawn goes below subprocess and raises no audit event
        with mock.patch.object(_posixsubprocess, "fork_exec", side_effect=lambda *_: _refuse("fork_exec")):
            yield attempts
    finally:
        _active.remove(attempts)
        after = _environment()
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        for name in changed:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
    assert not attempts, f"{attempts[0]}, and nothing failed"
    assert not changed, f"a test leaves the environment changed: {', '.join(changed)}"


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def guard() -> Iterator[list[str]]:
    """The guard around every unit test; opened first, so that monkeypatch has undone its changes when it closes."""
    with guarded() as attempts:
        yield attempts
