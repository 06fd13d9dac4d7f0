"""`bringup bench serve|start`: what the running server does in a second, and how long a start takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bringup.commands import BUILD, SERVE, WHERE, standard
from bringup.options import takes
from bringup.records import RunRecord, exit_for
from bringup.settings import Settings


class Counts(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1, with commas: 1,64."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse text; a number that stands twice would overwrite its own result."""
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers like 1,64", param, ctx)
        if min(numbers) < 1 or len(set(numbers)) != len(numbers):
            self.fail(f"{value!r}: needed are different numbers from 1", param, ctx)
        return numbers


@click.group
def bench() -> None:
    """Measure the running server (serve), or how long starts take (start)."""


@bench.command
@standard
@takes(*WHERE, "artifacts", "request_timeout")
@click.option("--max-concurrency", type=Counts(), default="1,64", show_default=True, metavar="N,N,...",
              help="Requests at once; one run for each number.")  # fmt: skip
@click.option("--num-prompts", type=click.IntRange(1), metavar="N",
              help="Requests of one run; by default eight for each at once, and at least 32.")  # fmt: skip
@click.option("--random-input-len", type=click.IntRange(1), default=256, show_default=True, metavar="TOKENS",
              help="Tokens of each prompt.")  # fmt: skip
@click.option("--random-output-len", type=click.IntRange(2), default=128, show_default=True, metavar="TOKENS",
              help="Tokens of each answer.")  # fmt: skip
@click.option("--num-warmups", type=click.IntRange(1), metavar="N",
              help="Requests before, not counted; by default as many as at once, and at least 2.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), metavar="N",
              help="Of the random prompts; by default another each time, for the prefix cache's sake.")  # fmt: skip
@click.option("--limit", type=click.FloatRange(1), default=1800, show_default=True, metavar="SECONDS",
              help="Deadline of one run.")  # fmt: skip
def serve(watch: Any, settings: Settings, sources: dict[str, str], **load: Any) -> int:
    """Measure the running server by vLLM's own `bench serve`, run inside its container, with random prompts."""
    from bringup import workflow
    from bringup.benchmark import serve as serving

    made = serving.Load(
        streams=load["max_concurrency"], input_tokens=load["random_input_len"],
        output_tokens=load["random_output_len"], requests=load["num_prompts"], warmups=load["num_warmups"],
        seed=load["seed"], limit=load["limit"],
    )  # fmt: skip
    run = workflow.prepare("bench serve", settings, sources, watch)
    return _conclude(watch, *serving.bench(run, made))


@bench.command
@standard
@takes(*SERVE, *BUILD, "artifacts", "request_timeout")
@click.option("-n", "count", type=click.IntRange(1), default=5, show_default=True, metavar="N",
              help="Starts of each kind, cold and warm.")  # fmt: skip
@click.option("--cold", type=click.IntRange(0), metavar="N", help="Cold starts, instead of -n.")
@click.option("--warm", type=click.IntRange(0), metavar="N", help="Warm starts, instead of -n.")
@click.option("--drop-page-cache/--no-drop-page-cache", default=True, show_default=True,
              help="Before a cold start, drop the host's page cache, if this user may.")  # fmt: skip
def start(
    watch: Any, settings: Settings, sources: dict[str, str], count: int, cold: int | None, warm: int | None,
    drop_page_cache: bool,
) -> int:  # fmt: skip
    """Time container start -> ready -> first token, cold (state volume emptied) and warm in turns.

    In a compose project of its own, PROJECT-bench; it is removed at the end.
    """
    from bringup import workflow
    from bringup.benchmark import start as starting

    asked = starting.Asked(
        cold=count if cold is None else cold, warm=count if warm is None else warm, drop_page_cache=drop_page_cache
    )
    run = workflow.prepare("bench start", settings, sources, watch)
    return _conclude(watch, *starting.bench(run, asked))


def _conclude(watch: Any, record: RunRecord, report: dict[str, Any], bundle: Path) -> int:
    failed = tuple(p for p in record.probes if p.status != "pass")
    if failed:
        watch.probes(failed)
    watch.say(f"evidence: {bundle}")
    watch.say(f"verdict: {record.verdict}")
    watch.result(report | {"bundle": str(bundle)})
    return exit_for(record.verdict)
