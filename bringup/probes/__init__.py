"""Questions to a running server. `PROBES` is the order they are asked in.

A probe is a function `Server -> Finding`. It says what it expected and what it found; it never waits longer than
the server's deadline, whatever the server does, because `ask` does not wait longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator

from bringup.edge.http import NoAnswer
from bringup.errors import BringupError
from bringup.probes import answers, behind, canary, counters, limits, load, meaning, streaming
from bringup.probes.finding import Finding, unknown
from bringup.records import ProbeRecord, Status
from bringup.server import Server

Probe = Callable[[Server], Finding]

PROBES: dict[str, Probe] = {
    "reachable": answers.reachable,
    "models": answers.models,
    "ready": answers.ready,
    "completion": answers.completion,
    "chat": answers.chat,
    "streaming": streaming.streaming,
    "canary": canary.canary,
    "logprobs": meaning.logprobs,
    "determinism": meaning.determinism,
    "concurrency": meaning.concurrency,
    "context": limits.context,
    "requests": limits.requests,
    "metrics": counters.metrics,
    "cancel": counters.cancel,
    "canaries": canary.canaries,
    "soak": load.soak,
    "cancels": load.cancels,
    "auth": limits.auth,
    "version": behind.version,
    "process": behind.process,
    "vram": behind.vram,
}
SMOKE = ("reachable", "models", "ready", "completion", "chat", "streaming", "auth", "version", "process", "vram")
LOAD = ("canaries", "soak", "cancels")  # what takes long on a slow server
SUITES: dict[str, tuple[str, ...]] = {
    "smoke": SMOKE,
    "standard": tuple(name for name in PROBES if name not in LOAD),
    "full": tuple(PROBES),
}
# Without these there is no server to ask the rest.
GATES = ("reachable", "ready")


def verify(
    server: Server, on_probe: Callable[[str], None] = lambda _: None, names: Collection[str] = tuple(PROBES)
) -> Iterator[ProbeRecord]:
    """Ask the probes of these names, in the order of `PROBES`.

    A failed gate leaves the rest unasked, and unasked is unknown, never pass.

    A probe that ran into the deadline is such a gate too: a server that hangs has its verdict after one deadline,
    not after one for each probe.
    """
    closed = ""
    for name, probe in PROBES.items():
        if name not in names:
            continue
        on_probe(name)
        if closed:
            yield record(name, unknown("an answer", f"not asked: {closed} failed"), 0.0)
            continue
        answer = ask(name, probe, server)
        hung = answer.status is Status.FAIL and answer.seconds >= server.deadline
        if hung or (name in GATES and answer.status is not Status.PASS):
            closed = name
        yield answer


def unanswered(why: str, names: Collection[str] = tuple(PROBES)) -> Iterator[ProbeRecord]:
    """What `verify` says of a server that was asked something before and did not answer."""
    first, *rest = (name for name in PROBES if name in names)
    yield record(first, Finding(Status.FAIL, "an answer", why), 0.0)
    for name in rest:
        yield record(name, unknown("an answer", f"not asked: {first} failed"), 0.0)


def ask(name: str, probe: Probe, server: Server) -> ProbeRecord:
    """One probe, in a thread of its own: a server that drips bytes for ever cannot hold us past the deadline."""
    result: list[Finding] = []

    def work() -> None:
        try:
            result.append(probe(server))
        except NoAnswer as e:
            result.append(Finding(Status.FAIL, "an answer", str(e)))
        except BringupError as e:
            result.append(unknown("evidence", e.message))

    started = time.monotonic()
    thread = threading.Thread(target=work, name=f"probe-{name}", daemon=True)
    thread.start()
    thread.join(server.deadline + 1)
    seconds = time.monotonic() - started
    if thread.is_alive():
        return record(name, Finding(Status.FAIL, "an answer", f"none within {server.deadline:g} s"), seconds)
    if not result:  # an exception that is a bug of ours; the thread has printed it
        return record(name, unknown("an answer", "the probe itself broke"), seconds)
    return record(name, result[0], seconds)


def record(name: str, finding: Finding, seconds: float) -> ProbeRecord:
    """A finding with its name and time."""
    return ProbeRecord(
        name=name,
        status=finding.status,
        expected=finding.expected,
        found=finding.found,
        seconds=round(seconds, 4),
        data=finding.data,
    )
