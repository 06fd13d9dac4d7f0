"""Many addresses at once: each is asked in a thread of its own, and none waits for another."""

from __future__ import annotations

import functools
import json
import queue
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bringup import __version__, artifacts, probes, provenance, workflow
from bringup.derive import Derived
from bringup.edge import children, descriptors
from bringup.edge.http import Http
from bringup.errors import BringupError, EvidenceMissing, UsageError
from bringup.key import api_key, secrets
from bringup.probes.finding import passed
from bringup.records import ProbeRecord, RunRecord, Status, Verdict, verdict_of
from bringup.redact import redact
from bringup.settings import Settings

JOBS = 256  # a node that hangs costs no CPU and holds its place for one deadline
SOCKETS = 10  # of one node at most: eight requests at once, and what is being closed
SHARE = 16  # nodes that are worth a process
SWITCH = 0.05  # seconds
SLOWEST = 5  # nodes that are named
SAMPLE = "sample_response.json"
ORDER = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.PASS)  # the first that there is is the verdict of all


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one address came to. `started`: epoch seconds; `why`: the first finding that is no pass; `sample`: a file of
    the bundle, None where it was not had."""

    url: str
    verdict: Verdict
    started: float
    seconds: float
    model: str | None = None
    why: str = ""
    records: tuple[ProbeRecord, ...] = ()
    sample: str | None = None
    bundle: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        kept = ("url", "verdict", "seconds", "model", "why", "bundle")
        return {k: getattr(self, k) for k in kept} | {"probes": [asdict(r) for r in self.records]}


@dataclass(frozen=True)
class Summary:
    """All of them: those that are not pass first, each kind with the slowest first. `seconds` of wall time."""

    nodes: tuple[Outcome, ...]
    seconds: float
    jobs: int
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Fail beats unknown beats pass."""
        return next((v for v in ORDER if self.counts[v]), Verdict.UNKNOWN)

    @property
    def slowest(self) -> tuple[Outcome, ...]:
        """Of all, whatever their verdicts."""
        return tuple(sorted(self.nodes, key=lambda n: -n.seconds)[:SLOWEST])

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "verdict": self.verdict,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
            "jobs": self.jobs,
            "slowest": [{"url": n.url, "seconds": n.seconds} for n in self.slowest],
            "nodes": [n.to_dict() for n in self.nodes],
        }


def summary(nodes: Iterable[Outcome], seconds: float, jobs: int) -> Summary:
    """Sort and count."""
    found = sorted(nodes, key=lambda n: (ORDER.index(n.verdict), -n.seconds, n.url))
    counts = Counter(n.verdict for n in found)
    return Summary(tuple(found), seconds, jobs, {v: counts[v] for v in reversed(ORDER)})


def addresses(urls: Sequence[str], text: str = "") -> tuple[str, ...]:
    """The addresses of the command line and of a file: one a line, `#` begins a comment.

    Raises:
        UsageError: one is no address, or stands there twice; nothing was asked yet.
    """
    lines = [re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in text.splitlines()]
    found: dict[str, str] = {}
    for given in (*urls, *filter(None, lines)):
        url = Http(given).base_url
        if url in found:
            raise UsageError(f"{url} is named twice", hint="name each server once")
        found[url] = given
    if not found:
        raise UsageError("there is no address to ask", hint="give URL, or --from a file with one address a line")
    return tuple(found)


def at_once(jobs: int, nodes: int, processes: int = 1) -> int:
    """How many nodes are asked at once: as asked for, no more than there are, and as the processes have sockets for."""
    each = -(-min(jobs, nodes) // processes)
    return max(min(jobs, nodes, processes * (descriptors.room(each * SOCKETS) // SOCKETS)), 1)


Ask = Callable[[str, Callable[[str], None]], Outcome]
At = Callable[[str, str], None]


def sweep(urls: Sequence[str], jobs: int, ask: Ask, at: At, processes: int = 1) -> Iterator[Outcome]:
    """Ask all of them, so many at once; the outcomes in the order in which they are had.

    `ask` gets an address and whom to tell what it asks next; `at` is told so, with the address. More than one process
    is for many addresses: the threads of one share an interpreter lock.
    """
    if processes == 1:
        yield from _in_threads(urls, jobs, ask, at)
        return
    left = dict.fromkeys(urls, time.time())
    each = -(-jobs // processes)

    def work(share: Sequence[str], tell: children.Tell) -> None:
        lock = threading.Lock()

        def safely(message: Any) -> None:
            with lock:
                tell(message)

        for outcome in _in_threads(share, each, ask, lambda url, probe: safely((url, probe))):
            safely(outcome)

    for message in children.messages([urls[n::processes] for n in range(processes)], work):
        if isinstance(message, Outcome):
            del left[message.url]
            yield message
        else:
            at(*message)
    for url, started in left.items():
        yield _broke(url, started, "the process that asked it died")


def _in_threads(urls: Sequence[str], jobs: int, ask: Ask, at: At) -> Iterator[Outcome]:
    """The threads are daemons: who stops listening (Ctrl-C) need not wait for a node that hangs."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for url in urls:
        waiting.put(url)

    def work() -> None:
        while True:
            try:
                url = waiting.get_nowait()
            except queue.Empty:
                return
            started = time.time()
            try:
                done.put(ask(url, functools.partial(at, url)))
            except Exception as e:  # noqa: BLE001, RUF100 - one node must not hide the others
                why = e.message if isinstance(e, BringupError) else f"bringup itself broke: {type(e).__name__}: {e}"
                done.put(_broke(url, started, why))

    # Hundreds of threads that wait for one interpreter lock wake each other at every interval.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        for number in range(min(jobs, len(urls))):
            threading.Thread(target=work, name=f"node-{number}", daemon=True).start()
        for _ in urls:
            yield done.get()
    finally:
        sys.setswitchinterval(interval)


def _broke(url: str, started: float, why: str) -> Outcome:
    """Of a node that nothing is known about."""
    seconds = round(time.time() - started, 3)
    return Outcome(url=url, verdict=Verdict.UNKNOWN, started=started, seconds=seconds, why=why)


def processes_for(nodes: int) -> int:
    """How many there are for so many nodes: one for each `SHARE` of them, and no more than cores."""
    return max(min(children.cores(), nodes // SHARE), 1)


def verify(
    url: str, settings: Settings, named: str | None, asked: tuple[str, ...], on_probe: Callable[[str], None]
) -> Outcome:
    """Ask one address; `on_probe` is told what is asked next."""
    started, began = time.time(), time.monotonic()
    names = asked or probes.SUITES[settings.suite]
    server, silent = workflow.server_at(url, settings, named)
    records = tuple(probes.unanswered(silent, names) if silent else probes.verify(server, on_probe, names))
    sample, lacking = None, next((f"not asked: {r.name} failed" for r in records if r.status is Status.FAIL), "")
    if not lacking:
        on_probe("sample")
        had = probes.ask("sample", lambda s: passed("an answer", artifacts.sample(s)), server)
        sample, lacking = (had.found, "") if had.status is Status.PASS else (None, had.found)
    records = (*records, artifacts.completeness([f"{SAMPLE} ({lacking})"] if lacking else [], 3))
    if key := api_key(settings):  # a server may say it back
        records = tuple(_without(r, key) for r in records)
    outcome = Outcome(
        url=url, verdict=Verdict.UNKNOWN, started=started, seconds=round(time.monotonic() - began, 3),
        model=server.expect.model, sample=sample,
    )  # fmt: skip
    return judged(outcome, records)


def judged(outcome: Outcome, records: tuple[ProbeRecord, ...]) -> Outcome:
    """The outcome with these records, and what they add up to."""
    bad = next((r for s in (Status.FAIL, Status.UNKNOWN) for r in records if r.status is s), None)
    why = f"{bad.name}: {bad.found}" if bad else ""
    return replace(outcome, records=records, verdict=verdict_of(records), why=why)


def _without(record: ProbeRecord, key: str) -> ProbeRecord:
    found = json.loads(redact(json.dumps({"found": record.found, "data": record.data}, default=str), [key]))
    return replace(record, **found)


def kept(
    directory: Path, outcome: Outcome, settings: Settings, names: Sequence[str],
    also: Mapping[str, str] | None = None, derived: Derived | None = None,
) -> Outcome:  # fmt: skip
    """The outcome with its bundle: all that can be had of an address; without a bundle it is no pass.

    `also`: further files, by name; `derived`: what the server's own files add up to, where they could be had.
    """
    derived = derived or Derived()
    record = RunRecord(
        tool_version=__version__,
        command="verify",
        started=provenance.iso(outcome.started),
        finished=provenance.iso(outcome.started + outcome.seconds),
        verdict=outcome.verdict,
        plan={
            "base_url": outcome.url, "model": outcome.model or "", "probes": list(names),
            "request_timeout": settings.request_timeout,
        },
        host={},
        image={},
        container={},
        probes=outcome.records,
        timeline=derived.timeline,
        ledger=derived.ledger,
        caches=derived.caches,
    )  # fmt: skip
    files = dict(also or {}) | {"record.json": artifacts.as_json(record.to_dict())}
    if outcome.sample is not None:
        files[SAMPLE] = outcome.sample
    place = directory / slug(outcome.url)
    try:
        return replace(outcome, bundle=str(artifacts.write(place, files, secrets(settings), settings.sign_key)))
    except EvidenceMissing as e:
        verdict = Verdict.UNKNOWN if outcome.verdict is Verdict.PASS else outcome.verdict
        return replace(outcome, verdict=verdict, why=outcome.why or e.message)


def slug(url: str) -> str:
    """A directory name for an address, another one for each."""
    plain = {":": "_", "/": "+"}
    return re.sub(r"[^A-Za-z0-9.-]", lambda m: plain.get(m[0], f"%{ord(m[0]):x}"), url.removeprefix("http://"))
