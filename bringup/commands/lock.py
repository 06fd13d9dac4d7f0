"""`bringup lock`: pin a model's files."""

from __future__ import annotations

from typing import Any

import click

from bringup.commands import standard
from bringup.errors import UsageError


@click.command
@standard
@click.argument("model")
def lock(watch: Any, model: str) -> int:  # noqa: ARG001
    """Pin a model: its commit, and size and sha256 of each file."""
    raise UsageError(f"{model} cannot be pinned yet")
