"""Checks of each GPU's state: memory, faults, heat, link and modes. Pure."""

from __future__ import annotations

import math

from bringup import fit, ledger, profile
from bringup.checks.facts import HostFacts
from bringup.checks.finding import Finding, absent, each, good, in_container, not_asked, per_gpu, record, untold
from bringup.checks.host import gib
from bringup.edge.gpu import GpuFacts
from bringup.edge.gpu_health import NA
from bringup.edge.node import Xid
from bringup.plan import Plan
from bringup.records import CheckRecord, Status

# NVIDIA's Xid catalogue: these ask for a reset or a reboot at once (or for a look at the hardware) ...
FATAL = {
    46: "the GPU stopped processing", 48: "a double-bit ECC error", 62: "the microcontroller halted",
    64: "a row could not be remapped", 74: "an NVLink error", 79: "the GPU has fallen off the bus",
    95: "an uncontained memory error", 109: "a context switch timed out", 110: "a security fault",
    119: "the GSP firmware timed out", 120: "the GSP firmware failed", 140: "an unrecovered ECC error",
    143: "the GPU could not be initialised",
}  # fmt: skip
# ... these are a program's own fault, or the end of one.
OF_PROGRAMS = {8, 13, 31, 32, 43, 45, 68, 69}
THROTTLED = {
    "hw-slowdown": "hardware slowdown", "hw-thermal": "too hot", "hw-power-brake": "power brake",
    "sw-thermal": "the driver holds its temperature",
}  # fmt: skip
NEAR = 5  # degrees Celsius below the slowdown
RESET = "end what uses the GPU, then `nvidia-smi --gpu-reset -i N`, or reboot"


def vram(facts: HostFacts, plan: Plan) -> CheckRecord:
    """What vLLM will claim of each GPU's memory is free, and the weights fit into it."""
    asked = profile.given(plan.argv, "--gpu-memory-utilization")
    try:
        share = float(asked) if asked else fit.UTILIZATION
    except ValueError:
        remedy = "give `--gpu-memory-utilization` a number between 0 and 1"
        return record("vram", "a share", [Finding(Status.FAIL, f"--gpu-memory-utilization is {asked!r}", remedy)])
    degree = profile.given(plan.argv, "--tensor-parallel-size", "-tp")
    weights = plan.expect.weights_bytes // (int(degree) if degree and degree.isdigit() and int(degree) else 1)
    needed = f"{share:g} of the memory free, and the CUDA context's {gib(fit.CONTEXT)}; {gib(weights)} for the weights"

    def judge(card: GpuFacts) -> Finding:
        free, claimed = card.memory_total - card.memory_used, share * card.memory_total
        found = f"{gib(free)} free of {gib(card.memory_total)}; vLLM claims {gib(claimed)}"
        if weights > claimed:
            remedy = f"serve a smaller model, or use a GPU with more memory (`bringup models fit {plan.model}`)"
            return Finding(Status.FAIL, f"{found}; the weights take {gib(weights)}", remedy)
        if claimed + fit.CONTEXT <= free:
            return _cache(card, plan, found)
        if facts.own_container is not None:
            return good(f"{found}; this project's own server holds memory")
        highest = fit.highest_utilization(card.memory_total)
        if share > highest:
            remedy = f"lower `--gpu-memory-utilization` to {highest:.2f} or less: the CUDA context takes the rest"
            return Finding(Status.FAIL, found, remedy)
        possible = math.floor((free - fit.CONTEXT) / card.memory_total * 100) / 100
        enough = possible * card.memory_total > weights
        lower = f", or lower `--gpu-memory-utilization` to {possible:.2f}" if enough else ""
        return Finding(Status.FAIL, f"{found}; {_holders(card)}", f"end what holds the rest (`nvidia-smi`){lower}")

    return per_gpu("vram", needed, facts, plan, judge)


def _cache(card: GpuFacts, plan: Plan, found: str) -> Finding:
    """What `models fit` says of the share: an estimate, so it only warns; for one GPU only."""
    weights = fit.weights(plan.shape, plan.expect.weights_bytes)
    made = ledger.predict(plan.shape, weights, plan.argv, card.memory_total)
    if made is None or profile.given(plan.argv, "--tensor-parallel-size", "-tp") not in (None, "1"):
        return good(found)
    holds = f"{found}; by estimate a KV cache of {made.kv_tokens} tokens"
    if made.fits:
        return good(holds)
    return Finding(Status.WARN, f"{holds}, less than one request of {made.max_model_len}", " or ".join(made.advice))


def _holders(card: GpuFacts) -> str:
    processes = card.health.processes
    if processes is None:
        return "NVML does not tell who holds the rest"
    if not processes:
        return "no process of this host is seen to hold the rest"
    most = sorted(processes, key=lambda p: -(p.used or 0))
    named = [f"{p.name or 'a program'} (pid {p.pid}) {gib(p.used) if p.used is not None else '?'}" for p in most[:3]]
    return f"held by {', '.join(named)}" + (f" and {len(most) - 3} more" if len(most) > 3 else "")


def ecc(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The memory has had no error that could not be corrected since the driver was loaded."""

    def judge(card: GpuFacts) -> Finding:
        health = card.health
        if health.ecc == NA:
            return absent("this card has no ECC: errors of its memory are not seen")
        if isinstance(health.uncorrected, int) and health.uncorrected:
            return Finding(
                Status.FAIL, f"{health.uncorrected} uncorrected ECC errors since the driver was loaded", RESET
            )
        if health.ecc is None or (not isinstance(health.uncorrected, int) and health.ecc):
            return untold("the ECC errors")
        if not health.ecc:
            return Finding(
                Status.WARN, "ECC is off: errors of the memory are not seen", "`nvidia-smi -e 1`, then reboot"
            )
        ever = health.uncorrected_lifetime
        return good(
            "no uncorrected ECC errors" + (f" now, {ever} in the card's life" if isinstance(ever, int) and ever else "")
        )

    return per_gpu("ecc", "ECC on, no uncorrected error since the driver was loaded", facts, plan, judge)


def remap(facts: HostFacts, plan: Plan) -> CheckRecord:
    """No broken memory waits to be replaced, and none could not be."""

    def judge(card: GpuFacts) -> Finding:
        health = card.health
        if health.remap_failed is True:
            remedy = "have the card replaced: `nvidia-smi -q -d ROW_REMAPPER` is what the vendor asks for"
            return Finding(Status.FAIL, "a row of the memory could not be remapped", remedy)
        pending = [
            what
            for what, flag in (
                ("a row to be remapped", health.remap_pending),
                ("a page to be retired", health.retired_pending),
            )
            if flag is True
        ]
        if pending:
            return Finding(Status.WARN, f"{' and '.join(pending)} at the next reset", RESET)
        flags = (health.remap_failed, health.remap_pending, health.retired_pending)
        if None in flags:
            return untold("what memory waits to be replaced")
        if all(flag == NA for flag in flags):
            return absent("this card neither remaps rows nor retires pages")
        rows = health.remapped
        return good(
            f"{rows} rows were remapped, none waits"
            if isinstance(rows, int) and rows
            else "nothing waits to be replaced"
        )

    return per_gpu("remap", "no row remapping or page retirement that waits or failed", facts, plan, judge)


def xid(facts: HostFacts, plan: Plan) -> CheckRecord:
    """Neither the driver nor the kernel's log reports an error of a GPU that wants a reset."""
    needed = "no error in the kernel's log that wants a reset, no recovery that the driver asks for"
    if why := not_asked(facts, plan):
        return record("xid", needed, [why])
    seen = facts.node.xids

    def judge(card: GpuFacts) -> Finding:
        recovery = card.health.recovery
        if recovery not in (None, NA, "none"):
            return Finding(Status.FAIL, f"the driver asks for: {recovery}", RESET)
        if seen is None and in_container(facts) and recovery == "none":
            return absent("the kernel's log is not a container's to read; the driver asks for no recovery")
        if seen is None:
            return Finding(
                Status.UNKNOWN, "the kernel's log cannot be read", "run it as root (or look at `sudo dmesg | grep Xid`)"
            )
        mine = [x for x in seen if card.health.bus in (None, x.bus)]
        fatal = [x for x in mine if x.code in FATAL]
        if fatal and recovery != "none":
            return Finding(Status.FAIL, _told(fatal), RESET)
        if recovery is None:
            return untold("whether the GPU wants to be reset")
        if fatal:
            return Finding(Status.WARN, f"{_told(fatal)}; the driver asks for no recovery now", RESET)
        other = [x for x in mine if x.code not in OF_PROGRAMS]
        if other:
            return Finding(Status.WARN, _told(other), "look them up: https://docs.nvidia.com/deploy/xid-errors/")
        since = f" (it begins {facts.node.log_from:.0f} s after boot)" if (facts.node.log_from or 0) > 60 else ""
        return good(f"{_told(mine)}, a program's own fault" if mine else f"no Xid in the kernel's log{since}")

    findings = each(facts, plan, judge)
    here = {card.health.bus for card in facts.gpu.gpus}
    lost = [x for x in seen or () if None not in here and x.bus not in here and x.code in FATAL]
    if lost:
        findings.append(
            Finding(
                Status.FAIL,
                f"{_told(lost)} of {lost[0].bus}, which NVML does not show",
                "reboot; replace the GPU if it comes back",
            )
        )
    return record("xid", needed, findings)


def _told(seen: list[Xid]) -> str:
    return ", ".join(
        f"Xid {x.code}"
        + (f" ({FATAL[x.code]})" if x.code in FATAL else "")
        + (f" {x.count} times" if x.count > 1 else "")
        for x in seen
    )


def throttle(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The hardware does not hold the clocks down."""

    def judge(card: GpuFacts) -> Finding:
        clocks = card.health.clocks
        if clocks is None:
            return untold("what holds its clocks")
        if clocks == NA:
            return absent("this card does not say what holds its clocks")
        held = [THROTTLED[c] for c in clocks if c in THROTTLED]
        if held:
            remedy = "look at cooling and power: `nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER`"
            return Finding(Status.WARN, f"clocks are held down: {', '.join(held)}", remedy)
        return good("nothing holds the clocks" if not clocks else f"clocks: {', '.join(clocks)}")

    return per_gpu("throttle", "no slowdown by heat, power brake or hardware", facts, plan, judge)


def temperature(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The GPU is cooler than where it slows down."""

    def judge(card: GpuFacts) -> Finding:
        health = card.health
        now, remedy = health.temperature, "look at fans and air flow; wait until it has cooled down"
        if now == NA:
            return absent("this card has no thermometer")
        if not isinstance(now, int):
            return untold("its temperature")
        margins = [
            m
            for m in (health.margin, health.slowdown - now if isinstance(health.slowdown, int) else health.slowdown)
            if m != NA
        ]
        left = [m for m in margins if isinstance(m, int)]
        if not margins:
            return absent(f"{now} C; this card does not say where it slows down")
        if left and min(left) <= 0:
            return Finding(Status.WARN, f"{now} C: it slows down", remedy)
        if left and min(left) < NEAR:
            return Finding(Status.WARN, f"{now} C, {min(left)} C below its slowdown", remedy)
        if len(left) < len(margins):
            return untold("where it slows down")
        return good(f"{now} C, {min(left)} C below its slowdown")

    return per_gpu("temperature", f"{NEAR} C or more below the slowdown", facts, plan, judge)


def pcie(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The link to the host has all its lanes, and its speed when it is used."""

    def judge(card: GpuFacts) -> Finding:
        health = card.health
        signals = (health.pcie_width, health.pcie_width_max, health.pcie_generation, health.pcie_generation_max)
        width, widest, generation, newest = signals
        if isinstance(width, int) and isinstance(widest, int) and width < widest:
            remedy = "look at the slot and the riser: weights load slower, tokens come as fast"
            return Finding(Status.WARN, f"x{width} of x{widest}, generation {generation}", remedy)
        if None in signals:
            return untold("its PCIe link")
        if NA in signals:
            return absent("this card has no PCIe link that it tells of")
        assert isinstance(generation, int) and isinstance(newest, int)  # noqa: S101, PT018 - None and NA are above
        link = f"x{width}, generation {generation}"
        if generation >= newest:
            return good(link)
        if health.clocks is None or health.clocks == NA:
            return Finding(
                Status.UNKNOWN,
                f"{link} of {newest}; whether it is idle is not told",
                "look at it under load: `nvidia-smi -q -d PERFORMANCE`",
            )
        if "idle" in health.clocks:
            return good(f"{link} of {newest} while idle (it rises under load)")
        return Finding(
            Status.WARN, f"{link} of {newest} under load", "look at the BIOS's setting of the slot, and at the riser"
        )

    return per_gpu("pcie", "all lanes; the highest generation under load", facts, plan, judge)


def mig(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The card is whole, or has instances to compute on."""

    def judge(card: GpuFacts) -> Finding:
        health = card.health
        if health.mig == NA:
            return absent("this card has no MIG")
        if health.mig is None or health.mig_pending is None:
            return untold("its MIG mode")
        if health.mig != health.mig_pending:
            wanted = "on" if health.mig_pending else "off"
            return Finding(Status.WARN, f"MIG will be {wanted} after a reset", RESET)
        if not health.mig:
            return good("MIG is off")
        if health.mig_instances is None:
            return untold("its MIG instances")
        if not health.mig_instances:
            remedy = "`nvidia-smi mig -cgi PROFILE -C` makes an instance; `nvidia-smi -mig 0` gives the whole card back"
            return Finding(Status.FAIL, "MIG is on, and there is no instance to compute on", remedy)
        remedy = "reserve an instance by its UUID (`nvidia-smi -L`); the figures of these checks are the whole card's"
        return Finding(Status.WARN, f"MIG is on, with {health.mig_instances} instances", remedy)

    return per_gpu("mig", "MIG off, or an instance to reserve", facts, plan, judge)


def compute_mode(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The GPU lets a new process compute."""

    def judge(card: GpuFacts) -> Finding:
        mode, processes = card.health.compute_mode, card.health.processes
        remedy = "`nvidia-smi -c DEFAULT` lets any process compute"
        if mode is None:
            return untold("its compute mode")
        if mode == NA:
            return absent("this card has no compute modes")
        if mode == "default":
            return good("default")
        if not mode.startswith("exclusive"):
            return Finding(Status.FAIL, f"compute mode {mode}", remedy)
        if facts.own_container is not None:
            return Finding(Status.WARN, f"{mode}; this project's own server has it", remedy)
        if processes is None:
            return untold("who has it exclusively")
        if processes:
            return Finding(Status.FAIL, f"{mode}, and {_holders(card)}", remedy)
        return Finding(Status.WARN, f"{mode}: one process at a time", remedy)

    return per_gpu("compute-mode", "default", facts, plan, judge)


def persistence(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The driver keeps the GPU initialised between uses."""

    def judge(card: GpuFacts) -> Finding:
        mode = card.health.persistence
        if mode is None:
            return untold("its persistence mode")
        if mode == NA:
            return absent("this driver has no persistence mode")
        if mode:
            return good("on")
        remedy = "enable nvidia-persistenced (or `nvidia-smi -pm 1`)"
        return Finding(Status.WARN, "off: the first use after a pause initialises the GPU again, some seconds", remedy)

    return per_gpu("persistence", "on", facts, plan, judge)
