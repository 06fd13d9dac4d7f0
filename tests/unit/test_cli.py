"""The command line: exit codes, where output goes, and what a signal does."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import __version__, address, artifacts, cli, commands, workflow
from bringup.errors import (
    BringupError,
    BuildFailed,
    BundleDiffers,
    CheckFailed,
    EvidenceMissing,
    Exit,
    NeverReady,
    TargetUnavailable,
    UsageError,
    WeightsDiffer,
)
from bringup.records import CheckRecord, ProbeRecord, RunRecord, Status, Verdict
from bringup.settings import fields, variable
from tests.unit import samples

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run `bringup ARGS` in this process, in an empty directory: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    for name, (_, option) in fields().items():
        for other in (variable(name), *option.env):
            monkeypatch.delenv(other, raising=False)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(commands, "STATE", {})

    def go(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bringup", *argv])
        try:
            with pytest.raises(SystemExit) as e:
                cli.main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert isinstance(e.value.code, int)
        return e.value.code, out, err

    return go


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def probe(status: Status) -> ProbeRecord:
    return ProbeRecord(name="completion", status=status, expected="expected words", found="found words")


def record(status: Status, verdict: Verdict) -> RunRecord:
    return RunRecord(
        tool_version="0", command="up", started="", finished="", verdict=verdict, plan={"base_url": "http://x"},
        host={}, image={}, container={}, probes=(probe(status),), started_to_first_token=3.0,
    )  # fmt: skip


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for `workflow.prepare`: keeps what it got, gives the plan of a good host."""
    got: list[Any] = []

    def prepare(command: str, settings: Any, sources: Any, watch: Any) -> workflow.Run:
        got.append((command, settings, sources))
        return workflow.Run(command, settings, samples.plan(), None, samples.FACTS, watch)  # type: ignore[arg-type]

    monkeypatch.setattr(workflow, "prepare", prepare)
    return got


# ---- exit codes

ERRORS = {
    UsageError: 2, CheckFailed: 3, BuildFailed: 4, WeightsDiffer: 5, NeverReady: 6, TargetUnavailable: 8,
    EvidenceMissing: 9, BundleDiffers: 10,
}  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_each_failure_has_its_code_and_is_told_in_full(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, kind: type[BringupError]
) -> None:
    monkeypatch.setattr(workflow, "prepare", raises(kind("what was [found]", hint="what to do", detail="a line\nmore")))
    code, out, err = invoke("up")
    assert (code, out) == (ERRORS[kind], "")
    assert err == "  | a line\n  | more\nbringup: what was [found]\n  -> what to do\n"


def test_every_kind_of_failure_is_tested() -> None:
    assert set(ERRORS) == set(BringupError.__subclasses__())


@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        (Status.PASS, Verdict.PASS, 0),
        (Status.FAIL, Verdict.FAIL, 7),
        (Status.UNKNOWN, Verdict.UNKNOWN, 9),
        (Status.PASS, Verdict.UNKNOWN, 9),  # the record's verdict counts, whatever its probes
    ],
)
def test_up_exits_with_its_verdict(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, prepared: list[Any], status: Status, verdict: Verdict, code: int
) -> None:
    monkeypatch.setattr(workflow, "bring_up", lambda _: (record(status, verdict), Path("bundle")))
    seen, out, err = invoke("up")
    assert (seen, out) == (code, "")
    assert f"verdict: {verdict}" in err
    assert "evidence: bundle" in err
    assert "container start to first token: 3.0 s" in err
    seen, out, err = invoke("up", "--quiet")
    assert (seen, out) == (code, "")
    evidence, told = err.splitlines()
    assert (evidence, told.startswith(f"verdict: {verdict} ")) == ("evidence: bundle", True)
    seen, out, _ = invoke("up", "--json")
    assert seen == code
    assert (json.loads(out)["verdict"], json.loads(out)["bundle"]) == (verdict, "bundle")


@pytest.mark.parametrize(
    ("status", "code"), [(Status.PASS, 0), (Status.FAIL, 7), (Status.UNKNOWN, 9), (Status.SKIP, 9)]
)
def test_verify_exits_with_the_verdict_of_its_probes(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, status: Status, code: int
) -> None:
    monkeypatch.setattr(address, "verify_address", lambda *_: (probe(status),))
    seen, out, err = invoke("verify", "http://x")
    assert (seen, out) == (code, "")
    assert "found words" in err
    seen, out, _ = invoke("verify", "--json", "http://x")
    assert json.loads(out)["probes"][0]["status"] == status


@pytest.mark.parametrize(
    ("host", "statuses", "code"),
    [
        (samples.FACTS, [Status.PASS, Status.WARN, Status.SKIP], 0),
        (samples.FACTS, [Status.PASS, Status.FAIL, Status.UNKNOWN], 3),
        (samples.FACTS, [Status.PASS, Status.UNKNOWN], 9),
        (replace(samples.FACTS, engine=samples.NO_ENGINE), [Status.FAIL, Status.UNKNOWN], 8),
    ],
)
def test_doctor(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, host: Any, statuses: list[Status], code: int) -> None:
    records = tuple(CheckRecord(name=s, status=s, found="found", needed="n", remedy="remedy") for s in statuses)

    def prepare(command: str, settings: Any, _: Any, watch: Any) -> workflow.Run:
        return workflow.Run(command, settings, samples.plan(), None, host, watch)  # type: ignore[arg-type]

    monkeypatch.setattr(workflow, "prepare", prepare)
    monkeypatch.setattr(workflow, "examine", lambda _: records)
    seen, _, err = invoke("doctor")
    assert seen == code
    assert err.count("-> remedy") == len([s for s in statuses if s is not Status.PASS])
    seen, out, _ = invoke("doctor", "--json")
    assert [r["status"] for r in json.loads(out)] == statuses


def test_a_bug_is_a_bug(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "prepare", raises(ZeroDivisionError("x")))
    code, out, err = invoke("up")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError" in err
    assert "this is a bug" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"], ["up", "--no-such-option"], ["up", "--port", "0"], ["verify", "--timeout", "1"],
        ["down", "extra"], ["logs", "--tail", "0"], ["completion", "csh"], ["build", "--", "x"], ["verify", "ftp://x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_be_used_is_usage(invoke: Invoke, argv: list[str]) -> None:
    code, out, err = invoke(*argv)
    assert (code, out) == (2, "")
    assert err


def test_a_config_that_cannot_be_used_is_usage(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "bringup.toml").write_text("prot = 1\n")
    code, _, err = invoke("models")
    assert code == 2
    assert "'prot' is no setting" in err
    assert "perhaps port?" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_and_a_second_one_does_not_stop_the_cleaning_up(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    cleaned = []

    def prepare(*_: Any) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    monkeypatch.setattr(workflow, "prepare", prepare)
    code, out, err = invoke("up")
    assert (code, out, cleaned) == (128 + number, "", [True])
    assert "interrupted" in err


# ---- output


def test_an_error_under_json_is_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "prepare", raises(NeverReady("it died", hint="look", detail="x")))
    code, out, err = invoke("up", "--json")
    assert json.loads(out) == {"error": "it died", "id": "", "hint": "look", "exit_code": 6}
    assert (code, "bringup: it died" in err) == (6, True)


def test_models(invoke: Invoke) -> None:
    code, out, _ = invoke("models", "--json")
    rows = {r["name"]: r for r in json.loads(out)}
    assert (code, rows["tiny-qwen2"]["pinned"]) == (0, True)
    assert rows["tiny-qwen2"]["bytes"] > 10**6
    code, out, _ = invoke("models")
    assert code == 0
    assert all(name in out for name in rows)


def test_plan_is_json_in_any_case(invoke: Invoke, prepared: list[Any]) -> None:
    for argv in (["plan"], ["plan", "--json"]):
        code, out, _ = invoke(*argv)
        assert code == 0
        assert json.loads(out)["model"] == "tiny-qwen2"


def test_logs_go_to_standard_output(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, prepared: list[Any]) -> None:
    monkeypatch.setattr(workflow, "console_output", lambda _run, tail: f"last {tail} lines [x]\n")
    assert invoke("logs", "--tail", "3") == (0, "last 3 lines [x]\n", "")
    assert json.loads(invoke("logs", "--json")[1]) == {"log": "last None lines [x]\n"}


def test_down(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    downs: list[tuple[str, bool]] = []
    monkeypatch.setattr(workflow, "take_down", lambda s, _, *, volumes: downs.append((s.project, volumes)))
    assert invoke("down") == (0, "", "")
    code, out, _ = invoke("down", "--json", "--volumes", "--project", "p")
    assert (code, json.loads(out)) == (0, {"project": "p", "volumes": True, "released": None})
    assert downs == [("bringup", False), ("p", True)]


def test_collect_looks_at_its_destination_before_anything_else(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, prepared: list[Any]
) -> None:
    monkeypatch.setattr(artifacts, "check_destination", raises(UsageError("no room")))
    assert invoke("collect")[0] == 2
    assert prepared == []


def test_settings_and_sources_reach_the_workflow(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, prepared: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "bringup.toml").write_text('project = "from-file"\nkeep = true\n')
    monkeypatch.setenv("BRINGUP_MAX_MODEL_LEN", "512")
    monkeypatch.setattr(workflow, "bring_up", lambda _: (record(Status.PASS, Verdict.PASS), Path("b")))
    assert invoke("up", "--port", "81", "--", "--seed", "1")[0] == 0
    command, settings, sources = prepared[0]
    assert command == "up"
    assert (settings.project, settings.keep, settings.max_model_len) == ("from-file", True, 512)
    assert (settings.port, settings.vllm_args) == (81, ("--seed", "1"))
    wanted = {"project": "bringup.toml", "max_model_len": "environment", "port": "flag", "vllm_args": "flag"}
    assert {name: sources[name] for name in wanted} == wanted
    assert sources["model"] == "default"


def test_version_and_help(invoke: Invoke) -> None:
    assert invoke("--version") == (0, f"bringup, version {__version__}\n", "")
    code, out, _ = invoke("--help")
    assert code == 0
    commands = ("up", "verify", "collect", "build", "logs", "down", "plan", "models", "doctor", "completion")
    assert [c for c in commands if f"  {c} " not in out] == []


@pytest.mark.parametrize("command", cli.every_command())
def test_every_command_has_help_and_says_what_it_is_for(invoke: Invoke, command: str) -> None:
    code, out, _ = invoke(*command.split(), "--help")
    assert code == 0
    assert cli.every_command()[command].help
    if command != "completion":
        assert "--json" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    from click.shell_completion import BashComplete

    monkeypatch.setattr(BashComplete, "_check_version", lambda *_: None)  # it runs bash to ask for its version
    code, out, _ = invoke("completion", shell)
    assert code == 0
    assert "_BRINGUP_COMPLETE" in out


def test_every_exit_code_has_a_meaning() -> None:
    assert all(code.meaning for code in Exit)
