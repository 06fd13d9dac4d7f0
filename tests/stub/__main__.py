"""`python -m tests.stub --lie NAME --port N`: the stub as a server of its own, until it is ended."""

from __future__ import annotations

import contextlib
import signal

import click

from tests.stub.deep_lies import LIARS
from tests.stub.server import Manner, Stub, serving


@click.command()
@click.option("--lie", "names", multiple=True, type=click.Choice(list(LIARS)), help="Lie so; may be repeated.")
@click.option("--bind", default="127.0.0.1")
@click.option("--port", type=int, default=0)
@click.option("--key", help="Demand this key.")
def main(names: tuple[str, ...], bind: str, port: int, key: str | None) -> None:
    """Serve the recording, with these lies."""
    stub = Stub([LIARS[name].tell for name in names], key, Manner())
    with serving(stub, bind, port) as url, contextlib.suppress(KeyboardInterrupt):
        click.echo(url)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
