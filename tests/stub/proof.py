"""Is a verdict the truth? Seeded cases of an honest or lying stub, each verified as `bringup verify` does it."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from bringup import catalog, probes
from bringup.edge.http import Http
from bringup.plan import Expect, expect_remote
from bringup.records import ProbeRecord, Status, verdict_of
from bringup.server import Server
from tests.stub.deep_lies import LIARS
from tests.stub.lies import Lie
from tests.stub.server import Manner, Stub, serving
from tests.unit.fakes import FakeContainer

MODEL = "tiny-qwen2"
KEY = "the-key-of-the-stub"
ROWS = [
    {"PID": "7", "COMMAND": "python -m bringup.inside.serve"},
    {"PID": "8", "COMMAND": "VLLM::EngineCore"},
]
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Case:
    """One verification. `keyed`: a key is set; `local`: there is a container; `known`: its answers are known."""

    suite: str
    lies: tuple[str, ...] = ()
    manner: Manner = Manner()  # noqa: RUF009 - frozen
    keyed: bool = False
    local: bool = False
    known: bool = True
    deadline: float = 6.0

    @property
    def truth(self) -> str:
        """What the verdict must be: pass; liar: anything but pass; stranger: neither pass nor fail."""
        if self.lies:
            return "liar"
        return "pass" if self.known or self.suite == "smoke" else "stranger"


@dataclass(frozen=True)
class Outcome:
    """What the verification said: the verdict, the first probe that did not pass, all records, seconds."""

    verdict: str
    told: str
    records: tuple[ProbeRecord, ...]
    seconds: float

    def error(self, case: Case) -> str:
        """ "false PASS" or "false FAIL", or empty."""
        if self.verdict == "pass" and case.truth != "pass":
            return "false PASS"
        return "false FAIL" if self.verdict == "fail" and case.truth != "liar" else ""


def in_reach(lie: Lie, suite: str) -> bool:
    """Whether a suite asks what this lie lies about."""
    return bool(set(lie.probes) & set(probes.SUITES[suite]))


def draw(seed: int, number: int) -> Case:
    """The case of that number: half are honest, most liars tell one lie."""
    chance = random.Random(f"{seed}/{number}")
    suite = chance.choice(list(probes.SUITES))
    lies: tuple[str, ...] = ()
    if chance.random() < 0.6:
        reach = [name for name, lie in LIARS.items() if in_reach(lie, suite)]
        lies = tuple(chance.sample(reach, chance.choice((1, 1, 2))))
    manner = Manner(
        pause=chance.choice((0.002, 0.003, 0.006)),
        before=chance.choice((0.0, 0.0, 0.01, 0.05)),
        split=chance.random() < 0.5,
        seed=chance.randrange(2**32),
    )
    told = [LIARS[name] for name in lies]
    return Case(
        suite=suite,
        lies=lies,
        manner=manner,
        keyed=any(lie.keyed for lie in told) or chance.random() < 0.3,
        local=any(lie.local for lie in told) or chance.random() < 0.3,
        known=bool(lies) or chance.random() < 0.9,
        deadline=chance.choice((10.0, 15.0)),
    )


def expectation(case: Case) -> Expect:
    """What is known of the stub's model."""
    expect = expect_remote(catalog.load(), MODEL)
    if case.local:
        expect = dataclasses.replace(expect, vllm_version=catalog.VLLM_VERSION, container=True)
    return expect if case.known else dataclasses.replace(expect, canaries=(), parameters=None, fingerprint=None)


def verify(url: str, case: Case, key: str | None) -> Outcome:
    """Ask the server at an address the probes of the case."""
    container = None
    if case.local:
        found: dict[str, Any] = {"rows": ROWS}
        for name in case.lies:
            found |= dict(LIARS[name].container)
        container = FakeContainer(**found)
    server = Server(http=Http(url, key), expect=expectation(case), deadline=case.deadline, container=container)
    started = time.monotonic()
    records = tuple(probes.verify(server, names=probes.SUITES[case.suite]))
    told = next((r.name for r in records if r.status in (Status.FAIL, Status.UNKNOWN)), "")
    return Outcome(verdict_of(records), told, records, time.monotonic() - started)


def stub_of(case: Case) -> Stub:
    """The stub of a case."""
    return Stub([LIARS[name].tell for name in case.lies], KEY if case.keyed else None, case.manner)


def here(case: Case) -> Outcome:
    """Run a case in this process."""
    with serving(stub_of(case)) as url:
        return verify(url, case, KEY if case.keyed else None)


def _serve(case: Case, address: Connection) -> None:
    with serving(stub_of(case)) as url:
        address.send(url)
        with contextlib.suppress(EOFError, OSError):
            address.recv()  # ends when the other side does


def _apart(case: Case, result: Connection) -> None:
    """The stub in a process of its own, the probes in this one: neither waits for the other's interpreter."""
    ours, theirs = FORK.Pipe()
    stub = FORK.Process(target=_serve, args=(case, theirs), daemon=True)
    stub.start()
    theirs.close()
    try:
        result.send(verify(ours.recv(), case, KEY if case.keyed else None))
    finally:
        stub.kill()
        os._exit(0)  # threads of probes that hang are left behind


def run(cases: dict[int, Case], at_once: int) -> Iterator[tuple[int, Outcome]]:
    """Run cases in processes of their own, so many at once; they come as they end.

    Raises:
        RuntimeError: a process ended without a result.
    """
    waiting = list(cases)
    running: dict[Any, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number = waiting.pop(0)
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(target=_apart, args=(cases[number], theirs))
            process.start()
            theirs.close()
            running[ours] = number, process
        for ready in wait(list(running)):
            number, process = running.pop(ready)
            try:
                outcome: Outcome = cast("Any", ready).recv()
            except EOFError:
                raise RuntimeError(f"the process of case {number} ended without a result: {cases[number]}") from None
            process.join()
            yield number, outcome
