"""What the weights tests share: the test hub, the official client's environments, and the printed matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub import HubServer
from tests.weights import venvs

_MATRIX: list[str] = []
_FIGURES: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was seen: the fault matrix, and figures that depend on the machine."""
    for title, lines in (("fault matrix", _MATRIX), ("figures", _FIGURES)):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.line(line)


@pytest.fixture
def matrix() -> list[str]:
    """Lines of the fault matrix, for the summary."""
    return _MATRIX


@pytest.fixture
def figures() -> list[str]:
    """Lines for the summary."""
    return _FIGURES


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
