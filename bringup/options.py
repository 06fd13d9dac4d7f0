"""Settings as click options: flag > BRINGUP_* variable > bringup.toml > default, and where each value came from."""

from __future__ import annotations

import difflib
import os
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bringup.errors import UsageError
from bringup.settings import Option, Settings, boolean, fields, render, variable

CONFIG = "bringup.toml"
SOURCES = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: CONFIG,
    ParameterSource.DEFAULT: "default",
}


class Parsed(click.ParamType[Any]):
    """A click type that is a setting's own parser."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; a default or a value of bringup.toml goes through its text too."""
        if isinstance(value, bool):  # of bringup.toml; as text it would be a number
            self.fail(f"{str(value).lower()} is no {self.name}", param, ctx)
        try:
            return self.option.parse(value if isinstance(value, str) else render(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def takes(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the named settings; it receives `settings: Settings` and `sources: dict[str, str]`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(**given: Any) -> Any:
            own = {name: given.pop(name) for name in names if name in given}
            settings, sources = resolve(own)
            return command(settings=settings, sources=sources, **given)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        known = fields()
        for name in reversed(names):
            field, option = known[name]
            if name == "vllm_args":
                wrapped = click.argument(name, nargs=-1, type=click.UNPROCESSED)(wrapped)
            elif not option.hidden:
                wrapped = click.option(*_declaration(name, option), **_details(name, field.default, option))(wrapped)
        return wrapped

    return decorate


def _declaration(name: str, option: Option) -> tuple[str, str]:
    spelling = flag(name)
    return (f"{spelling}/--no-{spelling[2:]}" if option.parse is boolean else spelling), name


def _details(name: str, default: Any, option: Option) -> dict[str, Any]:
    details: dict[str, Any] = {
        "help": option.help,
        "default": default,
        "envvar": [variable(name), *option.env],
        "show_envvar": False,
        "show_default": default is not None and default != (),
    }
    if option.parse is not boolean:
        details |= {"type": Parsed(option), "metavar": option.metavar}
    return details


def resolve(given: dict[str, Any]) -> tuple[Settings, dict[str, str]]:
    """Settings and the source of each, from what click parsed; secrets come from the environment alone."""
    ctx = click.get_current_context()
    sources = {}
    for name in given:
        source = ctx.get_parameter_source(name)
        sources[name] = SOURCES.get(source, "default") if source else "default"
    # A positional has no variable of its own in click, and a secret no flag.
    for name in ("vllm_args", "api_key", "hf_token"):
        text = next((t for v in (variable(name), *fields()[name][1].env) if (t := os.environ.get(v, ""))), "")
        if text and sources.get(name) != "flag":
            try:
                given[name], sources[name] = fields()[name][1].parse(text), "environment"
            except ValueError as e:
                raise UsageError(f"{variable(name)}: {e}", hint="correct or unset the variable") from e
    return Settings(**given), sources


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a bringup.toml, by name; a file that is not there has none.

    Raises:
        UsageError: no TOML, or a key that is no setting (with the one that was probably meant).
    """
    if not path.is_file():
        return {}
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path} cannot be read: {e}") from e
    known = [name for name, (_, option) in fields().items() if not option.hidden]
    for key in raw:
        if key.replace("-", "_") not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
            raise UsageError(f"{path}: {key!r} is no setting", hint=f"perhaps {near[0]}?" if near else "see the README")
    values = {key.replace("-", "_"): value for key, value in raw.items()}
    if "vllm_args" in values:
        values["vllm_args"] = _words(path, values["vllm_args"])
    return values


def _words(path: Path, value: Any) -> tuple[str, ...]:
    """Arguments as a file gives them: a list, or one text that is split as a shell would."""
    if isinstance(value, list):
        return tuple(render(v) for v in value)
    try:
        return tuple(shlex.split(value))
    except (ValueError, AttributeError) as e:
        raise UsageError(f"{path}: vllm_args: {e}", hint='write it as a list: vllm_args = ["--seed", "1"]') from e
