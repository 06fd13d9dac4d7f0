"""`bringup models`: what there is to serve."""

from __future__ import annotations

from typing import Any

import click

from bringup.commands import standard
from bringup.errors import Exit


@click.group(invoke_without_command=True)
@standard
@click.pass_context
def models(ctx: click.Context, watch: Any) -> int:
    """List the catalogue, and which of its models the weights lock pins."""
    if ctx.invoked_subcommand is not None:
        return Exit.PASS
    from bringup import catalog

    found = catalog.load().values()
    rows = [
        {
            "name": m.name, "source": m.source, "license": m.license, "gated": m.gated, "context": m.context,
            "pinned": m.lock is not None, "bytes": m.lock.size if m.lock else None,
        }
        for m in found
    ]  # fmt: skip
    text = [
        f"{r['name']:24} {'pinned' if r['pinned'] else 'not pinned':11} {r['context']:>6} tokens  {r['source']}"
        for r in rows
    ]
    watch.result(rows, "\n".join(text))
    return Exit.PASS
