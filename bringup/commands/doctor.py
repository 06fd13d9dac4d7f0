"""`bringup doctor`: look at this host, or at one that was recorded, and judge it."""

from __future__ import annotations

import dataclasses
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import SERVE, standard
from bringup.errors import Exit, UsageError
from bringup.options import takes
from bringup.records import Status
from bringup.settings import AUTO, LOCAL, Settings

if TYPE_CHECKING:
    from bringup.workflow import Run

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command
@standard
@takes("target", *SERVE)
@click.option(
    "--facts",
    "recorded",
    type=FILE,
    metavar="FILE",
    help="Judge the host that was recorded there; this one is not looked at.",
)
@click.option("--save-facts", "save", type=FILE, metavar="FILE", help="Record what was found on this host.")
@click.option(
    "--in-image",
    "ask_image",
    is_flag=True,
    help="Ask torch in the image too, in a container with the GPU reserved.",
)
def doctor(
    watch: Any, settings: Settings, sources: dict[str, str], recorded: Path | None, save: Path | None, ask_image: bool
) -> int:  # fmt: skip
    """Check the host before anything starts: what was found, what is needed, what to do."""
    from bringup import workflow
    from bringup.checks import in_image

    if recorded is not None:
        if ask_image or save:
            other = "--in-image" if ask_image else "--save-facts"
            raise UsageError(f"--facts looks at no host, and {other} does", hint="leave one of them out")
        run = from_file(recorded, settings, sources, watch)
    else:
        run = workflow.prepare("doctor", settings, sources, watch)
        if ask_image and run.plan.target == LOCAL:
            raise UsageError("--in-image starts a container, and --target local has none", hint="leave one of them out")
        if ask_image and run.plan.flavour == "gpu":
            with watch.step(f"torch in {run.plan.image}"):
                run.host = dataclasses.replace(run.host, torch=in_image.ask(run.engine, run.plan, run.host))
        if save:
            write(save, run)
            watch.say(f"facts: {save}")
    records = workflow.examine(run)
    watch.checks(records)
    watch.say(f"flavour {run.plan.flavour}: {run.plan.flavour_reason}")
    watch.result([dataclasses.asdict(r) for r in records])
    return verdict({r.status for r in records}, reachable=run.host.engine.reachable or run.plan.target == LOCAL)


def verdict(seen: set[Status], *, reachable: bool) -> Exit:
    """The exit code; `reachable`: what starts servers is. Without it nothing can be started, whatever else was found.

    Warnings do not count.
    """
    if not reachable:
        return Exit.TARGET_UNAVAILABLE
    if Status.FAIL in seen:
        return Exit.CHECK_FAILED
    return Exit.UNKNOWN if Status.UNKNOWN in seen else Exit.PASS


def from_file(path: Path, settings: Settings, sources: dict[str, str], watch: Any) -> Run:
    """The run that would have been on a recorded host; neither this host nor a network is asked.

    Raises:
        UsageError: the file cannot be used.
    """
    from bringup import catalog, workflow
    from bringup.checks import choose_flavour, choose_here, recorded
    from bringup.checks.facts import needs_cdi
    from bringup.edge.docker import Engine
    from bringup.edge.place import Place
    from bringup.plan import make_plan

    try:
        host = recorded.load(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}", id="facts-unusable") from e
    if sources.get("target") in (None, "default"):  # the file knows what it was made for
        settings = dataclasses.replace(settings, target=host.target)
    if settings.target == LOCAL:
        flavour = choose_here(settings.flavour, host.place or Place(), host.gpu)
    else:
        flavour = choose_flavour(settings.flavour, host.engine, host.gpu)
    models = catalog.load()
    name = catalog.default(models, flavour[0])[0] if settings.model == AUTO else settings.model
    model = catalog.choose(models, name)
    plan = make_plan(dataclasses.replace(settings, model=name), model, flavour, sources, cdi=needs_cdi(host.engine))
    return workflow.Run("doctor", settings, plan, Engine(), host, watch)


def write(path: Path, run: Run) -> None:
    """Write the facts, whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    from bringup import __version__
    from bringup.checks import recorded
    from bringup.redact import redact

    text = recorded.dump(
        run.host, tool=__version__, taken=datetime.now(UTC).isoformat(timespec="seconds"), flavour=run.plan.flavour,
        model=run.plan.model,
    )  # fmt: skip
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(redact(text), "utf-8")
        beside.replace(path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise UsageError(
            f"{path} cannot be written: {e.strerror}", hint="name a file in a directory that is there"
        ) from e
