"""Recorded and constructed hosts (tests/data/hosts), each with every verdict that is no pass."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import checks
from bringup.checks import recorded
from bringup.checks.facts import HostFacts
from bringup.errors import UsageError
from bringup.records import CheckRecord, Status
from tests.unit.samples import GIB, plan

HOSTS = Path(__file__).resolve().parents[1] / "data" / "hosts"
PASS, WARN, FAIL, UNKNOWN, SKIP = Status
# What a host without a GPU that can be read leaves open.
BLIND = dict.fromkeys(
    (
        "driver", "capability", "devices", "vram", "mig", "compute-mode", "ecc", "remap", "xid", "throttle",
        "temperature", "pcie", "persistence",
    ),
    UNKNOWN,
)  # fmt: skip
NO_ENGINE = {
    "engine": FAIL, "compose": UNKNOWN, "buildx": UNKNOWN, "architecture": UNKNOWN, "runtime": UNKNOWN,
    "toolkit": UNKNOWN, "disk": UNKNOWN, "image": UNKNOWN,
}  # fmt: skip
# Of a local target: the checks of the engine are one line that says why they are left out.
HERE = {"engine": SKIP}
# `cpu` (the server uses a GPU) and `torch` (not asked) are skipped unless said otherwise; all else passes.
NOT_PASSED: dict[str, dict[str, Status]] = {
    "a100": {},
    "all-silent": {
        **BLIND, "engine": UNKNOWN, "compose": FAIL, "buildx": WARN, "architecture": UNKNOWN, "gpu": FAIL,
        "runtime": FAIL, "toolkit": UNKNOWN, "memory": UNKNOWN, "disk": UNKNOWN, "image": UNKNOWN,
    },
    "b200": {},
    "bare-box-older-vllm": {**HERE, "interpreter": FAIL, "driver": UNKNOWN, "volume": SKIP},
    "container-cpu": {**HERE, "cpu": PASS, "gpu": SKIP, "volume": SKIP},
    "driver-535": {"driver": FAIL},
    "driver-550-geforce": {"driver": FAIL, "mig": SKIP, "ecc": WARN, "remap": SKIP},
    "driver-570-cuda-12-image": {"image": FAIL},
    "driver-570-cuda-compat": {"driver": WARN},
    "driver-mismatch": {**BLIND, "gpu": FAIL},
    "ecc-of-long-ago": {},
    "ecc-uncorrected": {"ecc": FAIL},
    "eight-h100-one-sick": {"ecc": WARN, "remap": WARN, "xid": WARN},
    "eight-h100": {},
    "engine-elsewhere": {
        **BLIND, "gpu": UNKNOWN, "toolkit": UNKNOWN, "memory": UNKNOWN, "disk": UNKNOWN, "port": UNKNOWN,
    },
    "exclusive-free": {"compute-mode": WARN},
    "exclusive-taken": {"vram": FAIL, "compute-mode": FAIL},
    "h200-cdi": {"toolkit": SKIP},
    "h200-no-engine": NO_ENGINE,
    "h200-own-server": {},
    "h200-recorded-busy": {**NO_ENGINE, "vram": FAIL},
    "h200-recorded-idle": NO_ENGINE,
    "h200-serving": {"vram": FAIL},
    "h200": {},
    "health-silent": {**BLIND, "capability": PASS, "vram": PASS, "gpu": UNKNOWN, "toolkit": UNKNOWN},
    "image-of-unknown-cuda": {"driver": UNKNOWN, "image": UNKNOWN},
    "kernel-log-unreadable": {"xid": UNKNOWN},
    "l4": {},
    "mig-at-reset": {"mig": WARN},
    "mig-empty": {"mig": FAIL},
    "mig-on": {"mig": WARN, "remap": SKIP},
    "near-slowdown": {"temperature": WARN},
    "no-device-file": {"devices": FAIL},
    "no-driver": {**BLIND, "gpu": FAIL, "runtime": FAIL, "toolkit": FAIL},
    "no-gpu": {**BLIND, "driver": PASS, "gpu": FAIL},
    "no-nvidia-ml-py": {**BLIND, "gpu": UNKNOWN},
    "no-toolkit": {"runtime": FAIL, "toolkit": FAIL},
    "no-uvm-cdi": {"devices": FAIL},
    "no-uvm": {"devices": WARN},
    "page-retirement-pending": {"capability": WARN, "mig": SKIP, "remap": WARN},
    "pcie-slow-and-silent": {"throttle": UNKNOWN, "pcie": UNKNOWN},
    "pcie-slow-under-load": {"pcie": WARN},
    "pcie-x4": {"pcie": WARN},
    "persistence-off": {"persistence": WARN},
    "pod": {**HERE, "xid": SKIP},
    "pod-driver-550": {**HERE, "driver": FAIL, "xid": SKIP},
    "pod-of-another-image": {
        **HERE, "interpreter": FAIL, "weights": FAIL, "driver": UNKNOWN, "xid": SKIP, "shm": WARN, "volume": WARN,
    },
    "pod-sick-and-full": {**HERE, "vram": FAIL, "xid": FAIL, "volume": WARN},
    "power-brake": {"throttle": WARN},
    "prohibited": {"compute-mode": FAIL},
    "remap-failed": {"remap": FAIL},
    "remap-pending": {"remap": WARN},
    "rtx-3090": {"mig": SKIP, "ecc": SKIP, "remap": SKIP},
    "rtx-4090": {"mig": SKIP, "ecc": WARN, "remap": SKIP, "persistence": WARN},
    "rtx-5090": {"mig": SKIP, "ecc": SKIP, "remap": SKIP},
    "t4": {"capability": WARN, "mig": SKIP},
    "thermal-throttle": {"throttle": WARN, "temperature": WARN},
    "thor": {"capability": FAIL},
    "toolkit-1.16.1": {"toolkit": WARN},
    "toolkit-1.17.7": {"toolkit": WARN},
    "toolkit-elsewhere": {"toolkit": UNKNOWN},
    "toolkit-silent": {"toolkit": UNKNOWN},
    "torch-cannot-compute": {"capability": FAIL, "torch": FAIL},
    "torch-computes": {},
    "torch-has-no-gpu": {"torch": FAIL},
    "torch-image-missing": {"torch": UNKNOWN, "image": WARN},
    "torch-not-started": {"torch": FAIL},
    "torch-says-nothing": {"torch": UNKNOWN},
    "v100": {"capability": FAIL, "mig": SKIP},
    "vram-held-by-nobody-seen": {"vram": FAIL},
    "vram-held": {"vram": FAIL},
    "weights-too-large": {"capability": WARN, "vram": FAIL, "mig": SKIP, "ecc": SKIP, "remap": SKIP},
    "wsl": {"devices": SKIP, "mig": SKIP, "ecc": SKIP, "remap": SKIP, "temperature": SKIP},
    "xid-119-reset-asked": {"xid": FAIL},
    "xid-31-of-a-program": {},
    "xid-48-recovered": {"xid": WARN},
    "xid-79-lost": {"gpu": FAIL, "xid": FAIL},
    "xid-94-contained": {"xid": WARN},
    "xid-95-old-driver": {"xid": FAIL},
}  # fmt: skip
# A remedy, or a finding, that makes the difference on its host.
WORDS = [
    ("driver-535", "driver", "cuda-compat-13-0"),
    ("driver-570-cuda-compat", "driver", "through cuda-compat"),
    ("driver-570-cuda-12-image", "driver", "CUDA 12.8.1: >= 525.60.13"),
    ("driver-mismatch", "gpu", "reboot"),
    ("no-nvidia-ml-py", "gpu", "nvidia-ml-py is not installed"),
    ("eight-h100", "gpu", "8 x NVIDIA H100"),
    ("eight-h100-one-sick", "ecc", "GPU 5, not reserved: 1 uncorrected ECC errors"),
    ("eight-h100-one-sick", "xid", "GPU 5, not reserved: the driver asks for: gpu-reset"),
    ("xid-79-lost", "xid", "Xid 79 (the GPU has fallen off the bus) of 0000:0a:00, which NVML does not show"),
    ("xid-31-of-a-program", "xid", "a program's own fault"),
    ("xid-119-reset-asked", "xid", "nvidia-smi --gpu-reset"),
    ("h200-serving", "vram", "held by VLLM::EngineCor (pid 1536) 85.3 GiB"),
    ("h200-serving", "vram", "lower `--gpu-memory-utilization` to 0.38"),
    ("h200-recorded-busy", "vram", "held by python3 (pid 444) 31.1 GiB"),
    ("h200-recorded-busy", "throttle", "sw-power-cap"),
    ("h200-own-server", "vram", "this project's own server"),
    ("wsl", "devices", "/dev/dxg"),
    ("wsl", "vram", "23.1 GiB free of 24.0 GiB"),
    ("vram-held-by-nobody-seen", "vram", "no process of this host is seen"),
    ("l4", "pcie", "generation 1 of 4 while idle"),
    ("toolkit-1.16.1", "toolkit", "CVE-2024-0132, CVE-2025-23266"),
    ("toolkit-1.17.7", "toolkit", "(CVE-2025-23266)"),
    ("torch-has-no-gpu", "torch", "Error 803"),
    ("torch-cannot-compute", "torch", "sees the GPU, but cannot use it: CUDA error: no kernel image"),
    ("thermal-throttle", "temperature", "93 C: it slows down"),
    ("torch-not-started", "torch", "could not select device driver"),
    ("mig-empty", "mig", "nvidia-smi mig -cgi"),
    ("ecc-of-long-ago", "ecc", "5 in the card's life"),
    ("t4", "capability", "no bfloat16"),
    ("pod", "engine", "not asked: the server is a process here (a pod of RunPod)"),
    ("pod", "xid", "not a container's to read; the driver asks for no recovery"),
    ("pod", "volume", "/workspace: 50.0 GiB free"),
    ("pod-driver-550", "driver", "take a machine whose host has the NVIDIA driver 580 or newer"),
    ("pod-of-another-image", "interpreter", "`/usr/bin/python3 -m pip install vllm==0.32.0`"),
    ("pod-of-another-image", "weights", "bringup weights fetch --model tiny-qwen2"),
    ("pod-of-another-image", "shm", "64 MiB: enough for one GPU"),
    ("pod-of-another-image", "volume", "nothing is mounted at /workspace"),
    ("pod-sick-and-full", "volume", "/workspace: 0.2 GiB free"),
    ("bare-box-older-vllm", "interpreter", "vLLM 0.31.0 for a GPU"),
    ("bare-box-older-vllm", "engine", "(no container)"),
    ("container-cpu", "engine", "a container (/.dockerenv)"),
]  # fmt: skip


def facts_of(name: str) -> HostFacts:
    return recorded.load((HOSTS / f"{name}.json").read_text("utf-8"), name)


def verdicts(name: str, facts: HostFacts | None = None) -> dict[str, CheckRecord]:
    weights = 5 * GIB if name == "weights-too-large" else 0
    flavour = "cpu" if name.endswith("-cpu") else "gpu"
    asked = plan(flavour, weights=weights, target=facts_of(name).target)
    return {r.name: r for r in checks.examine(facts or facts_of(name), asked)}


@pytest.mark.parametrize("name", NOT_PASSED)
def test_a_host_gets_its_verdicts(name: str) -> None:
    seen = verdicts(name)
    local = facts_of(name).target == "local"
    expected = dict.fromkeys(checks.HERE if local else checks.CHECKS, PASS) | {"cpu": SKIP}
    expected |= ({} if local else {"torch": SKIP}) | NOT_PASSED[name]
    if name.endswith("-cpu"):
        expected = {check: status for check, status in expected.items() if check not in checks.ON_GPU}
    if name in ("torch-computes", "driver-570-cuda-compat"):
        expected["torch"] = PASS
    assert {check: r.status for check, r in seen.items()} == expected
    for r in seen.values():
        assert r.found, r.name
        assert r.needed, r.name
        assert r.source, r.name
        assert bool(r.remedy) == (r.status in (WARN, FAIL, UNKNOWN)), r.name
        assert "\n" not in r.found + r.needed + r.remedy


def test_every_host_is_expected_and_the_other_way_round() -> None:
    assert sorted(p.stem for p in HOSTS.glob("*.json")) == sorted(NOT_PASSED)
    assert len(NOT_PASSED) >= 25


@pytest.mark.parametrize(("name", "check", "words"), WORDS, ids=[f"{n}-{c}-{i}" for i, (n, c, _) in enumerate(WORDS)])
def test_what_makes_the_difference_is_said(name: str, check: str, words: str) -> None:
    r = verdicts(name)[check]
    assert words in " | ".join((r.found, r.needed, r.remedy))


def test_compatibility_libraries_are_offered_to_data_centre_gpus_alone() -> None:
    assert "cuda-compat" not in verdicts("driver-550-geforce")["driver"].remedy


@pytest.mark.parametrize("check", sorted(checks.ON_GPU | {"gpu"}))
def test_every_check_of_a_gpu_is_seen_passing_not_passing_and_not_knowing(check: str) -> None:
    seen = {r.status for name in NOT_PASSED for r in verdicts(name).values() if r.name == check}
    assert {PASS, UNKNOWN} <= seen
    assert seen & {WARN, FAIL}


@pytest.mark.parametrize("check", ["interpreter", "weights", "shm", "volume"])
def test_every_check_of_a_local_server_is_seen_passing_and_not(check: str) -> None:
    seen = {r.status for name in NOT_PASSED for r in verdicts(name).values() if r.name == check}
    assert PASS in seen
    assert seen & {WARN, FAIL}


def test_a_cpu_server_does_not_start_with_dockers_own_shared_memory() -> None:
    facts = facts_of("container-cpu")
    assert facts.place is not None
    small = replace(facts, place=replace(facts.place, shm=64 * 2**20))
    r = verdicts("container-cpu", small)["shm"]
    assert (r.status, r.found, "--shm-size" in r.remedy) == (FAIL, "64 MiB", True)


def test_a_local_server_needs_room_in_its_own_directory() -> None:
    r = verdicts("pod", replace(facts_of("pod"), disk_free=2**29))["disk"]
    assert (r.status, r.found, "BRINGUP_STATE_DIR" in r.remedy) == (FAIL, "0.5 GiB free", True)


def test_a_volume_that_cannot_be_written_warns() -> None:
    facts = facts_of("pod")
    assert facts.place is not None
    r = verdicts("pod", replace(facts, place=replace(facts.place, volume_writable=False)))["volume"]
    assert (r.status, "not this user's to write" in r.found) == (WARN, True)


def test_a_server_on_a_cpu_is_asked_nothing_about_gpus() -> None:
    seen = checks.examine(facts_of("eight-h100-one-sick"), plan())
    assert {r.name: r.status for r in seen if r.name == "gpu"} == {"gpu": SKIP}
    assert not {r.name for r in seen} & checks.ON_GPU


def leaves(raw: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value and every list or object above it."""
    if at:
        yield at
    pairs = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in pairs:
        yield from leaves(value, (*at, key))


def without(raw: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    made = copy.deepcopy(raw)
    inner: Any = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = None
    return made


@pytest.mark.parametrize("name", NOT_PASSED)
def test_a_signal_that_goes_away_never_makes_a_check_pass(name: str) -> None:
    raw = json.loads((HOSTS / f"{name}.json").read_text("utf-8"))["facts"]
    before, tried = verdicts(name), 0
    for path in leaves(raw):
        if path[0] == "port_holder":  # null there is an answer: nobody holds it
            continue
        try:
            facts = recorded.load(json.dumps({"schema": recorded.SCHEMA, "facts": without(raw, path)}), name)
        except UsageError:  # a file cannot be without it
            continue
        tried += 1
        for check, r in verdicts(name, facts).items():
            if r.status is PASS:
                assert before[check].status is PASS, f"{check} passes without {path}"
    assert tried > 10


@pytest.mark.parametrize("name", NOT_PASSED)
def test_many_signals_that_go_away_at_once_make_no_check_pass(name: str) -> None:
    raw = json.loads((HOSTS / f"{name}.json").read_text("utf-8"))["facts"]
    before, chance = verdicts(name), random.Random(name)  # the same choice at every run
    paths = [p for p in leaves(raw) if p[0] != "port_holder" and optional(raw, p)]
    for _ in range(10):
        gone = chance.sample(paths, k=min(len(paths), chance.randint(2, 12)))
        made = raw
        for path in sorted(gone, key=len, reverse=True):  # a part before its whole
            made = without(made, path)
        facts = recorded.load(json.dumps({"schema": recorded.SCHEMA, "facts": made}), name)
        passed = {check for check, r in verdicts(name, facts).items() if r.status is PASS}
        assert all(before[check].status is PASS for check in passed), gone


def optional(raw: dict[str, Any], path: tuple[Any, ...]) -> bool:
    """Whether a file can be without it."""
    try:
        recorded.load(json.dumps({"schema": recorded.SCHEMA, "facts": without(raw, path)}), "x")
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("name", NOT_PASSED)
def test_a_host_survives_being_written(name: str) -> None:
    facts = facts_of(name)
    again = recorded.load(recorded.dump(facts, tool="1"), name)
    assert again == facts
