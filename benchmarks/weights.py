"""Fetching and checking weights, side by side in one run: this fetcher, the official clients, curl.

python benchmarks/weights.py [--size 3GB] [--rates 0,250] [--rounds 3] [--dir DIR] [--json FILE] [--quick]

Everything comes from one local hub (its own process) that has the files in the page cache. Candidates take turns, each
round in another order. Two finish lines: "returned", when the program has ended, and "on disk", when fsync of all that
it wrote has ended too: this fetcher flushes before it returns, the others do not. Every result is compared with the
lock. Needs 3.2 times --size of free disk, about 10 GB for 3 GB, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run by its path, it has only its own directory there

from bringup.lock import LockedModel, write_lock  # noqa: E402
from bringup.weights.digest import has_blake3  # noqa: E402
from bringup.weights.verify import sha256_of, verify_dir  # noqa: E402
from tests.hub import HubServer, lock_of, make_repo  # noqa: E402
from tests.weights.venvs import hub_python  # noqa: E402

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
BLOCK = 8 * 2**20
DEADLINE = 1800.0  # seconds for one fetch
OURS, UNHASHED, OURS_HTTP = "bringup", "bringup, no hash", "bringup, http"
HUB_FAST, HUB_PLAIN, HUB_NEW, CURL = "hub 0.36.2 + hf_transfer", "hub 0.36.2", "hub 2.4.0", "curl"
CANDIDATES = (OURS, UNHASHED, OURS_HTTP, HUB_FAST, HUB_PLAIN, HUB_NEW, CURL)

# Our fetch as a program of its own, as the others are. Without hashing it is the same code that trusts every file;
# the files of a model differ in size here, so that it knows which one it trusts.
FETCH = """
import sys
from pathlib import Path
from bringup.lock import read_lock
from bringup.weights.digest import Digests, digests
from bringup.weights.fetch import How, fetch
lock, name, out, endpoint, transfer, hashed = sys.argv[1:]
model = read_lock(Path(lock))[name]
trusted = {f.size: f.sha256 for f in model.files}
unhashed = lambda path, check: Digests(sha256=trusted[path.stat().st_size])
fetch(model, Path(out), How(endpoint=endpoint, transfer=transfer), _digest=digests if hashed == "hashed" else unhashed)
"""
SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
repo, commit, out = sys.argv[1:]
snapshot_download(repo, revision=commit, local_dir=out)
"""


@dataclass(frozen=True)
class Shape:
    """A model to fetch: a name for people, and its lock."""

    title: str
    model: LockedModel


@dataclass(frozen=True)
class Sample:
    """One fetch: seconds until the program had ended, until all was flushed, and the CPU seconds of the program."""

    returned: float
    on_disk: float
    cpu: float


@dataclass(frozen=True)
class Bench:
    """What every fetch needs."""

    hub: HubServer
    work: Path
    lock: Path

    def argv(self, candidate: str, shape: Shape, out: Path) -> list[str]:
        """The candidate's command line."""
        model = shape.model
        if candidate in (OURS, UNHASHED, OURS_HTTP):
            transfer = "http" if candidate == OURS_HTTP else "hf_transfer"
            hashed = "unhashed" if candidate == UNHASHED else "hashed"
            args = [str(self.lock), model.name, str(out), self.hub.endpoint, transfer, hashed]
            return [sys.executable, "-c", FETCH, *args]
        if candidate == CURL:
            config = self.work / "curl.conf"
            at = f"{self.hub.endpoint}/{model.repo}/resolve/{model.revision}"
            urls = [f'url = "{at}/{f.path}"\noutput = "{out / f.path}"' for f in model.files]
            config.write_text("\n".join(urls) + "\n")
            parallel = ["--parallel", "--parallel-max", "8"] if len(model.files) > 1 else []
            return ["curl", "--fail", "--silent", "--show-error", "--location", "--create-dirs", *parallel,
                    "--config", str(config)]  # fmt: skip
        python = hub_python("2.4.0" if candidate == HUB_NEW else "0.36.2", candidate == HUB_FAST)
        return [str(python), "-c", SNAPSHOT, model.repo, model.revision, str(out)]

    def environment(self, candidate: str) -> dict[str, str]:
        """No proxy between the two ends, no token, no cache of an earlier fetch."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.work / "home"),
            "PYTHONPATH": str(ROOT) if candidate in (OURS, UNHASHED, OURS_HTTP) else "",
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.work / "home" / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ENABLE_HF_TRANSFER": "1" if candidate == HUB_FAST else "0",
        }

    def fetch(self, candidate: str, shape: Shape) -> Sample:
        """One fetch into a new directory, compared with the lock, and gone."""
        out = self.work / "out"
        argv, environment = self.argv(candidate, shape, out), self.environment(candidate)
        self.hub.clear()
        os.sync()  # what was written before is not this candidate's to flush
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE)
        returned = time.monotonic() - started
        if done.returncode:
            raise SystemExit(f"{candidate}: {shape.title}: exit {done.returncode}: {done.stderr[-2000:]}")
        for f in shape.model.files:
            flush(out / f.path)
        on_disk = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        shutil.rmtree(out / ".cache", ignore_errors=True)  # the official client's notes
        verify_dir(shape.model, out)
        if candidate == HUB_FAST and any(f.size > 50 * 2**20 for f in shape.model.files):
            asked = {r["range"] for r in self.hub.requests()}
            if "bytes=0-0" not in asked:
                raise SystemExit("hub 0.36.2 did not use hf_transfer: the comparison would be of something else")
        shutil.rmtree(out)
        shutil.rmtree(self.work / "home", ignore_errors=True)
        return Sample(returned, on_disk, cpu)


def flush(path: Path) -> None:
    """fsync of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def main() -> None:
    """Make the files, run everything, print the tables."""
    args = arguments()
    if shutil.which("curl") is None:
        raise SystemExit("curl is one of the candidates and is not installed: apt-get install curl")
    if not has_blake3():
        raise SystemExit("the package blake3 is not installed: use the project's environment")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for version, wheel in (("0.36.2", True), ("0.36.2", False), ("2.4.0", False)):
        hub_python(version, wheel)
    report: dict[str, Any] = {"machine": machine(args.dir), "size": args.size, "rounds": args.rounds, "fetch": []}
    print(f"# Weights: {args.size / 1e9:g} GB, {args.rounds} rounds\n\n{json.dumps(report['machine'], indent=1)}\n")
    with workspace(args.dir, args.size) as work:
        shapes = make_shapes(work, args.size)
        write_lock({s.model.name: s.model for s in shapes}, work / "lock")
        with HubServer(work / "hub") as hub:
            bench = Bench(hub, work, work / "lock")
            for rate in args.rates:
                hub.throttle(rate)
                for shape in shapes if not args.no_fetch else ():
                    rows = compare_fetches(bench, shape, args.rounds)
                    report["fetch"].append({"shape": shape.title, "rate": rate, "candidates": rows})
                    print(fetch_table(shape, rate, rows), flush=True)
        report["verify"] = compare_checks(work, shapes, args.rounds)
        print(check_table(report["verify"], args.start), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=size, default=size("3GB"), help="bytes of each of the two models (3GB)")
    parser.add_argument("--dir", type=Path, default=ROOT / ".cache", help="where to work: the disk that counts")
    parser.add_argument("--rates", type=lambda t: [float(x) for x in t.split(",")], default=[0.0, 250.0],
                        help="MB/s that the hub sends in all, 0 is no limit (0,250)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="fetches by each candidate (3)")
    parser.add_argument("--start", type=float, default=0.0, help="seconds of a whole start, to take the share of")
    parser.add_argument("--no-fetch", action="store_true", help="the start check alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, for machines")
    parser.add_argument("--quick", action="store_true", help="60 MB and one round: does it work? No figures to quote")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    if args.quick:
        args.size, args.rounds = size("60MB"), 1
    return args


def size(text: str) -> int:
    """`3GB` in bytes."""
    unit = next((u for u in UNITS if text.endswith(u)), "")
    return int(float(text.removesuffix(unit)) * UNITS[unit]) if unit else int(text)


@contextmanager
def workspace(parent: Path, of: int) -> Iterator[Path]:
    """A directory that is gone at the end, on a disk that has the space."""
    needed, free = int(3.2 * of), shutil.disk_usage(parent).free
    if free < needed:
        raise SystemExit(f"{parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free: name another --dir")
    work = Path(tempfile.mkdtemp(prefix="benchmark-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_shapes(work: Path, of: int) -> list[Shape]:
    """One large file; twenty that make up as much. Random bytes, all of different sizes; read once, so cached."""
    shapes = []
    for count in (1, 20):
        each, files = of // count, {}
        for n in range(count):
            path = work / "files" / f"{count}-{n}"
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as f:
                left = each + n
                while left:
                    left -= f.write(os.urandom(min(BLOCK, left)))
            files[f"model-{n + 1:05}-of-{count:05}.safetensors"] = path
        name = f"of-{count}"
        commit = make_repo(work / "hub", f"org/{name}", files)
        title = f"{count} x {each / 1e9:g} GB" if each >= 1e9 else f"{count} x {each / 1e6:g} MB"
        shapes.append(Shape(title, lock_of(work / "hub", f"org/{name}", commit, name)))
    os.sync()
    return shapes


def compare_fetches(bench: Bench, shape: Shape, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Samples of every candidate, in turns; who is first changes with the round."""
    rows: dict[str, list[dict[str, float]]] = {c: [] for c in CANDIDATES}
    for number in range(rounds):
        turn = number % len(CANDIDATES)
        for candidate in (*CANDIDATES[turn:], *CANDIDATES[:turn]):
            rows[candidate].append(dataclasses.asdict(bench.fetch(candidate, shape)))
    return rows


def fetch_table(shape: Shape, rate: float, rows: dict[str, list[dict[str, float]]]) -> str:
    """Best and median of both finish lines, what each is of ours, and the two ratios that we hold ourselves to."""
    best = {c: {k: min(s[k] for s in samples) for k in samples[0]} for c, samples in rows.items()}
    middle = {c: {k: statistics.median(s[k] for s in samples) for k in samples[0]} for c, samples in rows.items()}
    limit = f"hub limited to {rate:g} MB/s" if rate else "no limit"
    columns = ("", "returned s, best (median)", "on disk s, best (median)", "MB/s on disk", "CPU s", "returned / ours",
               "on disk / ours")  # fmt: skip
    lines = [f"## Fetch {shape.title}, {limit}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for c in rows:
        cells = [c, *(f"{best[c][k]:.2f} ({middle[c][k]:.2f})" for k in ("returned", "on_disk"))]
        cells += [f"{shape.model.size / 1e6 / best[c]['on_disk']:.0f}", f"{middle[c]['cpu']:.2f}"]
        cells += [f"{middle[c][k] / middle[OURS][k]:.2f}" for k in ("returned", "on_disk")]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for finish, kind in itertools.product(("on_disk", "returned"), ("median", "best")):
        values = {c: v[finish] for c, v in (middle if kind == "median" else best).items()}
        hub = min((HUB_FAST, HUB_PLAIN, HUB_NEW), key=values.__getitem__)
        lines.append(
            f"- {finish.replace('_', ' ')}, {kind}: with hashing {values[OURS] / values[UNHASHED]:.3f}x of without; "
            f"{values[OURS] / values[hub]:.3f}x of the fastest hub client ({hub})"
        )
    return "\n".join(lines) + "\n"


def compare_checks(work: Path, shapes: list[Shape], rounds: int) -> dict[str, list[float]]:
    """Seconds of the start's check and of plain reading, of files in the page cache, in turns."""
    one, many = shapes
    large = work / "files" / "1-0"
    places = {s.title: linked(work, s) for s in shapes}
    files = tuple(dataclasses.replace(f, blake3="") for f in many.model.files)
    plain = dataclasses.replace(many.model, files=files)
    ways: dict[str, Callable[[], object]] = {
        "read, 1 thread": lambda: read_all(large, 1),
        "read, all cores": lambda: read_all(large, os.cpu_count() or 1),
        "sha256, 1 thread": lambda: sha256_of(large),
        f"check by sha256, {many.title}": lambda: verify_dir(plain, places[many.title]),
        f"check by BLAKE3, {one.title}": lambda: verify_dir(one.model, places[one.title]),
        f"check by BLAKE3, {many.title}": lambda: verify_dir(many.model, places[many.title]),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(max(3, rounds) + 1):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            if number:  # the first turn fills the page cache
                found[way].append((time.perf_counter() - started) * 3e9 / one.model.size)
    return found


def linked(work: Path, shape: Shape) -> Path:
    """The model as it lies in an image; hard links to the hub's own files."""
    directory = work / "checked" / shape.model.name
    for n, f in enumerate(shape.model.files):
        (directory / f.path).parent.mkdir(parents=True, exist_ok=True)
        os.link(work / "files" / f"{len(shape.model.files)}-{n}", directory / f.path)
    return directory


def read_all(path: Path, threads: int) -> int:
    """Read a file to the end, its parts side by side; the bytes seen."""
    total = path.stat().st_size
    share = -(-total // threads)

    def part(start: int) -> int:
        buffer, seen = bytearray(BLOCK), 0
        with path.open("rb", buffering=0) as f:
            f.seek(start)
            while seen < share and (got := f.readinto(memoryview(buffer)[: share - seen])):
                seen += got
        return seen

    with ThreadPoolExecutor(threads) as pool:
        seen = sum(pool.map(part, range(0, total, share)))
    if seen != total:
        raise SystemExit(f"{path}: {seen} of {total} bytes were read")
    return seen


def check_table(found: dict[str, list[float]], start: float) -> str:
    """Rates, and how much longer than reading it takes."""
    one, cores = (statistics.median(found[f"read, {who}"]) for who in ("1 thread", "all cores"))
    head = "| | s for 3 GB, best (median) | GB/s, best | / reading, 1 thread | / reading, all cores |"
    lines = ["## Check of 3 GB in the page cache\n", head + (" share of a start |" if start else "")]
    lines.append("|---" * (5 + bool(start)) + "|")
    for way, times in found.items():
        middle = statistics.median(times)
        share = f" {100 * middle / start:.1f} % of {start:g} s |" if start else ""
        lines.append(f"| {way} | {min(times):.2f} ({middle:.2f}) | {3 / min(times):.2f} | {middle / one:.2f} "
                     f"| {middle / cores:.2f} |{share}")  # fmt: skip
    return "\n".join(lines) + "\n"


def machine(directory: Path) -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    curl = subprocess.run(
        ["curl", "--version"], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True, check=True)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "filesystem": kind.stdout.strip(),
        "python": platform.python_version(),
        "curl": curl.stdout.split()[1],
        "load_before": round(os.getloadavg()[0], 2),
    } | {name: version(name) for name in ("hf_transfer", "requests", "blake3")}


if __name__ == "__main__":
    main()
