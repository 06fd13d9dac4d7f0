"""A process that imports what vLLM's engine needs while the API process still imports its own half.

vLLM starts its engine by multiprocessing's spawn: a new interpreter that imports everything once more, after the API
process has done so. A standby is that interpreter, started before: it imports, and waits. When vLLM spawns its
engine, `Standby.spawn` hands the very bytes that a new interpreter would read to the waiting one.
A standby that died, or that the call does not fit, is left out: then vLLM's way is taken.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import multiprocessing.spawn
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bringup.inside import hugepages, interpreter, marks, pack
from bringup.inside.parts import parts

_PR_SET_PDEATHSIG = 1
_LIMIT = 1 << 20  # bytes of an environment
# What the engine's process imports in any case (0.26 and 0.32); a name that a version lacks is passed over.
ENGINE = ("vllm.v1.engine.core", "vllm.v1.executor.uniproc_executor", "torch._dynamo", "torch._inductor.compile_fx")
GPU = (
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.model_executor.warmup.kernel_warmup",
    "torch._inductor.runtime.triton_heuristics",
)
CPU = ("vllm.v1.executor.multiproc_executor",)
_SPAWN = re.compile(r"spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)")
# Read when a process begins or imports: with another value a standby is not what a new process would be. vLLM itself
# sets the last one when it makes the configuration of some models, for decorators to find.
_FIXED = re.compile(
    r"CUDA_.*|NVIDIA_.*|LD_.*|PYTHON.*|TORCH_.*|PYTORCH_(CUDA_)?ALLOC_CONF"
    r"|VLLM_TARGET_DEVICE|VLLM_PLUGINS|VLLM_USE_BREAKABLE_CUDAGRAPH"
)
# vLLM puts CUDA's forward compatibility in front of LD_LIBRARY_PATH for it, for the processes that begin afterwards.
_COMPATIBILITY = "VLLM_ENABLE_CUDA_COMPATIBILITY"


class Standby:
    """The API process's end of one standby."""

    def __init__(self, pid: int, channel: socket.socket, environment: dict[str, str]) -> None:
        self.pid = pid
        self._channel: socket.socket | None = channel
        self._environment = environment
        # On a CPU the engine's process computes nothing: its worker, a process of its own, loads these libraries.
        self._free = {"LD_PRELOAD"} if environment.get("BRINGUP_FLAVOUR") == "cpu" else frozenset[str]()

    def spawn(self, argv: Sequence[bytes | str], fds: Sequence[int]) -> int | None:
        """Let the standby be the process that `argv` would start with these open files.

        Args:
            argv: of multiprocessing's spawn: `python ... -c "...spawn_main(...)" --multiprocessing-fork`.
            fds: what the process inherits: the resource tracker's, and one end of each of its two pipes.

        Returns:
            Its pid, or None when it must be started the ordinary way; the standby is gone then.
        """
        channel, self._channel = self._channel, None
        if channel is None:
            return None
        now = dict(os.environ)
        numbers = _SPAWN.search(os.fsdecode(argv[-2])) if len(argv) > 2 else None
        with channel:
            why = self._misfit(os.fsdecode(argv[0]), numbers, fds, now)
            if numbers and not why:
                tracker, pipe = int(numbers[1]), int(numbers[2])
                alive = next(fd for fd in fds if fd not in (tracker, pipe))
                try:
                    send(channel, now, (tracker, pipe, alive))
                    return self.pid
                except OSError as e:
                    why = f"it does not take its work ({e.strerror or e})"
        self.end()
        marks.left_out("standby", why)
        return None

    def _misfit(self, program: str, numbers: re.Match[str] | None, fds: Sequence[int], now: dict[str, str]) -> str:
        """Why the standby is not what would be started; empty when it is."""
        if program != sys.executable:  # with NUMA binding it is a wrapper
            return f"the engine is to be started by {program}"
        if not numbers:
            return "this Python starts processes in another way"
        if len(set(fds)) != 3:
            return "more open files than expected"
        old = self._environment
        changed = {k for k in {*now, *old} if now.get(k) != old.get(k)}
        fixed = {k for k in changed if _FIXED.fullmatch(k)} - self._free
        # OpenCV puts its own directory in front of the others while it is imported, there as here.
        compatible = now.get(_COMPATIBILITY, "").strip().lower() in ("1", "true")
        if not compatible and now.get("LD_LIBRARY_PATH", "").endswith(old.get("LD_LIBRARY_PATH", "")):
            fixed.discard("LD_LIBRARY_PATH")
        return f"vLLM changed {', '.join(sorted(fixed))} meanwhile" if fixed else ""

    def end(self) -> None:
        """End it now: what it imports yet, the engine's own process would wait for."""
        if self._channel:
            self._channel.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def send(channel: socket.socket, environment: dict[str, str], fds: Sequence[int]) -> None:
    """An environment and open files, through a Unix socket."""
    data = json.dumps(environment).encode("utf-8", "surrogateescape")
    if len(data) > _LIMIT:
        raise OSError(f"an environment of {len(data)} bytes")
    rights = array.array("i", fds)
    channel.sendmsg([len(data).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    channel.sendall(data)


def receive(channel: socket.socket) -> tuple[dict[str, str], list[int]] | None:
    """What `send` sent; None when the other side closed without a word."""
    fds = array.array("i")
    head, rights, _, _ = channel.recvmsg(4, socket.CMSG_LEN(3 * fds.itemsize), socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    for _, _, content in rights:
        fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    data, size = bytearray(), int.from_bytes(head, "big")
    while len(data) < min(size, _LIMIT):
        part = channel.recv(min(size, _LIMIT) - len(data))
        if not part:
            return None
        data += part
    return json.loads(data.decode("utf-8", "surrogateescape")), list(fds)


def start(model: str | None) -> Standby | None:
    """Start one for a model's directory; None when this host refuses."""
    import _posixsubprocess  # noqa: F401 - what multiprocessing itself uses
    from multiprocessing import util

    ours, theirs = socket.socketpair()
    argv = [sys.executable, *util._args_from_interpreter_flags(), "-m", __spec__.name, str(theirs.fileno())]  # type: ignore[attr-defined]
    try:
        pid = util.spawnv_passfds(os.fsencode(sys.executable), [*argv, model or ""], [theirs.fileno()])
    except OSError as e:
        ours.close()
        marks.left_out("standby", e.strerror or str(e))
        return None
    finally:
        theirs.close()
    return Standby(pid, ours, dict(os.environ))


def model_module(directory: str) -> str | None:
    """The module of vLLM that holds the model's class, by config.json's architecture; None when that is not clear."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError):
        config = json.loads(Path(directory, "config.json").read_text("utf-8"))
        registry: Any = importlib.import_module("vllm.model_executor.models.registry")
        return f"vllm.model_executor.models.{registry._VLLM_MODELS[config['architectures'][0]][0]}"
    return None


def of(flavour: str) -> tuple[str, ...]:
    """What a flavour's engine imports besides `ENGINE`."""
    return GPU if flavour == "gpu" else CPU


def warm(flavour: str, directory: str) -> None:
    """Import; what cannot be had now, the engine will ask for itself and explain."""
    for name in (*ENGINE, *of(flavour)):
        with suppress(ImportError):
            importlib.import_module(name)
    if module := model_module(directory):
        with suppress(ImportError):
            importlib.import_module(module)
    marks.reached("standby imports")


def become(environment: dict[str, str], fds: list[int]) -> None:
    """Be the process that was asked for. Does not return."""
    marks.reached("standby used")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    threads = environment.get("OMP_NUM_THREADS")
    if threads and threads != os.environ.get("OMP_NUM_THREADS") and threads.isdigit():
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(int(threads))  # torch reads the variable only while it is imported
    os.environ.clear()
    os.environ.update(environment)
    on = parts(environment)
    computes = environment.get("BRINGUP_FLAVOUR") == "gpu"  # on a CPU a process of its own does, the worker
    if "gc" in on:
        collect_again_when_ready()
        if computes:
            keep_frozen()
    if "overlap" in on:
        load_tokenizer_beside()
        if computes:
            threading.Thread(target=hash_compilers, name="compilers", daemon=True).start()
    if "hugepages" in on:
        with suppress(AttributeError):  # another release: its memory stays as it is
            hugepages.once_ready(importlib.import_module("vllm.v1.engine.core"), "freeze_gc_heap")
    tracker, pipe, _alive = fds  # the third is closed by the end of this process, and that is its whole use
    sys.argv = ["-c", "--multiprocessing-fork"]
    multiprocessing.spawn.spawn_main(tracker_fd=tracker, pipe_handle=pipe)


def load_tokenizer_beside() -> None:
    """Load the engine's tokenizer, for structured output, while the model is loaded: vLLM does it at the very end.

    vLLM keeps a tokenizer that it has loaded; if loading fails here, it fails there too, and is explained.
    """
    try:
        engine: Any = importlib.import_module("vllm.v1.engine.core").EngineCore
        load: Any = importlib.import_module("vllm.tokenizers").cached_tokenizer_from_config
    except (ImportError, AttributeError):  # another release: it loads its tokenizer where it does
        return
    init = engine.__init__

    def quietly(model_config: Any) -> None:
        with suppress(Exception):
            load(model_config=model_config)

    def begin(self: Any, vllm_config: Any, *args: Any, **given: Any) -> None:
        threading.Thread(target=quietly, args=(vllm_config.model_config,), name="tokenizer", daemon=True).start()
        init(self, vllm_config, *args, **given)

    engine.__init__ = begin


def hash_compilers() -> None:
    """Hash torch's and Triton's files, which vLLM's key of its compile cache needs; both remember the result."""
    for module, name in (("torch._inductor.codecache", "torch_key"), ("triton.runtime.cache", "triton_key")):
        with suppress(Exception):
            getattr(importlib.import_module(module), name)()


def collect_again_when_ready() -> None:
    """No garbage collection until the engine is built; vLLM freezes the heap then, and there it begins again."""
    core: Any = importlib.import_module("vllm.v1.engine.core")
    freeze = getattr(core, "freeze_gc_heap", None)
    if freeze is None:
        gc.enable()
        return

    def freeze_and_enable() -> None:
        freeze()
        gc.enable()

    core.freeze_gc_heap = freeze_and_enable


def keep_frozen() -> None:
    """Leave the imports out of the collections after vLLM's capture of graphs as well.

    vLLM 0.32 freezes the heap for the capture, thaws all of it, collects, and a moment later collects and freezes again
    for good: twice through what was imported, which stays in any case.
    """
    try:
        worker: Any = importlib.import_module("vllm.v1.worker.gpu_worker").Worker
        warm_up = worker.compile_or_warm_up_model
    except (ImportError, AttributeError):  # another release: it collects as it does
        return

    def warm_up_frozen(self: Any, *args: Any, **given: Any) -> Any:
        thaw, gc.unfreeze = gc.unfreeze, lambda: None
        try:
            return warm_up(self, *args, **given)
        finally:
            gc.unfreeze = thaw

    worker.compile_or_warm_up_model = warm_up_frozen


def main(fd: int, directory: str) -> None:
    """Warm up, wait for the engine's start, become it."""
    on = parts(os.environ)
    if "gc" in on:
        gc.disable()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until used; the API process decides when to stop
    channel = socket.socket(fileno=fd)
    marks.begin()
    with suppress(ImportError):
        # It finds argv by the environment beside it, once: after `become` has changed that, no title could be set.
        importlib.import_module("setproctitle").setproctitle("VLLM::standby")
    packed = pack.install() if "pack" in on else None
    warm(os.environ.get("BRINGUP_FLAVOUR", ""), directory)
    if packed:
        packed.cool()
    if "gc" in on:
        gc.freeze()  # vLLM collects garbage several times while it builds the engine: what was imported is none
    with channel:
        given = receive(channel)
    if given is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    become(*given)


if __name__ == "__mp_main__" and "pack" in parts(os.environ):  # a process that the engine starts, for a worker
    pack.install()
if __name__ == "__main__":
    interpreter.run(main, int(sys.argv[1]), sys.argv[2])
