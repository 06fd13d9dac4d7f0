"""What the commands about RunPod share: their options, and the plan of a pod."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import standard
from bringup.commands.models import Size
from bringup.errors import UsageError
from bringup.options import Parsed, takes
from bringup.settings import Option, Settings, deadline

if TYPE_CHECKING:
    from bringup.edge.runpod import RunPod
    from bringup.plan import Plan

SERVED = ("model", "weights", "image", "served_model_name", "max_model_len", "gpu_memory_utilization", "profile",
          "vllm_args", "hf_endpoint")  # fmt: skip
Command = Callable[..., Any]
Client = Callable[[], "RunPod"]
DURATION = Parsed(Option(help="", parse=deadline, metavar="DURATION", server=False, env=(), hidden=False))


def account(command: Command) -> Command:
    """Give a command `cloud`: what makes the client, so that --dry-run needs no key."""

    def wrapped(key_file: Path | None, patience: float, api: str, **given: Any) -> Any:
        return command(cloud=functools.partial(_client, key_file, api, patience), **given)

    functools.update_wrapper(wrapped, command)
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return composed(
        click.option("--runpod-key-file", "key_file", type=click.Path(path_type=Path), metavar="FILE",
                     envvar="BRINGUP_RUNPOD_KEY_FILE",
                     help="File (mode 0600) with RunPod's API key, else RUNPOD_API_KEY."),
        click.option("--patience", type=DURATION, default="60s", show_default=True, metavar="DURATION",
                     help="How long an API that fails is asked again."),
        click.option("--runpod-api", "api", envvar="BRINGUP_RUNPOD_API", default="", hidden=True),
    )(wrapped)  # fmt: skip


def stated(command: Command) -> Command:
    """Give a command `state`, the list of our pods."""

    def wrapped(directory: Path | None, **given: Any) -> Any:
        from bringup.runpod.state import State, default_directory

        return command(state=State(directory or default_directory(os.environ)), **given)

    functools.update_wrapper(wrapped, command)
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return click.option(
        "--state", "directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
        envvar="BRINGUP_RUNPOD_STATE", help="Where the list of our pods is, instead of the user's state directory.",
    )(wrapped)  # fmt: skip


def _client(key_file: Path | None, api: str, patience: float) -> RunPod:
    from bringup.edge.runpod import API, RunPod
    from bringup.key import runpod_key

    return RunPod(runpod_key(key_file, os.environ), api or API, patience)


def composed(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators as one, the first outermost."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


shaped = composed(
    click.option("--image-size", type=Size(), default="8GB", show_default=True, metavar="SIZE",
                 help="The image without weights, unpacked."),
    click.option("--registry", metavar="ID", help="RunPod's id of the credential for a private image."),
)  # fmt: skip
dry = click.option("--dry-run", is_flag=True, help="Print the bodies, without secrets; ask nobody.")
named = click.option("--name", default="bringup", show_default=True, metavar="NAME", help="Its name at RunPod.")
ssh_key = click.option(
    "--ssh-key", "ssh_key", type=click.Path(path_type=Path), metavar="FILE",
    help="Private key (mode 0600, no passphrase) for the pod's sshd, instead of one made for each pod.",
)  # fmt: skip
sends = composed(standard, takes(*SERVED), account, shaped, named, dry)  # what a body is sent by


def pod_plan(settings: Settings, sources: dict[str, str], template: str | None = None) -> Plan:
    """The plan of a pod, published to everyone and keyed."""
    from bringup import catalog
    from bringup.plan import make_plan, require_fetchable
    from bringup.runpod import bodies
    from bringup.settings import AUTO

    models = catalog.load()
    name = catalog.default(models, "gpu")[0] if settings.model == AUTO else settings.model
    model = catalog.choose(models, name)
    if not settings.image and not template:
        raise UsageError(
            "a pod pulls its image from a registry, and none was named",
            hint="push yours (docs/runpod.md) and give --image, or --template",
        )
    settings = dataclasses.replace(settings, model=model.name, api_key_file=None)
    require_fetchable(settings, model)
    return bodies.for_pods(make_plan(settings, model, ("gpu", "a pod of RunPod"), sources))


def show(watch: Any, value: Any) -> None:
    """A body, for people and programs alike."""
    from bringup.artifacts import as_json

    watch.result(value, as_json(value))
