"""The command line: settings in, one call into the workflow, records out, exit code.

Commands import what they need when they run, so that `--help` and completion stay fast.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from bringup import __version__, commands
from bringup.commands import (
    BUILD,
    SERVE,
    WHERE,
    bench,
    compare,
    doctor,
    lock,
    models,
    report,
    runpod,
    standard,
    timeline,
    weights,
)
from bringup.errors import BringupError, Exit, UsageError
from bringup.options import CONFIG, read_config, takes
from bringup.records import ProbeRecord, Status, Verdict, exit_for, verdict_of
from bringup.settings import COMPOSE, Settings


class Interrupted(BaseException):
    """A signal asked us to stop; the first one cleans up, further ones are ignored meanwhile."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def main() -> None:
    """Entry point: the one place that turns exceptions into exit codes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = cli.main(prog_name="bringup", standalone_mode=False)
    except BringupError as e:
        _console().error(e)
        code = e.exit_code
    except click.ClickException as e:
        e.show()
        code = Exit.USAGE
    except click.exceptions.Abort:
        code = Exit.INTERRUPTED
    except Interrupted as e:
        _console().tell("bringup: interrupted; what was started is stopped, or named above")
        code = e.exit_code
    except Exception:
        _console().rich.print_exception()
        _console().tell("bringup: this is a bug; please report it with the lines above")
        code = Exit.BUG
    sys.exit(int(code) if isinstance(code, int) else 0)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    raise Interrupted(number)


def _console() -> Any:
    from bringup.console import Console

    return commands.STATE.get("console") or Console(as_json="--json" in sys.argv)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bringup")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """From a bare GPU host to a proven vLLM endpoint, with the evidence in hand."""
    values = read_config(Path(CONFIG))
    ctx.default_map = defaults_of(cli, values)


def defaults_of(group: click.Group, values: dict[str, Any]) -> dict[str, Any]:
    """The file's values for each command, and for the commands of each group."""
    return {
        name: values | (defaults_of(c, values) if isinstance(c, click.Group) else {})
        for name, c in group.commands.items()
    }


def every_command(group: click.Group = cli, prefix: str = "") -> dict[str, click.Command]:
    """All commands by their whole name ("weights fetch"); a group that does something by itself is one too."""
    found: dict[str, click.Command] = {}
    for name, c in sorted(group.commands.items()):
        if not isinstance(c, click.Group) or c.invoke_without_command:
            found[prefix + name] = c
        if isinstance(c, click.Group):
            found |= every_command(c, f"{prefix}{name} ")
    return found


def command(function: Callable[..., Any]) -> click.Command:
    """A command of the top level."""
    return cli.command(function.__name__)(standard(function))


@command
@takes("target", *SERVE, *BUILD, "artifacts", "sign_key", "suite", "request_timeout", "keep")
@click.option("-q", "--quiet", is_flag=True, help="Only errors, where the evidence is, and the verdict.")
def up(watch: Any, settings: Settings, sources: dict[str, str], quiet: bool) -> int:
    """Check, build if needed, start, wait for the first token, verify, collect: the main job.

    Arguments after `--` go to vLLM as they are.
    """
    from bringup import workflow

    watch.quiet = quiet
    run = workflow.prepare("up", settings, sources, watch)
    record, bundle = workflow.bring_up(run)
    return _conclude(watch, record, bundle)


def _conclude(watch: Any, record: Any, bundle: Path) -> int:
    from bringup.targets import NOUNS

    watch.probes(record.probes)
    watch.steps(record.steps)
    if record.started_to_first_token is not None:
        noun = NOUNS[record.plan.get("target", COMPOSE)]
        watch.say(f"{noun} start to first token: {record.started_to_first_token:.1f} s")
    watch.tell(f"evidence: {bundle}")
    watch.tell(f"verdict: {record.verdict}   endpoint: {record.plan['base_url']}/v1")
    watch.result(record.to_dict() | {"bundle": str(bundle)})
    return exit_for(record.verdict)


@command
@takes("target", *WHERE, "artifacts", "sign_key", "suite", "request_timeout")
@click.option("--probe", "asked", multiple=True, metavar="NAME", help="Ask only this probe; may be repeated.")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="More addresses, one a line, # begins a comment; - is standard input.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Nodes asked at once.  [default: 256]")
@click.option("--expect-model", metavar="NAME", help="Model that the server at URL must serve.")
def verify(
    watch: Any, settings: Settings, sources: dict[str, str], asked: tuple[str, ...], urls: tuple[str, ...],
    source: Path | None, jobs: int | None, expect_model: str | None,
) -> int:  # fmt: skip
    """Ask the running server everything that proves it works; with URL, any vLLM anywhere; with several, all at once.

    The key for URL comes from --api-key-file or the variable BRINGUP_API_KEY. Several, or --from, write a bundle each
    to --artifacts; the worst verdict is the exit code.
    """
    from bringup import address, probes, workflow

    if strange := sorted(set(asked) - set(probes.PROBES)):
        raise UsageError(f"there is no probe {', '.join(strange)}", hint=f"there are {', '.join(probes.PROBES)}")
    if source or len(urls) > 1:
        from bringup.commands.many import verify_many

        return verify_many(watch, settings, urls, source, asked, expect_model, jobs)
    if urls:
        records = address.verify_address(urls[0], settings, expect_model, watch, asked)
    else:
        run = workflow.prepare("verify", settings, sources, watch)
        run.asked = asked
        records = workflow.probe(run, workflow.attach(run)[1])
    verdict = verdict_of(records)
    watch.probes(records)
    watch.say(_scope(records, verdict))
    watch.result({"verdict": verdict, "probes": [dataclasses.asdict(r) for r in records]})
    return exit_for(verdict)


def _scope(records: tuple[ProbeRecord, ...], verdict: Verdict) -> str:
    skipped = [r.name for r in records if r.status is Status.SKIP]
    return f"verdict: {verdict}" + (f" (not asked: {', '.join(skipped)})" if skipped else "")


@command
@takes("target", *WHERE, "artifacts", "sign_key", "suite", "request_timeout")
def collect(watch: Any, settings: Settings, sources: dict[str, str]) -> int:
    """Verify the running server and write the evidence into a new bundle."""
    from bringup import artifacts, workflow

    artifacts.check_destination(settings.artifacts, settings.sign_key)
    run = workflow.prepare("collect", settings, sources, watch)
    container, server = workflow.attach(run)
    workflow.probe(run, server)
    record, bundle = workflow.collect(run, server, container, container.image())
    return _conclude(watch, record, bundle)


# The trial of --warm listens on loopback, on a free port, without a key.
TRIAL = tuple(name for name in SERVE if name not in ("bind", "port", "api_key_file", "api_key"))


@command
@takes(*TRIAL, *BUILD, "artifacts", "request_timeout")
@click.option("--warm", is_flag=True, help="Start it once, and bake the caches that this fills.")
def build(watch: Any, settings: Settings, sources: dict[str, str], warm: bool) -> int:
    """Build the image, from the locks.

    The settings of the server are for --warm: a later start uses the caches if its settings are the same.
    """
    from bringup import image, workflow

    if not warm and sources.get("vllm_args") == "flag":
        raise UsageError("arguments for vLLM are part of no image", hint="give --warm, whose caches they are a key of")
    run = workflow.prepare("build", settings, sources, watch)
    raw = image.summary(workflow.build(run))
    if warm:
        from bringup.warm import bake

        raw = image.summary(bake(run))
    watch.say(f"{run.plan.image}: {raw['size'] / 1e9:.2f} GB, {len(raw['layers'])} layers, {raw['id']}")
    watch.result(raw)
    return Exit.PASS


@command
@takes("target", *WHERE)
@click.option("--tail", type=click.IntRange(1), help="Only the last lines.")
def logs(watch: Any, settings: Settings, sources: dict[str, str], tail: int | None) -> int:
    """Print the server's console output, of a stopped container too."""
    from bringup import workflow

    text = workflow.console_output(workflow.prepare("logs", settings, sources, watch), tail)
    watch.result({"log": text}, text)
    return Exit.PASS


@command
@takes("target", "project")
@click.option("--volumes", is_flag=True, help="Remove its caches and its volume of weights too.")
def down(watch: Any, settings: Settings, sources: dict[str, str], volumes: bool) -> int:  # noqa: ARG001
    """Stop and remove the server; the caches stay."""
    from bringup import workflow

    released = workflow.take_down(settings, watch, volumes=volumes)
    memory = dataclasses.asdict(released) if released else None
    watch.result({"project": settings.project, "volumes": volumes, "released": memory})
    return Exit.PASS


@command
@takes("target", *SERVE, "artifacts", "request_timeout")
def plan(watch: Any, settings: Settings, sources: dict[str, str]) -> int:
    """Show what `up` would do, and where each setting comes from. Starts nothing."""
    from bringup import workflow
    from bringup.artifacts import as_json

    made = workflow.prepare("plan", settings, sources, watch).plan.to_dict()
    watch.result(made, as_json(made))
    return Exit.PASS


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a completion script: `eval "$(bringup completion bash)"`."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(made(cli, {}, "bringup", "_BRINGUP_COMPLETE").source())
    return Exit.PASS


PARTS = (
    models.models, lock.lock, weights.weights, timeline.timeline, bench.bench, doctor.doctor, report.report,
    compare.compare, runpod.runpod,
)  # fmt: skip
for part in PARTS:
    cli.add_command(part)
