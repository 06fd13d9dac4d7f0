"""One real pod, from nothing to proven and gone. Nobody has run this yet: it needs an account (docs/runpod.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bringup import bundle
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
    done = account.run(
        "up", *account.consent, "--live", "1h", "--timeout", "30m", "--remove", "--json", "--artifacts", str(tmp_path)
    )
    assert done.code == 0, done.err
    assert done.json()["verdict"] == "pass"
    assert bundle.read(Path(done.json()["bundle"])).faults == ()
    assert account.run("ls", "--json").json() == []


def test_the_key_and_the_lists_are_as_the_reference_says(account: Account) -> None:
    assert account.run("ls", "--json").code == 0
    shown = account.run("template", "show", "--name", "bringup-that-nobody-has")
    assert (shown.code, "has no template" in shown.err) == (2, True)
