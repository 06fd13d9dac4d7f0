"""The standby: what it is told reaches it whole, it becomes the engine's process, or it is left out."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import multiprocessing.spawn
import multiprocessing.util as mp_util
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bringup.inside import hugepages, marks, standby
from bringup.inside.parts import VARIABLE
from tests.unit.launchfakes import fake_vllm, reached, wait_for

PROGRAM = "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd={}, pipe_handle={})"


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were ended; no real one is."""
    seen: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: seen.append(pid))
    monkeypatch.setattr(os, "waitpid", lambda pid, _: (pid, 9))
    return seen


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """server.jsonl; the environment, signals, argv and collector of this process are put back."""
    logger = logging.getLogger("bringup.inside.marks")
    handlers, level = logger.handlers[:], logger.level
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.setattr(hugepages, "settle", lambda: None)
    path = tmp_path / "server.jsonl"
    marks.begin(str(path))
    yield path
    signal.signal(signal.SIGINT, handler)
    os.environ.clear()
    os.environ.update(environment)
    gc.enable()
    logger.handlers = handlers
    logger.setLevel(level)


class Open:
    """Three open files as multiprocessing passes them, and the argv that names two of them."""

    def __init__(self) -> None:
        self.pipes = [os.pipe() for _ in range(3)]
        self.fds = [p[0] for p in self.pipes]
        program = PROGRAM.format(self.fds[0], self.fds[1]).encode()
        self.argv = [sys.executable.encode(), b"-c", program, b"--multiprocessing-fork"]

    def close(self) -> None:
        for pair in self.pipes:
            for fd in pair:
                os.close(fd)


@pytest.fixture
def files() -> Iterator[Open]:
    made = Open()
    yield made
    made.close()


@pytest.fixture
def pair(killed: list[int]) -> Iterator[tuple[standby.Standby, socket.socket]]:
    """A standby of this environment, and the waiting process's end of its channel."""
    ours, theirs = socket.socketpair()
    yield standby.Standby(4711, ours, dict(os.environ)), theirs
    theirs.close()
    ours.close()


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


# What goes through the channel


def test_the_waiting_process_gets_environment_and_files(
    pair: tuple[standby.Standby, socket.socket], files: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, theirs = pair
    monkeypatch.setenv("VLLM_LATER", "ü \udcff =")
    assert waiting.spawn(files.argv, files.fds) == 4711
    got = standby.receive(theirs)
    assert got
    environment, fds = got
    assert environment == dict(os.environ)
    assert [inode(fd) for fd in fds] == [inode(fd) for fd in files.fds]
    assert theirs.recv(1) == b"", "nothing else is sent, and the channel is closed"
    for fd in fds:
        os.close(fd)


def test_an_environment_larger_than_the_channels_buffer(files: Open) -> None:
    ours, theirs = socket.socketpair()
    given = {f"NAME_{n}": "x" * 1000 for n in range(900)}
    sender = threading.Thread(target=standby.send, args=(ours, given, files.fds))
    with ours, theirs:
        sender.start()
        got = standby.receive(theirs)
        sender.join()
    assert got
    assert got[0] == given
    for fd in got[1]:
        os.close(fd)


@pytest.mark.parametrize("said", [b"", b"\x00\x00", b"\x00\x00\x00\x09{}"], ids=["nothing", "half a head", "half"])
def test_a_parent_that_ends_is_told_apart_from_one_that_asks(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(said)
        ours.close()
        assert standby.receive(theirs) is None


# When it is left out


def refused(waiting: standby.Standby, theirs: socket.socket, argv: list[bytes], fds: list[int]) -> None:
    assert waiting.spawn(argv, fds) is None
    assert standby.receive(theirs) is None, "the waiting process is told to end"


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_an_environment_that_a_process_reads_at_its_beginning(
    name: str, pair: tuple[standby.Standby, socket.socket], files: Open, monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    monkeypatch.setenv(name, "7")
    monkeypatch.setenv("VLLM_OTHER", "1")
    refused(*pair, files.argv, files.fds)
    assert name in log.read_text()
    assert "VLLM_OTHER" not in log.read_text()


@pytest.mark.parametrize("name", ["VLLM_CACHE_ROOT", "OMP_NUM_THREADS", "MY_CUDA_THING"])
def test_other_variables_do_not_matter(
    name: str, pair: tuple[standby.Standby, socket.socket], files: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    assert pair[0].spawn(files.argv, files.fds) == 4711


@pytest.mark.parametrize(("flavour", "pid"), [("cpu", 4711), ("gpu", None)])
def test_libraries_to_load_first_matter_where_the_engine_computes(
    flavour: str, pid: int | None, files: Open, killed: list[int], monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    waiting = standby.Standby(4711, ours, {**os.environ, "BRINGUP_FLAVOUR": flavour})
    monkeypatch.setenv("LD_PRELOAD", "/x.so")
    with theirs:
        assert waiting.spawn(files.argv, files.fds) == pid


@pytest.mark.parametrize(
    ("path", "pid"), [("/cv2:/a:/b", 4711), ("/b:/a", None), ("/a", None)], ids=["grown", "another", "shrunk"]
)
def test_a_library_path_may_grow_in_front(
    path: str, pid: int | None, files: Open, killed: list[int], monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    ours, theirs = socket.socketpair()
    waiting = standby.Standby(4711, ours, {**os.environ, "LD_LIBRARY_PATH": "/a:/b"})
    monkeypatch.setenv("LD_LIBRARY_PATH", path)
    with theirs:
        assert waiting.spawn(files.argv, files.fds) == pid


def test_a_library_path_that_grew_by_another_libcuda(
    files: Open, killed: list[int], monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setenv("VLLM_ENABLE_CUDA_COMPATIBILITY", "True")
    waiting = standby.Standby(4711, ours, {**os.environ, "LD_LIBRARY_PATH": "/a"})
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda-13.0/compat:/a")
    with theirs:
        assert waiting.spawn(files.argv, files.fds) is None
    assert "LD_LIBRARY_PATH" in log.read_text()


def test_more_open_files_than_it_can_be_given(
    pair: tuple[standby.Standby, socket.socket], files: Open, log: Path
) -> None:
    refused(*pair, files.argv, [*files.fds, 0])
    assert "more open files" in log.read_text()


def test_another_program_than_multiprocessings(
    pair: tuple[standby.Standby, socket.socket], files: Open, log: Path
) -> None:
    refused(*pair, [files.argv[0], b"-c", b"print()", b"--multiprocessing-fork"], files.fds)


def test_one_that_died_is_left_out(pair: tuple[standby.Standby, socket.socket], files: Open, log: Path) -> None:
    waiting, theirs = pair
    theirs.close()
    assert waiting.spawn(files.argv, files.fds) is None


def test_it_is_used_once(pair: tuple[standby.Standby, socket.socket], files: Open) -> None:
    waiting, _ = pair
    assert waiting.spawn(files.argv, files.fds) == 4711
    assert waiting.spawn(files.argv, files.fds) is None


# Its start


def test_it_is_a_new_interpreter_with_one_open_file(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spawn(path: bytes, argv: list[str], fds: list[int]) -> int:
        seen.append((path, argv, fds, stat_of(fds[0])))
        return 4711

    monkeypatch.setattr(mp_util, "spawnv_passfds", spawn)
    made = standby.start("/m")
    assert made
    assert made.pid == 4711
    ((path, argv, (fd,), was_open),) = seen
    assert was_open
    assert path == os.fsencode(sys.executable)
    at = argv.index("-m")
    assert argv[at : at + 4] == ["-m", "bringup.inside.standby", str(fd), "/m"]
    assert not stat_of(fd), "this process keeps its own end only"
    assert made._channel
    made._channel.close()


def stat_of(fd: int) -> os.stat_result | None:
    try:
        return os.fstat(fd)
    except OSError:
        return None


def test_a_host_that_refuses_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def spawn(*_: Any) -> int:
        raise OSError("no memory")

    made: list[socket.socket] = []
    pair_of = socket.socketpair

    def socketpair() -> tuple[socket.socket, socket.socket]:
        made.extend(pair_of())
        return made[0], made[1]

    monkeypatch.setattr(mp_util, "spawnv_passfds", spawn)
    monkeypatch.setattr(socket, "socketpair", socketpair)
    assert standby.start(None) is None
    assert [s.fileno() for s in made] == [-1, -1]


# What it imports


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Path) -> Iterator[Path]:
    with fake_vllm(tmp_path / "site", monkeypatch) as place:
        yield place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": ["TinyForCausalLM"]}))
    return directory


def test_it_imports_the_engine_and_the_models_class(vllm: Path, model: Path, log: Path) -> None:
    standby.warm("cpu", str(model))
    assert sys.modules["vllm"].told == ["model imported"]
    assert "vllm.v1.engine.core" in sys.modules
    assert reached(log) == ["standby imports"]


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"architectures": []}', '{"architectures": ["Other"]}'])
def test_a_model_that_it_cannot_tell_is_the_engines_to_explain(text: str | None, vllm: Path, model: Path) -> None:
    (model / "config.json").unlink()
    if text is not None:
        (model / "config.json").write_text(text)
    assert standby.model_module(str(model)) is None


def test_what_a_version_lacks_is_passed_over(vllm: Path, model: Path, log: Path) -> None:
    (vllm / "vllm/v1/engine/core.py").unlink()
    standby.warm("cpu", str(model))
    assert reached(log) == ["standby imports"]


# Its life


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch, log: Path) -> dict[str, Any]:
    """What `main` did in its place: `prctl`, `title`, `warm`, `become`."""
    seen: dict[str, Any] = {"prctl": []}
    libc = SimpleNamespace(prctl=lambda *a: seen["prctl"].append(a))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    title = ModuleType("setproctitle")
    title.setproctitle = lambda t: seen.update(title=t)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "setproctitle", title)
    monkeypatch.setattr(standby, "warm", lambda *a: seen.update(warm=a, interrupt=signal.getsignal(signal.SIGINT)))
    monkeypatch.setattr(standby, "become", lambda *a: seen.update(become=a))
    monkeypatch.setenv("BRINGUP_FLAVOUR", "cpu")
    return seen


def not_used(directory: str) -> None:
    """The life of one whose API process goes without a word."""
    ours, theirs = socket.socketpair()
    ours.close()
    standby.main(theirs.detach(), directory)


def test_used_it_becomes_the_engines_process(life: dict[str, Any], files: Open) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        standby.send(ours, {"A": "b"}, files.fds)
        standby.main(theirs.detach(), "/m")
        environment, fds = life["become"]
        assert ours.recv(1) == b"", "its end is closed"
    assert environment == {"A": "b"}
    assert [inode(fd) for fd in fds] == [inode(fd) for fd in files.fds]
    assert life["warm"] == ("cpu", "/m")
    assert life["title"] == "VLLM::standby"
    assert life["prctl"] == [(1, signal.SIGKILL)], "it does not outlive its parent while it waits"
    assert (life["interrupt"], signal.getsignal(signal.SIGINT)) == (signal.SIG_IGN, signal.default_int_handler)
    assert not gc.isenabled(), "until the engine is built"
    for fd in fds:
        os.close(fd)


def test_the_packs_memory_is_given_back_after_the_imports(
    life: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(standby, "warm", lambda *_: order.append("imports"))
    monkeypatch.setattr("bringup.inside.pack.install", lambda: SimpleNamespace(cool=lambda: order.append("cool")))
    not_used("")
    assert order == ["imports", "cool"]


def test_not_used_it_ends(life: dict[str, Any]) -> None:
    not_used("/m")
    assert "become" not in life


def test_garbage_is_collected_as_ever_where_that_part_is_left_out(
    life: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "standby")
    frozen: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("all"))
    not_used("/m")
    assert life["warm"] == ("cpu", "/m")
    assert gc.isenabled()
    assert frozen == []


def test_without_a_title_it_works_as_well(life: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setproctitle", None)
    not_used("/m")
    assert life["warm"] == ("cpu", "/m")


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch, vllm: Path) -> list[Any]:
    """multiprocessing's side of a new process: its arguments, argv and environment then."""
    seen: list[Any] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(prctl=lambda *a: seen.append(a)))
    monkeypatch.setattr(
        multiprocessing.spawn, "spawn_main", lambda **given: seen.append((given, sys.argv[:], dict(os.environ)))
    )
    return seen


def test_it_reads_what_a_new_interpreter_would(spawned: list[Any], log: Path) -> None:
    standby.become({"A": "b", "OMP_NUM_THREADS": "many"}, [11, 12, 13])
    assert spawned == [
        (1, 0),  # as any engine's process, it ends by vLLM's own means from here on
        (
            {"tracker_fd": 11, "pipe_handle": 12},
            ["-c", "--multiprocessing-fork"],
            {"A": "b", "OMP_NUM_THREADS": "many"},
        ),
    ]
    assert reached(log) == ["standby used"]


def test_torch_is_told_how_many_threads(spawned: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    torch = ModuleType("torch")
    torch.set_num_threads = told.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    standby.become({"OMP_NUM_THREADS": "2"}, [11, 12, 13])
    assert told == []
    standby.become({"OMP_NUM_THREADS": "5"}, [11, 12, 13])
    assert told == [5]


def test_garbage_is_collected_again_when_the_engine_is_built(spawned: list[Any]) -> None:
    gc.disable()
    standby.become({}, [11, 12, 13])
    core: Any = sys.modules["vllm.v1.engine.core"]
    assert not gc.isenabled()
    core.freeze_gc_heap()
    assert core.frozen == [1]
    assert gc.isenabled()


def test_a_vllm_that_freezes_nothing_collects_at_once(vllm: Path, spawned: list[Any]) -> None:
    core = vllm / "vllm/v1/engine/core.py"
    core.write_text(core.read_text().replace("freeze_gc_heap", "freeze"))
    gc.disable()
    standby.become({}, [11, 12, 13])
    assert gc.isenabled()


# What the engine does beside the model's load


def test_the_engines_tokenizer_loads_while_it_is_built(vllm: Path) -> None:
    standby.load_tokenizer_beside()
    core: Any = importlib.import_module("vllm.v1.engine.core")
    core.EngineCore(SimpleNamespace(model_config="m"), "uniproc", log_stats=True)
    wait_for("tokenizer")
    assert core.frozen == [1], "the engine itself was built as ever"
    assert sys.modules["vllm"].told == [("tokenizer", "m")]


def test_a_tokenizer_that_does_not_load_is_the_engines_to_explain(vllm: Path) -> None:
    (vllm / "vllm/tokenizers.py").write_text("def cached_tokenizer_from_config(model_config):\n    raise OSError\n")
    standby.load_tokenizer_beside()
    core: Any = importlib.import_module("vllm.v1.engine.core")
    core.EngineCore(SimpleNamespace(model_config="m"))
    wait_for("tokenizer")
    assert core.frozen == [1]


@pytest.mark.parametrize("lacks", ["vllm/tokenizers.py", "vllm/v1/engine/core.py"])
def test_another_release_loads_its_tokenizer_where_it_does(lacks: str, vllm: Path) -> None:
    (vllm / lacks).write_text("class Other:\n    pass\n")
    standby.load_tokenizer_beside()
    core: Any = importlib.import_module("vllm.v1.engine.core")
    init = getattr(getattr(core, "EngineCore", None), "__init__", None)
    assert getattr(init, "__module__", "") != standby.__name__


def test_the_compilers_are_hashed_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def broken() -> None:
        told.append("torch")
        raise OSError("no source")

    torch, triton = ModuleType("torch._inductor.codecache"), ModuleType("triton.runtime.cache")
    torch.torch_key = broken  # type: ignore[attr-defined]
    triton.triton_key = lambda: told.append("triton")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, torch.__name__, torch)
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    standby.hash_compilers()
    assert told == ["torch", "triton"]
    monkeypatch.setitem(sys.modules, torch.__name__, None)
    monkeypatch.setitem(sys.modules, triton.__name__, None)
    standby.hash_compilers()
    assert told == ["torch", "triton"]


def test_what_is_frozen_stays_so_while_graphs_are_captured(vllm: Path) -> None:
    worker: Any = importlib.import_module("vllm.v1.worker.gpu_worker").Worker()
    assert worker.compile_or_warm_up_model() == "times"
    assert worker.frozen == 0, "as vLLM does it"
    standby.keep_frozen()
    assert worker.compile_or_warm_up_model() == "times"
    assert worker.frozen > 1000
    with pytest.raises(MemoryError):
        worker.compile_or_warm_up_model(fails=True)
    gc.unfreeze()  # it thaws again: vLLM does so at its end
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("source", [None, "class Worker:\n    pass\n"])
def test_another_release_thaws_where_it_does(source: str | None, vllm: Path) -> None:
    file = vllm / "vllm/v1/worker/gpu_worker.py"
    file.unlink()
    if source:
        file.write_text(source)
    standby.keep_frozen()
    with suppress(ImportError):
        assert not hasattr(importlib.import_module("vllm.v1.worker.gpu_worker").Worker, "compile_or_warm_up_model")


@pytest.mark.parametrize(
    ("flavour", "on", "does"),
    [
        ("gpu", "all", ["again", "compilers", "frozen", "large", "tokenizer"]),
        ("cpu", "all", ["again", "large", "tokenizer"]),  # there another process computes
        ("gpu", "standby,gc", ["again", "frozen"]),
        ("gpu", "standby,overlap", ["compilers", "tokenizer"]),
        ("gpu", "standby,hugepages", ["large"]),
        ("gpu", "standby", []),
    ],
)
def test_what_is_changed_in_the_engines_process(
    flavour: str, on: str, does: list[str], spawned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    changes = {"collect_again_when_ready": "again", "keep_frozen": "frozen", "load_tokenizer_beside": "tokenizer",
               "hash_compilers": "compilers"}  # fmt: skip
    for function, called in changes.items():
        monkeypatch.setattr(standby, function, partial(done.append, called))
    monkeypatch.setattr(hugepages, "settle", lambda: done.append("large"))
    standby.become({"BRINGUP_FLAVOUR": flavour, VARIABLE: on}, [11, 12, 13])
    importlib.import_module("vllm.v1.engine.core").freeze_gc_heap()
    wait_for("compilers")
    wait_for("hugepages")
    assert sorted(done) == does
