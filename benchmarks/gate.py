"""What the gate costs: one server, asked through the gate and past it in turns; and the gate's own code alone.

    eval "$(./scripts/engine env)"
    python benchmarks/gate.py --image bringup:cpu-tiny-qwen2 --json gate.json
    python benchmarks/gate.py --alone     # no engine needed: CPU time of the middleware, by request and by chunk
    python benchmarks/gate.py --port 8000 --model NAME --pid PID    # a server that runs already, on this machine

Two servers of the same kind differ by more than the gate can cost. So there is one, whose middleware is the gate with a
way past it (gate_switch.py); a round asks it both ways, in the other order each time. Past the gate there is no line a
request either. `--port` needs a server with `--middleware gate_switch.Switch`, and VLLM_API_KEY where that does.

Of each round: tokens a second, those after the first token of each stream (1 / TPOT), the time to the first, and the
CPU time a token of the thread that the gate runs in, the API server's event loop, which other work on the machine moves
less.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gate_switch

from bringup.inside import events, gate

probe: Any = importlib.import_module("gpu.probe")  # beside this file
spread: Any = importlib.import_module("gpu.spread")
watch: Any = importlib.import_module("gpu.watch")
SWITCHED = """
import os, sys
from bringup.inside import __main__ as entry, start
usual = start.gate_arguments
start.gate_arguments = lambda **given: (*usual(**given)[:-1], "gate_switch.Switch")
os.umask(0o002)
sys.exit(entry.main([], dict(os.environ)))
"""
SERVER = "bringup.inside.serve"
COST = "CPU us/token"
FIGURES = (*probe.FIGURES.values(), COST)
WAYS: dict[str, dict[str, str]] = {"with": {}, "without": {gate_switch.PAST: "1"}}


def docker(*words: str) -> str:
    """What docker says."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


class Server:
    """A server with the switch, and how to ask it.

    Args:
        port: where it answers, on this machine.
        model: what it calls its model.
        pid: of its API process, on this machine.
    """

    def __init__(self, port: int, model: str, pid: int) -> None:
        self.port, self.model, self.pid = port, model, pid
        key = os.environ.get("VLLM_API_KEY")
        self._key = {"Authorization": f"Bearer {key}"} if key else {}

    def load(self, way: str, streams: int, tokens: int, label: str) -> dict[str, float]:
        """So many streams at once: each of `FIGURES`."""
        before = watch.cpu_seconds(self.pid)
        headers = self._key | WAYS[way]
        burst = asyncio.run(probe.burst(self.port, self.model, streams, tokens, f"{label} {way}", headers))
        cost = (watch.cpu_seconds(self.pid) - before) / burst["tokens"] * 1e6
        return {called: burst[figure] for figure, called in probe.FIGURES.items()} | {COST: cost}


def start(image: str, model: str, stack: ExitStack) -> Server:
    """A container of the image, removed in the end.

    Raises:
        SystemExit: it does not answer.
    """
    os.environ["VLLM_API_KEY"] = secrets.token_hex(16)
    switch = Path(gate_switch.__file__).resolve()
    container = docker(
        "run", "-d", "--init", "--shm-size=2g", "-p", "127.0.0.1::8000", "-e", "BRINGUP_BIND=127.0.0.1",
        "-e", "VLLM_API_KEY", "-e", "PYTHONPATH=/opt/switch", "-v", f"{switch}:/opt/switch/{switch.name}:ro",
        "--entrypoint", "/opt/venv/bin/python", image, "-c", SWITCHED,
    )  # fmt: skip
    stack.callback(docker, "rm", "-f", "-v", container)
    port = int(docker("port", container, "8000").splitlines()[0].rpartition(":")[2])

    def alive() -> bool:
        return docker("inspect", "-f", "{{.State.Running}}", container) == "true"

    if not probe.wait_healthy(port, alive, time.time() + 600)[1]:
        said = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=False)
        sys.exit(f"no answer:\n{(said.stdout + said.stderr)[-6000:]}")
    lines = docker("top", container, "-eo", "pid,args").splitlines()
    return Server(port, model, next(int(line.split()[0]) for line in lines if SERVER in line))


def compare(server: Server, rounds: int, streams: int, tokens: int) -> dict[str, Any]:
    """All figures of both ways, by round, and what they are as ratios with / without."""
    found: dict[str, dict[str, list[float]]] = {figure: {way: [] for way in WAYS} for figure in FIGURES}
    for way in WAYS:
        server.load(way, streams, tokens, "warm up")
    for index in range(rounds):
        for way in list(WAYS)[:: 1 if index % 2 else -1]:
            for figure, value in server.load(way, streams, tokens, f"round {index}").items():
                found[figure][way].append(value)
        said = (f"{by['with'][-1]:.1f} / {by['without'][-1]:.1f} {figure}" for figure, by in found.items())
        print(f"round {index + 1}, with / without: {', '.join(said)}", flush=True)
    return {"streams": streams, "tokens": tokens, **{figure: ratios(by) for figure, by in found.items()}}


def ratios(by_way: dict[str, list[float]]) -> dict[str, Any]:
    """With / without by round: their median, the interval that holds it with 95 %, and their quartiles."""
    by_round = [a / b for a, b in zip(by_way["with"], by_way["without"], strict=True)]
    low, _, high = statistics.quantiles(by_round, n=4)
    return {
        "by_way": by_way, "median": statistics.median(by_round), "interval": spread.interval(by_round),
        "quartiles": [low, high],
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
    parser.add_argument("--port", type=int, help="of a server that runs, instead of a container of the image")
    parser.add_argument("--pid", type=int, help="of that server's API process")
    parser.add_argument("--model", default="tiny-qwen2")
    parser.add_argument("--rounds", type=spread.enough_rounds, default=20)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="of each stream")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if bool(given.port) != bool(given.pid):
        parser.error("--port and --pid belong together")
    found: dict[str, Any] = {"alone": alone()}
    print(f"alone: {found['alone']['request_us']:.1f} us a request, {found['alone']['chunk_us']:.2f} us a chunk")
    with ExitStack() as stack:
        if not given.alone:
            server = (
                Server(given.port, given.model, given.pid) if given.port else start(given.image, given.model, stack)
            )
            found["compare"] = compare(server, given.rounds, given.streams, given.tokens)
            for what in FIGURES:
                one = found["compare"][what]
                low, high = one["interval"]
                print(f"{what}, with / without: {one['median']:.3f}, the median of the rounds (95 %: {low:.3f} to "
                      f"{high:.3f}; quartiles {one['quartiles'][0]:.3f} to {one['quartiles'][1]:.3f})")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
