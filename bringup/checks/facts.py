"""What the checks look at: gathered once, frozen, and written into record.json as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bringup.edge import gpu, host, node
from bringup.edge.docker import ContainerState, Engine, EngineFacts
from bringup.edge.gpu import NO_BINDINGS, GpuState
from bringup.edge.host import HostInfo, Memory
from bringup.edge.node import NodeFacts
from bringup.edge.place import Place
from bringup.errors import BringupError
from bringup.plan import SERVICE, Plan
from bringup.settings import COMPOSE, LOCAL


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """The plan's image in the engine. `present` is None when the engine could not be asked; size in bytes.

    `cuda`: the CUDA that its base says it has (CUDA_VERSION of NVIDIA's base images); torch's may be another.
    """

    present: bool | None
    id: str = ""
    size: int | None = None
    architecture: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    cuda: str | None = None


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """What torch said in a container of the image with a GPU reserved.

    `started`: the engine started it (None: it was not tried, `error` says why). `computes`: a sum on the GPU came out.
    """

    started: bool | None
    error: str = ""
    available: bool | None = None
    computes: bool | None = None
    torch: str | None = None
    cuda: str | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The host before anything starts; None is a fact that could not be had, except where noted.

    `local`: the engine runs on this host, so that memory, disk, CPU and ports seen here are the engine's.
    `disk_free`: bytes where the engine keeps images. `port_holder`: None when the plan's port is free.
    `own_container`: the running server of the plan's own project, if it is the one that holds the plan's port.
    `node`: what there is around the GPUs. `torch`: None when it was not asked.
    `target`: what they were gathered for. Of a local one `place` says what this machine is, `weights`: the model's are
    there, and `disk_free` is that of the server's own directory; the engine is not asked, and there is no image.
    """

    engine: EngineFacts
    gpu: GpuState
    local: bool
    system: HostInfo
    memory: Memory | None
    disk_free: int | None
    port_holder: str | None
    image: ImageFacts
    own_container: ContainerState | None
    node: NodeFacts = field(default_factory=NodeFacts)
    torch: TorchFacts | None = None
    target: str = COMPOSE
    place: Place | None = None
    weights: bool | None = None

    @property
    def own_gpus(self) -> bool:
        """See `server.Server`: in a container the GPUs that are seen are its own, and process ids are too."""
        return self.target == LOCAL and self.place is not None and self.place.host_ids is False


def gather_engine_gpu(engine: Engine) -> tuple[EngineFacts, GpuState]:
    """The two facts that `choose_flavour` needs before there is a plan."""
    return engine.facts(), gpu.read()


def gather_gpu_alone() -> tuple[EngineFacts, GpuState]:
    """The same for a server that needs no engine."""
    return EngineFacts(reachable=False, error="not asked: the server is a process of this machine"), gpu.read()


def gather_here(
    plan: Plan, place: Place, known: tuple[EngineFacts, GpuState], own: ContainerState | None, directory: Path,
    weights: bool,
) -> HostFacts:  # fmt: skip
    """Look at this machine for a server that is to be a process of it.

    `own`: the project's server, if it has the plan's port; `directory`: the project's; `weights`: they are there.
    """
    return HostFacts(
        engine=known[0], gpu=known[1], local=True, system=host.info(), memory=host.memory(),
        disk_free=host.disk_free(directory), port_holder=host.port_holder(plan.bind, plan.port),
        image=ImageFacts(present=None), own_container=own,
        node=node.read() if known[1].available or plan.flavour == "gpu" else NodeFacts(),
        target=LOCAL, place=place, weights=weights,
    )  # fmt: skip


def gather(plan: Plan, engine: Engine, known: tuple[EngineFacts, GpuState] | None = None) -> HostFacts:
    """Look at everything that the checks need; `known` is what `gather_engine_gpu` gave, if it was asked already."""
    engine_facts, gpu_state = known or gather_engine_gpu(engine)
    local = host.engine_is_here()
    return HostFacts(
        engine=engine_facts,
        gpu=gpu_state,
        local=local,
        system=host.info(),
        memory=host.memory(),
        disk_free=host.disk_free(engine_facts.root_dir) if local and engine_facts.root_dir else None,
        port_holder=host.port_holder(plan.bind, plan.port),
        image=_image(plan, engine, engine_facts),
        own_container=_own_container(plan, engine, engine_facts),
        node=node.read() if local and (gpu_state.available or plan.flavour == "gpu") else NodeFacts(),
    )


def _image(plan: Plan, engine: Engine, facts: EngineFacts) -> ImageFacts:
    if not facts.reachable:
        return ImageFacts(present=None)
    try:
        raw = engine.image(plan.image)
    except BringupError:  # the engine went away since: not seen is not absent
        return ImageFacts(present=None)
    if raw is None:
        return ImageFacts(present=False)
    config = raw.get("Config") or {}
    variables = dict(v.partition("=")[::2] for v in config.get("Env") or [])
    return ImageFacts(
        present=True,
        id=raw.get("Id", ""),
        size=raw.get("Size"),
        architecture=raw.get("Architecture"),
        labels=dict(config.get("Labels") or {}),
        cuda=variables.get("CUDA_VERSION") or None,  # this one alone: an image's variables may hold anything
    )


def _own_container(plan: Plan, engine: Engine, facts: EngineFacts) -> ContainerState | None:
    if not facts.reachable:
        return None
    try:
        state = engine.find(plan.project, SERVICE)
        if state is None or state.status not in ("running", "paused"):
            return None
        published = (engine.inspect(state.id).get("NetworkSettings") or {}).get("Ports") or {}
    except BringupError:
        return None
    ports = {binding.get("HostPort") for bindings in published.values() for binding in bindings or []}
    return state if str(plan.port) in ports else None


def can_reserve_gpu(engine: EngineFacts) -> bool:
    """Whether the engine has a way to give a container a GPU."""
    return "nvidia" in engine.runtimes or bool(engine.gpu_devices)


def needs_cdi(engine: EngineFacts) -> bool:
    """Whether CDI is the engine's only way; compose names the way in its file."""
    return "nvidia" not in engine.runtimes and bool(engine.gpu_devices)


def choose_here(asked: str, place: Place, gpu: GpuState) -> tuple[str, str]:
    """The flavour of a server that is a process: what was asked for, or else the build of vLLM that is installed."""
    found = place.interpreter
    if asked != "auto":
        return asked, f"{asked} was asked for"
    if found is not None and found.vllm is not None and found.flavour is not None:
        return found.flavour, f"{found.path} has vLLM {found.vllm}, built for a {found.flavour.upper()}"
    return ("gpu", "there is a GPU, and no vLLM") if gpu.gpus else ("cpu", "there is neither a GPU nor vLLM")


def choose_flavour(asked: str, engine: EngineFacts, gpu: GpuState) -> tuple[str, str]:
    """Which image flavour to use, and why: what was asked for, or else gpu where a container could have one."""
    if asked != "auto":
        return asked, f"{asked} was asked for"
    if gpu.error == NO_BINDINGS:
        return "cpu", f"whether there is a GPU is not known: {NO_BINDINGS}"
    if not gpu.available:
        return "cpu", f"no NVIDIA driver answers (NVML: {gpu.error})"
    if not gpu.gpus:
        return "cpu", "the NVIDIA driver shows no usable GPU" + (f" ({gpu.error})" if gpu.error else "")
    if not engine.reachable:
        return "cpu", "a GPU is there, but the Docker Engine does not answer"
    if not can_reserve_gpu(engine):
        return "cpu", "a GPU is there, but the engine has neither the nvidia runtime nor CDI devices"
    way = "the nvidia runtime" if "nvidia" in engine.runtimes else "CDI devices"
    count = f"{len(gpu.gpus)} x " if len(gpu.gpus) > 1 else ""
    return "gpu", f"{count}{gpu.gpus[0].name}, and the engine has {way}"
