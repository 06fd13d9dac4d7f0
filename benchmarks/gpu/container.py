#!/usr/bin/env python3
"""The same comparison through a container engine: `bringup up` next to plain vLLM in the same image, taking turns.

usage: container.py --out DIR [--model NAME] [--image IMAGE] [--rounds N] [--gpu all|CDI-DEVICE] [STEP...]

STEP is plain, ours, or ours with a profile (fast, default, eager), with +cold (its volume of caches is removed first);
by default a cold one of plain and of ours, then warm ones. All profiles share one volume. `doctor` comes first and
`bench serve` last, while the server of the last step still runs. The image is there already: `bringup build` makes it.
Times are by this program's clock, from the engine's word that the container started (State.StartedAt) and from the
command itself, to the first 200 and to the first streamed token.
Run it with the python that has bringup installed; it uses the compose project "gpubench".
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import probe

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "gpubench"
PLAIN, VOLUME = "gpubench-plain", "gpubench-plain-caches"
PROFILES = ("fast", "default", "eager")
DEADLINE = 400.0
LOOK_EVERY = 3.0  # seconds between two looks at the container: each takes a moment of the machine that is measured


@dataclass(frozen=True)
class Bench:
    """What all steps have in common."""

    model: str
    image: str
    out: Path
    gpu: str
    flavour: str
    port: int
    up_args: tuple[str, ...]


def call(*argv: str, file: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end; what it printed goes into `file`."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, errors="replace")
    if file:
        file.write_text(done.stdout + done.stderr, "utf-8")
    return done


def bringup(*argv: str) -> list[str]:
    """A command line of this checkout."""
    return [sys.executable, "-m", "bringup", *argv]


def plain_command(bench: Bench) -> list[str]:
    """Plain vLLM in the same image, with the flags of the usual instructions."""
    gpu = ["--gpus", bench.gpu] if "=" not in bench.gpu else ["--device", bench.gpu]
    gpu = gpu if bench.flavour == "gpu" else ["--env", "VLLM_CPU_KVCACHE_SPACE=1"]
    run = ["docker", "run", "--detach", "--name", PLAIN, *gpu, "--shm-size", "2g"]
    run += ["--publish", f"127.0.0.1:{bench.port}:8000", "--volume", f"{VOLUME}:/var/lib/bringup"]
    run += ["--entrypoint", "/opt/venv/bin/python", bench.image, "-m", "vllm.entrypoints.openai.api_server"]
    run += ["--model", f"/opt/bringup/models/{bench.model}", "--served-model-name", bench.model]
    return [*run, "--port", "8000", "--gpu-memory-utilization", "0.6"]


def ours_command(bench: Bench, profile: str) -> list[str]:
    """`bringup up`, which verifies and writes its evidence too; "ours" is its own choice of a profile."""
    run = bringup(
        "up", "--project", PROJECT, "--port", str(bench.port), "--flavour", bench.flavour, "--model", bench.model
    )
    run += ["--image", bench.image, "--gpu-memory-utilization", "0.6", "--artifacts", str(bench.out / "bundles")]
    return run + (["--profile", profile] if profile in PROFILES else []) + list(bench.up_args)


def remove(name: str, *, volumes: bool) -> None:
    """Nothing of a step is left running; its caches stay unless `volumes`."""
    if name == "plain":
        call("docker", "rm", "--force", PLAIN)
        if volumes:
            call("docker", "volume", "rm", VOLUME)
    else:
        call(*bringup("down", "--project", PROJECT, *(["--volumes"] if volumes else [])))


def container_of(name: str) -> str:
    """Id of the step's container, empty while there is none."""
    if name == "plain":
        return call("docker", "ps", "--all", "--quiet", "--filter", f"name=^{PLAIN}$").stdout.strip()
    return call(
        "docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"
    ).stdout.strip()


def is_running(container: str) -> bool:
    """Whether the engine says so."""
    return call("docker", "inspect", "--format", "{{.State.Running}}", container).stdout.strip() == "true"


def started_at(container: str) -> float:
    """When the engine started it, in epoch seconds."""
    text = call("docker", "inspect", "--format", "{{.State.StartedAt}}", container).stdout.strip()
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").timestamp()


def run(bench: Bench, step: str, number: int) -> dict[str, Any]:
    """One start; the server is left running."""
    name, *marks = step.split("+")
    side = "plain" if name == "plain" else "ours"
    for other in ("plain", "ours"):
        remove(other, volumes=other == side and "cold" in marks)
    stem = bench.out / f"{number}.{name}.{'-'.join(marks) or 'warm'}"
    asked = time.time()
    argv = plain_command(bench) if name == "plain" else ours_command(bench, name)
    with stem.with_name(stem.name + ".command.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)

        looked = [asked]

        def alive(command: subprocess.Popen[bytes] = process, looked: list[float] = looked) -> bool:
            code = command.poll()  # docker run --detach ends at once, well or not
            if code != 0 or time.time() - looked[0] < LOOK_EVERY:
                return code in (None, 0)
            looked[0] = time.time()
            return is_running(container_of(side))

        try:
            _, healthy = probe.wait_healthy(bench.port, alive, asked + DEADLINE)
        except KeyboardInterrupt:  # what it said until then is worth having
            call("docker", "logs", container_of(side), file=stem.with_name(stem.name + ".log"))
            raise
        found: dict[str, Any] = {"step": step, "argv": argv, "asked": asked, "first_200": healthy}
        if healthy:
            found["first_token"] = probe.first_token(bench.port, bench.model, 8).first
        found["exit"] = process.wait(DEADLINE)
    container = container_of(side)
    found["container_started"] = started_at(container) if container else 0.0
    if container:
        call("docker", "logs", container, file=stem.with_name(stem.name + ".log"))
        call("docker", "inspect", container, file=stem.with_name(stem.name + ".inspect.json"))
        records = stem.with_name(stem.name + ".jsonl")
        call("docker", "cp", f"{container}:/var/lib/bringup/run/server.jsonl", str(records))
    stem.with_name(stem.name + ".json").write_text(json.dumps(found), "utf-8")
    return found


def line(found: dict[str, Any]) -> str:
    """One line about one step."""
    if not found["first_200"]:
        return f"{found['step']:12} FAILED: exit {found['exit']}"
    started, first = found["container_started"], found["first_token"]
    return (
        f"{found['step']:12} container start to 200 {found['first_200'] - started:6.2f}, to first token "
        f"{first - started:6.2f}; command to first token {first - found['asked']:6.2f}; exit {found['exit']}"
    )


def main() -> int:
    """Doctor, the steps, bench; 1 when a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-1.5b-instruct")
    parser.add_argument("--image", default="")
    parser.add_argument("--gpu", default="all", help="for docker run: all, or a CDI device like nvidia.com/gpu=all")
    parser.add_argument("--flavour", default="gpu", choices=("gpu", "cpu"), help="cpu: to try this out")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--up-args", default="", help="more arguments for bringup up")
    parser.add_argument("--rounds", type=int, default=3, help="warm rounds")
    parser.add_argument("steps", nargs="*", metavar="STEP")
    given = parser.parse_args()
    steps = given.steps or ["plain+cold", "ours+cold", *["plain", "ours"] * given.rounds]
    if unknown := {s.split("+")[0] for s in steps} - {"plain", "ours", *PROFILES}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    if not shutil.which("docker"):
        parser.error("there is no docker command")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as `timeout` ends it: no server must stay
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    image = given.image or f"bringup:{given.flavour}-{given.model}"
    bench = Bench(given.model, image, out, given.gpu, given.flavour, given.port, tuple(shlex.split(given.up_args)))
    doctor = bringup("doctor", "--flavour", bench.flavour, "--model", bench.model, "--image", image)
    print("doctor: exit", call(*doctor, file=out / "doctor.txt").returncode, flush=True)
    failed = 0
    try:
        for number, step in enumerate(steps):
            found = run(bench, step, number)
            failed += not found["first_200"] or found["exit"] != 0
            print(line(found), flush=True)
        serve = bringup(
            "bench", "serve", "--project", PROJECT, "--port", str(bench.port), "--artifacts", str(out / "bundles")
        )
        if not steps[-1].startswith("plain"):
            print("bench serve: exit", call(*serve, file=out / "bench-serve.txt").returncode, flush=True)
    finally:
        for name in ("plain", "ours"):
            remove(name, volumes=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
