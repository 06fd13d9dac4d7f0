"""`bringup weights fetch|verify`: the files of a model, by the lock."""

from __future__ import annotations

import click


@click.group
def weights() -> None:
    """Fetch a model's files by the lock, or compare a directory with it."""
