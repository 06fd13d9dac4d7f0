"""Where a run came from: what is pinned, what was set, what the container was started with, what the clocks say."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import clock, key, provenance
from bringup.edge.docker import Engine
from bringup.errors import EvidenceMissing, TargetUnavailable
from bringup.lock import LOCK, read_lock
from bringup.settings import Settings, fields
from tests.unit import samples
from tests.unit.fakes import FakeContainer

ROOT = Path(__file__).resolve().parents[2]


# ---- clocks

HERE = clock.offset(time.time, "this host's")


class Clocks:
    """Both clocks of this host, and one elsewhere that is `ahead`; the n-th look at it takes the n-th of `takes`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ahead: float, takes: list[float]) -> None:
        self.now, self.ahead, self.takes = 1000.0, ahead, list(takes)
        monkeypatch.setattr(time, "time", lambda: 1e9 + self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def ask(self) -> float:
        half = self.takes.pop(0) / 2
        self.now += half
        told = 1e9 + self.now + self.ahead
        self.now += half
        return told


@pytest.mark.parametrize("ahead", [0.0, 12.5, -3600.0])
def test_the_quickest_look_counts_and_half_of_it_is_the_uncertainty(
    monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    there = Clocks(monkeypatch, ahead, [0.5, 0.02, 0.3])
    seen = clock.offset(there.ask, "how")
    assert (seen.offset_seconds, seen.uncertainty_seconds) == (ahead, 0.01)
    assert (seen.method, seen.reason) == ("how", "")
    assert there.takes == []


def test_wherever_in_the_look_it_was_read_the_uncertainty_covers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for at_the_end in (True, False):
        there = Clocks(monkeypatch, 5.0, [])

        def ask(there: Clocks = there, late: bool = at_the_end) -> float:
            before = 1e9 + there.now
            there.now += 0.4
            return (1e9 + there.now if late else before) + there.ahead

        seen = clock.offset(ask, "how")
        assert seen.offset_seconds is not None
        assert seen.uncertainty_seconds is not None
        assert abs(seen.offset_seconds - 5.0) <= seen.uncertainty_seconds + 1e-6


@pytest.mark.parametrize("error", [TargetUnavailable("no engine"), EvidenceMissing("paused"), ValueError("no time")])
def test_a_clock_that_cannot_be_read_has_no_offset_but_a_reason(error: Exception) -> None:
    def ask() -> float:
        raise error

    seen = clock.offset(ask, "how")
    assert (seen.offset_seconds, seen.uncertainty_seconds, seen.reason) == (None, None, str(error))


def test_a_clock_that_was_set_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    began = provenance.Began(wall=100.0, monotonic=7.0)
    monkeypatch.setattr(time, "time", lambda: 160.0)
    monkeypatch.setattr(time, "monotonic", lambda: 37.0)
    made = provenance.clocks(began, HERE, None)
    assert (made["wall_seconds"], made["monotonic_seconds"], made["stepped_seconds"]) == (60.0, 30.0, 30.0)
    assert made["container"]["reason"] == "there is no container"
    assert made["engine"]["offset_seconds"] == 0.0


@pytest.mark.parametrize(
    ("executed", "reason"),
    [
        ((127, "date: not found\n"), "it ended with 127 and said 'date: not found'"),
        ((0, ""), "it ended with 0 and said ''"),
        (EvidenceMissing("the Docker Engine refused: it is paused"), "the Docker Engine refused: it is paused"),
    ],
)
def test_a_container_that_tells_no_time(executed: Any, reason: str) -> None:
    seen = FakeContainer(executed=executed)
    assert provenance.clocks(provenance.Began(), HERE, seen)["container"]["reason"] == reason


def test_the_time_of_a_container() -> None:
    seen = FakeContainer(executed=(0, f"{time.time() + 100:.9f}\n"))
    offset = provenance.clocks(provenance.Began(), HERE, seen)["container"]["offset_seconds"]
    assert offset == pytest.approx(100, abs=10)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("2026-01-01T00:00:00.5Z", 1767225600.5),
        ("2026-01-01T02:00:00.123456789+02:00", 1767225600.123456),
    ],
)
def test_the_engines_time(monkeypatch: pytest.MonkeyPatch, told: str, seconds: float) -> None:
    monkeypatch.setattr(Engine, "client", type("Client", (), {"info": lambda _: {"SystemTime": told}})())
    assert Engine().clock() == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("info", [{}, {"SystemTime": ""}, {"SystemTime": "noon"}])
def test_an_engine_that_tells_no_time(monkeypatch: pytest.MonkeyPatch, info: dict[str, str]) -> None:
    monkeypatch.setattr(Engine, "client", type("Client", (), {"info": lambda _: info})())
    seen = clock.offset(Engine().clock, "how")
    assert seen.offset_seconds is None
    assert seen.reason


# ---- model, locks, settings


def test_a_model_of_the_hub_has_its_commit() -> None:
    locked = read_lock()["qwen2.5-1.5b-instruct"]
    made = provenance.model(replace(samples.plan(), model="qwen2.5-1.5b-instruct"))
    assert made is not None
    assert (made["repo"], made["revision"], made["digest"]) == (locked.repo, locked.revision, locked.digest)
    assert made["bytes"] == locked.size


def test_a_model_of_this_repository_has_no_commit_and_an_unknown_one_nothing() -> None:
    made = provenance.model(samples.plan())
    assert made is not None
    assert (made["repo"], made["revision"], made["source"][:6]) == (None, None, "local:")
    assert provenance.model(replace(samples.plan(), model="nobody-has-it")) is None


def test_the_locks_are_those_of_the_checkout() -> None:
    for flavour in ("cpu", "gpu"):
        made = provenance.locks(replace(samples.plan(), flavour=flavour))
        assert made["weights"] == hashlib.sha256(LOCK.read_bytes()).hexdigest()
        assert made["wheels"] == hashlib.sha256((ROOT / "locks" / f"{flavour}.lock").read_bytes()).hexdigest()


def test_every_setting_that_is_no_secret_is_shown() -> None:
    made = provenance.settings_shown(Settings(api_key="s3cret", hf_token="s3cret", port=9, keep=True))
    assert made.keys() == {name for name, (_, option) in fields().items() if not option.hidden}
    assert (made["port"], made["keep"], made["image"], made["vllm_args"]) == ("9", "1", None, None)
    assert "s3cret" not in str(made)


# ---- the container


def test_the_container_as_it_was_started() -> None:
    seen = FakeContainer(inspected={"Path": "tini", "Args": ["--", "x"], "Config": {"Env": ["PATH=/a=b", "FOO=x"]}})
    made = provenance.container(seen)
    assert made["argv"] == ["tini", "--", "x"]
    assert made["environment"] == {"PATH": "/a=b", "FOO": "[redacted]"}
    assert (made["status"], made["id"]) == ("running", "c1")


def test_a_container_that_is_gone_or_never_was() -> None:
    assert provenance.container(FakeContainer(states=[EvidenceMissing("gone")])) == {"error": "gone"}
    assert provenance.container(None) == {}


# ---- what must not be shown


def test_all_secrets_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the-key\n")
    settings = Settings(api_key_file=tmp_path / "key", hf_token="the-token", vllm_args=("--api-key", "another"))
    assert key.secrets(settings) == ["the-key", "the-token", "another"]
    assert key.secrets(Settings(hf_token_file=tmp_path / "none")) == []
    assert key.secrets(Settings()) == []
