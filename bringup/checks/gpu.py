"""Checks of what a server on a GPU stands on: driver, architecture, device files, engine, toolkit, torch. Pure."""

from __future__ import annotations

from bringup.checks.engine import LABEL_VLLM, dotted, version
from bringup.checks.facts import HostFacts, can_reserve_gpu
from bringup.checks.finding import Finding, absent, elsewhere, good, in_container, not_asked, per_gpu, record
from bringup.edge.gpu import NO_BINDINGS, GpuFacts
from bringup.plan import Plan
from bringup.records import CheckRecord, Status
from bringup.settings import LOCAL

CUDA = "13.0"  # of the gpu lock; a test compares
# The oldest driver of each CUDA: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580,)}
# Who may use a newer libcuda than the driver's: https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html
DATA_CENTRE = ("tesla", "nvidia")  # NVML's brands of A100, H100, L4, T4 ...
# torch 2.13.0+cu130's `torch._C._cuda_getArchFlags()`; vLLM 0.32.0's libraries have the same and 8.9. No PTX.
ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))
BFLOAT16 = (8, 0)
TOOLKIT = (1, 17, 8)  # CVE-2024-0132 is fixed in 1.16.2, CVE-2025-23359 in 1.17.4, CVE-2025-23266 in 1.17.8

_INSTALL_TOOLKIT = (
    "install nvidia-container-toolkit, run `nvidia-ctk runtime configure --runtime=docker`, restart Docker"
)
_RESET = "look at `dmesg | grep Xid`; reset the GPU, reboot or replace it"


def gpu(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The driver answers, and every GPU that it counts can be read."""
    return record("gpu", "a GPU that the NVIDIA driver can read", [_gpu(facts, plan)])


def _gpu(facts: HostFacts, plan: Plan) -> Finding:
    state = facts.gpu
    if why := elsewhere(facts, plan):
        return why
    if state.error == NO_BINDINGS:
        return Finding(Status.UNKNOWN, NO_BINDINGS, "install bringup with its dependencies (scripts/quickstart)")
    if not state.available:
        return Finding(
            Status.FAIL, f"no NVIDIA driver answers (NVML: {state.error or 'no answer'})", _driver_remedy(state.error)
        )
    if state.error:
        return Finding(Status.FAIL, state.error, _RESET)
    if not state.gpus:
        return Finding(
            Status.FAIL, "the NVIDIA driver shows no GPU", "look at `nvidia-smi -L` and `lspci | grep -i nvidia`"
        )
    if state.count is None:
        return Finding(Status.UNKNOWN, "NVML does not count its GPUs", "look at `nvidia-smi -L`")
    if state.count != len(state.gpus):
        return Finding(Status.FAIL, f"{len(state.gpus)} of {state.count} GPUs can be read", _RESET)
    names = [f"{g.name} ({g.memory_total / 2**30:.1f} GiB, {g.compute_capability})" for g in state.gpus]
    return good(", ".join(f"{n} x {name}" if (n := names.count(name)) > 1 else name for name in dict.fromkeys(names)))


def _driver_remedy(error: str) -> str:
    if "mismatch" in error.lower():
        return "the driver was updated under a running kernel module: reboot, or reload the nvidia modules"
    return "install the NVIDIA driver and see that `nvidia-smi` works, or use `--flavour cpu`"


def cuda_of(facts: HostFacts, plan: Plan) -> str | None:
    """The CUDA that the server's torch is built for: what torch said of itself, else what the lock pins.

    An image that is no build of this lock has only what its base says, or None.
    """
    if facts.torch is not None and facts.torch.cuda:
        return facts.torch.cuda
    if plan.target == LOCAL:
        return facts.place.interpreter.cuda if facts.place and facts.place.interpreter else None
    if not facts.image.id or facts.image.labels.get(LABEL_VLLM) == plan.expect.vllm_version:
        return CUDA  # where none is seen, one will be built
    return facts.image.cuda


def driver(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The driver is new enough for the CUDA of the image."""
    cuda = cuda_of(facts, plan)
    floor = DRIVERS.get((version(cuda) or (0,))[0])
    needed = f"a driver that runs CUDA {cuda}" + (f": >= {dotted(floor)}" if floor else "")
    return record("driver", needed, [_driver(facts, plan, cuda, floor)])


def _driver(facts: HostFacts, plan: Plan, cuda: str | None, floor: tuple[int, ...] | None) -> Finding:
    state = facts.gpu
    # a driver without a usable GPU has a version all the same
    if why := (elsewhere if state.driver else not_asked)(facts, plan):
        return why
    numbers = version(state.driver)
    if numbers is None:
        return Finding(Status.UNKNOWN, f"a driver of version {state.driver!r}", "look at `nvidia-smi`")
    found = f"driver {state.driver}" + (f" (CUDA {state.cuda})" if state.cuda else "")
    if floor is None:
        remedy = "`bringup doctor --in-image` asks the image for its CUDA"
        return Finding(Status.UNKNOWN, f"{found}; the image's CUDA is {cuda or 'not known'}", remedy)
    if numbers >= floor:
        return good(found)
    if facts.torch is not None and facts.torch.computes:
        remedy = f"a driver >= {dotted(floor)} does without the compatibility package"
        return Finding(Status.WARN, f"{found}; torch computes all the same, through cuda-compat", remedy)
    remedy = f"install the NVIDIA driver {dotted(floor)} or newer and reboot"
    if in_container(facts):
        remedy = f"take a machine whose host has the NVIDIA driver {dotted(floor)} or newer: a pod cannot change it"
    if facts.gpu.gpus and all(g.health.brand in DATA_CENTRE for g in facts.gpu.gpus):
        package = "-".join(["cuda-compat", *str(cuda).split(".")[:2]])
        remedy += f"; on data-centre GPUs like these, {package} in the image can stand in for it (docs/doctor.md)"
    return Finding(Status.FAIL, found, remedy)


def capability(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The wheels have code for the GPU's architecture."""
    needed = "compute capability " + ", ".join(map(dotted, ARCHITECTURES)) + ", or newer with the same first number"

    def judge(card: GpuFacts) -> Finding:
        numbers = version(card.compute_capability)
        found = f"{card.name} has compute capability {card.compute_capability}"
        if numbers is None:
            return Finding(Status.UNKNOWN, found, "look at `nvidia-smi --query-gpu=compute_cap --format=csv`")
        if not any(known[0] == numbers[0] and known <= numbers for known in ARCHITECTURES):
            remedy = "use a GPU of the Turing generation or newer, or `--flavour cpu`"
            if numbers > ARCHITECTURES[0]:
                remedy = "build the image with wheels that have code for it, or use another GPU"
            return Finding(Status.FAIL, found, remedy)
        if numbers < BFLOAT16:
            remedy = "vLLM serves float16 instead, and answers can differ; for bfloat16 use an Ampere GPU or newer"
            return Finding(Status.WARN, f"{found}: no bfloat16", remedy)
        return good(found)

    return per_gpu("capability", needed, facts, plan, judge)


def devices(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The driver's device files are there for the containers to be given."""
    return record("devices", "/dev/nvidiactl, /dev/nvidia-uvm and a /dev/nvidiaN of each GPU", [_devices(facts, plan)])


def _devices(facts: HostFacts, plan: Plan) -> Finding:
    node = facts.node
    if why := not_asked(facts, plan):
        return why
    if node.wsl:
        return absent("WSL: GPUs are reached through /dev/dxg")
    if node.control is None or node.uvm is None or node.cards is None:
        return Finding(Status.UNKNOWN, "/dev was not looked at", "look at `ls /dev/nvidia*`")
    create = "run `nvidia-modprobe -u -c 0` (it loads the module and makes the files)"
    minors = [g.health.minor for g in facts.gpu.gpus]
    lacking = [] if node.control else ["/dev/nvidiactl"]
    lacking += [f"/dev/nvidia{n}" for n in minors if isinstance(n, int) and n not in node.cards]
    if lacking:
        return Finding(Status.FAIL, f"no {', '.join(lacking)}", create)
    if not node.uvm:
        # the nvidia runtime loads nvidia-uvm itself at the first container; a CDI specification lists what is there
        # in a container of its own nobody does it for a server
        status = Status.WARN if "nvidia" in facts.engine.runtimes else Status.FAIL
        return Finding(status, "no /dev/nvidia-uvm, without which CUDA does not start", create)
    if not all(isinstance(n, int) for n in minors):
        return Finding(Status.UNKNOWN, "NVML does not tell each GPU's minor number", "look at `nvidia-smi -q`")
    cards = [f"/dev/nvidia{n}" for n in node.cards] if len(node.cards) < 4 else [f"{len(node.cards)} x /dev/nvidiaN"]
    return good(", ".join(["/dev/nvidiactl", "/dev/nvidia-uvm", *cards]))


def runtime(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The engine has a way to give a container a GPU."""
    return record("runtime", "the nvidia runtime, or CDI devices of nvidia.com/gpu", [_runtime(facts, plan)])


def _runtime(facts: HostFacts, plan: Plan) -> Finding:
    engine = facts.engine
    if plan.flavour != "gpu":
        return absent("the server uses the CPU")
    if not engine.reachable:
        return Finding(Status.UNKNOWN, "the Docker Engine did not say", "make the check `engine` pass first")
    if not can_reserve_gpu(engine):
        return Finding(Status.FAIL, "the engine has neither the nvidia runtime nor CDI devices", _INSTALL_TOOLKIT)
    ways = ["the nvidia runtime"] if "nvidia" in engine.runtimes else []
    return good(
        " and ".join([*ways, *([f"CDI devices {', '.join(engine.gpu_devices)}"] if engine.gpu_devices else [])])
    )


def toolkit(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The container toolkit is none of those that let an image break out of its container."""
    return record("toolkit", f"nvidia-container-toolkit >= {dotted(TOOLKIT)}", [_toolkit(facts, plan)])


def _toolkit(facts: HostFacts, plan: Plan) -> Finding:
    found, engine = facts.node.toolkit, facts.engine
    look = "look at `nvidia-ctk --version` on the engine's host"
    if why := elsewhere(facts, plan):
        return why
    if found is None:
        return Finding(Status.UNKNOWN, "nvidia-ctk does not say its version", look)
    if not found:
        if not engine.reachable or "nvidia" in engine.runtimes:
            return Finding(Status.UNKNOWN, "nvidia-ctk is not on the PATH", look)
        if engine.gpu_devices:
            return absent("no toolkit here; the CDI devices do without it")
        return Finding(Status.FAIL, "nvidia-container-toolkit is not installed", _INSTALL_TOOLKIT)
    numbers = version(found)
    if numbers is None:
        return Finding(Status.UNKNOWN, f"nvidia-ctk {found}", look)
    if numbers >= TOOLKIT:
        return good(f"nvidia-container-toolkit {found}")
    known = "CVE-2025-23266" if numbers >= (1, 16, 2) else "CVE-2024-0132, CVE-2025-23266"
    remedy = "upgrade nvidia-container-toolkit; until then run no image that you did not build"
    return Finding(Status.WARN, f"nvidia-container-toolkit {found}: an image can break out ({known})", remedy)


def torch(facts: HostFacts, plan: Plan) -> CheckRecord:
    """In the image, with the GPU reserved, torch computes something."""
    return record("torch", "torch.cuda.is_available() and a sum on the GPU, in the image", [_torch(facts, plan)])


def _torch(facts: HostFacts, plan: Plan) -> Finding:
    seen = facts.torch
    if plan.flavour != "gpu":
        return absent("the server uses the CPU")
    if seen is None:
        return absent("not asked; `--in-image` starts a container for it")
    if seen.started is None:
        remedy = f"make the checks `engine` and `image` pass first (`{plan.build_command}`)"
        return Finding(Status.UNKNOWN, seen.error or "it could not be asked", remedy)
    if not seen.started:
        return Finding(
            Status.FAIL, f"no container with a GPU: {seen.error}", "make the checks `runtime` and `devices` pass first"
        )
    if seen.available is None:
        remedy = f"start it by hand: `docker run --rm -it --gpus all --entrypoint /opt/venv/bin/python {plan.image}`"
        return Finding(Status.UNKNOWN, f"torch did not say: {seen.error or 'no answer'}", remedy)
    built = f"torch {seen.torch} (CUDA {seen.cuda})"
    if not seen.available or not seen.computes:
        found = f"{built} {'sees the GPU, but cannot use it' if seen.available else 'has no GPU'}"
        remedy = "see `driver` and `devices`; errors 803 and 804 come from compatibility libraries that do not fit"
        return Finding(Status.FAIL, f"{found}: {seen.error or 'without an error'}", remedy)
    return good(f"{built} computes on {', '.join(seen.devices) or 'the GPU'}")
