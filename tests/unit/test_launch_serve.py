"""The launcher: which parts it uses, what it leaves as vLLM has it, and what it does when something is amiss."""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing.popen_spawn_posix as popen
import multiprocessing.util as mp_util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bringup.inside import hugepages, marks, serve, standby
from bringup.inside.parts import PARTS, VARIABLE, parts
from bringup.inside.supervise import GATE
from tests.unit.launchfakes import fake_vllm, reached, wait_for

# runpy says that the module is imported already: it is, and that is the point
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

ARGV = ["--model", "/m", "--port=8000", "--no-such", ""]
SPAWN = [b"python", b"-c", b"from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=3, pipe_handle=4)"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything that a start changes in its process is put back; server.jsonl."""
    logger = logging.getLogger("bringup.inside.marks")
    handlers, level = logger.handlers[:], logger.level
    monkeypatch.setattr(popen.Popen, "_launch", popen.Popen._launch)  # type: ignore[attr-defined]
    monkeypatch.setattr(mp_util, "spawnv_passfds", mp_util.spawnv_passfds)
    monkeypatch.setattr(sys, "argv", ["serve"])
    for name in (VARIABLE, GATE, "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.setenv(name, "")  # so that what the start sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv(marks.VARIABLE, str(tmp_path / "server.jsonl"))
    monkeypatch.setattr(hugepages, "settle", lambda: None)
    yield tmp_path / "server.jsonl"
    gc.enable()
    gc.unfreeze()
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path) -> Iterator[Path]:
    with fake_vllm(tmp_path / "site", monkeypatch) as place:
        yield place


class Waiting:
    """A standby that may be used once, or never."""

    def __init__(self, pid: int | None = 77) -> None:
        self.pid, self.asked, self.ended = pid, 0, False

    def spawn(self, *_: Any) -> int | None:
        self.asked += 1
        return self.pid

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The models that a standby was started for."""
    seen: list[str | None] = []

    def start(model: str | None, **_: Any) -> standby.Standby:
        seen.append(model)
        return cast("standby.Standby", Waiting())

    monkeypatch.setattr(standby, "start", start)
    return seen


def module() -> Any:
    return sys.modules["vllm"]


def engine(unfinished: int) -> Any:
    """An AsyncLLM with so many requests, and nothing else."""
    one = object.__new__(importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM)
    one.output_processor = importlib.import_module("vllm.v1.engine.output_processor").OutputProcessor(unfinished)
    return one


def ends(unfinished: int) -> tuple[str, int]:
    """How long vLLM lets its engine end when it was started with `--shutdown-timeout 5`."""
    engine(unfinished).shutdown(timeout=5)
    return cast("tuple[str, int]", module().told[-1])


def test_a_request_that_is_cut_is_told(vllm: Path, started: list[str | None]) -> None:
    serve.main(ARGV)
    loop = SimpleNamespace(call_soon_threadsafe=lambda act, *words: act(*words))
    told = []
    for unfinished in (0, 2):
        one = engine(unfinished)
        one.output_handler = SimpleNamespace(get_loop=lambda: loop)
        one.shutdown(timeout=5)
        told.append([type(error).__name__ for error in one.output_processor.told])
    assert told == [[], ["EngineDeadError"]]


def test_what_failed_before_it_was_an_engine_is_shut_down_as_well(vllm: Path, started: list[str | None]) -> None:
    serve.main(ARGV)
    one = engine(0)
    del one.output_processor
    one.shutdown(timeout=5)
    assert module().told[-1] == ("shutdown", 0)


def patched() -> dict[str, bool]:
    """Which of the names that the launcher may replace are its own now."""

    def ours(holder: Any, name: str) -> bool:
        return getattr(getattr(holder, name, None), "__module__", "") == serve.__name__

    llm = sys.modules.get("vllm.v1.engine.async_llm")
    return {
        "standby": ours(popen.Popen, "_launch"),
        "overlap": ours(llm, "renderer_from_config"),
        "hugepages": llm is not None and hasattr(llm.AsyncLLM.__init__, "__wrapped__"),
        "inspect": ours(sys.modules.get("vllm.model_executor.models.registry"), "_run_in_subprocess"),
    }


# BRINGUP_LAUNCH


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (None, PARTS),
        ("", PARTS),
        ("all", PARTS),
        ("plain", frozenset()),
        ("standby", {"standby"}),
        ("gc,overlap", {"gc", "overlap"}),
    ],
)
def test_words(word: str | None, expected: frozenset[str]) -> None:
    assert parts({} if word is None else {VARIABLE: word}) == expected


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--model", "/m"], "/m"),
        (["--port", "1", "--model=/m=1"], "/m=1"),
        (["--model-loader", "x"], None),
        (["--model"], None),
        ([], None),
    ],
)
def test_an_option_is_found(argv: list[str], value: str | None) -> None:
    assert serve.option(argv, "--model") == value


# A start


@pytest.mark.parametrize("word", ["plain", "all", *sorted(PARTS)])
def test_vllm_gets_its_arguments_as_they_were(
    word: str, vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, word)
    before = dict(os.environ)
    serve.main(ARGV)
    assert module().told[-1] == "server runs"
    assert not cast("Any", importlib.import_module("uvicorn")).Config("app").server_header
    assert ends(unfinished=0) == ("shutdown", 5 if word == "plain" else 0)  # an idle engine has nothing to finish
    assert ends(unfinished=1) == ("shutdown", 5)
    assert module().argv == [str(vllm / "vllm/entrypoints/openai/api_server.py"), *ARGV]
    # vLLM's own entry point sets the same one variable, a little later.
    assert module().environ == {**before, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    assert gc.isenabled()


def test_plain_imports_and_changes_nothing_beforehand(
    vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "plain")
    frozen = gc.get_freeze_count()
    serve.main(ARGV)
    assert module().told == ["server runs"]
    assert module().imported == []
    assert not any(patched().values())
    assert (started, reached(log), gc.get_freeze_count()) == ([], [], frozen)


def test_all_imports_first_and_uses_every_part(vllm: Path, started: list[str | None], log: Path) -> None:
    serve.main(ARGV)
    assert module().told == ["server imported", "server runs"]
    assert "vllm.v1.engine.async_llm" in module().imported
    assert all(patched().values())
    assert started == ["/m"]
    assert reached(log) == ["api imports"]
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("word", ["standby", "overlap", "inspect", "hugepages", "gc"])
def test_one_part_alone(word: str, vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, word)
    serve.main(ARGV)
    assert patched() == {name: name == word for name in ("standby", "overlap", "hugepages", "inspect")}
    assert bool(started) is (word == "standby")
    assert (gc.get_freeze_count() > 0) is (word == "gc")


def test_a_user_who_forks_has_no_standby(
    vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    serve.main(ARGV)
    assert started == []
    assert patched() == {"standby": False, "overlap": True, "hugepages": True, "inspect": False}


def test_a_host_that_refuses_a_standby_serves_without(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "start", lambda *_, **__: None)
    serve.main(ARGV)
    assert module().told[-1] == "server runs"
    assert patched()["standby"] is False


def test_a_pack_that_cannot_be_used_is_told_and_none_is_no_matter(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.install_pack(tmp_path / "none") is None
    assert capsys.readouterr().err == ""
    (tmp_path / "torn").write_bytes(b"bringup")
    assert serve.install_pack(tmp_path / "torn") is None
    assert f"import pack left out: {tmp_path}/torn is damaged, or was made for another" in capsys.readouterr().err


def test_no_garbage_is_collected_while_it_imports(vllm: Path, started: list[str | None]) -> None:
    file = vllm / "vllm/entrypoints/openai/api_server.py"
    file.write_text(file.read_text() + "\nimport gc\nvllm.told.append(('gc', gc.isenabled()))\n")
    serve.main(ARGV)
    assert module().told == ["server imported", ("gc", False), "server runs", ("gc", True)]


# The gate


@pytest.mark.parametrize("word", ["plain", "all"])
def test_the_gate_opens(word: str, vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"1")
    os.close(writing)
    monkeypatch.setenv(GATE, str(reading))
    monkeypatch.setenv(VARIABLE, word)
    serve.main(ARGV)
    assert module().told[-1] == "server runs"
    assert GATE not in module().environ
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


@pytest.mark.parametrize("sent", [b"", b"0"])
def test_a_gate_that_stays_shut_ends_the_server(
    sent: bytes, vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, sent)
    os.close(writing)
    monkeypatch.setenv(GATE, str(reading))
    with pytest.raises(SystemExit) as e:
        serve.main(ARGV)
    assert e.value.code == 1
    assert "server runs" not in module().told


# The standby in the place of the engine's process


@pytest.fixture
def spawned(log: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[bytes]]:
    """What was spawned the ordinary way; multiprocessing's `_launch` does nothing else."""
    seen: list[list[bytes]] = []

    def launch(self: Any, process: Any) -> None:
        if process.name == "broken":
            raise OSError("no")
        argv = [*SPAWN, b"--multiprocessing-fork"] if process.forks else [b"tracker"]
        self.pid = mp_util.spawnv_passfds(sys.executable.encode(), argv, [3, 4, 5])

    def spawn(path: bytes, argv: list[bytes], fds: list[int]) -> int:
        seen.append(argv)
        return 99

    monkeypatch.setattr(popen.Popen, "_launch", launch)
    monkeypatch.setattr(mp_util, "spawnv_passfds", spawn)
    marks.begin()
    return seen


def pid_of(name: str, forks: bool = True) -> int:
    made = SimpleNamespace()
    popen.Popen._launch(made, SimpleNamespace(name=name, forks=forks))  # type: ignore[attr-defined]
    return int(made.pid)


@pytest.mark.parametrize("name", ["EngineCore", "EngineCore_DP0"])
def test_the_engine_is_the_standby(name: str, spawned: list[list[bytes]], log: Path) -> None:
    waiting = Waiting()
    serve.use_standby(cast("standby.Standby", waiting))
    assert pid_of(name) == 77
    assert (waiting.asked, spawned) == (1, [])
    assert reached(log) == ["engine process asked"]


@pytest.mark.parametrize(("name", "forks"), [("VllmWorker-0", True), ("DPCoordinator", True), ("EngineCore", False)])
def test_other_processes_are_spawned(name: str, forks: bool, spawned: list[list[bytes]]) -> None:
    waiting = Waiting()
    serve.use_standby(cast("standby.Standby", waiting))
    assert pid_of(name, forks) == 99
    assert (waiting.asked, len(spawned)) == (0, 1)


def test_a_standby_that_cannot_be_used_is_left_for_vllms_own_spawn(spawned: list[list[bytes]]) -> None:
    waiting = Waiting(None)
    serve.use_standby(cast("standby.Standby", waiting))
    assert pid_of("EngineCore") == 99
    assert spawned == [[*SPAWN, b"--multiprocessing-fork"]]


def test_a_launch_that_failed_leaves_no_trace(spawned: list[list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting()
    serve.use_standby(cast("standby.Standby", waiting))
    with pytest.raises(OSError, match="no"):
        popen.Popen._launch(SimpleNamespace(), SimpleNamespace(name="broken"))  # type: ignore[attr-defined]
    assert pid_of("VllmWorker-0") == 99
    assert waiting.asked == 0


# The tokenizer beside the engine's start


def config(**changed: Any) -> SimpleNamespace:
    made = SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=1, nnodes=1),
        model_config=SimpleNamespace(multimodal_config=None),
        renderer=None,
        engine=None,
    )
    for name, value in changed.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def llm(vllm: Path, started: list[str | None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of AsyncLLM, after a start with this part alone; no tokenizer's thread is left to the next test."""
    monkeypatch.setenv(VARIABLE, "overlap")
    monkeypatch.setattr(serve, "HEAD_START", 0.01)
    serve.main(["--model", "/m"])
    module().told.clear()
    yield sys.modules["vllm.v1.engine.async_llm"]
    wait_for("tokenizer")


def test_the_engine_starts_while_the_tokenizer_loads(llm: Any, log: Path) -> None:
    asked = threading.Event()

    def renderer(_: Any) -> Any:
        assert asked.wait(60), "the engine was not asked for meanwhile"
        return llm.Renderer()

    given = config(renderer=renderer, engine=lambda _: asked.set())
    made = llm.AsyncLLM.from_vllm_config(given)
    assert isinstance(made.renderer, llm.Renderer)
    assert made.engine_core.config is given
    assert sorted(module().told, key=str) == [("engine", "uniproc", True), "renderer", "warmup"]
    wait_for("tokenizer")  # its mark is the last that it does
    seen = reached(log)
    assert seen[:2] == ["api imports", "config made"]
    assert {"engine ready", "tokenizer"} <= set(seen)


def test_the_engine_has_a_head_start(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr("bringup.inside.serve.time", SimpleNamespace(sleep=paused.append))
    told_before: list[list[float]] = []

    def renderer(_: Any) -> Any:
        told_before.append(paused[:])
        return llm.Renderer()

    llm.AsyncLLM.from_vllm_config(config(renderer=renderer))
    assert told_before == [[serve.HEAD_START]]


def test_each_engine_is_used_once_and_only_for_its_configuration(llm: Any) -> None:
    first, second = config(), config()
    one = llm.AsyncLLM.from_vllm_config(first).engine_core
    two = llm.AsyncLLM.from_vllm_config(second).engine_core
    again = llm.EngineCoreClient.make_async_mp_client(first, "uniproc", False)
    assert (one.config, two.config, again.config) == (first, second, first)
    assert again is not one
    assert [t for t in module().told if t[0] == "engine"] == [
        ("engine", "uniproc", True), ("engine", "uniproc", True), ("engine", "uniproc", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        config(parallel_config=SimpleNamespace(data_parallel_size=2, nnodes=1)),
        config(parallel_config=SimpleNamespace(data_parallel_size=1, nnodes=2)),
        config(model_config=SimpleNamespace(multimodal_config=object())),
    ],
    ids=["two engines", "two hosts", "pictures"],
)
def test_what_does_not_fit_goes_vllms_way(given: Any, llm: Any, log: Path) -> None:
    llm.AsyncLLM.from_vllm_config(given)
    assert module().told == ["renderer", ("engine", "uniproc", True)]
    assert "engine ready" not in reached(log)


def test_a_loggers_plugin_goes_vllms_way(llm: Any) -> None:
    module().plugins.append("mine")
    llm.AsyncLLM.from_vllm_config(config())
    assert module().told == ["renderer", ("engine", "uniproc", True)]


def test_no_statistics_are_no_statistics(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--disable-log-stats"])
    llm.AsyncLLM.from_vllm_config(config(), disable_log_stats=True)
    assert [t for t in module().told if t[0] == "engine"] == [("engine", "uniproc", False)]


@pytest.mark.parametrize("where", ["renderer", "engine"])
def test_an_error_is_vllms_own(where: str, llm: Any) -> None:
    """It comes out of the same call, whichever thread it was raised in."""

    def fail(_: Any) -> Any:
        raise ValueError(f"no {where}")

    with pytest.raises(ValueError, match=f"no {where}"):
        llm.AsyncLLM.from_vllm_config(config(**{where: fail}))


# The model's class


def test_the_models_class_is_looked_at_here(vllm: Path, started: list[str | None]) -> None:
    serve.main(ARGV)
    look: Callable[[], str] = lambda: "looked"  # noqa: E731
    assert sys.modules["vllm.model_executor.models.registry"].inspect(look) == "looked"
