"""What the checks of the GPUs have in common: when they are not asked, and how the findings of several GPUs are one.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bringup.checks.facts import HostFacts
from bringup.edge.gpu import GpuFacts
from bringup.plan import Plan
from bringup.records import CheckRecord, Status

# The worst first. What is not known weighs more than what is known to do no harm.
RANK = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.PASS, Status.SKIP)


@dataclass(frozen=True)
class Finding:
    """What a check found, of one GPU or of all, and what to do about it."""

    status: Status
    found: str
    remedy: str = ""


def good(found: str) -> Finding:
    """Nothing to do."""
    return Finding(Status.PASS, found)


def absent(found: str) -> Finding:
    """This hardware has no such thing: there is nothing to pass, and nothing missing."""
    return Finding(Status.SKIP, found)


def untold(what: str) -> Finding:
    """A signal that should be there is missing."""
    return Finding(Status.UNKNOWN, f"NVML does not tell {what}", "look at `nvidia-smi -q`")


def record(name: str, needed: str, findings: Iterable[Finding]) -> CheckRecord:
    """The worst of the findings, with all that are as bad."""
    all_of_them = list(findings)
    worst = min((f.status for f in all_of_them), key=RANK.index)
    same = [f for f in all_of_them if f.status is worst]
    return CheckRecord(
        name=name,
        status=worst,
        found="; ".join(dict.fromkeys(f.found for f in same)),
        needed="nothing" if worst is Status.SKIP else needed,
        remedy=same[0].remedy,
    )


def elsewhere(facts: HostFacts, plan: Plan) -> Finding | None:
    """Why this host's GPUs are none of the plan's business, if they are not."""
    if plan.flavour != "gpu":
        return absent("the server uses the CPU")
    if not facts.local:
        return Finding(Status.UNKNOWN, "the engine runs on another host", "look at `nvidia-smi -q` there")
    return None


def in_container(facts: HostFacts) -> bool:
    """Whether this is the inside of a container, which cannot change its host."""
    return facts.place is not None and facts.place.container != ""


def not_asked(facts: HostFacts, plan: Plan) -> Finding | None:
    """Why a GPU's signals cannot be judged, if they cannot."""
    if why := elsewhere(facts, plan):
        return why
    if not facts.gpu.gpus:
        return Finding(Status.UNKNOWN, "NVML shows no GPU", "make the check `gpu` pass first")
    return None


def reserved(asked: str | None, gpus: tuple[GpuFacts, ...]) -> frozenset[int]:
    """The indices of the GPUs that the server gets: `all`, a number of them, `device=ID,ID` (index, UUID, CDI name).

    The engine counts from the first one, and gives one where nothing was asked. Those that are named and not there
    leave all to be judged.
    """
    indices = sorted(gpu.index for gpu in gpus)
    if asked == "all":
        return frozenset(indices)
    kind, _, names = (asked or "1").partition("=")
    if kind != "device":
        return frozenset(indices[: int(kind)] if kind.isdigit() else indices)
    wanted = {name.strip().removeprefix("nvidia.com/gpu=") for name in names.split(",")}
    found = frozenset(gpu.index for gpu in gpus if {str(gpu.index), gpu.uuid} & wanted)
    return found or frozenset(indices)


def card(asked: str | None, gpus: tuple[GpuFacts, ...]) -> int | None:
    """Bytes of the first GPU that the server gets; None without one."""
    mine = reserved(asked, gpus)
    return next((gpu.memory_total for gpu in gpus if gpu.index in mine), None)


def per_gpu(name: str, needed: str, facts: HostFacts, plan: Plan, judge: Callable[[GpuFacts], Finding]) -> CheckRecord:
    """A check that looks at each GPU by itself."""
    if why := not_asked(facts, plan):
        return record(name, needed, [why])
    return record(name, needed, each(facts, plan, judge))


def each(facts: HostFacts, plan: Plan, judge: Callable[[GpuFacts], Finding]) -> list[Finding]:
    """The findings of all GPUs; one that not all share names its GPU, one that the server does not get only warns."""
    mine = reserved(plan.gpus, facts.gpu.gpus)
    judged = [(gpu, judge(gpu)) for gpu in facts.gpu.gpus]
    if len({(f.status, f.found) for _, f in judged}) == 1:
        return [f for _, f in judged]
    findings = []
    for gpu, f in judged:
        if gpu.index in mine:
            findings.append(Finding(f.status, f"GPU {gpu.index}: {f.found}", f.remedy))
        elif f.status in (Status.FAIL, Status.UNKNOWN, Status.WARN):
            findings.append(Finding(Status.WARN, f"GPU {gpu.index}, not reserved: {f.found}", f.remedy))
    return findings
