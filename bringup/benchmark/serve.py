"""Throughput and latency of a running server, measured by vLLM's own `bench serve` inside its container."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup import artifacts, image, workflow
from bringup.benchmark import machine
from bringup.edge.http import NoAnswer
from bringup.errors import BringupError, EvidenceMissing, TargetUnavailable, UsageError
from bringup.key import secrets
from bringup.plan import SERVER_PORT
from bringup.records import ProbeRecord, RunRecord, Status
from bringup.redact import redact
from bringup.server import Container, Server
from bringup.workflow import Run

MISSING = 93  # exit code of CLIENT when vLLM's benchmark cannot be imported
OVERTIME = 142  # 128 + SIGALRM, as the engine tells it
# `vllm bench serve` is not started by its console script: that reads the version of a package named vllm, which the
# cpu flavour does not have. The key is read from the mounted file and stays in this process's environment. The file
# named first holds the process's id as long as it runs, so that CLEAR can end it: an exec outlives its client.
CLIENT = """
import os, signal, sys
from pathlib import Path
mark, limit, *argv = sys.argv[1:]
try:
    Path(mark).write_text(str(os.getpid()))
except OSError as e:
    sys.exit(f"{mark} cannot be written: {e.strerror}")
signal.alarm(int(limit))
file = os.environ.get("BRINGUP_API_KEY_FILE")
key = (Path(file).read_text().strip() if file else "").partition("\\n")[0].strip() or os.environ.get("VLLM_API_KEY", "")
if key:
    os.environ["OPENAI_API_KEY"] = key
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
try:
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError as e:
    print(f"{type(e).__name__}: {e}")
    sys.exit(93)
parser = FlexibleArgumentParser(prog="vllm bench serve")
add_cli_args(parser)
main(parser.parse_args(argv))
Path(mark).unlink()
"""
CLEAR = """
import os, signal, sys
from pathlib import Path
mark, result = map(Path, sys.argv[1:])
try:
    os.kill(int(mark.read_text()), signal.SIGKILL)
except (OSError, ValueError):
    pass
mark.unlink(missing_ok=True)
result.unlink(missing_ok=True)
"""
METRICS = ("ttft", "tpot", "itl", "e2el")
COLUMNS = ("streams", "", "requests", "requests/s", "output tok/s", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of the server: one run for each number of streams, of requests with random prompts.

    `requests` and `warmups`: None is by the number of streams. `limit`: seconds that one run may take.
    """

    streams: tuple[int, ...] = (1, 64)
    input_tokens: int = 256
    output_tokens: int = 128
    requests: int | None = None
    warmups: int | None = None
    seed: int | None = None
    limit: float = 1800.0

    def asked(self, streams: int) -> int:
        """How many requests one run sends: enough for each stream to send eight, and at least 32."""
        return self.requests or max(32, 8 * streams)


@dataclass(frozen=True)
class Model:
    """What the server says it serves: its name, where its files are, its longest context in tokens (None: unsaid)."""

    name: str
    root: str
    longest: int | None


def arguments(model: Model, load: Load, streams: int, seed: int, result: str) -> list[str]:
    """The command line of `vllm bench serve` (0.26 to 0.32). Pure.

    Temperature 0 leaves the model's sampling parameters out of the figure.
    """
    directory, _, name = result.rpartition("/")
    return [
        "--backend", "openai", "--base-url", f"http://127.0.0.1:{SERVER_PORT}", "--endpoint", "/v1/completions",
        "--model", model.name, "--tokenizer", model.root,
        "--dataset-name", "random", "--random-input-len", str(load.input_tokens),
        "--random-output-len", str(load.output_tokens), "--num-prompts", str(load.asked(streams)),
        "--max-concurrency", str(streams), "--num-warmups", str(load.warmups or max(2, streams)),
        "--seed", str(seed), "--ignore-eos", "--temperature", "0",
        "--percentile-metrics", ",".join(METRICS), "--metric-percentiles", "50,99",
        "--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", directory, "--result-filename", name,
    ]  # fmt: skip


def judge(load: Load, streams: int, raw: dict[str, Any], seconds: float) -> ProbeRecord:
    """One run's record, of vLLM's JSON result: figures of a run with a failed request are not figures. Pure.

    `data`: requests_per_s, output_tokens_per_s, and {metric}_{p50,p99}_ms.
    """
    asked, tokens = load.asked(streams), load.asked(streams) * load.output_tokens
    completed, failed, made = (raw.get(k) for k in ("completed", "failed", "total_output_tokens"))
    names = {"requests_per_s": "request_throughput", "output_tokens_per_s": "output_throughput"}
    names |= {f"{m}_{p}_ms": f"{p}_{m}_ms" for m in METRICS for p in ("p50", "p99")}
    data = {ours: raw.get(theirs) for ours, theirs in names.items()}
    absent = [k for k, v in data.items() if not _figure(v)]
    status, found = Status.PASS, f"{completed} completed, {made} tokens"
    if completed != asked or failed not in (0, None):
        first = next((str(e).strip().splitlines()[-1] for e in raw.get("errors") or [] if str(e).strip()), "")
        status = Status.FAIL
        found = f"{completed} of {asked} completed, {failed} failed{f': {first[:200]}' if first else ''}"
    elif made != tokens:
        status, found = Status.FAIL, f"{made} tokens came, so that it was other work than asked for"
    elif absent:
        status, found = Status.UNKNOWN, f"vLLM's result lacks {', '.join(absent)}"
    about = {"streams": streams, "requests": asked, "completed": completed, "failed": failed, "output_tokens": made}
    return ProbeRecord(
        name=f"bench serve {streams}", status=status, expected=f"{asked} requests completed, {tokens} tokens",
        found=found, seconds=round(seconds, 3), data={**about, **data},
    )  # fmt: skip


def _figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def row(record: ProbeRecord) -> tuple[str, ...]:
    """One run for people; a run that did not pass shows no figures."""
    d = record.data
    if record.status is not Status.PASS:
        done = "?" if d["completed"] is None else d["completed"]
        return (str(d["streams"]), record.status, f"{done}/{d['requests']}", *["-"] * 6)
    figures = (d["requests_per_s"], d["output_tokens_per_s"], d["ttft_p50_ms"], d["ttft_p99_ms"], d["tpot_p50_ms"],
               d["tpot_p99_ms"])  # fmt: skip
    return (str(d["streams"]), record.status, str(d["requests"]), *(f"{f:.2f}" for f in figures))


def served(server: Server) -> Model:
    """What the server lists.

    Raises:
        TargetUnavailable: it does not answer, or not with a model.
    """
    try:
        answer = server.http.get("/v1/models", server.deadline)
        first = answer.json()["data"][0]
        return Model(str(first["id"]), str(first["root"]), first.get("max_model_len"))
    except NoAnswer as e:
        raise TargetUnavailable(f"GET /v1/models: {e}", hint="`bringup verify` says more") from e
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise TargetUnavailable(
            f"GET /v1/models: HTTP {answer.status}, no model in {answer.excerpt()!r}",
            hint="give the server's key with --api-key-file" if answer.status == 401 else "`bringup verify` says more",
        ) from e


def require_room(load: Load, model: Model) -> None:
    """The prompts and answers fit the model's context.

    Raises:
        UsageError: they do not.
    """
    if model.longest is not None and load.input_tokens + load.output_tokens > model.longest:
        raise UsageError(
            f"{load.input_tokens} tokens in and {load.output_tokens} out are more than {model.name}'s context of "
            f"{model.longest}",
            hint="give fewer: --random-input-len N --random-output-len N",
            id="context-too-short",
        )


def measure(
    container: Container, model: Model, load: Load, streams: int, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """One run: vLLM's JSON result and the arguments it was made with. Nothing is left in the container.

    Raises:
        EvidenceMissing: the client is not there, failed, took too long, or wrote no result.
    """
    name = f"{container.state_dir}/run/bench-serve-{streams}-{time.time_ns()}"
    mark, result = f"{name}.pid", f"{name}.json"
    argv = arguments(model, load, streams, seed, result)
    try:
        code, output = container.execute([container.python, "-c", CLIENT, mark, str(math.ceil(load.limit)), *argv])
        if code:
            raise _no_result(code, output, load)
        raw = json.loads(container.copy_out(result))
    except ValueError as e:
        raise EvidenceMissing(f"vLLM's result cannot be read: {e}", id="bench-no-result") from e
    finally:
        with contextlib.suppress(BringupError):  # a container that is gone holds nothing, and says so elsewhere
            container.execute([container.python, "-c", CLEAR, mark, result])
    if not isinstance(raw, dict):
        raise EvidenceMissing("vLLM's result is no JSON object", id="bench-no-result")
    return raw, argv


def _no_result(code: int, output: str, load: Load) -> EvidenceMissing:
    lines = redact(output).strip().splitlines()
    last = lines[-1][:300] if lines else "it said nothing"
    detail = "\n".join(lines[-12:])
    if code == MISSING:
        return EvidenceMissing(
            f"vLLM's benchmark cannot be imported in the container: {last}", id="bench-module-missing", detail=detail,
            hint="needed is an image whose vLLM has vllm.benchmarks.serve with all that it imports: `bringup build`",
        )  # fmt: skip
    if code == OVERTIME:
        return EvidenceMissing(
            f"the benchmark had no result within {load.limit:g} s", id="bench-too-slow", detail=detail,
            hint="give fewer --num-prompts, a smaller --random-output-len, or a larger --limit",
        )  # fmt: skip
    return EvidenceMissing(
        f"vLLM's benchmark ended with {code}: {last}", id="bench-failed", detail=detail,
        hint="`bringup verify` says whether the server answers; `bringup logs` what it said",
    )  # fmt: skip


def bench(run: Run, load: Load) -> tuple[RunRecord, dict[str, Any], Path]:
    """Measure each number of streams, and write the bundle: bench-serve.json, vLLM's results, the server's evidence.

    A run without a result ends the benchmark and is unknown, or a failure where the server died; the bundle is written
    all the same.

    Raises:
        TargetUnavailable: no server; UsageError: it cannot be asked this.
    """
    artifacts.check_destination(run.settings.artifacts)
    container, server = workflow.attach(run)
    model = served(server)
    require_room(load, model)
    base = load.seed if load.seed is not None else int(time.time())
    report: dict[str, Any] = {
        "kind": "serve", "load_before": machine.load(run),
        "machine": machine.machine(run, container), "server": machine.server(run, container),
        "model": model.name, "input_tokens": load.input_tokens, "output_tokens": load.output_tokens, "runs": [],
    }  # fmt: skip
    machine.warn_if_busy(run, report["load_before"])
    files: dict[str, str] = {}
    for index, streams in enumerate(load.streams):
        began = time.monotonic()
        argv: list[str] = []
        try:
            # Another seed for each run: the prompts of one before it would lie in the server's prefix cache.
            with run.step(f"bench serve, {streams} streams, {load.asked(streams)} requests"):
                raw, argv = measure(container, model, load, streams, base + index)
        except EvidenceMissing as e:
            record = _without(e, container, load, streams, time.monotonic() - began)
            _tell(run, e)
        else:
            record = judge(load, streams, raw, time.monotonic() - began)
            files[f"bench-serve-{streams}.json"] = artifacts.as_json(raw)
        run.probes = (*run.probes, record)
        report["runs"].append({"status": record.status, "found": record.found, "argv": argv, **record.data})
        if not argv:
            break
    run.watch.say(machine.line(report["machine"]))
    run.watch.table(f"{model.name}: {load.input_tokens} tokens in, {load.output_tokens} out",
                    COLUMNS, [row(r) for r in run.probes])  # fmt: skip
    record_, bundle = _collect(run, server, container, report, files)
    return record_, report, bundle


def _without(error: EvidenceMissing, container: Container, load: Load, streams: int, seconds: float) -> ProbeRecord:
    """The record of a run that has no result."""
    status, found = Status.UNKNOWN, error.line
    try:
        state = container.state()
        died = "" if state.status in ("running", "paused") else f"{state.status}, exit code {state.exit_code}"
    except EvidenceMissing:
        died = "gone"
    except BringupError:
        died = ""  # nobody can tell
    if died:
        status, found = Status.FAIL, f"the server died meanwhile: its container is {died}"
    return ProbeRecord(
        name=f"bench serve {streams}", status=status, expected=f"{load.asked(streams)} requests completed", found=found,
        seconds=round(seconds, 3), data={"streams": streams, "requests": load.asked(streams), "completed": None},
    )  # fmt: skip


def _tell(run: Run, error: BringupError) -> None:
    for text in (*(f"  | {line}" for line in error.detail.splitlines()), error.line, f"  -> {error.hint}"):
        if text != "  -> ":
            run.watch.say(text)


def _collect(
    run: Run, server: Server, container: Container, report: dict[str, Any], files: dict[str, str]
) -> tuple[RunRecord, Path]:
    with run.step("collect"):
        raw_image = container.image()
        gathered, missing = artifacts.gather(server, run.plan, image.summary(raw_image))
        run.probes = (*run.probes, evidence(missing, len(gathered) + len(files) + 2))
        record = run.record(container, raw_image)
        report |= {"verdict": record.verdict}
        files = {**gathered, **files, "bench-serve.json": artifacts.as_json(report)}
        files["record.json"] = artifacts.as_json(record.to_dict())
        destination = run.settings.artifacts / f"{artifacts.name(run.plan, time.time())}-bench-serve"
        return record, artifacts.write(destination.absolute(), files, secrets(run.settings))


def evidence(missing: list[str], count: int) -> ProbeRecord:
    """Whether all of a benchmark's files are there."""
    return ProbeRecord(
        name="evidence", status=Status.UNKNOWN if missing else Status.PASS, expected="every artifact of the benchmark",
        found="missing: " + "; ".join(missing) if missing else f"{count} files",
    )  # fmt: skip
