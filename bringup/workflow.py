"""The only module that knows the order: check, build, start, wait, verify, collect.

It prints nothing: it reports through the `Watch` that the command line hands it, and returns records.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bringup import (
    __version__,
    artifacts,
    checks,
    default_model,
    derive,
    gpus,
    history,
    image,
    observe,
    probes,
    provenance,
    targets,
)
from bringup.checks import facts
from bringup.edge import gpu, host, place
from bringup.edge.docker import Engine, remedy
from bringup.edge.http import Http
from bringup.errors import BringupError, CheckFailed, EvidenceMissing, NeverReady, TargetUnavailable
from bringup.key import api_key, make_key, own_file, secrets
from bringup.ledger import Observation
from bringup.plan import Plan, is_loopback, make_plan, require_fetchable
from bringup.ready import Moments, wait_ready
from bringup.records import CheckRecord, ProbeRecord, RunRecord, Status, StepRecord, Verdict, verdict_of
from bringup.redact import redact
from bringup.report import pages
from bringup.server import Container, Server, Target
from bringup.settings import LOCAL, Settings
from bringup.targets import local
from bringup.targets.compose import project_root, require_weights
from bringup.watch import Watch


@dataclass
class Run:
    """One run as it grows; `record` freezes it."""

    command: str
    settings: Settings
    plan: Plan
    engine: Engine
    host: facts.HostFacts
    watch: Watch
    began: provenance.Began = field(default_factory=provenance.Began)
    steps: list[StepRecord] = field(default_factory=list)
    checks: tuple[CheckRecord, ...] = ()
    asked: tuple[str, ...] = ()  # probes by name, instead of the suite
    probes: tuple[ProbeRecord, ...] = ()
    first_token: float | None = None
    moments: Moments = field(default_factory=Moments)
    observed: Observation = field(default_factory=Observation)
    derived: derive.Derived = field(default_factory=derive.Derived)

    @property
    def target(self) -> Target:
        """Where the plan's server runs."""
        return targets.of(self.plan.target, self.plan.project, self.engine, self.plan.compose_files)

    @contextmanager
    def step(self, name: str, shown: AbstractContextManager[Any] | None = None) -> Any:
        """Time a step and show it, as `shown` does or as any step."""
        began = time.monotonic()
        with shown or self.watch.step(name) as sink:
            try:
                yield sink
            finally:
                self.steps.append(StepRecord(name=name, seconds=round(time.monotonic() - began, 3)))

    def record(self, container: Container | None, raw_image: dict[str, Any], error: str = "") -> RunRecord:
        """The record of the run so far; a run that ended in an error has failed, whatever else was seen."""
        return RunRecord(
            tool_version=__version__,
            command=self.command,
            started=provenance.iso(self.began.wall),
            finished=provenance.iso(time.time()),
            verdict=Verdict.FAIL if error else verdict_of(self.probes),
            plan=self.plan.to_dict(),
            host=dataclasses.asdict(self.host),
            image=image.summary(raw_image),
            container=provenance.container(container),
            checks=self.checks,
            steps=tuple(self.steps),
            probes=self.probes,
            started_to_first_token=self.first_token,
            timeline=self.derived.timeline,
            ledger=self.derived.ledger,
            caches=self.derived.caches,
            model=provenance.model(self.plan),
            locks=provenance.locks(self.plan),
            settings=provenance.settings_shown(self.settings),
            clocks=provenance.clocks(self.began, self.target.clock(), container),
            error=error,
        )


def prepare(command: str, settings: Settings, sources: dict[str, str], watch: Watch) -> Run:
    """Look at the host, choose the flavour, freeze the plan."""
    settings, sources = keyed(command, settings, sources, watch)
    engine = Engine()
    here = place.read() if settings.target == LOCAL else None
    if here is None:
        seen = facts.gather_engine_gpu(engine)
        flavour = facts.choose_flavour(settings.flavour, *seen)
    else:
        seen = facts.gather_gpu_alone()
        flavour = facts.choose_here(settings.flavour, here, seen[1])
    settings, model, why = default_model.resolve(settings, engine, seen[0].reachable, flavour[0])
    if why:
        watch.say(f"model {model.name}: {why}")
    if here is not None:
        settings = dataclasses.replace(settings, weights=local.weights_place(settings, model.name))
    if command in ("up", "plan", "doctor"):  # not `build`: the image without weights is the same for every model
        require_fetchable(settings, model)
    plan = make_plan(settings, model, flavour, sources, cdi=facts.needs_cdi(seen[0]))
    if here is None:
        return Run(command, settings, plan, engine, facts.gather(plan, engine, seen), watch)
    own, there = local.LocalTarget(plan.project), local.is_there(plan.weights, plan.model)
    found = facts.gather_here(plan, here, seen, own.serving(plan.port), own.directory, there)
    return Run(command, settings, plan, engine, found, watch)


def keyed(command: str, settings: Settings, sources: dict[str, str], watch: Watch) -> tuple[Settings, dict[str, str]]:
    """A public server without a key gets one of its own: `up` makes it, and every command of the project uses it."""
    if settings.api_key_file or is_loopback(settings.bind):
        return settings, sources
    file = own_file(settings.project, os.environ)
    if command == "up":
        made = make_key(file)
        watch.say(f"API key: {'made' if made else 'the one'} in {file}, because {settings.bind} is not loopback")
    elif command not in ("plan", "doctor") and not file.exists():
        return settings, sources  # the plan says what is missing
    return dataclasses.replace(settings, api_key_file=file), sources | {"api_key_file": "generated"}


def examine(run: Run) -> tuple[CheckRecord, ...]:
    """All checks of the host."""
    run.checks = checks.examine(run.host, run.plan)
    return run.checks


def require(run: Run) -> None:
    """Stop before anything is started when a check fails.

    Raises:
        CheckFailed: naming the first failed check; TargetUnavailable: no engine.
    """
    failed = [c for c in examine(run) if c.status is Status.FAIL]
    if failed:
        run.watch.checks(run.checks)
        if run.plan.target != LOCAL and not run.host.engine.reachable:
            raise TargetUnavailable(run.host.engine.error, hint=failed[0].remedy)
        first = failed[0]
        raise CheckFailed(f"check {first.name}: found {first.found}; needed {first.needed}", hint=first.remedy)


def _need_engine(run: Run) -> None:
    if run.plan.target != LOCAL and not run.host.engine.reachable:
        raise TargetUnavailable(run.host.engine.error, hint=remedy(run.host.engine.error))


def _server(run: Run, container: Container, vram_before: int | None = None) -> Server:
    return Server(
        http=Http(run.plan.base_url, api_key(run.settings)),
        expect=run.plan.expect,
        deadline=run.plan.request_timeout,
        container=container,
        vram_before=vram_before,
        gpus=run.plan.gpus,
        own_gpus=run.host.own_gpus,
    )


def build(run: Run) -> dict[str, Any]:
    """Build the plan's image; the engine's description of it."""
    settings, plan = run.settings, run.plan
    _need_engine(run)
    with run.step(f"build {plan.image}") as detail:
        root = project_root()
        values = image.bake_environment(settings, plan.flavour, root)
        image.build(root, plan.flavour, plan.image, values, detail)
    raw = run.engine.image(plan.image)
    if raw is None:
        raise EvidenceMissing(f"the build ended well, but the engine has no image {plan.image}")
    return raw


def bring_up(run: Run) -> tuple[RunRecord, Path]:
    """The main job. On any failure what this run started is stopped again (unless settings.keep).

    Returns:
        The record and the bundle's directory; the verdict may be fail or unknown.

    Raises:
        BringupError: a step before the verdict failed; its bundle is written where there was a container.
    """
    if run.plan.target != LOCAL:
        require_weights(run.plan)
    artifacts.check_destination(run.settings.artifacts, run.settings.sign_key)
    require(run)
    target = run.target
    raw_image = target.image(run.plan) or build(run)
    run.watch.say(f"flavour {run.plan.flavour}: {run.plan.flavour_reason}")
    before = target.container()
    running_before = before.id if before and before.state().status in ("running", "paused") else None
    good = False
    try:
        container, server = start(run, target, running_before)
        probe(run, server)
        record, bundle = collect(run, server, container, raw_image)
        good = record.verdict is Verdict.PASS
        return record, bundle
    finally:
        if not good and not run.settings.keep:
            _clear(run, target, running_before)


def _clear(run: Run, target: Target, running_before: str | None) -> None:
    container = target.container()
    if container is not None and container.id == running_before:
        run.watch.say("the server was running before and is left so")
        return
    with run.step("stop what was started"):
        try:
            released = stop(target, local=run.host.local, known=run.observed.pids)
        except BaseException:  # Ctrl-C in here: the next ones are ignored, so this attempt ends
            target.down()
            raise
    if released and released.verdict != "released":
        run.watch.say(released.line)


def stop(
    target: Target, *, local: bool, volumes: bool = False, known: frozenset[int] = frozenset()
) -> observe.Release | None:
    """Take the project down, and see whether its processes and their memory are gone; None: it had no container."""
    container = target.container()
    try:
        held = observe.held(container, local=local, known=known)
    except BringupError:  # not seeing it must not keep it from being stopped
        held = observe.Held()
    target.down(volumes=volumes)
    return observe.release(held) if container else None


def start(run: Run, target: Target, running_before: str | None) -> tuple[Container, Server]:
    """Start the container and wait for the first token; a start that fails leaves a bundle.

    `running_before`: id of the project's container if it ran before us; then its start was not observed.

    Raises:
        NeverReady: it could not be started, died, went away, or gave no token in time.
    """
    vram = gpu.memory_used(run.plan.gpus) if run.plan.expect.gpu else None
    before = history.last_start(run.settings.artifacts, run.plan, target)
    run.moments = Moments(asked=time.time())
    with observe.Sampler(on_gpu=run.plan.expect.gpu, local=run.host.local, gpus=run.plan.gpus) as sampler:
        with run.step(f"start the {targets.NOUNS[run.plan.target]}") as detail:
            container = target.up(run.plan, detail)
        sampler.follow(container)
        known = container.vram_before  # of a server that ran before
        server = _server(run, container, vram if known is None else known)
        try:
            observed, name = container.id != running_before, "wait for the first token"
            with run.step(name, run.watch.start(name, before) if observed else None) as seen:
                seconds = wait_ready(server, container, run.plan.timeout, run.moments, seen if observed else None)
        except (NeverReady, EvidenceMissing) as e:
            run.observed = sampler.seen()
            hint = _evidence(run, server, container, e.message)
            raise NeverReady(e.message, hint=hint, detail=e.detail) from e
        run.observed = sampler.seen()
    if not observed:
        run.moments, run.observed = Moments(container_started=run.moments.container_started), Observation()
    else:
        run.first_token = seconds
    return container, server


def _evidence(run: Run, server: Server, container: Container, error: str) -> str:
    """Where the evidence of a failed start lies; that there is none must not hide why the start failed."""
    try:
        _, bundle = collect(run, server, container, run.target.image(run.plan) or {}, error)
    except BringupError as e:
        return f"there is no bundle: {e.message}"
    return f"the evidence is in {bundle}"


def probe(run: Run, server: Server) -> tuple[ProbeRecord, ...]:
    """Ask all probes."""
    with run.step("verify") as detail:
        run.probes = tuple(probes.verify(server, detail, run.asked or probes.SUITES[run.settings.suite]))
    return run.probes


def collect(
    run: Run, server: Server, container: Container, raw_image: dict[str, Any], error: str = ""
) -> tuple[RunRecord, Path]:
    """Write the bundle. Evidence that could not be had is a finding of its own, and makes the verdict unknown."""
    destination = (run.settings.artifacts / artifacts.name(run.plan, time.time())).absolute()
    with run.step("collect"):
        files, missing = artifacts.gather(server, run.plan, image.summary(raw_image))
        run.derived = derive.derive(
            derive.Evidence(
                plan=run.plan,
                log=files.get("server.jsonl") or files.get("server.log", ""),
                moments=run.moments,
                observed=run.observed,
                card=checks.card(run.plan.gpus, run.host.gpu.gpus),
                local=run.host.local,
            ),
            container,
        )
        files |= run.derived.files()
        missing += run.derived.missing
        run.probes = (*run.probes, artifacts.completeness(missing, len(files) + 1))
        record = run.record(container, raw_image, error)
        files["record.json"] = artifacts.as_json(record.to_dict())
        bundle = artifacts.write(destination, files, secrets(run.settings), run.settings.sign_key, pages(run.watch.say))
    for table in run.derived.tables:
        run.watch.table(*table)
    return record, bundle


def attach(run: Run) -> tuple[Container, Server]:
    """The project's running server.

    Raises:
        TargetUnavailable: there is none.
    """
    _need_engine(run)
    container, noun = run.target.container(), targets.NOUNS[run.plan.target]
    if container is None or (state := container.state()).status not in ("running", "paused"):
        found = f"its {noun} is {state.status}" if container else f"it has no {noun}"
        raise TargetUnavailable(
            f"the project {run.plan.project} has no running server: {found}", hint="run `bringup up`"
        )
    # Whoever answers on another port is not this container, however well it answers.
    seen = container.inspect()
    run.plan = dataclasses.replace(run.plan, gpus=gpus.of_container(seen))  # what it has, whatever is asked for now
    bindings = (seen["NetworkSettings"]["Ports"] or {}).values()
    ports = sorted({b["HostPort"] for published in bindings for b in published or []})
    if str(run.plan.port) not in ports:
        raise TargetUnavailable(
            f"the server of the project {run.plan.project} is published on port {', '.join(ports) or 'none'},"
            f" not on {run.plan.port}",
            hint=f"give --port {ports[0]}" if ports else "run `bringup up`",
        )
    return container, _server(run, container, container.vram_before)


def console_output(run: Run, tail: int | None) -> str:
    """The log of the project's container or process, redacted.

    Raises:
        TargetUnavailable: there is none.
    """
    container = run.target.container()
    if container is None:
        found = f"the project {run.plan.project} has no {targets.NOUNS[run.plan.target]}"
        raise TargetUnavailable(found, hint="run `bringup up`")
    return redact(container.logs(tail), secrets(run.settings))


def take_down(settings: Settings, watch: Watch, *, volumes: bool) -> observe.Release | None:
    """Stop and remove the project's server; what became of its processes and their memory.

    Raises:
        CheckFailed: they still hold memory, or still run.
    """
    with watch.step("down"):
        here = settings.target == LOCAL or host.engine_is_here()
        released = stop(targets.of(settings.target, settings.project, Engine()), local=here, volumes=volumes)
    if released and released.verdict == "leaked":
        raise CheckFailed(
            released.line,
            hint="`nvidia-smi` shows who holds GPU memory; end these processes before the next start",
            id="memory-leaked",
        )
    if released:
        watch.say(released.line)
    return released
