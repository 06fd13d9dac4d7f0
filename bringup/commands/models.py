"""`bringup models`: what there is to serve, and what fits on a card."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from bringup import profile
from bringup.commands import standard
from bringup.errors import Exit, UsageError
from bringup.options import takes
from bringup.settings import Settings

if TYPE_CHECKING:
    from bringup.catalog import Model
    from bringup.fit import Asked, Fit

GIB, KIB, GB, MB = 2**30, 2**10, 10**9, 10**6


class Size(click.ParamType[int]):
    """Memory in bytes: 16GiB, 80 GiB, 24G (as nvidia-smi and Docker count), 16GB (of 10^9)."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse text; a number without a unit is refused, since it could be anything."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([GMT])(iB|B)?", value.strip(), re.IGNORECASE)
        if not match or float(match[1]) <= 0:
            self.fail(f"{value!r} is no size like 16GiB, 24G or 16GB", param, ctx)
        power = "MGT".index(match[2].upper()) + 2
        return int(float(match[1]) * (1000 if (match[3] or "").upper() == "B" else 1024) ** power)


@click.group(invoke_without_command=True)
@standard
@click.pass_context
def models(ctx: click.Context, watch: Any) -> int:
    """List the catalogue, and which of its models the weights lock pins."""
    if ctx.invoked_subcommand is not None:
        return Exit.PASS
    from bringup import catalog

    found = catalog.load().values()
    table = _table("model", "pinned", "weights", "KV/token", "context", "licence", "gated", "source", right=(2, 3, 4))
    for m in found:
        shape = m.shape
        table.add_row(
            m.name, "yes" if m.lock else "no", _size(m.weights),
            f"{shape.kv_per_token / KIB:g} KiB" if shape else "?", f"{m.context}" if m.context else "?", m.license,
            "yes" if m.gated else "no", m.source,
        )  # fmt: skip
    watch.result([_entry(m) for m in found], _text(table))
    for m in found:
        if m.lock is None:
            watch.say(f"{m.name} is not pinned: `bringup lock {m.name}` pins it")
    return Exit.PASS


def _size(weights: int | None) -> str:
    if not weights:
        return "?"
    return f"{weights / GB:.2f} GB" if weights >= GB // 10 else f"{weights / MB:.2f} MB"


def _entry(model: Model) -> dict[str, Any]:
    shape = model.shape
    return {
        "name": model.name, "source": model.source, "revision": model.lock.revision if model.lock else model.revision,
        "license": model.license, "gated": model.gated, "architecture": model.architecture, "context": model.context,
        "prompt": model.prompt, "chat_template": model.chat_template, "default": model.default,
        "pinned": model.lock is not None, "bytes": model.lock.size if model.lock else None,
        "parameters": shape.parameters if shape else None, "weights_bytes": model.weights,
        "kv_bytes_per_token": shape.kv_per_token if shape else None, "notes": model.notes,
    }  # fmt: skip


@models.command("fit")
@standard
@takes("max_model_len", "gpu_memory_utilization", "profile")
@click.option("--vram", type=Size(), required=True, metavar="SIZE", help="The card's memory: 16GiB, 24G, 16GB.")
@click.option("--max-num-seqs", type=click.IntRange(1), metavar="N", help="Requests at once; vLLM's default if unset.")
@click.option("--model", "name", metavar="NAME", help="This model only; exit code 3 if it does not fit.")
def fits(
    watch: Any,
    settings: Settings,
    sources: dict[str, str],  # noqa: ARG001
    vram: int,
    max_num_seqs: int | None,
    name: str | None,
) -> int:
    """Say which models fit on a card, with how much KV cache, and what to change where one does not.

    An estimate: vLLM measures for itself when it starts.
    """
    from bringup import catalog
    from bringup.fit import UTILIZATION, Asked, fit

    asked = Asked(
        vram=vram,
        utilization=UTILIZATION if settings.gpu_memory_utilization is None else settings.gpu_memory_utilization,
        max_model_len=settings.max_model_len,
        max_num_seqs=max_num_seqs,
        eager=settings.profile == profile.EAGER,
    )
    found = {}
    for m in _asked(catalog.load(), name):
        shape, weights = m.shape, m.weights
        found[m.name] = fit(shape, weights, asked) if shape and weights else None
    if name and found[name] is None:
        raise UsageError(
            f"what {name} needs cannot be computed: nobody has recorded its config.json",
            hint=f"`bringup lock {name}` records it", id="config-unknown",
        )  # fmt: skip
    watch.result([{"model": n} | (dataclasses.asdict(f) if f else {"fits": None}) for n, f in found.items()],
                 _report(found, asked))  # fmt: skip
    return Exit.PASS if any(f and f.fits for f in found.values()) else Exit.CHECK_FAILED


def _asked(known: dict[str, Model], name: str | None) -> list[Model]:
    if name is None:
        return list(known.values())
    if name not in known:
        raise UsageError(f"no model is named {name!r}", hint=f"`bringup models` lists them: {', '.join(known)}")
    return [known[name]]


def _report(found: dict[str, Fit | None], asked: Asked) -> str:
    """The sum of each model in GiB, and under it what to change where there is not enough."""
    head = f"{asked.vram / GIB:.2f} GiB, --gpu-memory-utilization {asked.utilization:g}"
    table = _table(
        "model", "fits", "weights", "activation", "graphs", "other", "KV cache", "KV tokens", "max len", "requests",
        right=(2, 3, 4, 5, 6, 7, 8, 9),
    )  # fmt: skip
    advice = []
    for name, f in found.items():
        if f is None:
            table.add_row(name, "?", *["?"] * 8)
            advice.append(f"{name}: nobody has recorded its config.json; `bringup lock {name}` does")
            continue
        sums = (f"{part / GIB:.2f}" for part in (f.weights, f.activation, f.graphs, f.other, f.kv_cache))
        table.add_row(name, "yes" if f.fits else "NO", *sums, f"{f.kv_tokens:,}", f"{f.max_model_len:,}",
                      f"{f.requests:.2f}")  # fmt: skip
        if not f.fits:
            advice.append(f"{name}: {', or '.join(f.advice)}")
    return "\n".join([f"{head} (memory in GiB)", _text(table), *advice])


def _table(*columns: str, right: tuple[int, ...]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if number in right else "left")
    return table


def _text(table: Any) -> str:
    """A table as plain text, as wide as the terminal."""
    from rich.console import Console

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().strip("\n").splitlines())
