"""server.jsonl: whatever is logged becomes one bounded line of JSON without the key, and nothing ever breaks."""

from __future__ import annotations

import json
import logging
import logging.config
import re
from pathlib import Path
from typing import Any

import pytest

from bringup.inside import events

KEY = 'k"e\\y-!'


def record(msg: object, args: Any = (), **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("vllm.x", logging.INFO, "/a/b.py", 12, msg, args, None, "load")
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_template_and_arguments_stay_apart() -> None:
    made = record("took %.2f s for %s", (1.5, Path("/m")))
    entry = json.loads(events.to_line(made))
    assert list(entry) == ["t", "pid", "proc", "level", "logger", "func", "file", "line", "msg", "args"]
    assert entry["msg"] == "took %.2f s for %s"
    assert entry["args"] == [1.5, "/m"]
    assert (entry["logger"], entry["func"], entry["file"], entry["line"]) == ("vllm.x", "load", "b.py", 12)
    assert entry["t"] == made.created
    assert entry["pid"] == made.process


def test_vllm_names_its_processes() -> None:
    assert json.loads(events.to_line(record("x", vllm_process_name="EngineCore")))["proc"] == "EngineCore"
    assert json.loads(events.to_line(record("x")))["proc"] == "MainProcess"


def test_mapping_arguments() -> None:
    entry = json.loads(events.to_line(record("%(a)s", ({"a": KEY, KEY: 1},)), KEY))
    assert entry["args"] == {"a": events.REDACTED, events.REDACTED: 1}


@pytest.mark.parametrize(
    "made",
    [
        record(f"key is {KEY}!"),
        record("%s", (KEY,)),
        record("%s", ([KEY],)),
        record("%s", (json.dumps({"key": KEY}),)),
        record("%s", ("x" * (events.TEXT_LIMIT - 3) + KEY,)),
    ],
    ids=["message", "argument", "in a list", "in JSON", "where the text is cut"],
)
def test_the_key_never_gets_in(made: logging.LogRecord) -> None:
    line = events.to_line(made, KEY).decode()
    assert "k" not in json.loads(line)["msg"].replace("key is", "")
    assert all("y-" not in text and 'k"' not in text for text in json.loads(line)["args"])


@pytest.mark.parametrize(
    ("msg", "args"),
    [
        ("%s", ("x" * 10**6,)),
        ("y" * 10**6, ()),
        ("%s" * 100, tuple("ü" * 1999 for _ in range(100))),
        ("\x00" * 4000, tuple("\x01" * 1999 for _ in range(32))),
    ],
)
def test_a_line_is_bounded_and_valid(msg: str, args: tuple[str, ...]) -> None:
    line = events.to_line(record(msg, args))
    assert len(line) <= events.LINE_LIMIT
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["line"] == 12


def test_numbers_that_json_does_not_have_become_text() -> None:
    line = events.to_line(record("%s %s", (float("nan"), float("inf")))).decode()
    assert json.loads(line, parse_constant=pytest.fail)["args"] == ["nan", "inf"]


def test_the_handler_appends(tmp_path: Path) -> None:
    path = tmp_path / "server.jsonl"
    for handler in (events.Handler(str(path)), events.Handler(str(path))):  # as of two processes
        handler.handle(record("one"))
        handler.close()  # what uvicorn's own dictConfig does to every handler
        handler.handle(record("two"))
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["one", "two"] * 2


def test_the_handler_redacts_by_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")
    path = tmp_path / "server.jsonl"
    events.Handler(str(path)).handle(record("Bearer open-sesame"))
    assert json.loads(path.read_text())["msg"] == f"Bearer {events.REDACTED}"


class Hostile:
    """An argument that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_the_handler_never_raises(tmp_path: Path) -> None:
    events.Handler(str(tmp_path / "missing" / "x")).handle(record("lost"))
    path = tmp_path / "server.jsonl"
    events.Handler(str(path)).handle(record("%s", (Hostile(),)))
    assert not path.exists()


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FILE_LIMIT", 1000)
    path = tmp_path / "server.jsonl"
    handler = events.Handler(str(path))
    for _ in range(100):
        handler.handle(record("again"))
    assert 500 < path.stat().st_size <= 1000


def test_a_start_keeps_the_file_of_the_start_before(tmp_path: Path) -> None:
    path = tmp_path / "server.jsonl"
    for text in ("first", "second", "third"):
        events.start_file(path)
        assert path.read_text() == ""
        path.write_text(text)
    assert path.with_name("server.previous.jsonl").read_text() == "second"


def test_starts_that_begin_together_do_not_take_the_file_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.jsonl"
    events.start_file(path)
    replace = Path.replace

    def after_another(self: Path, target: Path) -> Path:
        replace(self, target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", after_another)
    events.start_file(path)
    assert path.read_text() == ""
    with pytest.raises(FileNotFoundError):  # a directory that is not there is still told
        events.start_file(tmp_path / "missing" / "server.jsonl")


def test_the_configuration_is_a_dictconfig(tmp_path: Path) -> None:
    path = tmp_path / "server.jsonl"
    config = json.loads(json.dumps(events.logging_config(path, {"VLLM_LOGGING_LEVEL": "debug"})))
    # vLLM and uvicorn are not here; their classes stand in, everything else is taken as it is.
    for name, formatter in config["formatters"].items():
        if name == "gate":
            continue
        assert re.fullmatch(r"(vllm|uvicorn)\.[\w.]+", formatter.pop("()"))
        formatter.pop("log_level", None)
    config["formatters"]["default"]["format"] = config["formatters"]["default"].pop("fmt")
    loggers = [logging.getLogger(name) for name in config["loggers"]]
    before = [(log.handlers[:], log.level, log.propagate) for log in loggers]
    try:
        logging.config.dictConfig(config)
        logging.getLogger("vllm.engine").debug("engine %d", 1, extra={"vllm_process_name": "E", "fileinfo": "f"})
        logging.getLogger("uvicorn.error").info("up", extra={"levelprefix": "INFO:"})
        logging.getLogger("bringup.gate").info("GET /v1/models 200")
        assert not logging.getLogger("uvicorn.access").hasHandlers()  # by which uvicorn knows that nobody listens
        logging.getLogger("torch._inductor.codecache").info("fx graph cache hit for key %s", "k")
        logging.getLogger("torch._functorch._aot_autograd.autograd_cache").debug("no news")
        entries = [json.loads(line) for line in path.read_text().splitlines()]
    finally:
        for log, (handlers, level, propagate) in zip(loggers, before, strict=True):
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
    assert [(e["logger"], e["msg"]) for e in entries] == [
        ("vllm.engine", "engine %d"),
        ("uvicorn.error", "up"),
        ("torch._inductor.codecache", "fx graph cache hit for key %s"),
    ]


def test_the_configuration_follows_vllms_own_variables() -> None:
    given = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_LOGGING_PREFIX": "[a] "}
    config = events.logging_config(Path("/x"), given)
    assert config["handlers"]["vllm"]["stream"] == "ext://sys.stderr"
    assert config["handlers"]["vllm"]["level"] == "INFO"
    assert config["formatters"]["vllm"]["format"].startswith("[a] (%(vllm_process_name)s")
