"""sshd: who may log in, what its configuration allows, and what is said of its end. The real one: integration."""

from __future__ import annotations

import io
import logging
import os
import pwd
import re
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import UsageError
from bringup.inside import pod, session, ssh

KEY = "ssh-ed25519 AAAA"
HOST = "ssh-ed25519 HOST"
LOG = logging.getLogger("test.ssh")


class Done(Exception):
    """The end of a loop that has none."""


class Sshd:
    """One sshd: what it says, and how it ends."""

    def __init__(self, code: int, *said: str) -> None:
        self.code, self.stderr = code, io.StringIO("".join(f"{line}\n" for line in said))

    def wait(self) -> int:
        return self.code


LISTENING = ("Server listening on 0.0.0.0 port 22.", "Server listening on :: port 22.")
IN = "Accepted publickey for root from 10.1.2.3 port 1 ssh2: ED25519 SHA256:x"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sshd]:
    """The sshds that are to be started, one after the other; ssh-keygen takes what looks like a key."""
    coming: list[Sshd] = []

    def popen(argv: list[str], env: dict[str, str], **given: Any) -> Sshd:
        assert argv[0].startswith("/")
        assert env == {"PATH": os.defpath}  # nothing of the container's: no LD_PRELOAD, no secret
        assert given["start_new_session"]
        if not coming:
            raise Done
        return coming.pop(0)

    def keygen(argv: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        if argv[1] == "-q":
            path = Path(argv[-1])
            path.write_text("private")
            path.with_suffix(".pub").write_text(f"{HOST} \n")
            return subprocess.CompletedProcess(argv, 0, "", "")
        good = argv[-1] != "-" or KEY in given["input"]
        return subprocess.CompletedProcess(argv, 0 if good else 255, "256 SHA256:h root (ED25519)", "(stdin) is not")

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(subprocess, "run", keygen)
    monkeypatch.setattr(ssh, "MEMORY", tmp_path)
    monkeypatch.setattr(ssh, "SEPARATION", tmp_path / "run")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    return coming


def run(environ: dict[str, str]) -> None:
    with suppress(Done):
        ssh._run(ssh.given_keys(environ), environ, LOG)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records]


def test_the_pods_own_key_is_before_the_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ssh.given_keys({"PUBLIC_KEY": "a", "SSH_PUBLIC_KEY": " b\n"}) == "b"
    assert ssh.given_keys({"PUBLIC_KEY": "a", "SSH_PUBLIC_KEY": " "}) == "a"
    monkeypatch.setattr(threading, "Thread", None)
    ssh.start({"PUBLIC_KEY": " \n"}, LOG)  # no key, no sshd


def test_the_line_that_tools_outside_read(
    machine: list[Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    machine += [Sshd(1, *LISTENING, "Connection closed by 10.1.1.1 [preauth]", IN, "fatal: x")]
    with caplog.at_level(logging.INFO):
        run({"PUBLIC_KEY": KEY, "A": "b c"})
    assert said(caplog) == [
        f"ssh: listening on port 22 as {name}, host key {HOST} SHA256:h",
        f"ssh: {IN}",
        f"ssh: sshd ended (exit 1), and is started again in 1 s: {IN} fatal: x",
    ]
    (place,) = tmp_path.glob("bringup-ssh-*")
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "environment").read_text() == "export A='b c'\n"
    assert (place / "authorized_keys").read_text() == f"{KEY}\n"
    assert {(place / n).stat().st_mode & 0o777 for n in ("environment", "authorized_keys", "sshd_config")} == {0o600}


def test_an_sshd_that_dies_is_started_again_ever_more_slowly(
    machine: list[Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine += [Sshd(255, *LISTENING), *(Sshd(255) for _ in range(8))]
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(Done):
        ssh.watch(tmp_path, "listening", LOG)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"PUBLIC_KEY": "garbage"}, "SSH_PUBLIC_KEY or PUBLIC_KEY holds no public key (ssh-keygen: (stdin) is not)"),
        ({"PUBLIC_KEY": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{KEY}"}, "is a private one"),
        ({"PUBLIC_KEY": KEY, "BRINGUP_SSH_PORT": "x"}, "BRINGUP_SSH_PORT: 'x' is not a number"),
        ({"PUBLIC_KEY": KEY, "BRINGUP_SSH_PORT": "8000"}, "port 8000 is the server's or its health check's"),
        ({"PUBLIC_KEY": KEY, "BRINGUP_SSH_PORT": "81", "PORT_HEALTH": "81"}, "port 81 is the server's or its health"),
        ({"PUBLIC_KEY": KEY}, "sshd ended (exit 255): error: Bind to port 22 failed. fatal: Cannot bind any address."),
    ],
)
def test_what_goes_wrong_is_one_line_and_shows_no_key(
    machine: list[Sshd], caplog: pytest.LogCaptureFixture, environ: dict[str, str], why: str
) -> None:
    machine += [Sshd(255, "error: Bind to port 22 failed.", "fatal: Cannot bind any address.")]
    run(environ)
    (line,) = said(caplog)
    assert line.startswith("ssh: nobody can log in, the server goes on without: ")
    assert why in line
    assert not {"garbage", KEY, "BEGIN"} & set(re.split(r"\s", line))


def test_a_user_without_a_name(
    machine: list[Sshd], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    run({"PUBLIC_KEY": KEY})
    assert "uid 4000000000 has no name in this image" in said(caplog)[0]


def test_a_start_that_is_refused_can_be_looked_into(
    machine: list[Sshd], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError):
        pod.ports({"PORT": "x"})
    machine += [Sshd(255, *LISTENING)]
    with caplog.at_level(logging.INFO):
        run({"PUBLIC_KEY": KEY, "PORT": "x"})
    assert said(caplog)[0].startswith("ssh: listening")


def test_the_configuration() -> None:
    place = Path("/dev/shm/x")
    lines = dict(line.split(" ", 1) for line in ssh.config(place, 2222, "bringup", 9000).splitlines())
    assert lines["Port"] == "2222"
    assert lines["AllowUsers"] == "bringup"
    assert lines["AuthenticationMethods"] == "publickey"
    assert lines["PermitRootLogin"] == "prohibit-password"
    assert lines["AuthorizedKeysFile"] == "/dev/shm/x/authorized_keys"
    assert (lines["AllowTcpForwarding"], lines["PermitOpen"]) == ("local", "127.0.0.1:9000 localhost:9000")
    assert {lines[name] for name in (
        "PasswordAuthentication", "KbdInteractiveAuthentication", "UsePAM", "AllowAgentForwarding", "X11Forwarding",
        "AllowStreamLocalForwarding", "PermitTunnel", "GatewayPorts",
    )} == {"no"}  # fmt: skip
    assert lines["SetEnv"] == f"{session.VARIABLE}=/dev/shm/x/environment"
    assert "AcceptEnv" not in lines
