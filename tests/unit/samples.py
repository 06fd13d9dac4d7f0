"""Facts of a good host, for the tests of the checks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bringup.catalog import VLLM_VERSION, Model
from bringup.checks.facts import HostFacts, ImageFacts
from bringup.edge.docker import ContainerState, EngineFacts
from bringup.edge.gpu import GpuFacts, GpuState
from bringup.edge.gpu_health import NA, GpuHealth
from bringup.edge.host import HostInfo, Memory
from bringup.edge.node import NodeFacts
from bringup.plan import Plan, make_plan
from bringup.settings import Settings

GIB = 2**30

ENGINE = EngineFacts(
    reachable=True, version="28.5.2+dfsg4", compose="2.40.3-4", buildx="github.com/docker/buildx v0.29.1 a1b2c3d",
    architecture="x86_64", root_dir="/var/lib/docker", runtimes=("io.containerd.runc.v2", "runc"),
)  # fmt: skip
NO_ENGINE = EngineFacts(reachable=False, error="the Docker Engine does not answer: FileNotFoundError")
HEALTHY = GpuHealth(
    brand="nvidia", bus="0000:00:06", minor=0, mig=False, mig_pending=False, mig_instances=NA, compute_mode="default",
    persistence=True, ecc=True, uncorrected=0, uncorrected_lifetime=0, remapped=0, remap_pending=False,
    remap_failed=False, retired_pending=NA, recovery="none", clocks=("idle",), temperature=40, slowdown=NA, margin=46,
    pcie_generation=5, pcie_generation_max=5, pcie_width=16, pcie_width_max=16, processes=(),
)  # fmt: skip
NODE = NodeFacts(control=True, uvm=True, cards=(0,), wsl=False, toolkit="1.18.1", xids=(), log_from=0.0)
H100 = GpuFacts(
    index=0, uuid="GPU-0", name="NVIDIA H100", memory_total=80 * GIB, memory_used=GIB // 2, compute_capability="9.0",
    health=HEALTHY,
)  # fmt: skip
GPU = GpuState(available=True, driver="580.95.05", cuda="13.0", count=1, gpus=(H100,))
NO_GPU = GpuState(available=False, error="NVML Shared Library Not Found")
OWN = ContainerState(
    id="c" * 64, name="bringup-server-1", status="running", exit_code=0, oom_killed=False, started="", image_id="i"
)


def labels(flavour: str = "cpu", **changes: str) -> dict[str, str]:
    found = {"dev.bringup.flavour": flavour, "dev.bringup.model": "tiny-qwen2", "dev.bringup.vllm": VLLM_VERSION}
    return found | {name.replace("_", "."): text for name, text in changes.items()}


IMAGE = ImageFacts(present=True, id="sha256:" + "ab" * 32, size=2 * 10**9, architecture="amd64", labels=labels())
FACTS = HostFacts(
    engine=ENGINE, gpu=NO_GPU, local=True,
    system=HostInfo(system="Debian", kernel="6.1", architecture="x86_64", cpus=8, avx2=True, avx512=True),
    memory=Memory(total=64 * GIB, available=60 * GIB), disk_free=500 * GIB, port_holder=None, image=IMAGE,
    own_container=None,
)  # fmt: skip


def plan(flavour: str = "cpu", weights: int = 0, **settings: Any) -> Plan:
    model = Model(name="tiny-qwen2", source="models/x", architecture="A", context=1, license="x", gated=False)
    made = make_plan(Settings(**settings), model, (flavour, "test"), {})
    return replace(made, expect=replace(made.expect, weights_bytes=weights))
