"""The programs of benchmarks/gpu as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).parents[1] / "benchmarks/gpu"


@pytest.fixture(scope="module")
def gpu_benchmark() -> Iterator[Callable[[str], Any]]:
    """Imports one by its name; they import each other as the scripts that they are."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DIRECTORY)
        yield importlib.import_module
    for name in set(sys.modules) - before:  # "start" and "watch" are names that others may have
        if str(DIRECTORY) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
