"""Work in child processes: one interpreter lock for each share of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

Tell = Callable[[Any], None]


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def messages(shares: Sequence[Sequence[str]], work: Callable[[Sequence[str], Tell], None]) -> Iterator[Any]:
    """What the children tell, as it comes; `work` is called in a child of its own for each share.

    Children are forked: call it before there are threads. Whoever stops reading ends them. A child that dies tells no
    more, and the others go on.
    """
    context = multiprocessing.get_context("fork")
    children, ends = [], []
    for share in shares:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, share, work), daemon=True)
        child.start()
        theirs.close()
        children.append(child)
        ends.append(ours)
    try:
        while ends:
            ready = wait(ends)
            for end in [e for e in ends if e in ready]:
                try:
                    yield end.recv()
                except EOFError:
                    ends.remove(end)
    finally:
        for child in children:
            child.terminate()
            child.join()


def _child(end: Connection[Any, Any], share: Sequence[str], work: Callable[[Sequence[str], Tell], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal; the parent ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(BrokenPipeError):  # the parent has gone
        work(share, end.send)
