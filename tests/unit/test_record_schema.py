"""The record's schema: what is written is what it says, what it says is written, and old records stay readable."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator

from bringup import artifacts, bundle, catalog, derive, records, schema, workflow
from bringup.checks import facts, recorded
from bringup.edge.docker import Engine
from bringup.errors import UsageError
from bringup.ledger import Observation, Sample
from bringup.plan import make_plan
from bringup.records import CheckRecord, ProbeRecord, RunRecord, Status, StepRecord, Verdict
from bringup.settings import Settings
from bringup.watch import Watch
from tests.unit import samples
from tests.unit.fakes import FakeContainer, FakeHttp, make_server, state
from tests.unit.runs import FakeEngine, Silent

DATA = Path(__file__).resolve().parents[1] / "data"
OLD = sorted((DATA / "records").glob("*.json"))
HOSTS = sorted((DATA / "hosts").glob("*.json"))
SCHEMA = schema.load()
UP = json.loads((DATA / "records/v1-up.json").read_text("utf-8"))


def closed(part: Any, *, whole: bool) -> Any:
    """A schema that takes no key which it does not describe and (`whole`) wants all that it does."""
    if isinstance(part, list):
        return [closed(one, whole=whole) for one in part]
    if not isinstance(part, dict):
        return part
    made = {name: closed(one, whole=whole) for name, one in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type"):
        made["unevaluatedProperties"] = False
        if whole and "anyOf" not in part:
            made["required"] = list(part["properties"])
    return made


CLOSED = Draft202012Validator(closed(SCHEMA, whole=True))
DESCRIBED = Draft202012Validator(closed(SCHEMA, whole=False))
OPEN = Draft202012Validator(SCHEMA)


def parts(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each described key of the schema with its path."""
    for name, one in part.get("properties", {}).items():
        yield f"{path}.{name}", one
        yield from parts(one, f"{path}.{name}")
    if isinstance(part.get("items"), dict):
        yield from parts(part["items"], f"{path}[]")


# ---- the schema itself


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == records.SCHEMA


def test_every_key_says_what_it_is_and_every_figure_its_unit() -> None:
    described = [*parts(SCHEMA), *parts(SCHEMA["$defs"]["state"], ".state")]
    assert len(described) > 250
    for path, part in described:
        assert part.get("description", "").strip().endswith("."), path
        kinds = [part.get("type", [])] if isinstance(part.get("type"), str) else part.get("type", [])
        if {"integer", "number"} & set(kinds) or part.get("$ref") == "#/$defs/figure":
            assert part.get("x-unit"), path


# ---- what is written


def host_facts() -> dict[str, facts.HostFacts]:
    known = {p.stem: recorded.load(p.read_text("utf-8"), p.name) for p in HOSTS}
    torch = facts.TorchFacts(started=True, available=True, computes=True, torch="2.13", cuda="13.0", devices=("H100",))
    whole = dataclasses.replace(samples.FACTS, own_container=samples.OWN, torch=torch, node=samples.NODE)
    return {**known, "whole": whole, "silent": dataclasses.replace(samples.FACTS, memory=None, disk_free=None)}


FACTS = host_facts()


def a_record(host: facts.HostFacts, container: FakeContainer | None = None, error: str = "") -> dict[str, Any]:
    """What a run writes, with the derived parts of a real one."""
    settings = Settings(model="tiny-qwen2")
    plan = make_plan(settings, catalog.load()["tiny-qwen2"], ("cpu", "test"), {"model": "flag"})
    run = workflow.Run("up", settings, plan, cast("Engine", FakeEngine()), host, cast("Watch", Silent()))
    curve = derive.curve(Observation((Sample(1.0, (2,), {3: 4}, 5),), frozenset({3})))
    run.derived.timeline, run.derived.caches = UP["timeline"], UP["caches"]
    run.derived.ledger = UP["ledger"] | {"samples": curve}
    run.checks = tuple(CheckRecord(name="c", status=s, found="f", needed="n") for s in Status)
    run.probes = tuple(ProbeRecord(name="p", status=s, expected="e", found="f", data={"bytes": 1}) for s in Status)
    run.steps = [StepRecord(name="s", seconds=0.5)]
    made = run.record(cast("Any", container or FakeContainer()), {"Id": "sha256:1"}, error)
    return cast("dict[str, Any]", json.loads(artifacts.as_json(made.to_dict())))


def faults(validator: Draft202012Validator, record: dict[str, Any]) -> list[str]:
    return [f"{e.json_path}: {e.message[:300]}" for e in validator.iter_errors(record)]


@pytest.mark.parametrize("name", sorted(FACTS))
def test_a_record_has_exactly_the_keys_of_the_schema(name: str) -> None:
    made = a_record(FACTS[name])
    assert faults(CLOSED, made) == []
    schema.require(made)


def test_a_key_that_the_schema_does_not_know_is_seen_here_and_let_be_by_a_reader() -> None:
    """The comparison above can fail, at the top and deep below."""
    for at in ((), ("host", "engine"), ("container",), ("clocks", "engine"), ("ledger", "rows", 0)):
        made = a_record(samples.FACTS)
        place: Any = made
        for step in at:
            place = place[step]
        place["new"] = 1
        assert len(faults(CLOSED, made)) == 1, at
        schema.require(made)


@pytest.mark.parametrize(
    ("container", "keys"),
    [
        (FakeContainer(states=[UsageError("the container c1 is gone")]), {"error"}),
        (FakeContainer(states=[state("exited", exit_code=6)], executed=UsageError("it is not running")), None),
    ],
)
def test_the_record_of_a_start_that_failed(container: FakeContainer, keys: set[str] | None) -> None:
    made = a_record(samples.FACTS, container, "the server died while starting")
    schema.require(made)
    assert made["verdict"] == "fail"
    assert keys is None or made["container"].keys() == keys
    if not keys:
        assert made["clocks"]["container"] == {
            "offset_seconds": None, "uncertainty_seconds": None, "method": "`date +%s.%N` in the container",
            "reason": "it is not running",
        }  # fmt: skip


@pytest.mark.parametrize(("verdict", "status"), list(itertools.product(Verdict, Status)))
def test_every_verdict_with_every_status(verdict: Verdict, status: Status) -> None:
    whole = a_record(samples.FACTS)
    known = {k: whole[k] for k in ("plan", "host", "image", "container")}
    made = RunRecord(
        tool_version="1", command="up", started="a", finished="b", verdict=verdict, **known,
        checks=(CheckRecord(name="c", status=status, found="", needed=""),),
        probes=(ProbeRecord(name="p", status=status, expected="", found=""),),
    )  # fmt: skip
    schema.require(json.loads(json.dumps(made.to_dict())))
    made = dataclasses.replace(made, verdict=cast("Verdict", "perhaps"))
    with pytest.raises(UsageError, match='verdict: "perhaps" is not what `enum` asks for'):
        schema.require(json.loads(json.dumps(made.to_dict())))


# ---- what is read


@pytest.mark.parametrize("path", OLD, ids=lambda p: p.stem)
def test_records_of_old_are_read(path: Path, tmp_path: Path) -> None:
    text = path.read_text("utf-8")
    made = artifacts.write(tmp_path / "b", {"record.json": text}, [])
    read = bundle.read(made)
    assert read.record == json.loads(text)
    assert faults(DESCRIBED, read.record) == [], "no key goes away"
    assert path.stem.startswith(f"v{read.record['schema']}-")


def test_there_is_an_old_record_of_each_version_that_ended_well_and_one_that_did_not() -> None:
    found = {p.stem for p in OLD}
    assert found >= {f"v{n}-{end}" for n in range(1, records.SCHEMA + 1) for end in ("up", "failed")}
    failed = json.loads((DATA / "records/v1-failed.json").read_text("utf-8"))
    assert (failed["verdict"], failed["container"]["status"]) == ("fail", "exited")
    assert failed["error"]


def objects(part: dict[str, Any], value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each object of a record that the schema describes, with its schema; of a list's items the first alone."""
    if isinstance(value, dict):
        yield path, part, value
        for name, one in part.get("properties", {}).items():
            yield from objects(one, value.get(name), f"{path}.{name}")
    if isinstance(value, list) and value and isinstance(part.get("items"), dict):
        yield from objects(part["items"], value[0], f"{path}[]")


def without(record: dict[str, Any], at: tuple[Any, ...], *instead: Any) -> dict[str, Any]:
    made = copy.deepcopy(record)
    place: Any = made
    for step in at[:-1]:
        place = place[step]
    if instead:
        place[at[-1]] = instead[0]
    else:
        del place[at[-1]]
    return made


def test_a_required_key_that_is_missing_is_found_wherever_it_was() -> None:
    seen = 0
    for path, part, value in objects(SCHEMA, UP):
        here = OPEN.evolve(schema=part)
        for name in part.get("required", []):
            assert not here.is_valid({k: v for k, v in value.items() if k != name}), f"{path}.{name}"
            seen += 1
    assert seen > 150


def test_a_value_of_another_kind_is_found_wherever_it_is() -> None:
    strange = {"neither": [1.5, "this"]}
    passing = [
        f"{path}.{name}"
        for path, part, value in objects(SCHEMA, UP)
        for name in part.get("properties", {})
        if name in value and OPEN.evolve(schema=part).is_valid(value | {name: strange})
    ]
    assert passing == [".probes[].data"], "which holds whatever the probe measured"


@pytest.mark.parametrize("name", [n for n in SCHEMA["required"] if n != "schema"])
def test_a_key_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"no record of schema 1: '{name}' is a required property") as e:
        schema.require(without(UP, (name,)))
    assert "\n" not in e.value.message


WRONG: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a text for a number": (("plan", "port"), "8000", 'plan.port: "8000" is not what `type` asks for: "integer"'),
    "too large": (("plan", "port"), 65536, "plan.port: 65536 is not what `maximum` asks for"),
    "a list for an object": (("host",), [], "host: [] is not what `type` asks for"),
    "null": (("probes", 0, "name"), None, "probes[0].name: null is not what `type` asks for"),
    "a word that there is not": (("probes", 0, "status"), "good", 'probes[0].status: "good" is not what `enum`'),
    "no sum": (("ledger", "files", 0, "sha256"), "abc", 'ledger.files[0].sha256: "abc" is not what `pattern`'),
    "no container": (("container",), {"id": "c"}, "container"),
    "a long value": (("command",), ["x" * 10_000], 'command: ["xxx'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_one_short_line(name: str, tmp_path: Path) -> None:
    at, value, words = WRONG[name]
    made = artifacts.write(tmp_path / "b", {"record.json": json.dumps(without(UP, at, value))}, [])
    with pytest.raises(UsageError) as e:
        bundle.read(made)
    assert words in e.value.message
    assert "\n" not in e.value.message
    assert len(e.value.message) < 300


def test_a_newer_record_is_refused_and_says_why() -> None:
    with pytest.raises(UsageError, match=r'made by a newer bringup \("9\.1"\): it has schema 2, and this one reads up'):
        schema.require(UP | {"schema": records.SCHEMA + 1, "tool_version": "9.1"})


@pytest.mark.parametrize("version", [None, "1", True, 0, -1, 1.0, [1]])
def test_what_has_no_version_is_no_record(version: Any) -> None:
    with pytest.raises(UsageError, match="has no schema of a record"):
        schema.require(UP | {"schema": version})
    with pytest.raises(UsageError, match="but null"):
        schema.require({})


# ---- nothing secret

CANARIES = [f"canary-{n}-0f-the-te5t" for n in range(9)]


def test_no_secret_of_arguments_or_variables_is_in_a_bundle(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(CANARIES[0])
    words = ("--api-key", CANARIES[1], f"{CANARIES[2]} with 'quotes\" \\", f"--hf-token={CANARIES[3]}", "--seed", "1")
    settings = Settings(
        model="tiny-qwen2", artifacts=tmp_path / "out", api_key_file=key_file, hf_token=CANARIES[4], vllm_args=words
    )
    variables = {
        "VLLM_API_KEY": CANARIES[5], "AWS_SECRET_ACCESS_KEY": CANARIES[6], "http_proxy": f"http://u:{CANARIES[7]}@p:1",
        "OTHER": CANARIES[8], "VLLM_LOGGING_LEVEL": "DEBUG", "BRINGUP_API_KEY_FILE": "/run/secrets/api_key",
        "TOKENIZERS_PARALLELISM": "false", "EMPTY": "",
    }  # fmt: skip
    argv = ["python", "-m", "bringup.inside", *words]
    container = FakeContainer(
        inspected={
            "Config": {"Env": [f"{k}={v}" for k, v in variables.items()]}, "Path": "tini", "Args": argv,
            "HostConfig": {}, "NetworkSettings": {},
        },
        rows=[{"PID": "7", "COMMAND": " ".join(argv)}],
        logs_=f"2026-01-01T00:00:00Z non-default args: {list(words)} token {CANARIES[4]} key {CANARIES[0]}\n",
        file=json.dumps({"msg": "args: %s", "args": [str(words), *words]}).encode(),
    )  # fmt: skip
    run = workflow.Run(
        "up", settings, samples.plan(vllm_args=words), cast("Engine", FakeEngine()),
        dataclasses.replace(samples.FACTS, local=False), cast("Watch", Silent()),
    )  # fmt: skip
    assert CANARIES[1] in run.plan.argv, "the arguments do go to the server"
    _, made = workflow.collect(run, make_server(FakeHttp({}), container=container), cast("Any", container), {})
    for path in made.iterdir():
        text = path.read_text("utf-8")
        assert [c for c in CANARIES if c in text] == [], path.name
        if path.suffix == ".json":
            json.loads(text)
    read = bundle.read(made).record
    environment = read["container"]["environment"]
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    assert environment["BRINGUP_API_KEY_FILE"] == "/run/secrets/api_key"
    assert environment["EMPTY"] == ""
    hidden = {"VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY", "http_proxy", "OTHER"}
    assert {name for name, value in environment.items() if value == "[redacted]"} == hidden
    assert read["container"]["argv"][-2:] == ["--seed", "1"], "what is no secret stays"
    assert read["settings"]["model"] == "tiny-qwen2"
    assert not {"api_key", "hf_token"} & read["settings"].keys()
