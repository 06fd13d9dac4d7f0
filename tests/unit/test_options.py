"""Settings through the command line: each value survives its flag, its variable and bringup.toml, with its source."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from bringup.errors import UsageError
from bringup.options import CONFIG, flag, read_config, takes
from bringup.settings import Settings, boolean, fields, render, variable

# One value for each setting that differs from its default.
VALUES: dict[str, Any] = {
    "model": "other",
    "served_model_name": "a name",
    "max_model_len": 512,
    "gpu_memory_utilization": 0.5,
    "profile": "eager",
    "gpus": "device=0,2",
    "vllm_args": ("--seed", "1 2", "--x='y'"),
    "weights": Path("a b/weights"),
    "bind": "::1",
    "api_key_file": Path("dir/key file"),
    "max_body": 7,
    "port": 65535,
    "flavour": "cpu",
    "image": "registry:5000/x:y",
    "project": "other",
    "timeout": 5400.0,
    "suite": "smoke",
    "target": "local",
    "request_timeout": 0.5,
    "artifacts": Path("some where"),
    "sign_key": Path("/etc/bringup/a key"),
    "keep": True,
    "base": "debian:13",
    "find_links": Path("wheels"),
    "ca_file": Path("ca.pem"),
    "hf_endpoint": "http://mirror:8080/hub",
    "hf_token_file": Path("token"),
    "transfer": "auto",
    "stall_timeout": 1.5,
    "fetch_timeout": 60.0,
}
FLAGS = [name for name in VALUES if name != "vllm_args"]


def run(
    *argv: str, env: dict[str, str] | None = None, toml: dict[str, Any] | None = None
) -> tuple[Settings, dict[str, str]]:
    """What a command that takes every setting receives; `toml` is written to a bringup.toml."""
    received: list[tuple[Settings, dict[str, str]]] = []

    @takes(*fields())
    def command(settings: Settings, sources: dict[str, str]) -> None:
        received.append((settings, sources))

    made = click.command()(command)
    clean = {v: None for name, (_, o) in fields().items() for v in (variable(name), *o.env)}
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory), "".join(f"{k} = {json.dumps(v)}\n" for k, v in (toml or {}).items()))
        values = read_config(path)
    environ = {**clean, **(env or {})}
    result = CliRunner().invoke(made, list(argv), env=environ, default_map=values, catch_exceptions=False)
    if not received:
        raise click.UsageError(result.output)
    return received[0]


def argv_of(name: str, value: Any) -> list[str]:
    """How a value stands on the command line."""
    if name == "vllm_args":
        return ["--", *value]
    if fields()[name][1].parse is boolean:
        return [flag(name) if value else "--no-" + flag(name)[2:]]
    return [flag(name), render(value)]


def test_every_setting_has_a_value_here() -> None:
    assert set(VALUES) == {name for name, (_, option) in fields().items() if not option.hidden}
    assert all(VALUES[name] != field.default for name, (field, _) in fields().items() if name in VALUES)


def test_nothing_given_is_the_defaults() -> None:
    settings, sources = run()
    assert settings == Settings()
    assert set(sources.values()) == {"default"}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_survives_its_flag(name: str) -> None:
    settings, sources = run(*argv_of(name, VALUES[name]))
    assert settings == Settings(**{name: VALUES[name]})
    assert {n for n, source in sources.items() if source == "flag"} == {name}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_survives_its_variable(name: str) -> None:
    settings, sources = run(env={variable(name): render(VALUES[name])})
    assert settings == Settings(**{name: VALUES[name]})
    assert {n for n, source in sources.items() if source == "environment"} == {name}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_survives_bringup_toml(name: str) -> None:
    value = VALUES[name]
    written = value if isinstance(value, bool | int | float) else render(value)
    settings, sources = run(toml={name: written})
    assert settings == Settings(**{name: value})
    assert sources[name] == CONFIG


def test_all_at_once() -> None:
    argv = [part for name in FLAGS for part in argv_of(name, VALUES[name])]
    settings, _ = run(*argv, *argv_of("vllm_args", VALUES["vllm_args"]))
    assert settings == Settings(**VALUES)


@pytest.mark.parametrize("name", ["keep"])
@pytest.mark.parametrize("value", [True, False])
def test_both_words_of_a_switch(name: str, value: bool) -> None:
    assert getattr(run(*argv_of(name, value))[0], name) is value
    assert getattr(run(env={variable(name): render(value)})[0], name) is value
    assert getattr(run(toml={name: value})[0], name) is value


def test_flag_beats_variable_beats_file_beats_default() -> None:
    toml, env = {"port": 1003}, {"BRINGUP_PORT": "1002"}
    assert run("--port", "1001", env=env, toml=toml)[0].port == 1001
    settings, sources = run(env=env, toml=toml)
    assert (settings.port, sources["port"]) == (1002, "environment")
    settings, sources = run(toml=toml)
    assert (settings.port, sources["port"]) == (1003, CONFIG)


def test_arguments_for_vllm_have_the_same_order() -> None:
    toml, env = {"vllm_args": "--from file"}, {"BRINGUP_VLLM_ARGS": "--from variable"}
    assert run("--", "--from", "flag", env=env, toml=toml)[0].vllm_args == ("--from", "flag")
    assert run(env=env, toml=toml)[0].vllm_args == ("--from", "variable")
    assert run(toml=toml)[0].vllm_args == ("--from", "file")
    assert run(toml={"vllm_args": ["--from", "a list"]})[0].vllm_args == ("--from", "a list")


def test_an_empty_variable_counts_as_unset() -> None:
    assert run(env={variable(name): "" for name in fields()})[0] == Settings()


def test_the_further_variables_of_a_setting_come_second() -> None:
    assert run(env={"UV_FIND_LINKS": "a", "PIP_FIND_LINKS": "b"})[0].find_links == Path("a")
    assert run(env={"BRINGUP_CA_FILE": "a", "SSL_CERT_FILE": "b"})[0].ca_file == Path("a")


def test_a_secret_comes_from_the_environment_alone() -> None:
    settings, sources = run(env={"BRINGUP_API_KEY": "s3cret"})
    assert (settings.api_key, sources["api_key"]) == ("s3cret", "environment")
    assert "s3cret" not in repr(settings)
    with pytest.raises(click.UsageError, match="No such option"):
        run("--api-key", "s3cret")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "0"], "'--port': 0 is not between 1 and 65535"),
        (["--port", "x"], "'x' is not a number"),
        (["--timeout", "soon"], "'soon' is not a duration"),
        (["--flavour", "tpu"], "'tpu' is not one of auto, gpu, cpu"),
        (["--gpu-memory-utilization", "2"], "not between"),
    ],
)
def test_a_bad_value_is_named_with_what_was_found(argv: list[str], words: str) -> None:
    with pytest.raises(click.UsageError) as e:
        run(*argv)
    assert words in e.value.message


@pytest.mark.parametrize(
    ("name", "text"), [("VLLM_ARGS", "--x '"), ("PORT", "x"), ("KEEP", "maybe"), ("TIMEOUT", "-1")]
)
def test_a_bad_variable_is_usage(name: str, text: str) -> None:
    with pytest.raises((UsageError, click.UsageError)) as e:
        run(env={f"BRINGUP_{name}": text})
    assert name.lower().replace("_", "-") in str(e.value).lower().replace("_", "-")


# ---- bringup.toml


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / CONFIG
    path.write_text(text)
    return path


def test_no_file_has_no_settings(tmp_path: Path) -> None:
    assert read_config(tmp_path / CONFIG) == {}


def test_a_file_gives_settings_by_name_or_by_flag(tmp_path: Path) -> None:
    path = write(tmp_path, 'max-model-len = 512\nrequest_timeout = "90s"\nkeep = true\n')
    assert read_config(path) == {"max_model_len": 512, "request_timeout": "90s", "keep": True}


def test_an_unknown_key_is_usage_and_the_one_that_was_meant_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'max_model_lenght' is no setting") as e:
        read_config(write(tmp_path, "max_model_lenght = 5\n"))
    assert e.value.hint == "perhaps max_model_len?"
    with pytest.raises(UsageError, match="'zzz'") as e:
        read_config(write(tmp_path, "zzz = 5\n"))
    assert "README" in e.value.hint


@pytest.mark.parametrize("text", ["port = ", "\x00", "[section", "port = 1\nport = 2"])
def test_no_toml_is_usage(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(write(tmp_path, text))


def test_a_secret_does_not_belong_into_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'api_key' is no setting"):
        read_config(write(tmp_path, 'api_key = "s3cret"\n'))


@pytest.mark.parametrize("value", [["a", "b"], [1], "x", True])
def test_a_value_of_another_type_is_usage(value: Any) -> None:
    with pytest.raises((UsageError, click.UsageError)):
        run(toml={"port": value})


@pytest.mark.parametrize("value", ["--x '", 5])
def test_arguments_in_a_file_that_cannot_be_split_are_usage(value: Any) -> None:
    with pytest.raises(UsageError, match="vllm_args"):
        run(toml={"vllm_args": value})
    assert run(toml={"vllm_args": ["--seed", 5]})[0].vllm_args == ("--seed", "5")
