"""What every command has, and what several of them take; each module is a group of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bringup.lock import LOCK

# Names of settings that several commands take.
WHERE = ("project", "flavour", "model", "weights", "image", "bind", "port", "api_key_file", "api_key")
FETCH = ("hf_endpoint", "hf_token_file", "hf_token", "transfer")
SERVE = (
    *WHERE, *FETCH, "served_model_name", "max_model_len", "gpu_memory_utilization", "profile", "gpus",
    "max_body",
    "stall_timeout", "fetch_timeout", "timeout", "vllm_args",
)  # fmt: skip
BUILD = ("base", "find_links", "ca_file")
STATE: dict[str, Any] = {}  # the console of the command that runs
lock_option = click.option(
    "--lock", "path", default=LOCK, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The lock file, instead of bringup's own.",
)  # fmt: skip


def standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --json, -v, and a console as `watch`."""

    def run(as_json: bool, verbose: bool, **given: Any) -> Any:
        from bringup.console import Console

        STATE["console"] = Console(as_json=as_json, verbose=verbose)
        return function(watch=STATE["console"], **given)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    made: Any = click.option("-v", "--verbose", is_flag=True, help="Show what the programs below say.")(run)
    return click.option("--json", "as_json", is_flag=True, help="The result as JSON on standard output.")(made)  # type: ignore[no-any-return]
