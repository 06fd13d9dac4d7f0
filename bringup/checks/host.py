"""Checks of the machine: disk, memory, port and CPU. Pure."""

from __future__ import annotations

from bringup.checks.facts import HostFacts
from bringup.plan import Plan
from bringup.records import CheckRecord, Status

GIB = 2**30
# Bytes free where the engine keeps images, beside the weights. A build holds the image and BuildKit's cache of the
# wheels at once: the cpu image is 2.6 GB unpacked, the gpu image (the CUDA libraries) up to 12 GB.
BUILD_DISK = {"cpu": 6 * GIB, "gpu": 15 * GIB}
# To start an image that is there: compile caches, logs and the container's own layer.
START_DISK = 1 * GIB
# Bytes of host memory beside the weights: Python, torch and vLLM's processes. On a CPU they also hold the KV cache;
# on a GPU there are the CUDA context, pinned buffers and the weights' page cache while they load.
MEMORY = {"cpu": 4 * GIB, "gpu": 6 * GIB}


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def disk(facts: HostFacts, plan: Plan) -> CheckRecord:
    """There is room for the build, or for a start when the image is there."""
    if facts.image.present:
        need, what = START_DISK, "to start"
    else:  # the weights pass through the weights stage and then lie in the image
        need, what = BUILD_DISK[plan.flavour] + 2 * plan.expect.weights_bytes, "to build"
    where = facts.engine.root_dir or "the engine's directory"
    needed = f"{gib(need)} free in {where} {what}"
    if facts.disk_free is None:
        why = "the engine did not say where it keeps images" if facts.local else "the engine runs on another host"
        return CheckRecord(
            name="disk", status=Status.UNKNOWN, found=why, needed=needed, remedy="look at `df` on the engine's host"
        )
    found = f"{gib(facts.disk_free)} free"
    if facts.disk_free < need:
        remedy = f"free {gib(need - facts.disk_free)} or more: `docker system df`, then `docker builder prune`"
        return CheckRecord(name="disk", status=Status.FAIL, found=found, needed=needed, remedy=remedy)
    return CheckRecord(name="disk", status=Status.PASS, found=found, needed=needed)


def memory(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The server fits into memory."""
    need = MEMORY[plan.flavour] + plan.expect.weights_bytes
    needed = f"{gib(need)} available"
    if facts.memory is None or not facts.local:
        why = "the engine runs on another host" if not facts.local else "the system does not tell its memory"
        return CheckRecord(
            name="memory", status=Status.UNKNOWN, found=why, needed=needed, remedy="look at `free` on the engine's host"
        )
    found = f"{gib(facts.memory.available)} available of {gib(facts.memory.total)}"
    if facts.memory.available >= need:
        return CheckRecord(name="memory", status=Status.PASS, found=found, needed=needed)
    if facts.memory.total < need:
        remedy = "use a host with more memory, a smaller model, or a higher limit of this control group"
    elif facts.own_container is not None:
        found += ", some of it held by this project's own server"
        return CheckRecord(name="memory", status=Status.PASS, found=found, needed=needed)
    else:
        remedy = "stop what uses the memory (`docker stats`, `ps aux --sort -rss`)"
    return CheckRecord(name="memory", status=Status.FAIL, found=found, needed=needed, remedy=remedy)


def port(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The host port is free, or this project's own server has it."""
    place = f"[{plan.bind}]:{plan.port}" if ":" in plan.bind else f"{plan.bind}:{plan.port}"
    needed = f"{place} free"
    if facts.own_container is not None:
        found = f"held by this project's own server ({facts.own_container.name})"
        return CheckRecord(name="port", status=Status.PASS, found=found, needed=needed)
    if not facts.local:
        why = "the engine runs on another host"
        remedy = f"look at `ss -ltn sport = :{plan.port}` there"
        return CheckRecord(name="port", status=Status.UNKNOWN, found=why, needed=needed, remedy=remedy)
    if facts.port_holder is None:
        return CheckRecord(name="port", status=Status.PASS, found=f"{place} is free", needed=needed)
    remedy = f"stop it, or choose another with `--port` (`ss -ltnp sport = :{plan.port}` shows it)"
    if "cannot be listened on" in facts.port_holder:
        remedy = "give `--bind` an address of this host (`ip address` lists them)"
    return CheckRecord(
        name="port", status=Status.FAIL, found=f"{place}: {facts.port_holder}", needed=needed, remedy=remedy
    )


def cpu(facts: HostFacts, plan: Plan) -> CheckRecord:
    """A server on the CPU has the instructions that its build uses."""
    needed = "AVX2"
    if plan.flavour != "cpu":
        return CheckRecord(
            name="cpu", status=Status.SKIP, found=f"{facts.system.cpus} CPUs; the server uses a GPU", needed="nothing"
        )
    if facts.system.avx2 is None or not facts.local:
        why = "the engine runs on another host" if not facts.local else "the system does not tell the CPU's flags"
        remedy = "look for avx2 in /proc/cpuinfo of the engine's host"
        return CheckRecord(name="cpu", status=Status.UNKNOWN, found=why, needed=needed, remedy=remedy)
    if not facts.system.avx2:
        return CheckRecord(
            name="cpu",
            status=Status.FAIL,
            found="a CPU (or a virtual one) without AVX2",
            needed=needed,
            remedy="use another host, or pass the host's CPU through to the virtual machine",
        )
    found = f"{facts.system.cpus} CPUs with AVX2" + (" and AVX-512" if facts.system.avx512 else ", no AVX-512")
    return CheckRecord(name="cpu", status=Status.PASS, found=found, needed=needed)
