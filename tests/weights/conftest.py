"""What the weights tests share: the test hub, the official client's environments, and the printed matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub import HubServer
from tests.weights import venvs

_MATRIX: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The fault matrix as it was seen."""
    if _MATRIX:
        terminalreporter.section("fault matrix")
        for line in _MATRIX:
            terminalreporter.line(line)


@pytest.fixture
def matrix() -> list[str]:
    """Lines for the summary."""
    return _MATRIX


@pytest.fixture(scope="session")
def hub_python() -> Callable[[str, bool], Path]:
    """`hub_python(version, hf_transfer)`: the Python of an environment with that huggingface_hub."""
    return venvs.hub_python


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A test hub whose directory is empty so far."""
    root = tmp_path / "hub"
    root.mkdir()
    with HubServer(root) as server:
        yield server
