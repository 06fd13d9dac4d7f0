"""Who a pod's sshd is: what its log may say, whom that makes us trust, and where it listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bringup.edge import ssh
from bringup.errors import EvidenceMissing, UsageError
from bringup.runpod.access import Identity, address, announced, trusted

# The public halves of two keys that nobody has.
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJJAUhgECpmz11xy5wpzuu24s4evs8lxrTkNahiDvV9a"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIwokYSeLqXQtOgGOWhtk1d6Lp9nFfl5es9/UaKE16j+"
ME = Identity("bringup", KEY)


def line(key: str = KEY, user: str = "bringup", said: str = "") -> str:
    return f"bringup: ssh: listening on port 22 as {user}, host key {key} {said or ssh.fingerprint(key)}"


def test_the_line_is_read_wherever_it_stands() -> None:
    log = ["loading", line() + "\n", line(), line(OTHER, "root"), "done"]
    assert announced(log) == [ME, Identity("root", OTHER)]


@pytest.mark.parametrize(
    "text",
    [
        line(said="SHA256:" + "A" * 43),  # another fingerprint than the key's
        line(user="admin"),
        f"INFO: {line()}",
        f"{line()} and more",
        line("ssh-ed25519 AAAA", said="SHA256:" + "A" * 43),
        line().replace("ed25519", "rsa"),
        "",
    ],
)
def test_what_only_looks_like_the_line_tells_nobody(text: str) -> None:
    assert announced([text]) == []
    with pytest.raises(EvidenceMissing, match="no line of its sshd") as caught:
        trusted([text], None, None)
    assert "--host-key" in caught.value.hint


def test_the_first_line_counts_and_then_what_is_pinned() -> None:
    assert trusted([line()], None, None) == ME
    assert trusted([line()], ME, None) == ME
    assert trusted([], ME, None) == ME  # the line is too far back by now
    assert trusted([line(user="root")], ME, None) == ME


@pytest.mark.parametrize(("log", "pinned"), [([line(), line(OTHER)], None), ([line(OTHER)], ME)])
def test_a_later_line_with_another_key_is_told_and_not_believed(log: list[str], pinned: Identity | None) -> None:
    with pytest.raises(ssh.Stranger) as caught:
        trusted(log, pinned, None)
    assert (caught.value.id, caught.value.exit_code) == ("ssh-host-key-changed", 8)
    for key in (KEY, OTHER):
        assert ssh.fingerprint(key) in caught.value.message
    assert "restarted" in caught.value.hint


@pytest.mark.parametrize("given", [OTHER, f"{OTHER} a comment", ssh.fingerprint(OTHER)])
def test_what_is_given_by_hand_decides(given: str) -> None:
    found = trusted([line(), line(OTHER, "root")], ME, given)
    assert (found.user, found.fingerprint) == ("root", ssh.fingerprint(OTHER))
    assert trusted([], ME, given) == Identity("bringup", given)
    assert trusted([], None, given) == Identity("root", given)


@pytest.mark.parametrize("given", ["", "yes", "SHA256:short", "ssh-rsa AAAA", "ssh-ed25519 ????", "ssh-ed25519"])
def test_what_is_no_host_key_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="is no host key"):
        trusted([line()], ME, given)


def pod(direct: Any = None, ports: Any = None) -> dict[str, Any]:
    return {"ssh": {"proxy": None, "direct": direct}, "runtime": None if ports is None else {"ports": ports}}


@pytest.mark.parametrize(
    ("found", "where"),
    [
        (pod({"host": "203.0.113.7", "port": 40022}), ("203.0.113.7", 40022)),
        (pod(None, [{"private": 22, "public": 10022, "type": "tcp", "ip": "203.0.113.8"}]), ("203.0.113.8", 10022)),
    ],
)
def test_the_address_is_the_one_that_runpod_says(found: dict[str, Any], where: tuple[str, int]) -> None:
    assert address(found) == where


@pytest.mark.parametrize(
    "found",
    [
        {},
        pod(),
        pod({"host": "", "port": 22}),
        pod({"host": "h", "port": 0}),
        pod({"host": "h", "port": "22"}),
        pod(None, [{"private": 8000, "public": 1, "type": "http", "ip": "h"}]),
        pod(None, [{"private": 22, "public": None, "type": "tcp", "ip": None}]),
    ],
)
def test_without_an_address_there_is_no_way_in(found: dict[str, Any]) -> None:
    with pytest.raises(EvidenceMissing, match="no public address"):
        address(found)


def test_a_key_is_made_and_a_given_one_is_looked_at(tmp_path: Path) -> None:
    private, public = ssh.make_key("bringup-a")
    assert ssh.fingerprint(public).startswith("SHA256:")
    assert public.endswith(" bringup-a")
    assert private != ssh.make_key("bringup-a")[0]
    file = tmp_path / "key"
    file.write_text(private)
    file.chmod(0o644)
    with pytest.raises(UsageError, match="others can read"):
        ssh.public_half(file)
    file.chmod(0o600)
    assert ssh.public_half(file) == " ".join(public.split()[:2])
    file.write_text(private[:100])
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(UsageError, match="SSH key file"):
            ssh.public_half(wrong)


def test_without_paramiko_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="paramiko") as caught:
        ssh.require()
    assert "--no-ssh" in caught.value.hint
