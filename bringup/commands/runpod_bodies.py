"""`bringup runpod template | endpoint`: what is made from the image in RunPod's console and API beside pods."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import standard
from bringup.commands.runpod_options import SERVED, Client, account, named, pod_plan, sends, shaped, show
from bringup.errors import BringupError, Exit, UsageError
from bringup.options import takes
from bringup.settings import Settings

if TYPE_CHECKING:
    from bringup.edge.runpod import RunPod
    from bringup.runpod.bodies import Wish


@click.group
def template() -> None:
    """The template of the image in RunPod's console."""


@template.command("create")
@sends
def create(watch: Any, **given: Any) -> int:
    """Create the template; its key is the account's secret bringup_api_key."""

    def send(api: RunPod, body: dict[str, Any]) -> dict[str, Any]:
        if old := _of_name(api, body["name"]):
            raise UsageError(
                f"there is a template {body['name']} already: {old['id']}", hint="`bringup runpod template update`"
            )
        return api.create_template(body)

    return _sent(watch, "created", send, **given)


@template.command("update")
@sends
def update(watch: Any, **given: Any) -> int:
    """Give the template of that name these values."""

    def send(api: RunPod, body: dict[str, Any]) -> dict[str, Any]:
        return api.update_template(_required(api, body["name"])["id"], body)

    return _sent(watch, "updated", send, **given)


@template.command("show")
@standard
@account
@named
def shown(watch: Any, cloud: Client, name: str) -> int:
    """Print the template of that name as RunPod has it."""
    api = cloud()
    show(watch, api.template(_required(api, name)["id"]))
    return Exit.PASS


def _sent(
    watch: Any, what: str, send: Callable[[RunPod, dict[str, Any]], dict[str, Any]], *, settings: Settings,
    sources: dict[str, str], cloud: Client, dry_run: bool, **given: Any,
) -> int:  # fmt: skip
    """Send a template's body, or only show it."""
    from bringup.runpod import bodies

    body = bodies.template(pod_plan(settings, sources), _wish(**given))
    if dry_run:
        show(watch, body)
        return Exit.PASS
    made = send(cloud(), body)
    if not made.get("id"):
        raise BringupError("RunPod answered with a template without an id", hint="look into its console")
    watch.say(f"template {made.get('name')} {what}: {made['id']}")
    watch.result({"id": made["id"], "name": made.get("name")}, str(made["id"]))
    return Exit.PASS


def _wish(name: str, image_size: int, registry: str | None) -> Wish:
    from bringup.runpod import bodies

    return bodies.Wish(name=name, image_bytes=image_size, registry=registry)


def _of_name(cloud: RunPod, name: str) -> dict[str, Any] | None:
    return next((t for t in cloud.templates() if t.get("name") == name), None)


def _required(cloud: RunPod, name: str) -> dict[str, Any]:
    if found := _of_name(cloud, name):
        return found
    raise UsageError(f"the account has no template {name}", hint="`bringup runpod template create` makes it")


@click.command
@standard
@takes(*SERVED)
@shaped
@named
@click.option("--gpu-pool", "pools", multiple=True, metavar="ID", help="RunPod's id of a GPU pool; may be repeated.")
def endpoint(watch: Any, settings: Settings, sources: dict[str, str], pools: tuple[str, ...], **given: Any) -> int:
    """Print the body of a load-balancing endpoint: POST /v2/serverless. Sends nothing."""
    from bringup.runpod import bodies

    show(watch, bodies.endpoint(pod_plan(settings, sources), _wish(**given), pools or bodies.POOLS))
    return Exit.PASS
