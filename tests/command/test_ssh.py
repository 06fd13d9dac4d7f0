"""The door to SSH against an sshd that lies: what is not right is told, and nothing of it is believed. No engine.

The stand-in (tests/runpod/sshd.py) is a process of its own; what a real sshd does is in test_pod_ssh.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup.edge import ssh
from bringup.errors import EvidenceMissing, TargetUnavailable
from bringup.runpod.access import announced
from tests.integration.support import ROOT, free_port
from tests.runpod.sshd import LOG, RUN

FILE = f"{RUN}/server.jsonl"


@contextmanager
def sshd(place: Path, fault: str = "") -> Iterator[ssh.Door]:
    private, public = ssh.make_key("test")
    key = place / "key"
    key.write_text(private)
    key.chmod(0o600)
    argv = [sys.executable, "-m", "tests.runpod.sshd", public, fault]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            said: dict[str, Any] = json.loads(child.stdout.readline())
            (who,) = announced(said["lines"])
            yield ssh.Door(host="127.0.0.1", port=said["port"], user=who.user, key_file=key, host_key=who.host_key)
        finally:
            child.kill()


def test_an_honest_one_gives_its_files_and_runs_programs(tmp_path: Path) -> None:
    with sshd(tmp_path) as door, ssh.connect(door) as line:
        assert line.copy_out(FILE) == LOG
        assert line.copied[FILE] | {"sha256": ""} == {"bytes": len(LOG), "sha256": "", "checked": True}
        code, output = line.execute(["date", "+%s.%N"])
        assert (code, abs(float(output) - time.time()) < 60) == (0, True)
        assert line.execute(["nothing-of-this-name"])[0] == 127
        with pytest.raises(EvidenceMissing, match="there is none"):
            line.copy_out("/etc/shadow")
        with pytest.raises(EvidenceMissing, match="forbids port forwarding"), line.forward(22):
            pass
    with sshd(tmp_path) as door, ssh.connect(replace(door, host_key=ssh.fingerprint(door.host_key))) as line:
        assert line.copy_out(FILE) == LOG


def test_a_stranger_is_told_nothing(tmp_path: Path) -> None:
    with (
        sshd(tmp_path, "stranger") as door,
        pytest.raises(ssh.Stranger, match="nothing was sent") as caught,
        ssh.connect(door),
    ):
        pass
    assert caught.value.id == "ssh-host-key"
    assert ssh.fingerprint(door.host_key) in caught.value.message


def test_nobody_there_a_key_that_is_not_taken_and_one_who_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sshd(tmp_path, "refuses") as door, pytest.raises(TargetUnavailable, match="does not take the key of bringup"):
        ssh.connect(door).__enter__()
    with pytest.raises(TargetUnavailable, match="no SSH connection to"):
        ssh.connect(replace(door, port=free_port())).__enter__()
    monkeypatch.setattr(ssh, "PATIENCE", 0.5)
    with sshd(tmp_path, "deaf") as door, pytest.raises(TargetUnavailable, match="no SSH connection"):
        ssh.connect(door).__enter__()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", "broke off|dropped|closed|reset|not active"),
        ("no-sftp", "Channel closed|refused|rejected"),
        ("short", f"broke off after {len(LOG)} of {len(LOG) + 10} bytes"),
        ("huge", "no regular file of at most"),
        ("symlink", "no regular file of at most"),
        ("swapped", "no regular file of at most"),
        ("wrong-sum", "the pod's own sha256sum says 0000"),
        ("garbage", "Garbage|garbage"),
    ],
)
def test_a_file_that_is_not_right_is_no_file(tmp_path: Path, fault: str, said: str) -> None:
    with sshd(tmp_path, fault) as door, ssh.connect(door) as line:
        with pytest.raises(EvidenceMissing, match=said) as caught:
            line.copy_out(FILE)
        assert FILE in caught.value.message
        assert line.copied == {}


def test_one_that_drips_is_left_and_all_that_comes_after_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "COPY", 1.0)
    with sshd(tmp_path, "slow") as door, ssh.connect(door) as line:
        for _ in range(2):
            with pytest.raises(EvidenceMissing, match=r"not done within 1 s|closed|not active|broke off"):
                line.copy_out(FILE)
        with pytest.raises(EvidenceMissing):
            line.execute(["date"])


def test_names_of_theirs_lead_nowhere_and_files_without_a_sum_are_marked(tmp_path: Path) -> None:
    with sshd(tmp_path, "names") as door, ssh.connect(door) as line:
        assert line.copy_out(FILE) == LOG
        assert list(line.copied) == [FILE]
    with sshd(tmp_path, "no-exec") as door, ssh.connect(door) as line:
        assert line.copy_out(FILE) == LOG
        assert line.copied[FILE]["checked"] is False
        with pytest.raises(EvidenceMissing):
            line.execute(["date"])


def test_no_more_is_read_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "MAX_ALL", len(LOG) + 1)
    with sshd(tmp_path) as door, ssh.connect(door) as line:
        assert line.copy_out(FILE) == LOG
        with pytest.raises(EvidenceMissing, match="of at most 1 bytes"):
            line.copy_out(FILE)
    with sshd(tmp_path, "chatty") as door, ssh.connect(door) as line, pytest.raises(EvidenceMissing, match="says more"):
        line.execute(["date"])
