"""`bringup compare`: bundles beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bringup.commands import standard
from bringup.comparison.sides import THRESHOLD, Side, exit_for
from bringup.errors import UsageError

WORDS = ("of", "what", "stage", "caches", "probe", "probes", "memory", "node", "verdict", "what stands out", "")
RECORD = "record.json"


@click.command("compare")
@standard
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option(
    "--baseline", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
    help="What all of PATH is held against, instead of the first one; may be repeated.",
)  # fmt: skip
@click.option(
    "--threshold", default=THRESHOLD, show_default=True, type=click.FloatRange(0), metavar="PERCENT",
    help="A slower start or stage is a regression when it is past this, and past the noise.",
)  # fmt: skip
def compare(watch: Any, paths: tuple[Path, ...], baseline: tuple[Path, ...], threshold: float) -> int:
    """Show what differs between bundles, and whether the second side is worse (exit code 1).

    PATH is a bundle, or a directory of bundles: then these are the runs of one side. Two of them are held against each
    other; a difference in time is claimed from 3 runs a side on. Three or more (or one directory) are nodes: those that
    are not like the others are marked.
    """
    from bringup.comparison import nodes, show, sides
    from bringup.console import plain

    if baseline or len(paths) == 2:
        base, other = (baseline, paths) if baseline else (paths[:1], paths[1:])
        made: Any = sides.compare(_side(base), _side(other), threshold)
        tables = list(show.tables(made))
    else:
        made = nodes.line_up(_nodes(paths), threshold)
        tables = [show.nodes_table(made)]
    text = [*(plain(table, (*WORDS, *table[1][:1])) for table in tables), "\n".join(show.conclusion(made))]
    watch.result(made.to_dict(), "\n\n".join(text))
    return exit_for(made.verdict)


def _bundles(path: Path) -> list[Path]:
    """The bundle itself, or those that lie in it; what is neither is read, and refused with its reason."""
    if path.name == RECORD or (path / RECORD).is_file() or not path.is_dir():
        return [path]
    return sorted(p.parent for p in path.glob(f"*/{RECORD}")) or [path]


def _side(paths: Sequence[Path], name: str = "") -> Side:
    from bringup import bundle
    from bringup.comparison import runs

    found = [runs.from_bundle(bundle.read(b)) for path in paths for b in _bundles(path)]
    return Side(name or ", ".join(p.resolve().name for p in paths), tuple(found))


def _nodes(paths: Sequence[Path]) -> list[Side]:
    """One for each path, or for each bundle of a single one; named as shortly as they can be told apart."""
    each = _bundles(paths[0]) if len(paths) == 1 else list(paths)
    if len(each) < 2:
        raise UsageError(
            f"{paths[0]} is one bundle, and there is nothing to hold it against",
            hint="name two bundles, or directories of bundles",
        )
    short = [p.resolve().name for p in each]
    return [_side([p], n if short.count(n) == 1 else str(p)) for p, n in zip(each, short, strict=True)]
