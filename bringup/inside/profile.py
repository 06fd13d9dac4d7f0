"""What the compile caches' keys are made of, as far as it is cheap to know: `python -m bringup.inside.profile factors`.

A start writes down its factors and what the caches held before it (run/caches-before.json), so that a later look can
tell why something was compiled again. vLLM's own key is a hash of more (its whole configuration, see docs/caches.md);
nothing of torch or vLLM is imported to know these. No secret is among them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bringup.edge import objects

SCHEMA = 1
DEFAULT = "/var/lib/bringup"
BEFORE, NOW, LAST = "caches-before.json", "caches-now.json", "caches-last.json"
LOG_HEAD = 8 * 2**20  # bytes of the last start's log that are searched for the line that it was ready
CAME_UP = b"Application startup complete"
# Vary without another key: vllm/envs.py, compile_factors (0.32), and ignored fields of its configuration.
IGNORED_VARIABLES = re.compile(
    r"VLLM_(CACHE_ROOT|ENABLE_STARTUP_PLAN|PORT|HOST_IP|API_KEY|NO_USAGE_STATS|DO_NOT_TRACK|USAGE_\w+|LOGGING_\w+"
    r"|LOG_STATS_INTERVAL|CONFIGURE_LOGGING|WORKER_MULTIPROC_METHOD|CPU_KVCACHE_SPACE|FORCE_AOT_LOAD|CONFIG_ROOT"
    r"|HTTP_TIMEOUT_KEEP_ALIVE|SERVER_DEV_MODE|KEEP_ALIVE_ON_ENGINE_DEATH|TUNED_CONFIG_FOLDER|RPC_BASE_PATH)"
)
IGNORED_ARGUMENTS = frozenset({
    "-m", "--host", "--port", "--served-model-name", "--seed", "--gpu-memory-utilization", "--kv-cache-memory-bytes",
    "--tokenizer", "--uvicorn-log-level", "--disable-log-stats", "--middleware", "--allowed-origins",
    "--shutdown-timeout",
})  # fmt: skip
SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")
PACKAGES = re.compile(r"(vllm|torch|triton|flashinfer)(?:_cpu|_python)?-(.+)\.dist-info")
LOCK = Path("/opt/bringup/weights.lock")
KINDS = {  # below the cache directory: what one entry of a cache is
    "vllm-aot": "torch_compile_cache/torch_aot_compile/*",
    "vllm-compile": "torch_compile_cache/*",
    "inductor": "inductor/*",
    "triton": "triton/*",
    "flashinfer-autotune": "flashinfer_autotune_cache/**/autotune_configs.json",
    "flashinfer-jit": ".cache/flashinfer/*/*/cached_ops/*",
    "startup-plan": "startup_plan/*",
}


def factors(
    argv: Sequence[str], environment: Mapping[str, str], *, site: Path | None = None, proc: Path = Path("/proc"),
    lock: Path = LOCK,
) -> dict[str, str]:  # fmt: skip
    """Name -> value of everything known that a cache key depends on; what is not there is left out.

    Args:
        argv: the server's command line.
        environment: its environment.
        site: the directory of installed packages, this interpreter's by default.
        proc: /proc, for the devices.
        lock: the image's weights lock, for the model's configuration.
    """
    flavour = environment.get("BRINGUP_FLAVOUR", "")
    found = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "flavour": flavour,
        "model config": model_config(lock, environment.get("BRINGUP_MODEL", "")),
        **installed(site or Path(sysconfig.get_path("purelib"))),
        **devices(flavour, proc),
        **arguments(argv),
    }
    for name, value in environment.items():
        if name.startswith("VLLM_") and not IGNORED_VARIABLES.fullmatch(name):
            found[f"variable {name}"] = "(set)" if SECRET.search(name) else value
    return {name: value for name, value in sorted(found.items()) if value}


def model_config(lock: Path, model: str) -> str:
    """The start of the locked sum of the model's config.json, empty if nobody tells which model it is."""
    models = objects.read(lock).get("models", {})
    chosen = models.get(model) or (next(iter(models.values())) if len(models) == 1 else {})
    sums = [f.get("sha256", "") for f in chosen.get("files", []) if f.get("path") == "config.json"]
    return str(sums[0])[:16] if sums else ""


def arguments(argv: Sequence[str]) -> dict[str, str]:
    """`argument --max-model-len` -> `2048`, for all that may change a key; a flag without a value is `on`."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in argv:
        if word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            name, sign, value = word.partition("=")
            name = name.replace("_", "-")
            found[name] = [value] if sign else []
        elif name:
            found[name].append(word)
    return {
        f"argument {name}": "(set)" if SECRET.search(name) and values else " ".join(values) or "on"
        for name, values in found.items()
        if name not in IGNORED_ARGUMENTS
    }


def installed(site: Path) -> dict[str, str]:
    """Versions of the packages that compile, torch's CUDA, and a sum over vLLM's files as its installer listed them."""
    found = {}
    with suppress(OSError):
        for path in sorted(site.iterdir()):  # importlib.metadata takes longer to import than this does
            if match := PACKAGES.fullmatch(path.name):
                found[match[1]] = match[2]
                if match[1] == "vllm":
                    with suppress(OSError):
                        found["vllm files"] = hashlib.sha256((path / "RECORD").read_bytes()).hexdigest()[:16]
    with suppress(OSError):
        text = Path(site, "torch/version.py").read_text("utf-8")
        if match := re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE):
            found["cuda"] = match[1]
    return found


def devices(flavour: str, proc: Path) -> dict[str, str]:
    """The GPUs' names, which stand for their compute capability too; on a CPU what its instructions are."""
    if flavour != "gpu":
        with suppress(OSError):
            flags = re.search(r"^(?:flags|Features)\s*:(.*)", Path(proc, "cpuinfo").read_text("utf-8"), re.MULTILINE)
            return {"cpu": " ".join(f for f in ISA if flags and f in flags[1].split())}
        return {}
    names = set()
    for file in Path(proc, "driver/nvidia/gpus").glob("*/information"):
        with suppress(OSError):
            names |= set(re.findall(r"^Model:\s*(.+?)\s*$", file.read_text("utf-8"), re.MULTILINE))
    if not names:
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
            names |= {line.strip() for line in done.stdout.splitlines()}
    return {"gpu": ", ".join(sorted(names))}


def entries(cache: Path) -> dict[str, dict[str, int]]:
    """Cache -> entry -> bytes below it; an entry that was begun and never finished is one too."""
    found: dict[str, dict[str, int]] = {}
    for kind, pattern in KINDS.items():
        found[kind] = {
            str(path.relative_to(cache)): _size(path)
            for path in sorted(cache.glob(pattern))
            if path.name != "torch_aot_compile"
        }
    return found


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for directory, _, files in os.walk(path):
        for file in files:
            with suppress(OSError):  # it is somebody's lock or temporary file
                total += os.lstat(Path(directory, file)).st_size
    return total


def cache_of(state: Path, environment: Mapping[str, str]) -> Path:
    """The directory that holds them all."""
    return Path(environment.get("VLLM_CACHE_ROOT") or state / "cache")


def keep_last(run: Path) -> None:
    """Before this start's log takes its place: the last start's factors count if that start came up."""
    now, log = run / NOW, run / "server.jsonl"
    if not now.exists():
        return
    with suppress(OSError):
        with log.open("rb") as f:
            if CAME_UP in f.read(LOG_HEAD):
                now.replace(run / LAST)
                return
        now.unlink()


def remember(found: Mapping[str, str], cache: Path, run: Path) -> None:
    """Write down what the caches hold before this start, the last good start's factors, and this start's.

    Raises:
        OSError: the state directory cannot be written.
    """
    common = {"schema": SCHEMA, "container": os.uname().nodename}
    objects.write(
        run / BEFORE, {**common, "factors": objects.read(run / LAST).get("factors"), "entries": entries(cache)}
    )
    objects.write(run / NOW, {**common, "factors": dict(found)})


def of_this_container(run: Path) -> dict[str, Any]:
    """What this container's start wrote down; empty if it wrote elsewhere, or nothing."""
    found = objects.read(run / NOW)
    return found if found.get("container") == os.uname().nodename and isinstance(found.get("factors"), dict) else {}


def main(args: list[str], environ: Mapping[str, str]) -> int:
    """Print this container's factors and what its caches hold now."""
    if args != ["factors"]:
        sys.stderr.write("bringup: usage: python -m bringup.inside.profile factors\n")
        return 2
    state = Path(environ.get("BRINGUP_STATE_DIR") or DEFAULT)
    found = of_this_container(state / "run")
    if not found:
        sys.stderr.write(f"bringup: {state / 'run' / NOW} is not of this container: nothing is known of its start\n")
        return 1
    sys.stdout.write(json.dumps({**found, "entries": entries(cache_of(state, environ))}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
