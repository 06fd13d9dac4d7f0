"""What measured values add up to, and which caches and settings stand beside them."""

from __future__ import annotations

from typing import Any

import pytest

from bringup.benchmark.figures import Spread, cpu_model, server_settings, spread, verdicts


def test_no_values_have_no_spread() -> None:
    assert spread([]) is None


def test_few_values_have_a_median_and_ends_but_no_quartiles() -> None:
    assert spread([3.0, 1.0]) == Spread(n=2, p50=2.0, low=1.0, high=3.0, iqr=None)
    assert spread([4.0]) == Spread(n=1, p50=4.0, low=4.0, high=4.0, iqr=None)


def test_from_five_values_on_the_quartiles_distance_is_there() -> None:
    # numpy.percentile([1, 2, 4, 8, 16], [25, 50, 75]) is [2, 4, 8]
    assert spread([16, 1, 8, 2, 4]) == Spread(n=5, p50=4, low=1, high=16, iqr=6.0)


def test_one_outlier_moves_the_end_and_not_the_median() -> None:
    made = spread([10.0, 10.1, 10.2, 10.3, 99.0])
    assert made is not None
    assert (made.p50, made.high) == (10.2, 99.0)
    assert made.iqr == pytest.approx(0.2)


def test_as_json_seconds_are_rounded_to_milliseconds() -> None:
    made = spread([1.23456, 1.23456])
    assert made is not None
    assert made.to_dict() == {"n": 2, "p50": 1.235, "min": 1.235, "max": 1.235, "iqr": None}


CPUS = {
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R)  Xeon(R) CPU\n": "Intel(R) Xeon(R) CPU",
    "processor\t: 0\nBogoMIPS\t: 50.00\nModel\t\t: Raspberry Pi 4\n": "Raspberry Pi 4",
    "processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n": None,
    "": None,
    "model name\t:\n": None,
}


@pytest.mark.parametrize(("text", "name"), CPUS.items())
def test_the_cpus_name(text: str, name: str | None) -> None:
    assert cpu_model(text) == name


def test_settings_of_the_container_come_without_secrets_and_without_others() -> None:
    found = server_settings([
        "PATH=/bin", "BRINGUP_MODEL=m", "BRINGUP_API_KEY=k", "BRINGUP_HF_TOKEN=t", "HF_TOKEN=t",
        "BRINGUP_VLLM_ARGS=--x a=b", "BRINGUP_API_KEY_FILE=/run/secrets/api_key",
    ])  # fmt: skip
    assert found == {
        "BRINGUP_API_KEY_FILE": "/run/secrets/api_key", "BRINGUP_MODEL": "m", "BRINGUP_VLLM_ARGS": "--x a=b",
    }  # fmt: skip


CACHES: dict[str, tuple[Any, dict[str, str]]] = {
    "nothing": (None, {}),
    "a mapping": ({"aot": {"verdict": "hit", "evidence": "x"}}, {"aot": "hit"}),
    "under caches": ({"caches": {"aot": {"verdict": "miss"}}}, {"aot": "miss"}),
    "a list": ({"caches": [{"name": "aot", "verdict": "off"}]}, {"aot": "off"}),
    "without a verdict": ({"aot": {"evidence": "x"}, "note": "y"}, {}),
    "a text": ("hit", {}),
}


@pytest.mark.parametrize("name", CACHES)
def test_the_caches_verdicts(name: str) -> None:
    given, expected = CACHES[name]
    assert verdicts(given) == expected
