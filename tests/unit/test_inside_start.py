"""The entry point up to the moment vLLM would be started."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from bringup import catalog
from bringup.errors import UsageError, WeightsDiffer
from bringup.inside import __main__ as entry
from bringup.inside import gate, guard, start, supervise
from bringup.inside.parts import PARTS, parts
from bringup.inside.start import Launch
from bringup.inside.supervise import Child, End
from bringup.inside.weights import Baked
from bringup.plan import make_plan
from bringup.settings import Settings

LOG = logging.getLogger("test.inside")
DRAIN = ("--shutdown-timeout", "4")
GATE = (*DRAIN, "--allowed-origins", "[]", "--middleware", "bringup.inside.gate.Gate")
ANYWHERE = "0.0.0.0"  # noqa: S104 - told to the entry point, never bound


@pytest.fixture
def baked(tmp_path: Path) -> Baked:
    content = b'{"a": 1}'
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_bytes(content)
    file = {"path": "config.json", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    model = {"source": "local:x", "license": "Apache-2.0", "files": [file]}
    (tmp_path / "lock").write_text(json.dumps({"schema": 1, "models": {"tiny": model, "other": model}}))
    return Baked(tmp_path / "models", tmp_path / "lock")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "look", lambda: ("2.4.0", True))


def prepare(baked: Baked, extra: tuple[str, ...] = (), **environ: str) -> Launch:
    given = {"BRINGUP_FLAVOUR": "cpu", "BRINGUP_MODEL": "tiny", "BRINGUP_BIND": "127.0.0.1", **environ}
    launch = start.prepare(given, extra, baked, LOG)
    launch.weights()
    return launch


def test_the_command(baked: Baked) -> None:
    launch = prepare(baked, ("--seed", "1"), BRINGUP_MAX_MODEL_LEN="64", BRINGUP_VLLM_ARGS="--max-num-seqs 4")
    assert launch.argv[:3] == (sys.executable, "-m", "bringup.inside.serve")
    assert launch.argv[launch.argv.index("--max-model-len") + 1] == "64"
    assert launch.argv[-10:-6] == ("--max-num-seqs", "4", "--seed", "1")


def test_the_gate_is_the_outermost_middleware_and_no_web_page_may_ask(baked: Baked) -> None:
    launch = prepare(baked, ("--middleware", "user.own"))
    assert launch.argv[-8:] == ("--middleware", "user.own", *GATE)
    assert gate.PREFLIGHT not in launch.environment
    asked = prepare(baked, ("--allowed_origins", '["https://x"]'), BRINGUP_PREFLIGHT="")
    assert asked.argv[-5:] == ('["https://x"]', *DRAIN, *GATE[-2:])
    assert asked.environment[gate.PREFLIGHT] == "1"
    assert gate.PREFLIGHT not in prepare(baked, BRINGUP_PREFLIGHT="1", BRINGUP_MORE_API_KEYS="x").environment


def test_the_gates_name_is_the_gate() -> None:
    module, _, name = gate.MIDDLEWARE.rpartition(".")
    assert getattr(importlib.import_module(module), name) is gate.Gate


def test_the_parser_of_the_models_tool_calls_is_the_plans(baked: Baked, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"tiny": replace(catalog.load()["qwen2.5-0.5b-instruct"], name="tiny")}
    monkeypatch.setattr(catalog, "load", lambda: known)
    argv = prepare(baked).argv
    assert argv[3:] == (*make_plan(Settings(model="tiny"), known["tiny"], ("cpu", "because"), {}).argv, *GATE)
    assert argv[argv.index("--tool-call-parser") + 1] == "hermes"


def test_the_environment_is_passed_on_with_cpu_defaults(baked: Baked) -> None:
    environment = prepare(baked, VLLM_X="1").environment
    assert (environment["VLLM_X"], environment["VLLM_CPU_KVCACHE_SPACE"]) == ("1", "1")
    assert environment["USER"] == "bringup"
    assert "VLLM_API_KEY" not in environment


def test_cpu_defaults_give_way(baked: Baked) -> None:
    assert prepare(baked, VLLM_CPU_KVCACHE_SPACE="3").environment["VLLM_CPU_KVCACHE_SPACE"] == "3"
    given = prepare(baked, ("--kv_cache_memory_bytes=1000000000",)).environment
    assert "VLLM_CPU_KVCACHE_SPACE" not in given
    gpu = prepare(baked, BRINGUP_FLAVOUR="gpu")
    assert "VLLM_CPU_KVCACHE_SPACE" not in gpu.environment
    assert "--enforce-eager" not in gpu.argv


@pytest.mark.parametrize("bind", [ANYWHERE, "::", "10.1.2.3", ""])
@pytest.mark.parametrize("key_file", ["", "/dev/null", "empty"])
def test_public_without_a_key_is_refused(baked: Baked, tmp_path: Path, bind: str, key_file: str) -> None:
    if key_file == "empty":
        (tmp_path / "empty").write_text(" \n")
        key_file = str(tmp_path / "empty")
    with pytest.raises(UsageError) as e:
        prepare(baked, BRINGUP_BIND=bind, BRINGUP_API_KEY_FILE=key_file)
    assert (bind or "unset means 0.0.0.0") in e.value.message
    assert "BRINGUP_API_KEY_FILE" in e.value.hint
    assert "BRINGUP_INSECURE=1" in e.value.hint


def test_public_without_a_key_when_told_so(baked: Baked, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert "VLLM_API_KEY" not in prepare(baked, BRINGUP_BIND=ANYWHERE, BRINGUP_INSECURE="1").environment
    assert "BRINGUP_INSECURE=1: there is no API key" in caplog.text
    for other in ("0", "", "yes"):
        with pytest.raises(UsageError, match="no API key is set"):
            prepare(baked, BRINGUP_BIND=ANYWHERE, BRINGUP_INSECURE=other)


def test_several_keys_are_the_gates_and_vllm_has_the_first(baked: Baked, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\nsecret-1 \n\n\tsecret-2\r\nsecret-3")
    environment = prepare(baked, BRINGUP_API_KEY_FILE=str(tmp_path / "key")).environment
    assert (environment["VLLM_API_KEY"], environment[gate.MORE_KEYS]) == ("secret-1", "secret-2 secret-3")
    assert len(gate.rules_of(environment).digests) == 3


def test_public_with_a_key_is_not_refused(baked: Baked, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret-1\n")
    launch = prepare(baked, BRINGUP_BIND=ANYWHERE, BRINGUP_API_KEY_FILE=str(tmp_path / "key"), VLLM_API_KEY="old")
    assert launch.environment["VLLM_API_KEY"] == "secret-1"
    assert not any("secret-1" in a for a in launch.argv)
    assert prepare(baked, BRINGUP_BIND=ANYWHERE, VLLM_API_KEY="k").environment["VLLM_API_KEY"] == "k"


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(baked: Baked, bind: str) -> None:
    assert "VLLM_API_KEY" not in prepare(baked, BRINGUP_BIND=bind).environment


def test_the_key_is_not_logged(baked: Baked, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        prepare(baked, VLLM_API_KEY="secret-2")
    assert "VLLM_API_KEY=(set)" in caplog.text
    assert "secret-2" not in caplog.text


@pytest.mark.parametrize("made", ["missing", "directory", "two words", "latin", "long", "a bad line", "large"])
def test_a_key_that_cannot_be_used(tmp_path: Path, made: str) -> None:
    file = tmp_path / "key"
    if made == "directory":
        file.mkdir()
    elif made != "missing":
        file.write_bytes(
            {
                "two words": b"a b\n",
                "latin": b"\xfcber",
                "long": b"x" * 5000,
                "a bad line": b"good\na b\n",
                "large": b"key\n" * 20_000,
            }[made]
        )
    with pytest.raises(UsageError, match="API key") as e:
        start.read_keys(file, "")
    assert e.value.hint


@pytest.mark.parametrize("arg", ["--api-key", "--api-key=x", "--api_key", "--api_key=x"])
def test_a_key_in_argv_is_refused(baked: Baked, arg: str) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        prepare(baked, (arg,))
    with pytest.raises(UsageError, match="--api-key"):
        prepare(baked, BRINGUP_VLLM_ARGS=arg)


@pytest.mark.parametrize("flavour", ["", "CPU", "tpu"])
def test_a_flavour_is_needed(baked: Baked, flavour: str) -> None:
    with pytest.raises(UsageError, match="BRINGUP_FLAVOUR"):
        prepare(baked, BRINGUP_FLAVOUR=flavour)


def test_a_setting_that_cannot_be_used_is_named(baked: Baked) -> None:
    with pytest.raises(UsageError, match="BRINGUP_MAX_MODEL_LEN"):
        prepare(baked, BRINGUP_MAX_MODEL_LEN="many")


def test_a_model_that_the_image_does_not_hold(baked: Baked) -> None:
    with pytest.raises(UsageError, match=r"'other'; it holds: tiny"):
        prepare(baked, BRINGUP_MODEL="other")
    (baked.models / "stray").mkdir()
    with pytest.raises(UsageError, match="does not pin 'stray'"):
        prepare(baked, BRINGUP_MODEL="stray")


def test_the_only_model_is_the_default(baked: Baked) -> None:
    launch = start.prepare({"BRINGUP_FLAVOUR": "cpu", "BRINGUP_BIND": "::1"}, (), baked, LOG)
    assert launch.argv[launch.argv.index("--model") + 1].endswith("/tiny")


@pytest.mark.parametrize("change", ["content", "extra", "missing"])
def test_other_weights_are_refused(baked: Baked, change: str) -> None:
    directory = baked.models / "tiny"
    if change == "content":
        (directory / "config.json").write_bytes(b'{"a": 2}')
    elif change == "extra":
        (directory / "x.json").touch()
    else:
        (directory / "config.json").unlink()
    with pytest.raises(WeightsDiffer) as e:
        prepare(baked)
    assert e.value.exit_code == 5
    assert e.value.detail


def test_the_weights_line(baked: Baked, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        prepare(baked)
    line = next(r for r in caplog.records if str(r.msg).startswith("weights of %s are as locked"))
    name, files, size, seconds, rate, digest = line.args  # type: ignore[misc]
    assert (name, files, size, len(str(digest))) == ("tiny", 1, 8, 64)
    assert rate == pytest.approx(8e-9 / max(float(str(seconds)), 1e-6))


def test_the_guard_acts(baked: Baked) -> None:
    assert guard.VARIABLE not in prepare(baked, HF_HUB_ENABLE_HF_TRANSFER="1").environment
    assert prepare(baked, HF_HUB_ENABLE_HF_TRANSFER="0").environment[guard.VARIABLE] == "0"


def test_log_records_are_configured(tmp_path: Path) -> None:
    launch = start.configure_logging(Launch(("a",), {}), tmp_path / "server.jsonl", LOG)
    config = json.loads(Path(launch.environment["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    assert config["handlers"]["jsonl"]["path"] == str(tmp_path / "server.jsonl")


@pytest.mark.parametrize(
    "launch",
    [
        Launch(("a",), {"VLLM_LOGGING_CONFIG_PATH": "/mine"}),
        Launch(("a",), {"VLLM_CONFIGURE_LOGGING": "0"}),
        Launch(("a", "--log-config-file=/mine"), {}),
        Launch(("a", "--logging-config.formatter", "json"), {}),
    ],
)
def test_the_users_logging_is_left_alone(tmp_path: Path, launch: Launch, caplog: pytest.LogCaptureFixture) -> None:
    assert start.configure_logging(launch, tmp_path / "server.jsonl", LOG) == launch
    assert "is yours" in caplog.text
    assert list(tmp_path.iterdir()) == []


def run_main(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], asked: bool = False, **environ: str
) -> tuple[int, list[Launch]]:
    started: list[Launch] = []

    def beside(argv: tuple[str, ...], environment: dict[str, str], check: Callable[[], None]) -> Child:
        check()
        return cast("Child", None)

    def supervise(argv: tuple[str, ...], environment: dict[str, str], log: logging.Logger, *_: Any, **__: Any) -> End:
        log.info("here")
        started.append(Launch(argv, environment))
        return End(6, "vLLM died", asked)

    monkeypatch.setattr(entry, "Baked", lambda: baked)
    monkeypatch.setattr(entry, "supervise", supervise)
    monkeypatch.setattr(entry, "start_beside", beside)
    given = {"BRINGUP_FLAVOUR": "cpu", "BRINGUP_MODEL": "tiny", "BRINGUP_BIND": "127.0.0.1"}
    given["BRINGUP_STATE_DIR"] = str(tmp_path / "s")
    return entry.main(args, given | environ), started


def test_main_serves(baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, started = run_main(baked, tmp_path, monkeypatch, ["--seed", "3"])
    assert code == 6
    assert started[0].argv[-8:] == ("--seed", "3", *GATE)
    entries = [json.loads(line) for line in (tmp_path / "s/run/server.jsonl").read_text().splitlines()]
    assert {e["logger"] for e in entries} == {"bringup.inside", "bringup.inside.marks"}
    assert entries[-1]["msg"] == "here"


def test_main_refuses_in_one_line(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(baked, tmp_path, monkeypatch, [], BRINGUP_BIND=ANYWHERE) == (2, [])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"bringup: the port is published on {ANYWHERE}")
    last = (tmp_path / "s/run/server.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["level"] == "ERROR"


def test_main_lists_what_differs(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (baked.models / "tiny" / "one.json").touch()
    (baked.models / "tiny" / "two.json").touch()
    assert run_main(baked, tmp_path, monkeypatch, [])[0] == 5
    err = capsys.readouterr().err
    assert "bringup:   not in the lock: one.json\nbringup:   not in the lock: two.json\n" in err


def test_check_only_looks(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(baked, tmp_path, monkeypatch, ["--check", "--seed", "3"]) == (0, [])
    assert json.loads(capsys.readouterr().out)[-8:] == ["--seed", "3", *GATE]
    assert not (tmp_path / "s").exists()


def entries_of(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "s/run/server.jsonl").read_text().splitlines()
    return [e["msg"] % tuple(e["args"]) if e["args"] else e["msg"] for e in map(json.loads, lines)]


@pytest.mark.parametrize("word", ["all", "plain", "standby,gc"])
def test_the_weights_are_checked_beside_the_imports_unless_told_otherwise(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    assert run_main(baked, tmp_path, monkeypatch, [], BRINGUP_LAUNCH=word)[0] == 6
    said = entries_of(tmp_path)
    spawned, checked = said.index("reached server spawned"), said.index("reached weights checked")
    assert said.index("reached entry") < min(spawned, checked)
    assert (spawned < checked) is (word == "all")


@pytest.mark.parametrize(("hold", "asked", "held"), [("1", False, True), ("1", True, False), ("0", False, False)])
def test_a_container_is_held_after_its_servers_own_end(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: str, asked: bool, held: bool
) -> None:
    ends: list[End] = []
    monkeypatch.setattr(entry, "hold", lambda end, _log: ends.append(end))
    assert run_main(baked, tmp_path, monkeypatch, [], asked, BRINGUP_HOLD=hold)[0] == 6
    assert ends == ([End(6, "vLLM died")] if held else [])


def test_a_start_that_is_refused_is_held_too(
    baked: Baked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[End] = []
    monkeypatch.setattr(entry, "hold", lambda end, _log: ends.append(end))
    assert run_main(baked, tmp_path, monkeypatch, [], PORT="x", BRINGUP_HOLD="yes") == (2, [])
    assert ends == [End(2, "PORT: 'x' is not a number")]
    assert run_main(baked, tmp_path, monkeypatch, [], BRINGUP_HOLD="perhaps") == (2, [])
    assert len(ends) == 1
    assert "BRINGUP_HOLD: 'perhaps' is not one of" in capsys.readouterr().err


def test_the_hosts_port_is_the_servers(baked: Baked) -> None:
    launch = prepare(baked, PORT="9000", PORT_HEALTH="9001")
    assert launch.argv[launch.argv.index("--port") + 1] == "9000"
    assert len(launch.environment[gate.ASKER]) == 32
    assert gate.HEALTH_PATH not in launch.environment
    shared = prepare(baked, PORT="9000", HEALTH_CHECK_PATH="/alive", BRINGUP_HEALTH_ID="forged")
    assert shared.environment[gate.HEALTH_PATH] == "/alive"
    assert gate.ASKER not in shared.environment
    assert not {gate.HEALTH_PATH, gate.ASKER} & prepare(baked, BRINGUP_HEALTH_PATH="/v1/models").environment.keys()


def test_the_pods_own_key_is_not_the_servers(baked: Baked) -> None:
    environment = prepare(baked, RUNPOD_API_KEY="rpa-1", RUNPOD_POD_ID="p").environment
    assert "RUNPOD_API_KEY" not in environment
    assert environment["RUNPOD_POD_ID"] == "p"


def test_a_drain_of_the_users_own_is_kept(baked: Baked) -> None:
    argv = prepare(baked, ("--shutdown_timeout=60",)).argv
    assert "--shutdown-timeout" not in argv
    assert supervise.grace(argv) == 64
    assert supervise.grace(("--shutdown-timeout", "x")) == supervise.grace(()) == 8


def test_a_volume_that_is_not_there_is_filled_before_the_server_starts(baked: Baked) -> None:
    given = {"BRINGUP_FLAVOUR": "cpu", "BRINGUP_MODEL": "tiny", "BRINGUP_BIND": "127.0.0.1"}
    assert start.prepare(given, (), baked, LOG).beside
    empty = Baked(baked.models, baked.lock, volume=baked.models / "empty")
    assert not start.prepare(given | {"BRINGUP_WEIGHTS": "volume"}, (), empty, LOG).beside


def test_parts() -> None:
    assert parts({}) == parts({"BRINGUP_LAUNCH": "all"}) == PARTS
    assert parts({"BRINGUP_LAUNCH": "plain"}) == frozenset()
    assert parts({"BRINGUP_LAUNCH": "gc, standby"}) == {"gc", "standby"}


def test_a_message_is_one_line() -> None:
    made = logging.LogRecord("x", logging.INFO, "f", 1, "a\nb %s", ("c\nd",), None)
    assert entry.OneLine().format(made) == "bringup: a b c d"
