"""Consent: a key, an image, and the flag that says so."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """What only a person can give."""
    parser.addoption("--run-cloud", action="store_true", help="Start pods at RunPod, which cost money.")
    parser.addoption("--cloud-image", help="The image in a registry that RunPod can pull from.")
    parser.addoption("--cloud-gpu-type", action="append", default=[], help="RunPod's id of a GPU type.")
    parser.addoption("--cloud-max-price", default="0.60", help="USD an hour.")


@pytest.fixture(scope="session")
def consent(pytestconfig: pytest.Config) -> list[str]:
    """The arguments of `up` that the options give."""
    lacking = [
        what
        for what, given in (
            ("--run-cloud", pytestconfig.getoption("run_cloud")),
            ("--cloud-image IMAGE", pytestconfig.getoption("cloud_image")),
            ("the variable RUNPOD_API_KEY", os.environ.get("RUNPOD_API_KEY")),
        )
        if not given
    ]
    if lacking:
        pytest.skip(f"these tests start pods at RunPod, which cost money; missing: {', '.join(lacking)}")
    return [
        "--image", pytestconfig.getoption("cloud_image"), "--max-price", pytestconfig.getoption("cloud_max_price"),
        *(word for gpu in pytestconfig.getoption("cloud_gpu_type") for word in ("--gpu-type", gpu)),
    ]  # fmt: skip
