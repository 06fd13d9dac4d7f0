"""A vLLM that is a dozen lines on disk, for the tests of the launcher: what it does is told by `vllm.told`."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SOURCES = {
    "vllm/__init__.py": "told, plugins = [], []\n",
    "vllm/v1/__init__.py": "",
    "vllm/v1/engine/__init__.py": "",
    "vllm/v1/engine/core.py": """
frozen = []
def freeze_gc_heap():
    frozen.append(1)

class EngineCore:
    def __init__(self, vllm_config, *args, **given):
        freeze_gc_heap()
""",
    "vllm/v1/worker/__init__.py": "",
    "vllm/v1/worker/gpu_worker.py": """
import gc
class Worker:
    def compile_or_warm_up_model(self, fails=False):
        gc.freeze()
        gc.unfreeze()
        self.frozen = gc.get_freeze_count()
        if fails:
            raise MemoryError
        return "times"
""",
    "vllm/tokenizers.py": """
import vllm
def cached_tokenizer_from_config(model_config, **given):
    vllm.told.append(("tokenizer", model_config))
""",
    # The order and the keyword arguments of AsyncLLM.__init__ and from_vllm_config in 0.26 and 0.32.
    "vllm/v1/engine/async_llm.py": """
import vllm

def renderer_from_config(config, **given):
    vllm.told.append("renderer")
    return config.renderer(config) if config.renderer else Renderer()

class Renderer:
    def warmup(self, params):
        vllm.told.append("warmup")

def load_stat_logger_plugin_factories():
    return list(vllm.plugins)

class Executor:
    @staticmethod
    def get_class(config):
        return "uniproc"

class EngineCoreClient:
    @staticmethod
    def make_async_mp_client(vllm_config, executor_class, log_stats, client_addresses=None, client_count=1,
                             client_index=0, renderer=None):
        vllm.told.append(("engine", executor_class, log_stats))
        if vllm_config.engine:
            vllm_config.engine(vllm_config)
        return Client(vllm_config)

class Client:
    def __init__(self, config):
        self.config, self.stopped = config, False

    def shutdown(self, timeout=None):
        vllm.told.append("engine stopped")

class AsyncLLM:
    def __init__(self, vllm_config, executor_class, log_stats, client_addresses=None, client_count=1, client_index=0):
        stat_loggers = load_stat_logger_plugin_factories()
        self.log_stats = log_stats or bool(stat_loggers)
        self.renderer = renderer_from_config(vllm_config)
        self.engine_core = EngineCoreClient.make_async_mp_client(
            vllm_config=vllm_config, executor_class=executor_class, log_stats=self.log_stats,
            client_addresses=client_addresses, client_count=client_count, client_index=client_index)

    def shutdown(self, timeout=None):
        vllm.told.append(("shutdown", timeout))

    @classmethod
    def from_vllm_config(cls, vllm_config, disable_log_stats=False):
        return cls(vllm_config=vllm_config, executor_class=Executor.get_class(vllm_config),
                   log_stats=not disable_log_stats, client_addresses={}, client_count=1, client_index=0)
""",
    "vllm/v1/engine/output_processor.py": """
class OutputProcessor:
    def __init__(self, unfinished):
        self.unfinished, self.told = unfinished, []

    def get_num_unfinished_requests(self):
        return self.unfinished

    def propagate_error(self, error):
        self.told.append(error)
""",
    "vllm/v1/engine/exceptions.py": "class EngineDeadError(Exception):\n    pass\n",
    "uvicorn.py": "class Config:\n    def __init__(self, app):\n        self.server_header = True\n",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": """
import os, sys
import vllm
vllm.told.append("server imported" if __name__ != "__main__" else "server runs")
if __name__ == "__main__":
    vllm.argv, vllm.environ = sys.argv[:], dict(os.environ)
    vllm.imported = [n for n in sys.modules if n.startswith("vllm.v1")]
""",
    "vllm/renderers.py": "class ChatParams:\n    pass\n",
    "vllm/model_executor/__init__.py": "",
    "vllm/model_executor/models/__init__.py": "",
    "vllm/model_executor/models/registry.py": """
_VLLM_MODELS = {"TinyForCausalLM": ("tiny", "TinyForCausalLM")}
def _run_in_subprocess(look):
    raise AssertionError("another process")
def inspect(look):
    return _run_in_subprocess(look)
""",
    "vllm/model_executor/models/tiny.py": "import vllm\nvllm.told.append('model imported')\n",
}


def forget() -> None:
    """As if no vLLM, and no uvicorn, had been imported."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("vllm", "uvicorn")]:
        del sys.modules[name]


@contextmanager
def fake_vllm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put it on sys.path; the folder, whose files may still be changed before they are imported."""
    for name, text in SOURCES.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(place))
    forget()
    yield place
    forget()


def lines(log: Path) -> list[dict[str, Any]]:
    """server.jsonl."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def reached(log: Path) -> list[str]:
    """The marks in server.jsonl, in order."""
    return [e["args"][0] for e in lines(log) if e["msg"] == "reached %s"]


def wait_for(name: str) -> None:
    """Until the threads of this name are done."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(60)
