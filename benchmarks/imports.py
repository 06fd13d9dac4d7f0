"""What the imports of a start cost in an image, by the parts of the launcher that are about them.

    eval "$(./scripts/engine env)"
    python benchmarks/imports.py --image bringup:gpu-tiny-qwen2 --json imports.json

Each time a new process imports what the API server or the engine's standby imports, alone on the machine, no GPU
needed; the ways take turns. CPU seconds are the figure to go by: others on the machine move them less than the clock.
A way is a list of parts as BRINGUP_LAUNCH takes it, and is compared with the one before it. Afterwards, what one full
garbage collection through all that was imported costs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from bringup.inside.parts import VARIABLE

spread: Any = importlib.import_module("gpu.spread")  # beside this file
WAYS = ("gc", "gc,pack", "gc,pack,interpreter")
PROCESSES = ("api", "engine")
# Fed to the image's Python as a program, for the pack leaves out only the current directory.
INSIDE = """
import gc, importlib, json, os, resource, sys, time
from bringup.inside import interpreter, pack, serve, standby
from bringup.inside.parts import parts
process, on = sys.argv[1], parts(os.environ)
names = serve.API if process == "api" else (*standby.ENGINE, *standby.of(os.environ["BRINGUP_FLAVOUR"]))

def imports():
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as e:  # some ask for a GPU
            left.append(f"{name}: {e}")

def used():
    of = resource.getrusage(resource.RUSAGE_SELF)
    return of.ru_utime + of.ru_stime

left = []
if "gc" in on:
    gc.disable()
cpu, clock = used(), time.monotonic()
if "pack" in on and pack.install() is None:
    sys.exit("the pack of this image is not for its own installation")
interpreter.run(imports)
found = {"cpu": used() - cpu, "wall": time.monotonic() - clock, "modules": len(sys.modules), "left": left}
gc.collect()
cpu = used()
gc.collect()
print(json.dumps({**found, "collection": used() - cpu}), file=sys.__stdout__, flush=True)
os._exit(0)
"""


def once(image: str, process: str, way: str) -> dict[str, Any]:
    """One process: `cpu`, `wall` and `collection` in seconds, `modules` imported, and what could not be."""
    argv = ["docker", "run", "--rm", "--workdir", "/", "--env", f"{VARIABLE}={way}",
            "--entrypoint", "/opt/venv/bin/python", image, "-c", INSIDE, process]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{process}, {way}: exit {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--rounds", type=spread.enough_rounds, default=10)
    parser.add_argument("--json", type=Path, help="where every sample goes")
    parser.add_argument("ways", nargs="*", default=WAYS, help=f"lists of parts ({' '.join(WAYS)})")
    return parser.parse_args()


def main() -> None:
    """Measure in turns, print the table."""
    args = arguments()
    once(args.image, "engine", args.ways[0])  # the page cache is filled by somebody
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {p: {w: [] for w in args.ways} for p in PROCESSES}
    for number in range(args.rounds):
        for process in PROCESSES:
            for way in args.ways if number % 2 else reversed(args.ways):
                samples[process][way].append(once(args.image, process, way))
    for process, by_way in samples.items():
        before: list[float] = []
        for way, found in by_way.items():
            cpu = [f["cpu"] for f in found]
            line = f"{process}: {way}: {statistics.median(cpu):.2f} s of CPU, "
            line += f"{statistics.median(f['wall'] for f in found):.2f} s, {found[0]['modules']} modules"
            if before:
                ratios = [b / a for a, b in zip(before, cpu, strict=True)]
                low, high = spread.interval(ratios)
                line += f"; CPU by the way before: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
            print(line, flush=True)
            before = cpu
        collections = [f["collection"] for found in by_way.values() for f in found]
        print(f"{process}: a collection through all of that: {statistics.median(collections):.2f} s of CPU", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"image": args.image, "samples": samples}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
