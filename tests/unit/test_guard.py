"""The guard of the unit tests does guard."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.unit.conftest import guarded

Failed = pytest.fail.Exception


def nothing() -> None:
    """What a child would run."""


def connect(family: int, address: object) -> None:
    with socket.socket(family) as s:
        s.connect(address)  # type: ignore[arg-type]


def connect_ex() -> None:
    with socket.socket() as s:
        s.connect_ex(("127.0.0.1", 1))


def bind() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))


def send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", 9))


ATTEMPTS: dict[str, Callable[[], object]] = {
    "run": lambda: subprocess.run(["true"], check=True),
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "fork": lambda: multiprocessing.get_context("fork").Process(target=nothing).start(),
    "spawn": lambda: multiprocessing.get_context("spawn").Process(target=nothing).start(),
    "system": lambda: os.system("true"),  # noqa: S605
    "popen": lambda: os.popen("true"),  # noqa: S605
    "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
    "tcp to loopback": lambda: connect(socket.AF_INET, ("127.0.0.1", 1)),
    "tcp over IPv6": lambda: connect(socket.AF_INET6, ("::1", 1)),
    "the engine's socket": lambda: connect(socket.AF_UNIX, "/var/run/docker.sock"),
    "connect_ex": connect_ex,
    "create_connection": lambda: socket.create_connection(("localhost", 1), 1),
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "gethostbyname": lambda: socket.gethostbyname("localhost"),
    "bind": bind,
    "datagram": send,
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails_at_once(name: str, guard: list[str]) -> None:
    with pytest.raises(Failed, match=r"a unit test (spawns|replaces|opens|binds|sends|asks)"):
        ATTEMPTS[name]()
    assert len(guard) == 1
    guard.clear()


def test_an_attempt_that_the_code_swallows_fails_at_the_end() -> None:
    def swallowed() -> None:
        with guarded(), contextlib.suppress(BaseException):  # as bad code would
            subprocess.run(["true"], check=True)

    with pytest.raises(AssertionError, match="spawns a process"):
        swallowed()


def test_except_exception_does_not_swallow() -> None:
    def careless() -> None:
        with contextlib.suppress(Exception):
            socket.getaddrinfo("localhost", 80)

    with guarded() as attempts:
        with pytest.raises(Failed):
            careless()
        attempts.clear()


def test_an_attempt_in_a_thread_fails_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def elsewhere() -> None:
        with guarded():
            thread = threading.Thread(target=bind)
            thread.start()
            thread.join()

    with pytest.raises(AssertionError, match="binds an address"):
        elsewhere()


@pytest.mark.parametrize("change", ["added", "changed", "removed"])
def test_a_leaked_variable_fails_and_is_put_back(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRINGUP_TEST_A", raising=False)
    monkeypatch.setenv("BRINGUP_TEST_B", "before")

    def leak() -> None:
        with guarded():
            if change == "added":
                os.environ["BRINGUP_TEST_A"] = "1"
            elif change == "changed":
                os.environ["BRINGUP_TEST_B"] = "after"
            else:
                del os.environ["BRINGUP_TEST_B"]

    with pytest.raises(AssertionError, match="BRINGUP_TEST_" + ("A" if change == "added" else "B")):
        leak()
    assert "BRINGUP_TEST_A" not in os.environ
    assert os.environ["BRINGUP_TEST_B"] == "before"


def test_monkeypatch_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRINGUP_TEST_A", "1")
    assert os.environ["BRINGUP_TEST_A"] == "1"


def test_what_stays_allowed() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x")
        assert right.recv(1) == b"x"
