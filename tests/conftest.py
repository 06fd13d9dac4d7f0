"""What tests of more than one directory share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GPU_BENCHMARKS = Path(__file__).parents[1] / "benchmarks/gpu"


@pytest.fixture(scope="module")
def gpu_benchmark() -> Iterator[Callable[[str], Any]]:
    """Imports a program of benchmarks/gpu by its name; they import each other as the scripts that they are."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GPU_BENCHMARKS)
        yield importlib.import_module
    for name in set(sys.modules) - before:  # "start" and "watch" are names that others may have
        if str(GPU_BENCHMARKS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
