"""Servers that are not what they seem: the stub replays the real server honestly and passes; each lie is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bringup import probes
from bringup.records import Status
from tests.integration.support import bringup, statuses
from tests.stub import proof
from tests.stub.deep_lies import LIARS
from tests.stub.server import Manner, Stub, serving

DEADLINE = 2.0
SAMPLE = 50  # runs of the proof; scripts/prove-verify makes thousands


@contextmanager
def server(*lies: str, key: str | None = None) -> Iterator[str]:
    with serving(Stub([LIARS[name].tell for name in lies], key)) as url:
        yield url


def least_suite(name: str) -> str:
    """The smallest suite that asks what this lie lies about."""
    return next(suite for suite in probes.SUITES if proof.in_reach(LIARS[name], suite))


HONEST = {
    "as it is": proof.Case("full"),
    "slow, in pieces": proof.Case("full", manner=Manner(pause=0.006, before=0.05, split=True)),
    "with a key, in a container": proof.Case("full", keyed=True, local=True),
    "smoke": proof.Case("smoke"),
    "standard": proof.Case("standard"),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_server_passes(name: str) -> None:
    outcome = proof.here(dataclasses.replace(HONEST[name], deadline=30.0))
    assert outcome.verdict == "pass", [r for r in outcome.records if r.name == outcome.told]


def test_a_model_of_which_nothing_is_known_is_not_trusted_and_not_blamed() -> None:
    outcome = proof.here(proof.Case("standard", known=False, deadline=30.0))
    assert (outcome.verdict, outcome.told) == ("unknown", "canary")


@pytest.mark.parametrize("name", LIARS)
def test_a_lie_is_found(name: str) -> None:
    lie, suite = LIARS[name], least_suite(name)
    deadline = 20.0 if suite == "full" else DEADLINE
    outcome = proof.here(proof.Case(suite, (name,), keyed=lie.keyed, local=lie.local, deadline=deadline))
    assert outcome.verdict in ("fail", "unknown")
    told = next(r for r in outcome.records if r.name == outcome.told)
    assert told.name in lie.probes, told
    assert told.status is Status.FAIL or "not asked" not in told.found


def test_there_are_enough_lies_and_each_suite_has_some() -> None:
    assert len(LIARS) >= 100
    assert {least_suite(name) for name in LIARS} == set(probes.SUITES)
    assert {p for lie in LIARS.values() for p in lie.probes} >= set(probes.PROBES) - {"vram"}  # which asks the GPU


def test_a_sample_of_the_proof_has_no_false_verdict() -> None:
    cases = {number: proof.draw(20261128, number) for number in range(SAMPLE)}
    wrong = [(cases[n], o.error(cases[n]), o.told) for n, o in proof.run(cases, 8) if o.error(cases[n])]
    assert wrong == []


# ---- through the command line

COMMAND = {
    "healthy but hung": ("ready", 7),
    "drips": ("ready", 7),
    "chats hang": ("chat", 7),
    "no DONE": ("streaming", 7),
    "one block at once": ("streaming", 9),
}


@pytest.mark.parametrize("name", COMMAND)
def test_the_command_says_so(name: str) -> None:
    probe, code = COMMAND[name]
    with server(name) as url:
        done = bringup("verify", "--json", "--suite", "smoke", url, "--request-timeout", f"{DEADLINE:g}s")
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert statuses(done.json()["probes"])[probe] == {7: "fail", 9: "unknown"}[code]
    # One deadline, whatever hangs.
    assert sum(p["seconds"] for p in done.json()["probes"]) <= DEADLINE + 3


def test_the_command_passes_an_honest_server() -> None:
    with server() as url:
        done = bringup("verify", "--json", "--suite", "standard", url)
    assert done.code == 0, done.err
    seen = statuses(done.json()["probes"])
    assert {name for name, status in seen.items() if status != "pass"} == {"auth", "process", "vram"}


def test_a_model_that_must_be_another_is_not_asked_for_long() -> None:
    with server() as url:
        done = bringup("verify", "--json", "--suite", "smoke", "--expect-model", "another", url)
    assert (done.code, statuses(done.json()["probes"])["models"]) == (7, "fail")


ADDRESSES: dict[str, str] = {
    "no scheme": "127.0.0.1:8000",
    "another scheme": "ftp://127.0.0.1",
    "half an address": "http://[::1",
    "a port that is none": "http://127.0.0.1:99999",
    "a key in it": "http://user:key@127.0.0.1:8000",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_that_is_none_is_usage(name: str) -> None:
    done = bringup("verify", ADDRESSES[name])
    assert done.code == 2, done.err
    assert "Traceback" not in done.err


def test_a_key_that_cannot_be_sent_is_usage_and_is_not_shown() -> None:
    with server() as url:
        for key in ("first-secret\nsecond-secret", "schlüssel-secret"):
            done = bringup("verify", url, env={"BRINGUP_API_KEY": key})
            assert done.code == 2, done.err
            assert "secret" not in done.err
