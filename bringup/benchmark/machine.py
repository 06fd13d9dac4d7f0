"""Which machine and which server a figure belongs to, asked of the container: it may run on another host."""

from __future__ import annotations

import os
from typing import Any

from bringup import profile
from bringup.benchmark.figures import cpu_model, server_settings
from bringup.errors import BringupError
from bringup.server import Container
from bringup.workflow import Run

QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]


def machine(run: Run, container: Container) -> dict[str, Any]:
    """GPU names (with driver and memory, as nvidia-smi in the container says them), CPU, CPUs; None: not told."""
    gpus = None
    if run.plan.flavour == "gpu":
        text = _said(container, QUERY)
        gpus = [line.strip() for line in text.splitlines() if line.strip()] if text else None
    processors = _said(container, ["nproc"]) or ""
    return {
        "gpus": gpus if run.plan.flavour == "gpu" else [],
        "cpu": cpu_model(_said(container, ["cat", "/proc/cpuinfo"]) or ""),
        "cpus": int(processors) if processors.strip().isdigit() else None,
        "system": run.host.system.system if run.host.local else None,
        "kernel": (_said(container, ["uname", "-r"]) or "").strip() or None,
    }


def _said(container: Container, argv: list[str]) -> str | None:
    try:
        code, output = container.execute(argv)
    except BringupError:
        return None
    return output if code == 0 else None


def line(seen: dict[str, Any]) -> str:
    """The machine for people."""
    cpu = f"{seen['cpu'] or 'a CPU that does not say its name'}, {seen['cpus'] or '?'} CPUs"
    if seen["gpus"] is None:
        return f"a GPU that could not be asked; {cpu}"
    return f"{'; '.join(seen['gpus'])}; {cpu}" if seen["gpus"] else f"no GPU; {cpu}"


def load(run: Run) -> float | None:
    """Processes that ran or wanted to in the last minute (getloadavg(3)); None where the engine is another host."""
    return os.getloadavg()[0] if run.host.local else None


def warn_if_busy(run: Run, before: float | None) -> None:
    """Say so when something else takes more than half of the CPUs: the figures would be of both."""
    if before is not None and before > run.host.system.cpus / 2:
        run.watch.say(
            f"the machine is busy (load {before:.1f} on {run.host.system.cpus} CPUs): the figures will spread"
        )


def image_of(container: Container) -> str:
    """The id of the image it was made from; empty where the container is gone."""
    try:
        return container.state().image_id
    except BringupError:
        return ""


def server(run: Run, container: Container) -> dict[str, Any]:
    """What serves: image, flavour, settings of the running container, and the profile that they come to."""
    raw = container.inspect()
    settings = server_settings((raw.get("Config") or {}).get("Env") or [])
    return {
        "image": raw.get("Image"),
        "flavour": run.plan.flavour,
        "profile": profile.chosen(settings.get("BRINGUP_PROFILE") or "auto", run.plan.flavour),
        "settings": settings,
    }
