"""The guard against HF_HUB_ENABLE_HF_TRANSFER, over every combination of variable, hub version and wheel."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools

import pytest

from bringup.inside import guard

ON = ["1", "ON", "on", "Yes", "TRUE", "true"]
OFF = [None, "", "0", "false", "off", "2", "y"]
HUBS = [None, "0.36.2", "1.0.0", "1.0.0rc1", "2.4.0", "10.1", "weird"]


@pytest.mark.parametrize(("value", "hub", "wheel"), list(itertools.product(ON + OFF, HUBS, [True, False])))
def test_the_variable_stays_only_where_it_works_or_is_off(value: str | None, hub: str | None, wheel: bool) -> None:
    finding = guard.judge(value, hub, wheel)
    works = hub == "0.36.2" and wheel
    assert finding.unset == (value in ON and not works)
    assert guard.VARIABLE in finding.reason
    assert "\n" not in finding.reason
    assert ("absent" if not wheel else "present") in finding.reason.partition("hf_transfer ")[2]


@pytest.mark.parametrize(
    ("hub", "wheel", "says"),
    [
        ("2.4.0", True, "HF_XET_HIGH_PERFORMANCE=1 is its successor"),
        ("0.36.2", False, "stops the server"),
        ("0.36.2", True, "kept"),
        (None, True, "no huggingface_hub"),
    ],
)
def test_the_reason_is_the_one_of_the_case(hub: str | None, wheel: bool, says: str) -> None:
    assert says in guard.judge("1", hub, wheel).reason


def test_look_asks_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"version of {name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert guard.look() == ("version of huggingface_hub", False)


def test_look_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert guard.look() == (None, True)
