"""The launcher on what it does not know: it says so in one line, and the start is vLLM's own in that."""

from __future__ import annotations

import multiprocessing.util as mp_util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import UsageError
from bringup.inside import marks, serve, standby
from bringup.inside.parts import VARIABLE, parts
from tests.unit.launchfakes import lines, reached
from tests.unit.test_launch_serve import ARGV, Waiting, config, llm, log, module, patched, started, vllm
from tests.unit.test_launch_standby import Open, files, killed, pair

__all__ = ["files", "killed", "llm", "log", "pair", "started", "vllm"]  # fixtures
pytestmark = pytest.mark.filterwarnings("error:.*found in sys.modules:RuntimeWarning")


def said(log: Path) -> list[tuple[str, str]]:
    """The parts that were left out, and why."""
    return [tuple(e["args"]) for e in lines(log) if e["msg"] == "%s left out: %s"]


@pytest.fixture
def marked(log: Path) -> Path:
    marks.begin()
    return log


@pytest.mark.parametrize("word", ["plian", "standby,nothing", "all,plan"])
def test_a_part_that_there_is_not(word: str) -> None:
    with pytest.raises(UsageError, match="is no part of the start") as e:
        parts({VARIABLE: word})
    assert "standby" in e.value.hint


@pytest.mark.parametrize(
    ("file", "old", "new", "part"),
    [
        ("v1/engine/async_llm.py", "def renderer_from_config", "def renderer_of", "overlap"),
        ("v1/engine/async_llm.py", "class EngineCoreClient", "class CoreClient", "overlap"),
        ("v1/engine/async_llm.py", "executor_class, log_stats, client", "executor_class, client", "overlap"),
        ("model_executor/models/registry.py", "_run_in_subprocess", "_run_somewhere", "inspect"),
        ("v1/engine/output_processor.py", "get_num_unfinished_requests", "unfinished_requests", "end in time"),
    ],
)
def test_a_vllm_that_lacks_a_name_is_started_without_that_part(
    file: str, old: str, new: str, part: str, vllm: Path, started: list[str | None], log: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = vllm / "vllm" / file
    source.write_text(source.read_text().replace(old, new))
    serve.main(ARGV)
    assert module().told[-1] == "server runs"
    assert patched() == {name: name != part for name in ("standby", "overlap", "hugepages", "inspect")}
    assert [p for p, _ in said(log)] == [part]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"bringup: {part} left out: ")


def test_a_vllm_without_its_engine_says_itself_what_is_missing(
    vllm: Path, started: list[str | None], log: Path
) -> None:
    (vllm / "vllm/v1/engine/async_llm.py").unlink()
    serve.main(ARGV)
    assert module().told[-1] == "server runs"
    assert {p for p, _ in said(log)} == {"imports ahead", "overlap", "end in time", "hugepages"}


def test_a_python_that_spawns_in_another_way(vllm: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting()
    monkeypatch.setattr(standby, "start", lambda *_, **__: waiting)
    monkeypatch.delattr(mp_util, "spawnv_passfds")
    serve.main(ARGV)
    assert module().told[-1] == "server runs"
    assert [p for p, _ in said(log)] == ["standby"]
    assert waiting.ended


@pytest.mark.parametrize("spelled", ["--disable-log-stats", "--disable_log_stats", "--config=/c.yaml"])
def test_no_statistics_however_they_are_switched_off(spelled: str, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", spelled])
    llm.AsyncLLM.from_vllm_config(config(), disable_log_stats=True)
    assert [t for t in module().told if t[0] == "engine"] == [("engine", "uniproc", False)]


def test_a_warm_up_that_fails_is_no_failure(llm: Any, log: Path) -> None:
    del llm.Renderer.warmup
    assert isinstance(llm.AsyncLLM.from_vllm_config(config()).renderer, llm.Renderer)
    assert "tokenizer" in reached(log)


def test_a_tokenizer_that_failed_beside_the_engine_is_loaded_again(llm: Any, log: Path) -> None:
    tries: list[int] = []

    def renderer(_: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ImportError("partially initialized module")
        return llm.Renderer()

    made = llm.AsyncLLM.from_vllm_config(config(renderer=renderer))
    assert isinstance(made.renderer, llm.Renderer)
    assert len([t for t in module().told if t[0] == "engine"]) == 1
    assert said(log) == [("tokenizer beside the engine", "ImportError('partially initialized module')")]


def test_an_engine_without_a_tokenizer_is_stopped(llm: Any) -> None:
    def renderer(_: Any) -> Any:
        raise ValueError("no tokenizer")

    with pytest.raises(ValueError, match="no tokenizer"):
        llm.AsyncLLM.from_vllm_config(config(renderer=renderer))
    assert module().told[-1] == "engine stopped"


# A standby that is left out is ended, and the log says why


def refused(pair: Any, files: Open, killed: list[int], log: Path) -> str:
    assert pair[0].spawn(files.argv, files.fds) is None
    assert killed == [4711]
    ((part, why),) = said(log)
    assert part == "standby"
    return why


def test_one_that_died(pair: Any, files: Open, killed: list[int], marked: Path) -> None:
    pair[1].close()
    assert "Broken pipe" in refused(pair, files, killed, marked)


def test_numa_binding_starts_the_engine_by_a_wrapper(pair: Any, files: Open, killed: list[int], marked: Path) -> None:
    files.argv[0] = b"/opt/vllm/numa_wrapper.sh"
    assert "/opt/vllm/numa_wrapper.sh" in refused(pair, files, killed, marked)


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "VLLM_USE_BREAKABLE_CUDAGRAPH"])
def test_what_is_read_while_importing(
    name: str, pair: Any, files: Open, killed: list[int], marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert name in refused(pair, files, killed, marked)


def test_an_environment_that_is_too_large(
    pair: Any, files: Open, killed: list[int], marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "_LIMIT", 10)
    assert "an environment of" in refused(pair, files, killed, marked)


def test_it_is_gone_already(pair: Any, files: Open, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    pair[1].close()
    assert pair[0].spawn(files.argv, files.fds) is None


def test_a_kernel_that_hides_its_processes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def born() -> float:
        raise FileNotFoundError("/proc/self/stat")

    monkeypatch.setattr(marks, "born", born)
    marks.begin()
    marks.reached("entry")
    assert reached(log) == ["entry"]
