"""vLLM's OpenAI server, with what it does one after the other done side by side: `python -m bringup.inside.serve ARGS`.

Arguments, signals, log and exit codes are those of `python -m vllm.entrypoints.openai.api_server`. These things differ:
a standby (see `standby`) imports the engine's half meanwhile, the tokenizer is loaded while the engine starts, no
garbage is collected during imports, the model's class is looked at without another process, what serves is put into
large pages (see `hugepages`), and an engine ends as soon as it may. BRINGUP_LAUNCH=plain leaves them all out. No answer
has a `server` header, with or without them.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import os
import runpy
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bringup.inside import hugepages, interpreter, marks, pack, standby
from bringup.inside.parts import parts
from bringup.inside.supervise import GATE

SERVER = "vllm.entrypoints.openai.api_server"
API = ("vllm.v1.engine.async_llm", SERVER)
# Seconds that a standby needs from vLLM's call to the end of the handshake: 0.06 with nothing beside it, by marks.
HEAD_START = 0.3


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of an option among vLLM's arguments."""
    for index, word in enumerate(argv):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name:
            return argv[index + 1] if index + 1 < len(argv) else None
    return None


def pass_gate() -> None:
    """Wait until the entry point has compared the weights; without its word this process ends."""
    number = os.environ.pop(GATE, "")
    if not number:
        return
    with open(int(number), "rb", buffering=0) as gate:  # noqa: PTH123 - a file descriptor
        if gate.read(1) != b"1":
            sys.exit(1)  # the entry point has said why


def use_standby(waiting: standby.Standby) -> None:
    """Let the standby be the engine's process when vLLM spawns it."""
    popen: Any = importlib.import_module("multiprocessing.popen_spawn_posix")
    util: Any = importlib.import_module("multiprocessing.util")
    launch, spawn = popen.Popen._launch, util.spawnv_passfds
    engine: list[bool] = []

    def marked_launch(self: Any, process: Any) -> None:
        engine.append(process.name.startswith("EngineCore"))
        try:
            launch(self, process)
        finally:
            engine.pop()

    def spawn_or_use(path: Any, argv: Any, fds: Any) -> int:
        if not (engine and engine[-1]) or "--multiprocessing-fork" not in map(os.fsdecode, argv):
            return int(spawn(path, argv, fds))
        marks.reached("engine process asked")
        return waiting.spawn(argv, fds) or int(spawn(path, argv, fds))

    popen.Popen._launch = marked_launch
    util.spawnv_passfds = spawn_or_use


def overlap_tokenizer() -> None:
    """Start the engine before the tokenizer is loaded, which needs none; vLLM does it the other way round."""
    llm: Any = importlib.import_module("vllm.v1.engine.async_llm")
    client_class, make_renderer, init = llm.EngineCoreClient, llm.renderer_from_config, llm.AsyncLLM.__init__
    make_client, plugins = client_class.make_async_mp_client, llm.load_stat_logger_plugin_factories
    inspect.signature(make_client).bind(vllm_config=0, executor_class=0, log_stats=0)
    ready: dict[int, Any] = {}
    asked: dict[str, Any] = {}  # what AsyncLLM was given, since the engine gets the same

    def remember(self: Any, *args: Any, **given: Any) -> None:
        asked.clear()
        asked.update(given)
        init(self, *args, **given)

    def renderer_from_config(config: Any, **given: Any) -> Any:
        marks.reached("config made")
        if not fits(config, asked, plugins()):
            return make_renderer(config, **given)
        loading = Loading(lambda: make_renderer(config, **given))
        client = make_client(vllm_config=config, executor_class=asked["executor_class"], log_stats=asked["log_stats"])
        marks.reached("engine ready")
        try:
            renderer = loading.result()
        except BaseException:
            client.shutdown()
            raise
        ready[id(config)] = client
        return renderer

    def make_async_mp_client(vllm_config: Any, *args: Any, **given: Any) -> Any:
        client = ready.pop(id(vllm_config), None)
        return client if client is not None else make_client(vllm_config, *args, **given)

    llm.AsyncLLM.__init__ = remember
    llm.renderer_from_config = renderer_from_config
    client_class.make_async_mp_client = staticmethod(make_async_mp_client)


class Loading:
    """The tokenizer's front end, made in a thread, which begins a little later.

    Reading a large tokenizer keeps Python's lock for half a second, and the engine's process waits for this one twice
    before it can go on alone: for its configuration, and for a handshake.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, name="tokenizer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        time.sleep(HEAD_START)
        try:
            renderer = self._make()
        except BaseException as e:
            self._made.set_exception(e)
            return
        with suppress(Exception):
            # vLLM does this once more when it serves, with what was imported and compiled here: 0.5 s then.
            renderer.warmup(importlib.import_module("vllm.renderers").ChatParams())
        marks.reached("tokenizer")
        self._made.set_result(renderer)

    def result(self) -> Any:
        """It; what failed is made again here: a fault of two threads at once goes away, another is vLLM's to tell."""
        if (error := self._made.exception()) is None:
            return self._made.result()
        marks.left_out("tokenizer beside the engine", repr(error))
        return self._make()


def inspect_here() -> None:
    """Look at the model's class in this process, whose engine is a process of its own in any case.

    vLLM starts another process for that when its cache of such findings is empty: all the imports once more, 11 s on a
    GPU host with a cold page cache. It does so in order not to open the GPU before a fork, and nothing is forked here.
    """
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    if not hasattr(registry, "_run_in_subprocess"):
        raise AttributeError("this vLLM looks at the model's class in another way")
    registry._run_in_subprocess = lambda look: look()


def no_banner() -> None:
    """Let no answer name the web server; vLLM has no option for that, and a middleware sees the answer too early."""
    config: Any = importlib.import_module("uvicorn").Config
    init = config.__init__

    def quiet(self: Any, *args: Any, **given: Any) -> None:
        init(self, *args, **given)
        self.server_header = False

    config.__init__ = quiet


def end_in_time() -> None:
    """Let only an engine with requests have the time of `--shutdown-timeout`; an idle one spends it on its own end.

    Requests that are not finished by then are told: vLLM may forget to, and then waits for their readers for ever.
    """
    llm: Any = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
    processor: Any = importlib.import_module("vllm.v1.engine.output_processor").OutputProcessor
    dead: Any = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
    shutdown, count, tell = llm.shutdown, processor.get_num_unfinished_requests, processor.propagate_error
    inspect.signature(shutdown).bind(None, timeout=0)

    def busy(self: Any) -> bool:  # vLLM shuts down as well what never came so far as to have a processor
        return hasattr(self, "output_processor") and count(self.output_processor) > 0

    def shut_down(self: Any, timeout: float | None = None) -> None:
        shutdown(self, timeout=timeout if busy(self) else 0)
        handler = getattr(self, "output_handler", None)
        if handler is not None and busy(self):  # vLLM calls this in another thread
            handler.get_loop().call_soon_threadsafe(tell, self.output_processor, dead())

    llm.shutdown = shut_down


def use_large_pages() -> None:
    """Once the engine is ready, which is when its client is made."""
    llm: Any = importlib.import_module("vllm.v1.engine.async_llm")
    hugepages.once_ready(llm.AsyncLLM, "__init__")


def fits(config: Any, asked: Mapping[str, Any], loggers: Any) -> bool:
    """Whether the engine of this configuration may be started before its front end: one engine, text only."""
    parallel = config.parallel_config
    return (
        parallel.data_parallel_size == 1
        and getattr(parallel, "nnodes", 1) == 1
        and config.model_config.multimodal_config is None
        and {"executor_class", "log_stats"} <= asked.keys()
        and not (loggers or asked.get("stat_loggers") or asked.get("client_addresses"))
        and asked.get("client_count", 1) == 1
    )


def use(part: str, change: Callable[[], object]) -> bool:
    """Make one of the changes; a vLLM or a Python that lacks what it stands on is started without."""
    try:
        change()
    except (ImportError, AttributeError, TypeError) as e:
        marks.left_out(part, f"{type(e).__name__}: {e}")
        return False
    return True


def install_pack(file: Path = pack.PACK) -> pack.Pack | None:
    """The image's pack; where there is one that cannot be used, people are told why their start is slower."""
    packed = pack.install(file)
    if packed is None and file.exists():
        marks.left_out("import pack", f"{file} is damaged, or was made for another sys.path or other packages")
    return packed


def main(argv: list[str]) -> None:
    """Serve."""
    on = parts(os.environ)
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # vLLM's command line does so a little later
    marks.begin()
    waiting = None
    spawns = os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    if "standby" in on and spawns:
        waiting = standby.start(option(argv, "--model"))
    packed = install_pack() if "pack" in on else None
    if "gc" in on:
        gc.disable()
    if on:
        for name in API:
            use("imports ahead", partial(importlib.import_module, name))
        marks.reached("api imports")
    if "gc" in on:
        gc.freeze()  # what was imported stays, and need not be looked through again
        gc.enable()
    if packed:
        packed.cool()
    if waiting and not use("standby", partial(use_standby, waiting)):
        waiting.end()
    if "overlap" in on:
        use("overlap", overlap_tokenizer)
    if "inspect" in on and spawns:
        use("inspect", inspect_here)
    use("no banner", no_banner)
    if on:
        use("end in time", end_in_time)
    if "hugepages" in on:
        use("hugepages", use_large_pages)
    pass_gate()
    spec = importlib.util.find_spec(SERVER)
    sys.argv = [str(spec.origin if spec else SERVER), *argv]
    # It is imported already, and that it runs once more under another name is as it should be.
    warnings.filterwarnings("ignore", message=f"'{SERVER}' found in sys.modules", category=RuntimeWarning)
    runpy.run_module(SERVER, run_name="__main__", alter_sys=False)


if __name__ == "__mp_main__" and "pack" in parts(os.environ):  # a process that this one starts, for an engine
    pack.install()
if __name__ == "__main__":
    interpreter.run(main, sys.argv[1:])
