"""`bringup runpod`: pods and templates of RunPod."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import standard
from bringup.commands.models import Size
from bringup.errors import BringupError, Exit, TargetUnavailable, UsageError
from bringup.options import Parsed, takes
from bringup.records import exit_for
from bringup.redact import MASK
from bringup.settings import Option, Settings, deadline

if TYPE_CHECKING:
    from bringup.edge.runpod import RunPod
    from bringup.plan import Plan
    from bringup.runpod.bodies import Wish
    from bringup.runpod.state import Owned, State

SERVED = ("model", "weights", "image", "served_model_name", "max_model_len", "gpu_memory_utilization", "profile",
          "vllm_args", "hf_endpoint")  # fmt: skip
COLUMNS = ("pod", "id", "status", "age h", "USD/h", "USD so far", "due to go")
Command = Callable[..., Any]
Client = Callable[[], "RunPod"]
DURATION = Parsed(Option(help="", parse=deadline, metavar="DURATION", server=False, env=(), hidden=False))


def account(command: Command) -> Command:
    """Give a command `cloud`: what makes the client, so that --dry-run needs no key."""

    def wrapped(key_file: Path | None, patience: float, api: str, **given: Any) -> Any:
        return command(cloud=functools.partial(_client, key_file, api, patience), **given)

    functools.update_wrapper(wrapped, command)
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return _with(
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


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


shaped = _with(
    click.option("--image-size", type=Size(), default="8GB", show_default=True, metavar="SIZE",
                 help="The image without weights, unpacked."),
    click.option("--registry", metavar="ID", help="RunPod's id of the credential for a private image."),
)  # fmt: skip
dry = click.option("--dry-run", is_flag=True, help="Print the bodies, without secrets; ask nobody.")
named = click.option("--name", default="bringup", show_default=True, metavar="NAME", help="The template's name.")


@click.group
def runpod() -> None:
    """Bring a server up in a pod of RunPod, prove it, give it back (docs/runpod.md)."""


@runpod.command
@standard
@takes(*SERVED, "api_key_file", "timeout", "request_timeout", "suite", "artifacts", "sign_key", "keep")
@account
@stated
@shaped
@click.option(
    "--gpu-type", "gpu_types", multiple=True, metavar="ID",
    help="RunPod's id of a GPU type; may be repeated: the next one is asked for where one is refused.",
)  # fmt: skip
@click.option("--gpu-count", "count", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option(
    "--cloud",
    "tier",
    type=click.Choice(("SECURE", "COMMUNITY"), case_sensitive=False),
    default="SECURE",
    show_default=True,
)
@click.option("--data-center", "centers", multiple=True, metavar="ID", help="May be repeated.")
@click.option("--max-price", "price", type=click.FloatRange(0, min_open=True), metavar="USD",
              help="The most that the whole pod may cost an hour.")  # fmt: skip
@click.option("--live", type=DURATION, default="2h", show_default=True, metavar="DURATION",
              help="From when on `reap` removes it.")  # fmt: skip
@click.option("--forever", is_flag=True, help="No date: `reap` leaves it alone.")
@click.option("--template", metavar="ID", help="A template of RunPod instead of --image.")
@click.option("--remove", is_flag=True, help="Remove the pod when it has passed, too.")
@click.option("--poll", type=DURATION, default="5s", show_default=True, help="Time between looks at the pod.")
@click.option("--runpod-proxy", "proxy", envvar="BRINGUP_RUNPOD_PROXY", default="", hidden=True)
@dry
def up(
    watch: Any, settings: Settings, sources: dict[str, str], cloud: Client, state: State, dry_run: bool, **given: Any,
) -> int:  # fmt: skip
    """Create a pod, wait for a token through the proxy, verify, write the bundle. Arguments after `--` go to vLLM.

    A pod that fails is removed (unless --keep); one that passes stays, until `down`, or `reap` after --live.
    """
    from bringup.runpod import bodies, life

    if settings.request_timeout >= life.PROXY_CUT:
        raise UsageError(
            f"--request-timeout {settings.request_timeout:g} s: RunPod's proxy ends a request after "
            f"{life.PROXY_CUT:g} s", hint="give less"
        )  # fmt: skip
    live, forever, remove = given.pop("live"), given.pop("forever"), given.pop("remove")
    poll, proxy = given.pop("poll"), given.pop("proxy")
    gpu_types = given.pop("gpu_types") or bodies.GPU_TYPES
    now = time.time()
    wish = bodies.Wish(
        name=f"{bodies.PREFIX}{time.strftime('%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}",
        gpu_types=gpu_types, cloud=given.pop("tier").upper(), data_centers=given.pop("centers"),
        image_bytes=given.pop("image_size"), expires=None if forever else now + live, **given,
    )  # fmt: skip
    plan = _plan(settings, sources, wish.template)
    if dry_run:
        _shown(watch, [bodies.pod(plan, wish, gpu, MASK) for gpu in wish.gpu_types])
        return Exit.PASS
    api = cloud()
    bodies.pod(plan, wish, wish.gpu_types[0], MASK)  # what no pod can have is told before anything is made
    owned, settings = _keyed(state, wish, settings)
    run = life.Run(
        cloud=api, state=state, plan=plan, wish=wish, settings=settings, watch=watch, owned=owned,
        leave=not remove, poll=poll, proxy=proxy or life.PROXY,
    )  # fmt: skip
    outcome, runs = life.bring_up(run)
    watch.probes(outcome.records)
    watch.tell(f"evidence: {outcome.bundle}")
    if runs:
        watch.tell(f"endpoint: {outcome.url}/v1   its key: {owned.key_file}")
    watch.tell(f"verdict: {outcome.verdict}")
    watch.result(outcome.to_dict() | {"pod": run.facts, "left": runs, "key_file": owned.key_file if runs else None})
    return exit_for(outcome.verdict)


def _keyed(state: State, wish: Wish, settings: Settings) -> tuple[Owned, Settings]:
    """The entry of a pod to come, and the settings with the file of its key, which is made where none is given."""
    from bringup.key import api_key
    from bringup.runpod.state import Owned

    given = api_key(settings)
    place = settings.api_key_file if given else None
    if place is None:
        place = state.keep_key(wish.name, given or secrets.token_hex(32))
    owned = Owned(
        name=wish.name, created=time.time(), expires=wish.expires, key_file=str(place.absolute()),
        made_key=place != settings.api_key_file,
    )  # fmt: skip
    return owned, dataclasses.replace(settings, api_key_file=place)


def _plan(settings: Settings, sources: dict[str, str], template: str | None = None) -> Plan:
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


def _shown(watch: Any, value: Any) -> None:
    from bringup.artifacts import as_json

    watch.result(value, as_json(value))


@runpod.command("ls")
@standard
@account
@stated
def list_(watch: Any, cloud: Client, state: State) -> int:
    """List the pods that bringup owns: status, age, what they cost, when they are due to go."""
    from bringup.console import plain
    from bringup.runpod import life

    now = time.time()
    found = [_row(o, pod, now) for o, pod in life.ours(cloud(), state)]
    cells = [
        (r["name"], r["id"] or "?", r["status"], f"{r['age_hours']:.1f}", _money(r["cost"]), _money(r["spent"]),
         r["expires"] + (" (overdue: `bringup runpod reap`)" if r["overdue"] else ""))
        for r in found
    ]  # fmt: skip
    watch.result(found, plain(("", COLUMNS, cells), ("pod", "id", "status", "due to go")) if found else "no pods")
    return Exit.PASS


def _money(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _row(owned: Owned, pod: dict[str, Any] | None, now: float) -> dict[str, Any]:
    from bringup.runpod import bodies

    hours = (now - owned.created) / 3600
    cost = pod.get("cost") if pod else None
    return {
        "name": owned.name, "id": owned.id or (pod or {}).get("id"),
        "status": pod.get("status", "?") if pod else "not at RunPod",
        "age_hours": round(hours, 3), "cost": cost, "spent": None if cost is None else round(cost * hours, 4),
        "expires": bodies.moment(owned.expires), "overdue": owned.expires is not None and owned.expires <= now,
        "url": owned.url,
    }  # fmt: skip


@runpod.command
@standard
@account
@stated
@click.argument("pods", metavar="[POD]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that bringup owns.")
def down(watch: Any, cloud: Client, state: State, pods: tuple[str, ...], every: bool) -> int:
    """Remove pods, by name or id; the only one where none is named."""
    from bringup.runpod import life

    api = cloud()
    if not (owned := life.ours(api, state)):
        watch.say("bringup owns no pods")
    return _remove_all(watch, api, state, life.chosen(owned, pods, every=every))


def _remove_all(watch: Any, cloud: RunPod, state: State, owned: list[Owned]) -> int:
    from bringup.runpod import life

    left = [o.id or o.name for o in owned if not life.remove(cloud, state, o, watch)]
    gone = [o.id or o.name for o in owned if (o.id or o.name) not in left]
    watch.result({"removed": gone, "left": left})
    if left:
        raise TargetUnavailable(f"not known to be gone: {', '.join(left)}", hint="try again, or use RunPod's console")
    return Exit.PASS


@runpod.command
@standard
@account
@stated
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def reap(watch: Any, cloud: Client, state: State, dry_run: bool) -> int:
    """Remove our pods that are past their date, from whatever machine, and those that an `up` left behind unnamed."""
    from bringup.runpod import life

    api = cloud()
    over, forgotten = life.due(life.ours(api, state), time.time())
    if dry_run:
        watch.result({"due": [o.id or o.name for o in over]}, "\n".join(o.id or o.name for o in over) or "nothing")
        return Exit.PASS
    for owned in forgotten:
        watch.say(f"RunPod has no pod {owned.name}: forgotten")
        state.drop(owned)
    return _remove_all(watch, api, state, over)


@runpod.group
def template() -> None:
    """The template of the image in RunPod's console."""


@template.command("create")
@standard
@takes(*SERVED)
@account
@shaped
@named
@dry
def create(
    watch: Any, settings: Settings, sources: dict[str, str], cloud: Client, dry_run: bool, **given: Any
) -> int:  # fmt: skip
    """Create the template; its key is the account's secret bringup_api_key."""
    body = _template(settings, sources, given)
    if dry_run:
        _shown(watch, body)
        return Exit.PASS
    api = cloud()
    if old := _of_name(api, body["name"]):
        raise UsageError(
            f"there is a template {body['name']} already: {old['id']}", hint="`bringup runpod template update`"
        )
    return _told(watch, api.create_template(body), "created")


@template.command("update")
@standard
@takes(*SERVED)
@account
@shaped
@named
@dry
def update(
    watch: Any, settings: Settings, sources: dict[str, str], cloud: Client, dry_run: bool, **given: Any
) -> int:  # fmt: skip
    """Give the template of that name these values."""
    body = _template(settings, sources, given)
    if dry_run:
        _shown(watch, body)
        return Exit.PASS
    api = cloud()
    return _told(watch, api.update_template(_required(api, body["name"])["id"], body), "updated")


@template.command("show")
@standard
@account
@named
def show(watch: Any, cloud: Client, name: str) -> int:
    """Print the template of that name as RunPod has it."""
    api = cloud()
    _shown(watch, api.template(_required(api, name)["id"]))
    return Exit.PASS


def _template(settings: Settings, sources: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    from bringup.runpod import bodies

    wish = bodies.Wish(name=given["name"], image_bytes=given["image_size"], registry=given["registry"])
    return bodies.template(_plan(settings, sources), wish)


def _of_name(cloud: RunPod, name: str) -> dict[str, Any] | None:
    return next((t for t in cloud.templates() if t.get("name") == name), None)


def _required(cloud: RunPod, name: str) -> dict[str, Any]:
    if found := _of_name(cloud, name):
        return found
    raise UsageError(f"the account has no template {name}", hint="`bringup runpod template create` makes it")


def _told(watch: Any, made: dict[str, Any], what: str) -> int:
    if not made.get("id"):
        raise BringupError("RunPod answered with a template without an id", hint="look into its console")
    watch.say(f"template {made.get('name')} {what}: {made['id']}")
    watch.result({"id": made["id"], "name": made.get("name")}, str(made["id"]))
    return Exit.PASS
