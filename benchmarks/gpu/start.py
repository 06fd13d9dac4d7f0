#!/usr/bin/env python3
"""Time a start from process spawn to first streamed token: plain vLLM next to this project's entry point, taking turns.

usage: start.py --model DIR --out DIR [--rounds N] [--arm NAME[@CACHE]:VARIABLE=VALUE,...] STEP...

A STEP is ARM[+cold][+layer][+fresh][+drop][+decode][+snap][+pack][+imports]; the steps run in the order given, N times.
  arms     plain: python -m vllm.entrypoints.openai.api_server with the flags of the usual instructions.
           fast, default, eager: python -m bringup.inside with BRINGUP_PROFILE and the image's environment.
           --arm adds one of ours with more variables; those with the same CACHE share their caches. If its name begins
           with "plain" it is plain vLLM with the caches of CACHE and the path of its model, by which vLLM tells what it
           has compiled: compiled once, since two compilations may differ.
  cold     the arm's caches are emptied first; otherwise its start before filled them (run one +cold step first)
  layer    with /opt/bringup/warm, the caches that `bringup build --warm` bakes into the image; +pack made them
  pack     afterwards the arm's caches are packed as that layer
  fresh    no bytecode is there and none is written: an installation by a tool that compiles none (pip compiles)
  drop     the page cache is dropped first (root only)
  decode   tokens a second at 1 and 64 streams afterwards
  snap     nvidia-smi and ps, while it serves
  imports  PYTHONPROFILEIMPORTTIME=1: the log shows what each import cost; no figure to compare

Each arm has a home, a directory for temporary files and a state of its own, below --caches. Each run writes
OUT/ARM.STATE.N.json (figures), .log (console) and .jsonl (log records). All times are epoch seconds by one clock.
Needs, in the python that runs this: vLLM, blake3; for ours /opt/bringup as layout.py makes it. The port is 8000.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import probe
from watch import Gpu, Watch

ROOT = Path(__file__).resolve().parents[2]
PORT = 8000
NAME = "bench"  # what the server calls the model
DEADLINE = 400.0  # seconds until a start counts as failed
STATE_DIR = "/var/lib/bringup"
LAYER = Path("/opt/bringup/warm")
MODELS = Path("/opt/bringup/models")
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "CC", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_CPU_KVCACHE_SPACE")
KEPT_PREFIXES = ("CUDA_", "NCCL_", "NVSHMEM_", "TORCH_SYMM_")  # what the machine's owner set for its GPUs


@dataclass(frozen=True)
class Arm:
    """One candidate; `ours` is False for plain vLLM."""

    name: str
    ours: bool
    cache: str
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What all runs have in common."""

    model: Path
    locked: str
    out: Path
    caches: Path
    source: Path
    utilization: str
    gpu: Gpu


def image_environment(dockerfile: Path) -> dict[str, str]:
    """The ENV of the Dockerfile's gpu base and of its last stage, without variables of the build."""
    text = dockerfile.read_text("utf-8").replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    wanted = [s for s in stages if re.search(r" AS (base-gpu|server)$", s.splitlines()[0])]
    pairs = [pair for s in wanted for line in re.findall(r"^ENV (.*)$", s, re.MULTILINE) for pair in line.split()]
    return dict(pair.split("=", 1) for pair in pairs if "$" not in pair)


def arms(extra: list[str]) -> dict[str, Arm]:
    """The built-in arms and those of the command line."""
    made = {"plain": Arm("plain", False, "plain")}
    for profile in ("fast", "default", "eager"):
        made[profile] = Arm(profile, True, profile, {"BRINGUP_PROFILE": profile})
    for text in extra:
        head, _, rest = text.partition(":")
        name, _, cache = head.partition("@")
        variables = dict(pair.split("=", 1) for pair in re.split(r",(?=[A-Z_]+=)", rest) if pair)  # values hold commas
        made[name] = Arm(name, not name.startswith("plain"), cache or name, variables)
    return made


def logging_config(file: Path) -> dict[str, Any]:
    """vLLM's own console, and its records as JSON in `file`; the same handler as in the image."""
    line = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": line, "datefmt": "%m-%d %H:%M:%S"}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"},
            "jsonl": {"class": "bringup.inside.events.Handler", "path": str(file)},
        },
        "loggers": {
            "vllm": {"handlers": ["console", "jsonl"], "level": "INFO", "propagate": False},
            "uvicorn.error": {"handlers": ["console", "jsonl"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"handlers": ["console"], "level": "INFO", "propagate": False},  # as without this file
        },
    }


def command_line(bench: Bench, arm: Arm, records: Path, port: int = PORT) -> tuple[list[str], dict[str, str]]:
    """What is started, and its whole environment."""
    home = bench.caches / arm.cache
    for directory in ("home", "tmp", "state"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    environment |= OFFLINE | {"TMPDIR": str(home / "tmp"), "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(bench.source)}
    image = {k: v.replace(STATE_DIR, str(home / "state")) for k, v in image_environment(ROOT / "Dockerfile").items()}
    if not arm.ours:
        caches = {k: v for k, v in image.items() if str(home) in v}
        environment |= {"HOME": str(home / "home")} if arm.cache == "plain" else caches
        config = records.with_suffix(".logging.json")
        config.write_text(json.dumps(logging_config(records)), "utf-8")
        environment["VLLM_LOGGING_CONFIG_PATH"] = str(config)
        model = bench.model if arm.cache == arm.name else MODELS / bench.locked
        argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        argv += ["--served-model-name", NAME, "--port", str(port), "--gpu-memory-utilization", bench.utilization]
        return argv, environment | arm.variables
    image.pop("PATH", None)
    environment |= image | {
        "BRINGUP_STATE_DIR": str(home / "state"),
        "BRINGUP_MODEL": bench.locked,
        "BRINGUP_SERVED_MODEL_NAME": NAME,
        "BRINGUP_BIND": "127.0.0.1",
        "PORT": str(port),
        "BRINGUP_GPU_MEMORY_UTILIZATION": bench.utilization,
    }
    return [sys.executable, "-m", "bringup.inside"], environment | arm.variables


def prepare(bench: Bench, arm: Arm, marks: set[str]) -> None:
    """Caches as the step wants them."""
    home = bench.caches / arm.cache
    if "cold" in marks:
        shutil.rmtree(home, ignore_errors=True)
    if arm.ours:  # a container's /tmp is new at each start
        shutil.rmtree(home / "tmp", ignore_errors=True)
        LAYER.unlink(missing_ok=True)
        if "layer" in marks:
            LAYER.symlink_to(bench.caches / "layer")
    if "drop" in marks:
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")


def stop(process: subprocess.Popen[bytes], watch: Watch, gpu: Gpu, before: int) -> dict[str, float]:
    """End the server; seconds until it was gone, and until the GPU's memory was back (within 64 MiB, else -1)."""
    begun = time.time()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    took = {"exit_s": time.time() - begun}
    for pid, (_, name) in list(watch.births.items()):
        if name and Path(f"/proc/{pid}").exists() and pid != process.pid:
            os.kill(pid, signal.SIGKILL)
    released = -1.0
    while time.time() - begun < 40:
        used = gpu.used()
        if used is None or used[0] - before < 64 * 2**20:
            released = time.time() - begun
            break
        time.sleep(0.05)
    return took | {"released_s": released}


def pack_layer(bench: Bench, environment: dict[str, str]) -> None:
    """The caches of the start that just ended, as the image's layer."""
    argv = [sys.executable, "-m", "bringup.inside.warm", "pack"]
    told = json.loads(subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout)
    layer = bench.caches / "layer"
    layer.mkdir(exist_ok=True)
    shutil.move(told.pop("archive"), layer / "caches.tar")
    (layer / "factors.json").write_text(json.dumps(told), "utf-8")


def snapshot(stem: Path) -> None:
    """What an operator would look at while it serves."""
    for name, argv in (("nvidia-smi", ["nvidia-smi"]), ("ps", ["ps", "auxww"])):
        if shutil.which(name):
            out = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
            stem.with_name(f"{stem.name}.{name}.txt").write_text(out, "utf-8")


def measure(process: subprocess.Popen[bytes], asked: float, marks: set[str], stem: Path) -> dict[str, Any]:
    """From the start to the first token, then whatever the step asks for."""
    bound, healthy = probe.wait_healthy(PORT, lambda: process.poll() is None, asked + DEADLINE)
    if not healthy:
        return {"failed": f"exit {process.poll()}" if process.poll() is not None else f"no 200 in {DEADLINE:g} s"}
    answer = probe.first_token(PORT, NAME)
    again = probe.first_token(PORT, NAME)
    found: dict[str, Any] = {
        "bound": bound,
        "first_200": healthy,
        "first_token": answer.first,
        "to_200_s": healthy - asked,
        "to_first_token_s": answer.first - asked,
        "second_request_s": again.first - again.sent,
        "answer": answer.text,
        "same_again": again.text == answer.text,
    }
    if "snap" in marks:
        snapshot(stem)
    if "decode" in marks:
        found["decode"] = [probe.decode(PORT, NAME, streams) for streams in (1, 64)]
    return found


def run(bench: Bench, arm: Arm, marks: set[str]) -> dict[str, Any]:
    """One start, measured and stopped; its files are in `bench.out`."""
    prepare(bench, arm, marks)
    state = "-".join(m for m in ("cold", "layer", "fresh", "drop", "imports") if m in marks) or "warm"
    names = (f"{arm.name}.{state}.{n}" for n in itertools.count())
    stem = bench.out / next(name for name in names if not (bench.out / f"{name}.json").exists())
    records, log = (stem.with_name(stem.name + suffix) for suffix in (".jsonl", ".log"))
    argv, environment = command_line(bench, arm, records)
    if "fresh" in marks:
        nothing = bench.caches / "no-bytecode"
        shutil.rmtree(nothing, ignore_errors=True)
        environment |= {"PYTHONPYCACHEPREFIX": str(nothing)}
    if "imports" in marks:
        environment |= {"PYTHONPROFILEIMPORTTIME": "1"}
    before = (bench.gpu.used() or (0, {}))[0]
    with log.open("wb") as console:
        asked = time.time()
        process = subprocess.Popen(argv, stdout=console, stderr=subprocess.STDOUT, env=environment,
                                   start_new_session=True, cwd=bench.caches)  # fmt: skip
        with Watch(process.pid, bench.gpu) as watch:
            try:
                found = measure(process, asked, marks, stem)
            finally:
                ended = stop(process, watch, bench.gpu, before)
    if arm.ours:
        written = bench.caches / arm.cache / "state/run/server.jsonl"
        if written.exists():
            shutil.copyfile(written, records)
        if "pack" in marks:
            pack_layer(bench, environment)
    shown = {k: v for k, v in environment.items() if k not in ("PATH", "LD_LIBRARY_PATH")}
    result = {"arm": arm.name, "ours": arm.ours, "state": state, "argv": argv, "environment": shown, "asked": asked}
    result |= found | ended | {"gpu_before": before, "births": watch.births, "memory": watch.memory}
    stem.with_name(stem.name + ".json").write_text(json.dumps(result), "utf-8")
    return result


def line(result: dict[str, Any]) -> str:
    """One line about one run."""
    head = f"{result['arm']:16} {result['state']:10}"
    if "failed" in result:
        return f"{head} FAILED: {result['failed']}"
    rates = "".join(f"  {d['streams']}x {d['tok_s_median']:.0f} tok/s" for d in result.get("decode", []))
    return (f"{head} 200 {result['to_200_s']:6.2f}  first token {result['to_first_token_s']:6.2f}  again "
            f"{result['second_request_s']:.3f}  exit {result['exit_s']:.1f}  released {result['released_s']:.1f}"
            f"{rates}")  # fmt: skip


def options(parser: argparse.ArgumentParser, out: str, utilization: str) -> None:
    """The options that all programs with arms have; `out` is the help of --out."""
    parser.add_argument("--model", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--locked", default="qwen2.5-1.5b-instruct", help="its name in the weights lock")
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--caches", type=Path, default=Path("/tmp/bringup-bench"))  # noqa: S108 - by hand, as root
    parser.add_argument("--source", type=Path, default=ROOT, help="directory that holds the package bringup")
    parser.add_argument("--utilization", default=utilization, help="--gpu-memory-utilization of each")
    parser.add_argument("--arm", action="append", default=[])


def opened(
    parser: argparse.ArgumentParser, given: argparse.Namespace, asked: Iterable[str]
) -> tuple[Bench, dict[str, Arm]]:
    """What `options` were given, and the arms that there are.

    Raises:
        SystemExit: one of those asked for is none of them.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `timeout` ends it: no server must stay
    known = arms(given.arm)
    if unknown := set(asked) - set(known):
        parser.error(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    given.caches.mkdir(parents=True, exist_ok=True)
    return Bench(given.model.resolve(), given.locked, given.out.resolve(), given.caches.resolve(),
                 given.source.resolve(), given.utilization, Gpu()), known  # fmt: skip


def main() -> int:
    """Run the steps; 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, "directory of the runs' files", "0.6")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("steps", nargs="+", metavar="STEP")
    given = parser.parse_args()
    bench, known = opened(parser, given, {s.split("+")[0] for s in given.steps})
    bench.out.mkdir(parents=True, exist_ok=True)
    print(f"GPU: {bench.gpu.name()}", flush=True)
    failed = 0
    for step in given.steps * given.rounds:
        name, *marks = step.split("+")
        result = run(bench, known[name], set(marks))
        failed += "failed" in result
        print(line(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
