"""`bringup runpod`: pods of RunPod."""

from __future__ import annotations

import dataclasses
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import runpod_bodies, standard
from bringup.commands import runpod_options as shared
from bringup.commands.runpod_options import SERVED, Client, account, dry, pod_plan, shaped, show, stated
from bringup.errors import Exit, TargetUnavailable, UsageError
from bringup.options import takes
from bringup.records import exit_for
from bringup.redact import MASK
from bringup.settings import Settings, from_environment

if TYPE_CHECKING:
    from bringup.edge.runpod import RunPod
    from bringup.many import Outcome
    from bringup.plan import Plan
    from bringup.runpod.bodies import Wish
    from bringup.runpod.run import Run
    from bringup.runpod.state import Owned, State

COLUMNS = ("pod", "id", "status", "age h", "USD/h", "USD so far", "due to go")


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
@click.option("--live", type=shared.DURATION, default="2h", show_default=True, metavar="DURATION",
              help="From when on `reap` removes it.")  # fmt: skip
@click.option("--forever", is_flag=True, help="No date: `reap` leaves it alone.")
@click.option("--template", metavar="ID", help="A template of RunPod instead of --image.")
@click.option("--remove", is_flag=True, help="Remove the pod when it has passed, too.")
@shared.ssh_key
@click.option("--no-ssh", is_flag=True, help="No sshd: not verified directly, and none of the server's own files.")
@click.option("--poll", type=shared.DURATION, default="5s", show_default=True, help="Time between looks at the pod.")
@click.option("--runpod-proxy", "proxy", envvar="BRINGUP_RUNPOD_PROXY", default="", hidden=True)
@dry
def up(
    watch: Any, settings: Settings, sources: dict[str, str], cloud: Client, state: State, dry_run: bool, **given: Any,
) -> int:  # fmt: skip
    """Create a pod, wait for a token, verify by proxy and SSH, write the bundle. Arguments after `--` go to vLLM.

    A pod that fails is removed (unless --keep); one that passes stays, until `down`, or `reap` after --live.
    """
    from bringup.edge.ssh import require
    from bringup.runpod import bodies, life
    from bringup.runpod.run import PROXY, Run

    _under_proxy(settings)
    live, forever, remove = given.pop("live"), given.pop("forever"), given.pop("remove")
    poll, proxy, wanted, key = given.pop("poll"), given.pop("proxy"), not given.pop("no_ssh"), given.pop("ssh_key")
    gpu_types = given.pop("gpu_types") or bodies.GPU_TYPES
    now = time.time()
    wish = bodies.Wish(
        name=f"{bodies.PREFIX}{time.strftime('%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}",
        gpu_types=gpu_types, cloud=given.pop("tier").upper(), data_centers=given.pop("centers"),
        image_bytes=given.pop("image_size"), expires=None if forever else now + live, **given,
    )  # fmt: skip
    plan = pod_plan(settings, sources, wish.template)
    shown = dataclasses.replace(wish, public_key=_public(wanted, key))
    made = [bodies.pod(plan, shown, gpu, MASK) for gpu in wish.gpu_types]
    if dry_run:
        show(watch, made)
        return Exit.PASS
    api = cloud()
    if wanted:
        require()
    owned, settings = _keyed(state, wish, settings)
    owned, wish = _with_ssh(state, owned, wish, wanted, key)
    run = Run(
        cloud=api, state=state, plan=plan, settings=settings, watch=watch, owned=owned, leave=not remove, poll=poll,
        proxy=proxy or PROXY, ssh_key=Path(owned.ssh_key) if owned.ssh_key else None,
    )  # fmt: skip
    outcome, runs = life.bring_up(run, wish)
    return _concluded(watch, run, outcome, runs=runs)


def _concluded(watch: Any, run: Run, outcome: Outcome, *, runs: bool) -> int:
    watch.probes(outcome.records)
    watch.tell(f"evidence: {outcome.bundle}")
    if runs:
        watch.tell(f"endpoint: {outcome.url}/v1   its key: {run.owned.key_file}")
    watch.tell(f"verdict: {outcome.verdict}")
    key_file = run.owned.key_file if runs else None
    watch.result(outcome.to_dict() | {"pod": run.facts, "left": runs, "key_file": key_file})
    return exit_for(outcome.verdict)


def _under_proxy(settings: Settings) -> None:
    from bringup.runpod.life import PROXY_CUT

    if settings.request_timeout >= PROXY_CUT:
        raise UsageError(
            f"--request-timeout {settings.request_timeout:g} s: RunPod's proxy ends a request after {PROXY_CUT:g} s",
            hint="give less",
        )


def _public(wanted: bool, key: Path | None) -> str | None:
    """What stands for the public key as long as none is made; what cannot be used is told before anything is made."""
    from bringup.edge import ssh

    if key and not wanted:
        raise UsageError("--no-ssh and --ssh-key contradict each other", hint="give one of them")
    if not wanted:
        return None
    return ssh.public_half(key) if key else f"{ssh.KIND} (made for each pod)"


def _with_ssh(state: State, owned: Owned, wish: Wish, wanted: bool, key: Path | None) -> tuple[Owned, Wish]:
    """The entry and the wish with the two halves of an SSH key, which is made where none is given."""
    if not wanted:
        return owned, wish
    from bringup.edge import ssh

    if key:
        public = ssh.public_half(key)
    else:
        private, public = ssh.make_key(wish.name)
        owned = dataclasses.replace(owned, made_ssh_key=True)
        key = state.keep_key(wish.name, private, "ssh")
    return dataclasses.replace(owned, ssh_key=str(key.absolute())), dataclasses.replace(wish, public_key=public)


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


@runpod.command
@standard
@takes("api_key_file", "request_timeout", "suite", "artifacts", "sign_key")
@account
@stated
@click.argument("pod", required=False)
@shared.ssh_key
@click.option("--host-key", metavar="KEY", help="Of the pod's sshd, or its fingerprint; decides against what is known.")
def collect(
    watch: Any, settings: Settings, sources: dict[str, str], cloud: Client, state: State, pod: str | None,
    ssh_key: Path | None, host_key: str | None,
) -> int:  # fmt: skip
    """Verify a pod again, copy the server's own files out of it by SSH, write the bundle; the only pod, or POD."""
    from bringup.artifacts import check_destination
    from bringup.edge import ssh
    from bringup.runpod import bodies, evidence, life
    from bringup.runpod.run import Run

    _under_proxy(settings)
    if host_key:
        ssh.fingerprint(host_key)
    api = cloud()
    chosen = life.chosen(life.ours(api, state), (pod,) if pod else (), every=False)
    if not chosen:
        raise UsageError("bringup owns no pods", hint="`bringup runpod up` starts one")
    owned, found = chosen[0], api.pod(chosen[0].id or "")
    if not (owned.url and owned.key_file):
        raise UsageError("this pod was not started from here", hint="run collect where its list of pods is: --state")
    key = _way_in(owned, found, ssh_key)
    settings, plan = _of_pod(settings, sources, owned, found)
    check_destination(settings.artifacts, settings.sign_key)
    run = Run(
        cloud=api, state=state, plan=plan, settings=settings, watch=watch, owned=owned, ssh_key=key, host_key=host_key,
        facts={"created": owned.created, "pod": bodies.public(found)},
    )  # fmt: skip
    return _concluded(watch, run, evidence.collect(run), runs=True)


def _way_in(owned: Owned, found: dict[str, Any], given: Path | None) -> Path | None:
    """The private key for a pod's sshd; None: it was created without SSH."""
    from bringup.edge import ssh
    from bringup.inside.session import PUBLIC_KEYS

    key = given or (Path(owned.ssh_key) if owned.ssh_key else None)
    if key is None and set(PUBLIC_KEYS) & set(found.get("env") or {}):
        raise UsageError("the private key for this pod's sshd is not here", hint="give --ssh-key FILE")
    if key:
        ssh.public_half(key)
    return key


def _of_pod(
    settings: Settings, sources: dict[str, str], owned: Owned, found: dict[str, Any]
) -> tuple[Settings, Plan]:  # fmt: skip
    """What a pod was started with, as RunPod has it; its key from our file."""
    env = {str(k): str(v) for k, v in (found.get("env") or {}).items()}
    served = dataclasses.replace(
        from_environment(env), bind=Settings.bind, image=found.get("image"), request_timeout=settings.request_timeout
    )
    key_file = settings.api_key_file or Path(owned.key_file)
    return dataclasses.replace(settings, api_key_file=key_file), pod_plan(served, sources)


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


for part in (runpod_bodies.template, runpod_bodies.endpoint):
    runpod.add_command(part)
