"""One real pod, from nothing to proven and gone. Nobody has run this yet: it needs an account (docs/runpod.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bringup import bundle
from bringup.edge import ssh
from tests.integration.support import Result, bringup

HOUR = 3600.0


class Account:
    """The command line with the caller's key and a state of its own."""

    def __init__(self, state: Path, consent: list[str]) -> None:
        self.consent = consent
        self._env = {"BRINGUP_RUNPOD_STATE": str(state), "RUNPOD_API_KEY": os.environ["RUNPOD_API_KEY"]}

    def run(self, *args: str) -> Result:
        return bringup("runpod", *args, env=self._env, timeout=HOUR)


@pytest.fixture
def account(consent: list[str], tmp_path: Path) -> Iterator[Account]:
    made = Account(tmp_path / "state", consent)
    yield made
    done = made.run("down", "--all")
    assert done.code == 0, f"a pod may still cost money, look into RunPod's console: {done.err}"


@pytest.mark.timeout(2 * HOUR)
def test_a_pod_is_proven_and_gone(account: Account, tmp_path: Path) -> None:
    where = ("--json", "--artifacts", str(tmp_path))
    done = account.run("up", *account.consent, "--live", "1h", "--timeout", "30m", *where)
    assert done.code == 0, done.err
    first = _kept(done)
    again = account.run("collect", *where)
    assert again.code == 0, again.err
    second = _kept(again)
    keys = [kept.json("pod.json")["ssh"]["host_key"] for kept in (first, second)]
    assert keys[0] == keys[1]
    _, stranger = ssh.make_key("")
    refused = account.run("collect", "--host-key", stranger, *where)
    assert (refused.code, "nothing was sent" in refused.err) == (7, True)
    assert account.run("down").code == 0
    assert account.run("ls", "--json").json() == []


def _kept(done: Result) -> bundle.Bundle:
    """A bundle with the server's own files, verified both ways."""
    assert done.json()["verdict"] == "pass"
    kept = bundle.read(Path(done.json()["bundle"]))
    assert kept.faults == ()
    assert kept.files.keys() >= {"server.jsonl", "nvidia_smi_serving.txt", "timeline.json", "direct.json"}
    found = {p["name"]: p["found"] for p in kept.record["probes"]}
    assert found["direct"] == "passes directly, as through the proxy"
    assert all(copied["checked"] for copied in kept.json("pod.json")["ssh"]["files"].values())
    return kept


def test_the_key_and_the_lists_are_as_the_reference_says(account: Account) -> None:
    assert account.run("ls", "--json").code == 0
    shown = account.run("template", "show", "--name", "bringup-that-nobody-has")
    assert (shown.code, "has no template" in shown.err) == (2, True)
