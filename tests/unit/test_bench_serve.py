"""bench serve: what vLLM's client is asked, and that only a whole result is one."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from bringup import artifacts, schema, workflow
from bringup.benchmark import serve
from bringup.benchmark.serve import Load, Model
from bringup.edge.http import NoAnswer
from bringup.errors import BringupError, EvidenceMissing, TargetUnavailable, UsageError
from bringup.records import Status, Verdict
from bringup.targets.compose import EngineContainer
from tests.unit.fakes import FakeContainer, FakeHttp, answer, make_server, state
from tests.unit.runs import FakeEngine, Silent, a_run

LOAD = Load(streams=(1, 4), input_tokens=32, output_tokens=16, requests=8, seed=7)
M = Model("m", "/opt/bringup/models/m", 2048)
MODELS = answer({"data": [{"id": "m", "root": "/opt/bringup/models/m", "max_model_len": 2048}]})
SAMPLE = answer({"choices": [{"text": " something"}]})


def result(**changes: Any) -> dict[str, Any]:
    """vLLM 0.32's, of a run that went well."""
    figures = {f"{p}_{m}_ms": 2.5 for m in serve.METRICS for p in ("p50", "p99")}
    known = {"completed": 8, "failed": 0, "total_output_tokens": 128, "request_throughput": 19.0,
             "output_throughput": 303.6, "errors": [""] * 8, **figures}  # fmt: skip
    return {k: v for k, v in (known | changes).items() if v is not ...}


# ---- what is asked


def flags(argv: list[str]) -> dict[str, str]:
    return {a: b for a, b in zip(argv, [*argv[1:], ""], strict=True) if a.startswith("--")}


def test_the_arguments_are_those_of_the_load() -> None:
    found = flags(serve.arguments(M, LOAD, 4, 9, "/var/lib/bringup/run/x.json"))
    assert found["--num-prompts"] == "8"
    assert found["--max-concurrency"] == "4"
    assert (found["--random-input-len"], found["--random-output-len"]) == ("32", "16")
    assert (found["--model"], found["--tokenizer"]) == ("m", "/opt/bringup/models/m")
    assert found["--base-url"] == "http://127.0.0.1:8000"
    assert (found["--result-dir"], found["--result-filename"]) == ("/var/lib/bringup/run", "x.json")
    assert (found["--dataset-name"], found["--seed"], found["--num-warmups"]) == ("random", "9", "4")


@pytest.mark.parametrize(("streams", "requests"), [(1, 32), (4, 32), (8, 64), (64, 512)])
def test_each_stream_sends_enough_requests(streams: int, requests: int) -> None:
    assert Load().asked(streams) == requests


def test_prompt_and_answer_must_fit_the_context() -> None:
    serve.require_room(LOAD, Model("m", "/m", 48))
    serve.require_room(LOAD, Model("m", "/m", None))
    with pytest.raises(UsageError, match="32 tokens in and 16 out are more than m's context of 47") as e:
        serve.require_room(LOAD, Model("m", "/m", 47))
    assert e.value.id == "context-too-short"


def test_the_served_model() -> None:
    assert serve.served(make_server(FakeHttp({"/v1/models": MODELS}))) == M


UNSERVED: dict[str, tuple[Any, str]] = {
    "nobody": (NoAnswer("connection refused"), "connection refused"),
    "no key": (answer({"error": "Unauthorized"}, status=401), "HTTP 401"),
    "no model": (answer({"data": []}), "no model"),
    "no root": (answer({"data": [{"id": "m"}]}), "no model"),
    "html": (answer(b"<html>"), "no model"),
    "a list": (answer([1]), "no model"),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_server_that_lists_no_model_is_not_measured(name: str) -> None:
    reply, told = UNSERVED[name]
    with pytest.raises(TargetUnavailable, match=told) as e:
        serve.served(make_server(FakeHttp({"/v1/models": reply})))
    assert ("--api-key-file" in e.value.hint) == (name == "no key")


# ---- what came back


def test_a_whole_result_passes_with_its_figures() -> None:
    made = serve.judge(LOAD, 4, result(), 1.23456)
    assert (made.status, made.seconds) == (Status.PASS, 1.235)
    assert made.data["output_tokens_per_s"] == 303.6
    assert made.data["ttft_p50_ms"] == 2.5
    assert serve.row(made) == ("4", "pass", "8", "19.00", "303.60", "2.50", "2.50", "2.50", "2.50")


BAD: dict[str, tuple[dict[str, Any], Status, str]] = {
    "one less": ({"completed": 7, "failed": 1}, Status.FAIL, "7 of 8 completed, 1 failed"),
    "none": ({"completed": 0, "failed": 8, "errors": ["", "Traceback\nHTTP 500"]}, Status.FAIL, "failed: HTTP 500"),
    "a failure beside": ({"failed": 1}, Status.FAIL, "8 of 8 completed, 1 failed"),
    "no word of completion": ({"completed": ...}, Status.FAIL, "None of 8 completed"),
    "other work": ({"total_output_tokens": 8}, Status.FAIL, "8 tokens came"),
    "a figure is missing": ({"output_throughput": ...}, Status.UNKNOWN, "lacks output_tokens_per_s"),
    "a figure is no number": ({"p50_ttft_ms": "fast"}, Status.UNKNOWN, "lacks ttft_p50_ms"),
    "not a number": ({"p99_tpot_ms": float("nan")}, Status.UNKNOWN, "lacks tpot_p99_ms"),
    "endless": ({"request_throughput": float("inf")}, Status.UNKNOWN, "lacks requests_per_s"),
    "zero": ({"output_throughput": 0.0}, Status.UNKNOWN, "lacks output_tokens_per_s"),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_less_is_no_pass_and_shows_no_figure(name: str) -> None:
    changes, status, told = BAD[name]
    made = serve.judge(LOAD, 4, result(**changes), 1.0)
    assert made.status is status
    assert told in made.found
    assert set(serve.row(made)[3:]) == {"-"}


def test_the_release_without_a_count_of_failures_is_judged_by_the_completed() -> None:
    assert serve.judge(LOAD, 4, result(failed=...), 1.0).status is Status.PASS


# ---- in the container


class Box(FakeContainer):
    """A container whose client ends with `code`, and whose result file is `file`; keeps what was run in it."""

    def __init__(self, code: int = 0, said: str = "", written: bytes | Exception | None = None, **rest: Any) -> None:
        super().__init__(**rest)
        self.code, self.said = code, said
        self.file = json.dumps(result()).encode() if written is None else written
        self.ran: list[list[str]] = []

    def execute(self, argv: list[str]) -> tuple[int, str]:
        self.ran.append(argv)
        if serve.CLIENT in argv:
            return self.code, self.said
        return 0, "2\n" if argv == ["nproc"] else "x\n"

    def cleared(self) -> bool:
        """The last thing was to clear up, with the files that the client was given."""
        client = next(a for a in self.ran if serve.CLIENT in a)
        mark, name = client[3], client[-1]
        return self.ran[-1][2:] == [serve.CLEAR, mark, mark.removesuffix(".pid") + ".json"] and mark.endswith(
            name.removesuffix(".json") + ".pid"
        )


def test_a_run_gives_the_result_and_leaves_nothing() -> None:
    box = Box()
    raw, argv = serve.measure(box, M, LOAD, 4, 9)
    assert raw == result()
    assert argv == box.ran[0][5:]
    assert box.ran[0][4] == "1800"
    assert box.cleared()


WITHOUT: dict[str, tuple[dict[str, Any], str, str]] = {
    "no module": ({"code": 93, "said": "ModuleNotFoundError: No module named 'datasets'"}, "bench-module-missing",
                  "cannot be imported in the container: ModuleNotFoundError: No module named 'datasets'"),
    "too slow": ({"code": 142}, "bench-too-slow", "no result within 1800 s"),
    "it failed": ({"code": 1, "said": "a\nValueError: bad"}, "bench-failed", "ended with 1: ValueError: bad"),
    "it failed in silence": ({"code": 1}, "bench-failed", "it said nothing"),
    "no file": ({"written": EvidenceMissing("x.json is not in the container")}, "", "is not in the container"),
    "half a file": ({"written": b'{"completed": 8'}, "bench-no-result", "cannot be read"),
    "an empty file": ({"written": b""}, "bench-no-result", "cannot be read"),
    "a list": ({"written": b"[]"}, "bench-no-result", "no JSON object"),
    "no text": ({"written": b"\xff\xfe\xff"}, "bench-no-result", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_result_there_is_no_figure_and_nothing_left(name: str) -> None:
    how, id_, told = WITHOUT[name]
    box = Box(**how)
    with pytest.raises(EvidenceMissing, match=told) as e:
        serve.measure(box, M, LOAD, 4, 9)
    assert (e.value.id, box.cleared()) == (id_, True)


def test_an_interrupted_run_ends_its_client() -> None:
    class Interrupted(Box):
        def execute(self, argv: list[str]) -> tuple[int, str]:
            super().execute(argv)
            if serve.CLIENT in argv:
                raise KeyboardInterrupt
            return 0, ""

    box = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        serve.measure(box, M, LOAD, 4, 9)
    assert box.cleared()


# ---- the client itself


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run CLIENT against a vLLM that notes what it is given."""

    def run(module: Callable[[dict[str, Any]], types.ModuleType | None], key: str, environ_key: str) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        (tmp_path / "key").write_text(key)
        mark = tmp_path / "mark"
        for name, value in {"BRINGUP_API_KEY_FILE": str(tmp_path / "key"), "VLLM_API_KEY": environ_key,
                            "OPENAI_API_KEY": "", "NO_PROXY": "", "no_proxy": ""}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(signal, "alarm", lambda n: seen.update(limit=n))
        monkeypatch.setattr(sys, "argv", ["-c", str(mark), "30", "--model", "m"])
        parser = types.ModuleType("vllm.utils.argparse_utils")
        vars(parser)["FlexibleArgumentParser"] = lambda **_: types.SimpleNamespace(parse_args=lambda argv: argv)
        known = {"vllm": types.ModuleType("vllm"), "vllm.benchmarks": types.ModuleType("b"),
                 "vllm.benchmarks.serve": module(seen), "vllm.utils": types.ModuleType("u"),
                 "vllm.utils.argparse_utils": parser}  # fmt: skip
        for name, made in known.items():
            monkeypatch.setitem(sys.modules, name, cast("types.ModuleType", made))
        exec(compile(serve.CLIENT, "client", "exec"), {})  # noqa: S102 - it is ours
        return seen | {"mark_left": mark.exists()}

    return run


def benchmark(seen: dict[str, Any]) -> types.ModuleType:
    def main(argv: list[str]) -> None:
        seen.update(argv=argv, key=os.environ["OPENAI_API_KEY"], pid=Path(sys.argv[1]).read_text())

    module = types.ModuleType("vllm.benchmarks.serve")
    vars(module).update(main=main, add_cli_args=lambda _: None)
    return module


@pytest.mark.parametrize(("key", "environ_key", "used"), [("k3y\n", "", "k3y"), ("", "env", "env"), ("", "", "")])
def test_the_client_has_the_key_in_its_environment_alone(
    client: Callable[..., dict[str, Any]], key: str, environ_key: str, used: str
) -> None:
    seen = client(benchmark, key, environ_key)
    assert seen == {
        "argv": ["--model", "m"], "key": used, "limit": 30, "pid": str(os.getpid()), "mark_left": False,
    }  # fmt: skip


def test_the_client_says_when_the_benchmark_is_not_there(
    client: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        client(lambda _: None, "", "")  # None in sys.modules: the import fails
    assert e.value.code == serve.MISSING
    assert "vllm.benchmarks.serve" in capsys.readouterr().out


# ---- the whole


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


class Engine(FakeEngine):
    def image(self, _reference: str) -> dict[str, Any] | None:
        return {"Id": _reference} if _reference else None


def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, box: Box, load: Load = LOAD
) -> tuple[Any, dict[str, Any], Path, Silent]:
    run = a_run(tmp_path)
    run.engine = cast("Any", Engine())
    server = make_server(FakeHttp({"/v1/models": MODELS, "/v1/completions": SAMPLE}), container=box)
    monkeypatch.setattr(workflow, "attach", lambda _: (cast("EngineContainer", box), server))
    record, report, bundle = serve.bench(run, load)
    return record, report, bundle, cast("Silent", run.watch)


def test_every_number_of_streams_is_measured_with_prompts_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box()
    record, report, bundle, _ = bench(tmp_path, monkeypatch, box)
    assert record.verdict is Verdict.PASS
    schema.require(json.loads((bundle / "record.json").read_text()))
    assert [(r["streams"], r["status"]) for r in report["runs"]] == [(1, "pass"), (4, "pass")]
    assert [flags(r["argv"])["--seed"] for r in report["runs"]] == ["7", "8"]
    assert {"bench-serve.json", "bench-serve-1.json", "bench-serve-4.json", "record.json"} < names(bundle)
    sums = (bundle / artifacts.SUMS).read_text()
    assert all(name in sums for name in names(bundle) if name != artifacts.SUMS)
    assert json.loads((bundle / "bench-serve.json").read_text())["runs"] == report["runs"]
    assert json.loads((bundle / "bench-serve-4.json").read_text()) == result()
    assert report["load_before"] >= 0


def test_a_run_without_a_result_is_unknown_and_ends_it_with_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, report, bundle, watch = bench(tmp_path, monkeypatch, Box(code=142, said="slow"))
    assert record.verdict is Verdict.UNKNOWN
    assert [r["status"] for r in report["runs"]] == ["unknown"]
    assert "bench-serve-1.json" not in names(bundle)
    assert any("--limit" in line for line in watch.said)


DEAD: dict[str, tuple[Any, str, Verdict]] = {
    "killed": (state("exited", exit_code=137), "exited, exit code 137", Verdict.FAIL),
    "removed": (EvidenceMissing("gone"), "gone", Verdict.FAIL),
    "nobody can tell": (TargetUnavailable("no engine"), "bench-failed", Verdict.UNKNOWN),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_server_that_died_meanwhile_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    after, told, verdict = DEAD[name]
    record, report, _, _ = bench(tmp_path, monkeypatch, Box(code=137, states=[after]))
    assert told in report["runs"][0]["found"]
    assert record.verdict is verdict
    assert len(report["runs"]) == 1


def test_failed_requests_fail_the_benchmark_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, report, bundle, _ = bench(
        tmp_path, monkeypatch, Box(written=json.dumps(result(completed=7, failed=1)).encode())
    )
    assert record.verdict is Verdict.FAIL
    assert [r["status"] for r in report["runs"]] == ["fail", "fail"]
    assert "bench-serve-1.json" in names(bundle)


def test_missing_evidence_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, _, _ = bench(tmp_path, monkeypatch, Box(logs_=""))
    assert record.verdict is Verdict.UNKNOWN
    assert "server.log (empty)" in record.probes[-1].found


def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box()
    with pytest.raises(BringupError, match="context"):
        bench(tmp_path, monkeypatch, box, Load(input_tokens=4000))
    assert box.ran == []
    assert names(tmp_path) == set()


def test_a_detail_with_the_key_is_not_said() -> None:
    box = Box(code=1, said="Authorization: Bearer s3cr3ts3cr3ts3cr3t\nboom")
    with pytest.raises(EvidenceMissing) as e:
        serve.measure(box, M, LOAD, 1, 1)
    assert "s3cr3t" not in e.value.detail + e.value.message
