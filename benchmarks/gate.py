"""What the gate costs: a server with it and one without, side by side, asked in turns; and its own code alone.

    eval "$(./scripts/engine env)"
    python benchmarks/gate.py --image bringup:cpu-tiny-qwen2 --json gate.json
    python benchmarks/gate.py --alone     # no engine needed: CPU time of the middleware, by request and by chunk

Both servers are containers of the same image and run all the time; only one is asked at a time, and each round asks
them in the other order. Without: the same entry point, which leaves the gate's arguments out, and so has no line a
request either. Two figures a round: chunks a second, which other work on the machine moves a lot, and the CPU time a
chunk of the thread that the gate runs in, the API server's event loop, which other work moves less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bringup.inside import events, gate

WITHOUT = """
import os, sys
from bringup.inside import __main__ as entry, start
start.gate_arguments = lambda **_: ()
os.umask(0o002)
sys.exit(entry.main([], dict(os.environ)))
"""
# Nanoseconds that the first thread of the API server has run.
RAN = """
for p in /proc/[0-9]*; do
    if tr '\\0' ' ' <$p/cmdline | grep -q 'bringup[.]inside[.]serve'; then cat $p/schedstat; fi
done
"""
STREAMS, TOKENS = 64, 128


def docker(*words: str) -> str:
    """What docker says."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


class Side:
    """A container of the image, with or without the gate, on a port of its own."""

    def __init__(self, image: str, *, gated: bool) -> None:
        self.key = secrets.token_hex(16)
        common = ["-d", "--shm-size=2g", "-p", "127.0.0.1::8000", "-e", "BRINGUP_BIND=127.0.0.1", "-e", "VLLM_API_KEY"]
        os.environ["VLLM_API_KEY"] = self.key
        entry = [] if gated else ["--init", "--entrypoint", "/opt/venv/bin/python"]
        self.id = docker("run", *common, *entry, image, *([] if gated else ["-c", WITHOUT]))
        self.url = "http://" + docker("port", self.id, "8000").splitlines()[0]

    def stream(self, tokens: int = TOKENS) -> int:
        """One streamed completion; how many chunks came."""
        body = {"model": "tiny-qwen2", "prompt": "What is", "stream": True, "max_tokens": tokens, "ignore_eos": True}
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.url}/v1/completions", json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310 - the same
            return sum(line.startswith(b"data: {") for line in answer)

    def wait(self, deadline: float = 600) -> None:
        """Until it has streamed."""
        end = time.monotonic() + deadline
        while time.monotonic() < end and docker("inspect", "-f", "{{.State.Running}}", self.id) == "true":
            try:
                self.stream(4)
                return
            except OSError:
                time.sleep(1)
        said = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True, check=False)
        raise SystemExit(f"no answer:\n{(said.stdout + said.stderr)[-6000:]}")

    def used(self) -> float:
        """CPU seconds of the API server's event loop so far."""
        (line,) = docker("exec", self.id, "sh", "-c", RAN).splitlines()
        return int(line.split()[0]) / 1e9

    def load(self) -> tuple[float, float]:
        """`STREAMS` streams at once: chunks a second, and CPU microseconds a chunk."""
        counts: list[int] = []
        before = self.used()
        threads = [threading.Thread(target=lambda: counts.append(self.stream())) for _ in range(STREAMS)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        if len(counts) < STREAMS:
            raise SystemExit(f"{STREAMS - len(counts)} streams failed")
        return sum(counts) / seconds, (self.used() - before) / sum(counts) * 1e6

    def end(self) -> None:
        """Remove it."""
        docker("rm", "-f", "-v", self.id)


def compare(image: str, rounds: int) -> dict[str, Any]:
    """Both figures of both sides, by round, and what they are as ratios with / without."""
    sides: dict[str, Side] = {}
    rates: dict[str, list[float]] = {"with": [], "without": []}
    costs: dict[str, list[float]] = {"with": [], "without": []}
    try:
        for name in rates:
            sides[name] = Side(image, gated=name == "with")
            sides[name].wait()
        for side in sides.values():
            side.load()  # warm
        for index in range(rounds):
            for name in list(rates)[:: 1 if index % 2 else -1]:
                rate, cost = sides[name].load()
                rates[name].append(rate)
                costs[name].append(cost)
            print(f"round {index + 1}, with / without: {rates['with'][-1]:.0f} / {rates['without'][-1]:.0f} chunks/s, "
                  f"{costs['with'][-1]:.0f} / {costs['without'][-1]:.0f} us CPU a chunk")  # fmt: skip
    finally:
        for side in sides.values():
            side.end()
    return {"streams": STREAMS, "tokens": TOKENS, "chunks/s": ratios(rates), "CPU us/chunk": ratios(costs)}


def ratios(by_side: dict[str, list[float]]) -> dict[str, Any]:
    """With / without: by round, their median and quartiles, and that of the medians."""
    by_round = [a / b for a, b in zip(by_side["with"], by_side["without"], strict=True)]
    low, middle, high = statistics.quantiles(by_round, n=4)
    medians = {name: statistics.median(values) for name, values in by_side.items()}
    return {
        "by_side": by_side, "medians": medians, "of_medians": medians["with"] / medians["without"],
        "median": middle, "quartiles": [low, high],
    }  # fmt: skip


def alone(requests: int = 20_000, chunks: int = 200_000) -> dict[str, float]:
    """CPU microseconds that the middleware adds to a request and to a chunk of its answer, its log line included."""
    logging.getLogger("bringup.gate").propagate = False
    log = logging.getLogger("bringup.gate")
    with Path(os.devnull).open("w") as sink:
        handler = logging.StreamHandler(sink)
        handler.setFormatter(logging.Formatter(events.GATE_FORMAT))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        key = secrets.token_hex(32)
        keyed = gate.rules_of({"VLLM_API_KEY": key})
        names = ("host", "user-agent", "accept", "accept-encoding", "connection", "content-type")
        headers = [(n.encode(), b"x" * 20) for n in names]
        headers += [(b"content-length", b"200"), (b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
                 "headers": headers, "client": ("127.0.0.1", 1)}  # fmt: skip
        per_request = _added(lambda app: gate.Gate(app, keyed), scope, requests, 1) / requests
        per_chunk = _added(lambda app: gate.Gate(app, keyed), scope, 1, chunks) / chunks
        log.removeHandler(handler)
    return {"request_us": per_request * 1e6, "chunk_us": per_chunk * 1e6}


def _added(wrap: Callable[[Any], Any], scope: dict[str, Any], requests: int, chunks: int) -> float:
    """CPU seconds with the middleware less those without, the least of three each."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    chunk = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(start)
        for _ in range(chunks):
            await send(chunk)

    async def send(_message: Any) -> None:
        pass

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def run(one: Any) -> float:
        began = time.process_time()
        for _ in range(requests):
            await one(scope, receive, send)
        return time.process_time() - began

    gated = wrap(app)
    return min(asyncio.run(run(gated)) for _ in range(3)) - min(asyncio.run(run(app)) for _ in range(3))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--image", default="bringup:cpu-tiny-qwen2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"alone": alone()}
    print(f"alone: {found['alone']['request_us']:.1f} us a request, {found['alone']['chunk_us']:.2f} us a chunk")
    if not given.alone:
        found["compare"] = compare(given.image, given.rounds)
        for what in ("chunks/s", "CPU us/chunk"):
            one = found["compare"][what]
            low, high = one["quartiles"]
            print(f"{what}, with / without: {one['median']:.3f}, the median of the rounds (quartiles {low:.3f} to "
                  f"{high:.3f}); of the medians {one['of_medians']:.3f}")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
