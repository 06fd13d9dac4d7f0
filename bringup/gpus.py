"""Which GPUs a server is given, in Docker's words (`settings.gpus`), and what Compose and the engine call the same.

`None` asks for nothing in particular: the first GPU. Pure.
"""

from __future__ import annotations

import json
from typing import Any

from bringup.errors import UsageError

CDI = "nvidia.com/gpu="  # vendor and class of the devices in the spec that `nvidia-ctk cdi generate` writes


def request(asked: str | None, *, cdi: bool) -> dict[str, Any]:
    """The item of `deploy.resources.reservations.devices` that reserves them.

    CDI knows names only, so a number of GPUs is as many indices from 0.
    """
    kind, _, names = (asked or "1").partition("=")
    ids = names.split(",") if kind == "device" else None
    if cdi:
        ids = ids or (["all"] if kind == "all" else [str(index) for index in range(int(kind))])
        return {"driver": "cdi", "device_ids": [CDI + name for name in ids], "capabilities": ["gpu"]}
    what = {"device_ids": ids} if ids else {"count": "all" if kind == "all" else int(kind)}
    return {"driver": "nvidia", **what, "capabilities": ["gpu"]}


def override(service: str, asked: str | None, *, cdi: bool) -> str:
    """A compose file that sets the service's reservation, whatever the files before it reserve."""
    devices = json.dumps([request(asked, cdi=cdi)])
    return (
        f"services:\n  {service}:\n    deploy:\n      resources:\n        reservations:\n"
        f"          devices: !override {devices}\n"  # without the tag compose appends to the list
    )


def inspected(asked: str | None) -> list[dict[str, Any]]:
    """What an engine would show of a container that was given them; `of_container` reads it back."""
    kind, _, names = (asked or "1").partition("=")
    if kind == "device":
        return [{"DeviceIDs": names.split(",")}]
    return [{"Count": -1 if kind == "all" else int(kind)}]


def visible(asked: str | None) -> str | None:
    """CUDA_VISIBLE_DEVICES for a process that is to use these alone; None: as it is.

    Raises:
        UsageError: a MIG device by its place, which CUDA does not know.
    """
    kind, _, names = (asked or "all").partition("=")
    if kind == "all":
        return None
    if kind != "device":
        return ",".join(str(index) for index in range(int(kind)))
    if ":" in names:
        raise UsageError(f"--gpus {asked}: CUDA knows a MIG device by its UUID only", hint="`nvidia-smi -L` lists them")
    return names


def of_container(inspected: dict[str, Any]) -> str | None:
    """What a container was given, by the engine's own description of it; None where it has no reservation."""
    for found in (inspected.get("HostConfig") or {}).get("DeviceRequests") or []:
        ids = [str(name).removeprefix(CDI) for name in found.get("DeviceIDs") or []]
        if ids:
            return "all" if "all" in ids else "device=" + ",".join(ids)
        if count := found.get("Count"):
            return "all" if count < 0 else str(count)
    return None
