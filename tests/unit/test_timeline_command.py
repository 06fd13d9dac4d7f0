"""`bringup timeline`: bundles, logs and standard input; what is no start is unknown."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit import timeline_logs as logs
from tests.unit.test_cli import Invoke, invoke

__all__ = ["invoke"]
BEGAN = "2026-11-24T06:22:37.018042Z"


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """A bundle with these files."""

    def make(name: str = "20260301T120000Z-m", **files: str) -> Path:
        directory = tmp_path / "artifacts" / name
        directory.mkdir(parents=True)
        for file, text in ({"record.json": "{}"} | {k.replace("_", "."): v for k, v in files.items()}).items():
            (directory / file).write_text(text, "utf-8")
        return directory

    return make


Bundle = Callable[..., Path]


def test_a_bundle_has_the_clock_outside(invoke: Invoke, bundle: Bundle) -> None:
    anchors = json.dumps({"anchors": json.loads(logs.recorded("anchors.json"))["launcher-warm"]})
    where = bundle(server_jsonl=logs.recorded("launcher-warm.jsonl"), timeline_json=anchors)
    code, out, _ = invoke("timeline", "--json", str(where))
    made = json.loads(out)
    assert (code, round(made["whole_seconds"], 2), made["finished"]) == (0, 17.47, True)
    assert made["coverage"] >= 0.95
    code, out, _ = invoke("timeline")  # the newest bundle
    assert code == 0
    assert out.startswith("timeline: 17.5 s, 98.8% of it in named stages\n")
    assert "not observed" in out


def test_the_record_of_an_older_run_tells_start_and_first_token(invoke: Invoke, bundle: Bundle) -> None:
    record = json.dumps({"container": {"started": BEGAN}, "started_to_first_token": 17.5})
    where = bundle(server_jsonl=logs.recorded("launcher-warm.jsonl"), record_json=record)
    made = json.loads(invoke("timeline", "--json", str(where))[1])
    assert made["whole_seconds"] == pytest.approx(17.5)


@pytest.mark.parametrize("record", ["", "[]", '{"container": {"started": "no time"}, "started_to_first_token": 3}'])
def test_a_record_that_tells_nothing_leaves_the_log(invoke: Invoke, bundle: Bundle, record: str) -> None:
    where = bundle(server_log=logs.recorded("container.log"), record_json=record)
    code, out, _ = invoke("timeline", "--json", str(where))
    assert (code, json.loads(out)["whole_seconds"]) == (0, 13.0)


def test_the_newest_bundle_is_the_default(invoke: Invoke, bundle: Bundle) -> None:
    bundle("20260301T120000Z-m", server_log=logs.recorded("plain-cold.log"))
    bundle("20260302T120000Z-m", server_log=logs.recorded("container.log"))
    assert json.loads(invoke("timeline", "--json")[1])["whole_seconds"] == 13.0


def test_a_log_and_standard_input(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logs.recorded("container.log")
    (tmp_path / "some.log").write_text(log, "utf-8")
    code, whole, _ = invoke("timeline", "some.log")
    assert code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(log.encode())))
    assert invoke("timeline", "-") == (0, whole, "")


def test_what_is_no_start_is_unknown(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "other.log").write_text("hello\n", "utf-8")
    code, out, err = invoke("timeline", "--json", "other.log")
    assert code == 9
    assert err.startswith("bringup: no line of a vLLM start in other.log [no-start-in-log]\n  -> ")
    assert json.loads(out)["id"] == "no-start-in-log"


def test_a_directory_without_a_log_is_unknown(invoke: Invoke, bundle: Bundle) -> None:
    code, _, err = invoke("timeline", str(bundle()))
    assert code == 9
    assert "holds no server.jsonl and no server.log [no-log]" in err


def test_nothing_to_read_is_usage(invoke: Invoke) -> None:
    assert invoke("timeline", "gone")[0] == 2
    code, _, err = invoke("timeline")
    assert code == 2
    assert "no bundle in artifacts" in err
