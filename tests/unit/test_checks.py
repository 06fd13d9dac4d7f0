"""Every check's every answer, from facts alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import checks
from bringup.catalog import VLLM_VERSION, load
from bringup.checks import engine as engine_checks
from bringup.checks import gpu as gpu_checks
from bringup.checks import host as host_checks
from bringup.checks.engine import version
from bringup.checks.facts import HostFacts, ImageFacts
from bringup.edge.docker import EngineFacts
from bringup.edge.gpu import GpuFacts, GpuState
from bringup.edge.host import HostInfo, Memory
from bringup.plan import Plan
from bringup.records import CheckRecord, Status
from tests.unit.samples import ENGINE, FACTS, GIB, GPU, H100, IMAGE, NO_ENGINE, NO_GPU, NODE, OWN, labels, plan

ROOT = Path(__file__).resolve().parents[2]
PASS, WARN, FAIL, UNKNOWN, SKIP = Status

CPU_PLAN = plan()
GPU_PLAN = plan("gpu")
GPU_FACTS = replace(
    FACTS, gpu=GPU, engine=replace(ENGINE, runtimes=("nvidia", "runc")), image=replace(IMAGE, labels=labels("gpu")),
    node=NODE,
)  # fmt: skip


def engine(**changes: Any) -> HostFacts:
    return replace(FACTS, engine=replace(ENGINE, **changes))


def image(**changes: Any) -> HostFacts:
    return replace(FACTS, image=replace(IMAGE, **changes))


def memory(total: int, available: int, **changes: Any) -> HostFacts:
    return replace(FACTS, memory=Memory(total=total * GIB, available=available * GIB), **changes)


def held(holder: str, **changes: Any) -> HostFacts:
    return replace(FACTS, port_holder=holder, **changes)


def no_gpu(error: str) -> HostFacts:
    return replace(GPU_FACTS, gpu=replace(NO_GPU, error=error))


def gpus(*found: GpuFacts, **changes: Any) -> HostFacts:
    return replace(GPU_FACTS, gpu=replace(GPU, gpus=found or (H100,), **{"count": len(found or (H100,))} | changes))


def reserve(**changes: Any) -> HostFacts:
    return replace(GPU_FACTS, engine=replace(ENGINE, **changes))


def check(name: str, facts: HostFacts, a_plan: Plan) -> CheckRecord:
    record = checks.CHECKS[name](facts, a_plan)
    assert record.name == name
    return record


NO_CPU_FLAGS = replace(FACTS, system=replace(FACTS.system, avx2=None, avx512=None))
NO_AVX2 = replace(FACTS, system=replace(FACTS.system, avx2=False, avx512=False))
AVX2_ONLY = replace(FACTS, system=replace(FACTS.system, avx512=False))
ELSEWHERE = replace(FACTS, local=False)
ABSENT = replace(FACTS, image=ImageFacts(present=False))
OFF = replace(FACTS, engine=NO_ENGINE, disk_free=None, image=ImageFacts(present=None))
PUBLIC = plan(bind="192.0.2.1", api_key_file=Path("key"))

QWEN = load()["qwen2.5-1.5b-instruct"].shape
SMALL = replace(H100, memory_total=8 * GIB, memory_used=0)


def tight(*vllm_args: str) -> Plan:
    return replace(plan("gpu", gpu_memory_utilization=0.55, vllm_args=vllm_args), shape=QWEN)


# check, facts, plan, status, words in `found`, words in `remedy`
CASES: list[tuple[str, HostFacts, Plan, Status, str, str]] = [
    ("engine", FACTS, CPU_PLAN, PASS, "28.5.2+dfsg4", ""),
    ("engine", engine(version="27.0.0"), CPU_PLAN, PASS, "27.0.0", ""),
    ("engine", engine(version="27"), CPU_PLAN, PASS, "27", ""),
    ("engine", engine(version="26.1.5+dfsg1"), CPU_PLAN, FAIL, "26.1.5", "scripts/engine up"),
    ("engine", engine(version="dev"), CPU_PLAN, UNKNOWN, "dev", "docker version"),
    ("engine", engine(version=None), CPU_PLAN, UNKNOWN, "None", "docker version"),
    ("engine", OFF, CPU_PLAN, FAIL, "FileNotFoundError", "scripts/engine up"),
    ("engine", engine(reachable=False, error="PermissionError: 13"), CPU_PLAN, FAIL, "Permission", "`docker` group"),
    ("engine", engine(reachable=False), CPU_PLAN, FAIL, "does not answer", "scripts/engine up"),
    ("compose", FACTS, CPU_PLAN, PASS, "2.40.3", ""),
    ("compose", engine(compose="v5.0.1"), CPU_PLAN, PASS, "v5.0.1", ""),
    ("compose", engine(compose="2"), CPU_PLAN, PASS, "2", ""),
    ("compose", engine(compose="1.29.2"), CPU_PLAN, FAIL, "1.29.2", "compose"),
    ("compose", engine(compose=None), CPU_PLAN, FAIL, "no compose", "compose"),
    ("compose", engine(compose="unknown"), CPU_PLAN, UNKNOWN, "unknown", "docker compose version"),
    ("compose", OFF, CPU_PLAN, UNKNOWN, "did not say", "engine"),
    ("buildx", FACTS, CPU_PLAN, PASS, "buildx v0.29.1", ""),
    ("buildx", replace(ABSENT, engine=replace(ENGINE, buildx=None)), CPU_PLAN, FAIL, "no buildx", "buildx"),
    ("buildx", engine(buildx=None), CPU_PLAN, WARN, "image is there", "before the next build"),
    ("buildx", OFF, CPU_PLAN, UNKNOWN, "did not say", "engine"),
    ("architecture", FACTS, CPU_PLAN, PASS, "amd64", ""),
    ("architecture", engine(architecture="amd64"), CPU_PLAN, PASS, "amd64", ""),
    ("architecture", engine(architecture="aarch64"), CPU_PLAN, FAIL, "arm64", "x86-64"),
    ("architecture", engine(architecture="riscv64"), CPU_PLAN, FAIL, "riscv64", "x86-64"),
    ("architecture", OFF, CPU_PLAN, UNKNOWN, "did not say", "engine"),
    ("image", FACTS, CPU_PLAN, PASS, "abababababab, 2.00 GB", ""),
    ("image", GPU_FACTS, GPU_PLAN, PASS, "bringup:gpu-tiny-qwen2", ""),
    ("image", ABSENT, CPU_PLAN, WARN, "will be built", "bringup build --flavour cpu --model tiny-qwen2"),
    ("image", OFF, CPU_PLAN, UNKNOWN, "did not say", "engine"),
    ("image", image(architecture="arm64"), CPU_PLAN, FAIL, "architecture is arm64, not amd64", "bringup build"),
    ("image", FACTS, GPU_PLAN, FAIL, "flavour is cpu, not gpu", "--flavour gpu"),
    ("image", image(labels=labels(dev_bringup_model="x")), CPU_PLAN, FAIL, "is x, not tiny-qwen2", "bringup build"),
    ("image", image(labels=labels(dev_bringup_vllm="0.31.0")), CPU_PLAN, FAIL, f"0.31.0, not {VLLM_VERSION}", "build"),
    ("image", image(labels={}), CPU_PLAN, UNKNOWN, "flavour, dev.bringup.model, dev.bringup.vllm", "not built by"),
    ("image", image(architecture=None), CPU_PLAN, UNKNOWN, "does not say its architecture", "bringup build"),
    ("image", image(labels={"dev.bringup.vllm": "0.31.0"}), CPU_PLAN, FAIL, "0.31.0", "bringup build"),
    ("disk", replace(FACTS, disk_free=GIB), CPU_PLAN, PASS, "1.0 GiB", ""),
    ("disk", replace(FACTS, disk_free=GIB - 1), CPU_PLAN, FAIL, "1.0 GiB", "docker builder prune"),
    ("disk", replace(ABSENT, disk_free=6 * GIB), CPU_PLAN, PASS, "6.0 GiB", ""),
    ("disk", replace(ABSENT, disk_free=5 * GIB), CPU_PLAN, FAIL, "5.0 GiB", "free 1.0 GiB"),
    ("disk", replace(ABSENT, disk_free=14 * GIB), GPU_PLAN, FAIL, "14.0 GiB", "free 1.0 GiB"),
    ("disk", replace(ABSENT, disk_free=15 * GIB), GPU_PLAN, PASS, "15.0 GiB", ""),
    ("disk", replace(ABSENT, disk_free=11 * GIB), plan(weights=3 * GIB), FAIL, "11.0 GiB", "free 1.0 GiB"),
    ("disk", replace(ABSENT, disk_free=12 * GIB), plan(weights=3 * GIB), PASS, "12.0 GiB", ""),
    ("disk", OFF, CPU_PLAN, UNKNOWN, "did not say", "df"),
    ("disk", replace(ELSEWHERE, disk_free=None), CPU_PLAN, UNKNOWN, "another host", "df"),
    ("memory", memory(8, 4), CPU_PLAN, PASS, "4.0 GiB available of 8.0", ""),
    ("memory", memory(8, 3), CPU_PLAN, FAIL, "3.0 GiB", "docker stats"),
    ("memory", memory(4, 3), CPU_PLAN, FAIL, "3.0 GiB available of 4.0", "docker stats"),
    ("memory", memory(3, 3), CPU_PLAN, FAIL, "3.0 GiB", "smaller model"),
    ("memory", memory(8, 5), GPU_PLAN, FAIL, "5.0 GiB", "docker stats"),
    ("memory", memory(8, 6), GPU_PLAN, PASS, "6.0 GiB", ""),
    ("memory", memory(9, 6), plan(weights=3 * GIB), FAIL, "6.0", "docker stats"),
    ("memory", memory(9, 7), plan(weights=3 * GIB), PASS, "7.0", ""),
    ("memory", memory(8, 1, own_container=OWN), CPU_PLAN, PASS, "own server", ""),
    ("memory", memory(2, 1, own_container=OWN), CPU_PLAN, FAIL, "1.0", "smaller"),
    ("memory", replace(FACTS, memory=None), CPU_PLAN, UNKNOWN, "does not tell", "free"),
    ("memory", ELSEWHERE, CPU_PLAN, UNKNOWN, "another host", "free"),
    ("port", FACTS, CPU_PLAN, PASS, "127.0.0.1:8000 is free", ""),
    ("port", FACTS, plan(bind="::1"), PASS, "[::1]:8000 is free", ""),
    ("port", held("nginx (pid 42)"), CPU_PLAN, FAIL, "127.0.0.1:8000: nginx (pid 42)", "--port"),
    ("port", held("docker-proxy (pid 4)", own_container=OWN), CPU_PLAN, PASS, "bringup-server-1", ""),
    ("port", held("the kernel (no): 192.0.2.1 cannot be listened on"), PUBLIC, FAIL, "192.0.2.1", "--bind"),
    ("port", ELSEWHERE, CPU_PLAN, UNKNOWN, "another host", "ss -ltn"),
    ("port", replace(ELSEWHERE, own_container=OWN), CPU_PLAN, PASS, "bringup-server-1", ""),
    ("cpu", FACTS, CPU_PLAN, PASS, "8 CPUs with AVX2 and AVX-512", ""),
    ("cpu", AVX2_ONLY, CPU_PLAN, PASS, "no AVX-512", ""),
    ("cpu", NO_AVX2, CPU_PLAN, FAIL, "without AVX2", "another host"),
    ("cpu", NO_CPU_FLAGS, CPU_PLAN, UNKNOWN, "does not tell", "/proc/cpuinfo"),
    ("cpu", ELSEWHERE, CPU_PLAN, UNKNOWN, "another host", "/proc/cpuinfo"),
    ("cpu", NO_AVX2, GPU_PLAN, SKIP, "uses a GPU", ""),
    ("gpu", GPU_FACTS, CPU_PLAN, SKIP, "uses the CPU", ""),
    ("gpu", GPU_FACTS, GPU_PLAN, PASS, "NVIDIA H100 (80.0 GiB, 9.0)", ""),
    ("gpu", no_gpu(NO_GPU.error), GPU_PLAN, FAIL, "NVML Shared Library Not Found", "install the NVIDIA driver"),
    ("gpu", no_gpu("Driver/library version mismatch"), GPU_PLAN, FAIL, "mismatch", "reboot"),
    ("gpu", replace(GPU_FACTS, gpu=replace(GPU, gpus=(), count=0)), GPU_PLAN, FAIL, "shows no GPU", "nvidia-smi -L"),
    ("gpu", gpus(error="GPU 1: GPU is lost"), GPU_PLAN, FAIL, "GPU 1: GPU is lost", "Xid"),
    ("gpu", gpus(count=2), GPU_PLAN, FAIL, "1 of 2 GPUs can be read", "Xid"),
    ("gpu", gpus(count=None), GPU_PLAN, UNKNOWN, "does not count", "nvidia-smi -L"),
    ("gpu", replace(GPU_FACTS, local=False), GPU_PLAN, UNKNOWN, "another host", "nvidia-smi"),
    ("runtime", GPU_FACTS, GPU_PLAN, PASS, "the nvidia runtime", ""),
    ("runtime", reserve(gpu_devices=("nvidia.com/gpu=0",)), GPU_PLAN, PASS, "CDI devices nvidia.com/gpu=0", ""),
    ("runtime", reserve(), GPU_PLAN, FAIL, "neither the nvidia runtime nor CDI", "nvidia-container-toolkit"),
    ("runtime", replace(GPU_FACTS, engine=NO_ENGINE), GPU_PLAN, UNKNOWN, "did not say", "engine"),
    ("driver", GPU_FACTS, GPU_PLAN, PASS, "driver 580.95.05 (CUDA 13.0)", ""),
    ("driver", gpus(driver="570.211.01", cuda="12.8"), GPU_PLAN, FAIL, "570.211.01 (CUDA 12.8)", "580"),
    ("driver", gpus(driver="580"), GPU_PLAN, PASS, "driver 580", ""),
    ("driver", gpus(driver="579.99"), GPU_PLAN, FAIL, "driver 579.99", "580"),
    ("driver", gpus(driver=None), GPU_PLAN, UNKNOWN, "None", "nvidia-smi"),
    ("capability", gpus(replace(H100, name="Tesla V100", compute_capability="7.0")), GPU_PLAN, FAIL, "V100", "Turing"),
    ("capability", gpus(replace(H100, compute_capability="7.5")), GPU_PLAN, WARN, "7.5: no bfloat16", "float16"),
    ("capability", gpus(replace(H100, compute_capability="8.9")), GPU_PLAN, PASS, "8.9", ""),
    ("capability", gpus(replace(H100, compute_capability="10.3")), GPU_PLAN, PASS, "10.3", ""),
    ("capability", gpus(replace(H100, compute_capability="11.0")), GPU_PLAN, FAIL, "11.0", "wheels"),
    ("capability", gpus(replace(H100, compute_capability="?")), GPU_PLAN, UNKNOWN, "?", "compute_cap"),
    ("vram", GPU_FACTS, plan("gpu", weights=73 * GIB), PASS, "79.5 GiB free of 80.0 GiB; vLLM claims 73.6", ""),
    ("vram", GPU_FACTS, plan("gpu", weights=74 * GIB), FAIL, "the weights take 74.0 GiB", "smaller model"),
    ("vram", gpus(H100, H100), plan("gpu", weights=81 * GIB), FAIL, "the weights take 81.0 GiB", "smaller model"),
    ("vram", gpus(H100, H100), plan("gpu", weights=81 * GIB, vllm_args=("--tensor-parallel-size", "2")), PASS, "", ""),
    ("vram", gpus(replace(H100, memory_used=20 * GIB)), GPU_PLAN, FAIL, "60.0 GiB free", "to 0.74"),
    ("vram", gpus(replace(H100, memory_used=20 * GIB)), plan("gpu", gpu_memory_utilization=0.74), PASS, "59.2", ""),
    ("vram", replace(gpus(replace(H100, memory_used=20 * GIB)), own_container=OWN), GPU_PLAN, PASS, "own server", ""),
    ("vram", GPU_FACTS, plan("gpu", vllm_args=("--gpu-memory-utilization", "x")), FAIL, "is 'x'", "between 0 and 1"),
    ("vram", gpus(SMALL), replace(GPU_PLAN, shape=QWEN), PASS, "a KV cache of 113120 tokens", ""),
    ("vram", gpus(SMALL), tight(), WARN, "less than one request of 32768", "--max-model-len"),
    ("vram", gpus(SMALL), tight("-tp", "2"), PASS, "vLLM claims 4.4 GiB", ""),
    ("vram", gpus(replace(H100, memory_used=0)), plan("gpu", gpu_memory_utilization=1.0), FAIL, "80.0", "0.99 or less"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "facts", "a_plan", "status", "found", "remedy"),
    [pytest.param(*c, id=f"{c[0]}-{c[3]}-{c[4] or c[5]}") for c in CASES],
)
def test_check(name: str, facts: HostFacts, a_plan: Plan, status: Status, found: str, remedy: str) -> None:
    record = check(name, facts, a_plan)
    assert record.status is status
    assert found in record.found
    assert remedy in record.remedy
    assert record.needed
    assert "\n" not in record.found + record.needed + record.remedy
    # whoever is stopped or left in doubt is told what to do; who passes is left alone
    assert bool(record.remedy) == (status in (WARN, FAIL, UNKNOWN))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MiB"), (4_532_000, "4 MiB"), (GIB // 10, "102 MiB"), (GIB // 5, "0.2 GiB"), (15 * GIB, "15.0 GiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert host_checks.gib(size) == text


def test_the_place_of_the_disk_is_named() -> None:
    assert "/var/lib/docker" in check("disk", FACTS, CPU_PLAN).needed
    assert "the engine's directory" in check("disk", OFF, CPU_PLAN).needed


def test_every_check_is_seen_passing_and_not_passing() -> None:
    for name in checks.CHECKS.keys() - checks.ON_GPU:  # those of a GPU: test_hosts
        seen = {status for case, _, _, status, _, _ in CASES if case == name}
        assert PASS in seen, name
        assert {FAIL, UNKNOWN} <= seen, name


def test_a_good_host_passes_everything_that_concerns_it() -> None:
    on_cpu = {r.name: r.status for r in checks.examine(FACTS, CPU_PLAN)}
    assert on_cpu == {name: SKIP if name == "gpu" else PASS for name in checks.CHECKS if name not in checks.ON_GPU}
    on_gpu = {r.name: r.status for r in checks.examine(GPU_FACTS, GPU_PLAN)}
    assert on_gpu == {name: SKIP if name in ("cpu", "torch") else PASS for name in checks.CHECKS}


NOTHING = HostFacts(
    engine=EngineFacts(reachable=False), gpu=GpuState(available=False), local=False,
    system=HostInfo(system=None, kernel="", architecture="", cpus=1, avx2=None, avx512=None),
    memory=None, disk_free=None, port_holder=None, image=ImageFacts(present=None), own_container=None,
)  # fmt: skip
SILENT = replace(
    NOTHING,
    local=True,
    engine=EngineFacts(reachable=True),
    gpu=GpuState(available=True),
    image=ImageFacts(present=True),
)


@pytest.mark.parametrize("a_plan", [CPU_PLAN, GPU_PLAN], ids=["cpu", "gpu"])
@pytest.mark.parametrize("facts", [NOTHING, SILENT], ids=["no engine", "engine that says nothing"])
def test_missing_signals_never_pass(facts: HostFacts, a_plan: Plan) -> None:
    passed = {r.name for r in checks.examine(facts, a_plan) if r.status is PASS}
    assert passed <= ({"port"} if facts.local else set())  # the port was tried on this host: that is evidence


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("28.5.2+dfsg4", (28, 5, 2)),
        ("v0.29.1", (0, 29, 1)),
        ("2.40.3-4", (2, 40, 3)),
        ("29.0.0-rc.1", (29, 0, 0)),
        ("27", (27,)),
        ("580.95.05", (580, 95, 5)),
        ("github.com/docker/buildx v0.29.1 28f1abc", (0, 29, 1)),
        ("github.com/docker/buildx 0.13.1+ds1 ", (0, 13, 1)),
        ("Docker Compose version v2.40.3", (2, 40, 3)),
        ("dev", None),
        ("", None),
        (None, None),
    ],
)
def test_version(text: str | None, numbers: tuple[int, ...] | None) -> None:
    assert version(text) == numbers


# ---- what is agreed with other files


def test_the_labels_are_those_that_the_build_writes() -> None:
    bake = (ROOT / "docker-bake.hcl").read_text("utf-8")
    written = dict(re.findall(r'^\s*"(dev\.bringup\.[\w.-]+)"\s*=\s*(\S+)', bake, re.MULTILINE))
    assert {engine_checks.LABEL_FLAVOUR, engine_checks.LABEL_MODEL, engine_checks.LABEL_VLLM} <= written.keys()
    assert written[engine_checks.LABEL_VLLM] == f'"{VLLM_VERSION}"'


def test_the_cuda_is_that_of_the_lock() -> None:
    lock = (ROOT / "locks" / "gpu.lock").read_text("utf-8")
    (toolkit,) = set(re.findall(r"^cuda-toolkit==([\d.]+)", lock, re.MULTILINE))
    assert toolkit.startswith(f"{gpu_checks.CUDA}.")
    assert re.search(r"^torch==2\.13\.0 ", lock, re.MULTILINE), "ARCHITECTURES are those of this torch: ask the new one"


def test_every_check_has_a_source() -> None:
    assert checks.SOURCES.keys() == checks.CHECKS.keys() | checks.HERE.keys()
    assert all(checks.SOURCES.values())


def test_needs_are_known_for_every_flavour() -> None:
    assert host_checks.BUILD_DISK.keys() == host_checks.MEMORY.keys() == {"cpu", "gpu"}
