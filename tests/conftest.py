"""What tests of more than one directory share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], Any]]:
    """Imports a program of benchmarks or benchmarks/gpu by its name; they import each other as the scripts they are."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.syspath_prepend(BENCHMARKS / "gpu")
        yield importlib.import_module
    for name in set(sys.modules) - before:  # "start" and "watch" are names that others may have
        if str(BENCHMARKS) in repr(getattr(sys.modules[name], "__spec__", None)):  # "gpu", a namespace, has no __file__
            del sys.modules[name]
