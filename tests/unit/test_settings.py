"""Settings: what each parser takes and refuses, and every field's way through a variable and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import Exit, UsageError
from bringup.settings import (
    Settings,
    between,
    boolean,
    deadline,
    fields,
    from_environment,
    one_of,
    project_name,
    render,
    seconds,
    server_environment,
    variable,
)

FIELDS = fields()
# One or more values that are not the default, for every setting that there is.
OTHER: dict[str, list[Any]] = {
    "model": ["qwen2.5-0.5b-instruct"],
    "served_model_name": ["my model"],
    "max_model_len": [1, 4096],
    "gpu_memory_utilization": [0.5, 0.123456789, 1.0],
    "profile": ["fast", "default", "eager"],
    "gpus": ["all", "2", "device=0,2"],
    "vllm_args": [("--seed", "1"), ("--chat-template", "a b'c\"d", "", "$HOME;*")],
    "weights": ["volume", Path("/srv/a b"), Path("models/x")],
    "bind": ["192.0.2.1", "::1"],
    "api_key_file": [Path("/run/secrets/a key")],
    "max_body": [1, 4096],
    "api_key": ["s3cret"],
    "port": [1, 65535],
    "flavour": ["gpu", "cpu"],
    "image": ["registry:5000/x@sha256:ab"],
    "project": ["other"],
    "timeout": [0.5, 3600.0],
    "suite": ["smoke"],
    "target": ["local"],
    "request_timeout": [1.0],
    "artifacts": [Path("/srv/a b")],
    "sign_key": [Path("/etc/bringup/a key")],
    "keep": [True],
    "base": ["bringup-base:debian12"],
    "find_links": [Path("wheels")],
    "ca_file": [Path("/etc/ca.pem")],
    "hf_endpoint": ["http://mirror:8080/hub"],
    "hf_token_file": [Path("token")],
    "hf_token": ["hf_s3cret"],
    "transfer": ["http", "auto"],
    "stall_timeout": [1.5],
    "fetch_timeout": [60.0],
}  # fmt: skip


def test_every_setting_has_test_values() -> None:
    assert OTHER.keys() == FIELDS.keys()
    assert all(getattr(Settings(), name) not in values for name, values in OTHER.items())


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in OTHER.items() for v in values])
def test_a_value_survives_its_variable(name: str, value: Any) -> None:
    again = FIELDS[name][1].parse(render(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("name", [n for n, (f, _) in FIELDS.items() if f.default not in (None, ())])
def test_a_default_survives_its_variable(name: str) -> None:
    field, option = FIELDS[name]
    assert option.parse(render(field.default)) == field.default


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_described(name: str) -> None:
    option = FIELDS[name][1]
    assert option.help.endswith(".")
    assert option.metavar
    assert variable(name) == f"BRINGUP_{name.upper()}"
    assert variable(name) not in option.env


def test_what_travels_into_the_container() -> None:
    assert {n for n, (_, o) in FIELDS.items() if o.server} == {
        "model", "served_model_name", "max_model_len", "gpu_memory_utilization", "profile", "vllm_args", "bind",
        "api_key_file", "weights", "hf_endpoint", "hf_token_file", "transfer", "stall_timeout", "fetch_timeout",
        "max_body",
    }  # fmt: skip


def test_no_server_setting_is_a_secret() -> None:
    assert [n for n, (_, o) in FIELDS.items() if o.hidden] == ["api_key", "hf_token"]
    assert not [n for n, (_, o) in FIELDS.items() if o.hidden and o.server]
    assert "s3cret" not in repr(Settings(api_key="s3cret"))


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


# ---- the container's environment


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in OTHER.items() for v in values if FIELDS[n][1].server]
)
def test_a_server_setting_reaches_the_container(name: str, value: Any) -> None:
    given = Settings(**{name: value})
    assert from_environment(server_environment(given)) == given


@pytest.mark.parametrize("name", [n for n in OTHER if not FIELDS[n][1].server])
def test_other_settings_do_not(name: str) -> None:
    given = Settings(**{name: OTHER[name][0]})
    assert server_environment(given) == server_environment(Settings())
    assert from_environment({variable(name): render(OTHER[name][0])}) == Settings()


def test_all_server_settings_together() -> None:
    given = Settings(**{n: values[0] for n, values in OTHER.items() if FIELDS[n][1].server})
    assert from_environment(server_environment(given)) == given


def test_unset_settings_are_left_out() -> None:
    unset = {n for n, (f, o) in FIELDS.items() if o.server and f.default in (None, ())}
    assert {"served_model_name", "max_model_len", "api_key_file", "hf_token_file"} <= unset
    assert not {variable(n) for n in unset} & server_environment(Settings()).keys()
    assert server_environment(Settings())["BRINGUP_MODEL"] == "auto"  # the workflow puts a name there


def test_an_empty_variable_counts_as_unset() -> None:
    assert from_environment({variable(n): "" for n in FIELDS}) == Settings()


def test_false_is_not_unset() -> None:
    assert from_environment({"BRINGUP_PROFILE": "fast"}).profile == "fast"


def test_unknown_variables_are_not_ours() -> None:
    assert from_environment({"BRINGUP_FLAVOUR": "tpu", "BRINGUP_WHATEVER": "1", "PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("BRINGUP_MAX_MODEL_LEN", "many", "'many' is not a number"),
        ("BRINGUP_MAX_MODEL_LEN", "0", "0 is not between 1 and"),
        ("BRINGUP_GPU_MEMORY_UTILIZATION", "1.5", "1.5 is not between 0.01 and 1"),
        ("BRINGUP_GPU_MEMORY_UTILIZATION", "nan", "nan is not between"),
        ("BRINGUP_PROFILE", "maybe", "'maybe' is not one of"),
        ("BRINGUP_VLLM_ARGS", "--x 'open", "No closing quotation"),
    ],
)
def test_a_bad_variable_is_named_with_what_was_found(name: str, text: str, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_environment({name: text})
    assert caught.value.message.startswith(f"{name}: ")
    assert found in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code is Exit.USAGE


# ---- parsers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", True), ("TRUE", True), ("yes", True), (" on ", True),
        ("0", False), ("False", False), ("no", False), ("off", False),
    ],
)  # fmt: skip
def test_boolean(text: str, value: bool) -> None:
    assert boolean(text) is value


@pytest.mark.parametrize("text", ["", "2", "y", "truee", "None"])
def test_what_is_no_boolean(text: str) -> None:
    with pytest.raises(ValueError, match="not one of"):
        boolean(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90), ("90s", 90), ("0.5", 0.5), ("1.5s", 1.5), (" 5s ", 5),
        ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("1h1m1s", 3661), ("2m30", 150),
    ],
)  # fmt: skip
def test_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", " ", "-1", "s", "1d", "1m1h", "1.5m", "5 s", "inf", "nan", "1e3", "1h h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)


@pytest.mark.parametrize("text", ["1", "7", "10"])
def test_between_takes_both_ends(text: str) -> None:
    assert between(1, 10, int)(text) == int(text)


@pytest.mark.parametrize(
    ("text", "why"), [("0", "not between"), ("11", "not between"), ("x", "not a number"), ("1.5", "not a number")]
)
def test_between_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        between(1, 10, int)(text)


def test_one_of_refuses_another_word_and_lists_them() -> None:
    parse = one_of("a", "b")
    assert [parse("a"), parse("b")] == ["a", "b"]
    with pytest.raises(ValueError, match="'A' is not one of a, b"):
        parse("A")


@pytest.mark.parametrize("text", ["0", "0s", "0m", "0.0"])
def test_a_deadline_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="leaves no time"):
        deadline(text)


@pytest.mark.parametrize("text", ["", "-x", "_x", "X", "a b", "a.b", "ü"])
def test_a_project_name_that_compose_would_refuse_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        project_name(text)
