"""What a pod proves: asked through RunPod's proxy and directly through SSH, looked into, and kept as a bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bringup import artifacts, clock, derive, many, probes, timeline
from bringup.edge import ssh
from bringup.edge.http import Http
from bringup.errors import BringupError, EvidenceMissing, NeverReady
from bringup.key import api_key
from bringup.ledger import Observation
from bringup.plan import SERVER_PORT
from bringup.ready import started
from bringup.records import ProbeRecord, Status, Verdict
from bringup.runpod import access
from bringup.runpod.container import MOST_LINES, PodContainer
from bringup.runpod.run import LOG_SECONDS, Run
from bringup.server import Server
from bringup.settings import VOLUME

DIRECT = "smoke"  # the suite that is asked directly: what differs between two ways to one server shows in it
NO_SSH = "not asked: --no-ssh"
RUN = f"{artifacts.STATE}/run"
# Beside what `bringup collect` takes out of a container. No name here comes from the pod.
FACTS = {"caches-before.json": f"{RUN}/caches-before.json", "caches-now.json": f"{RUN}/caches-now.json"}
BAKED = {
    "weights.receipt.json": "/opt/bringup/weights.receipt.json", "weights.lock": "/opt/bringup/weights.lock",
}  # fmt: skip


@dataclass(kw_only=True)
class Inside:
    """What the way through SSH gave: two findings, files, and what they add up to."""

    direct: ProbeRecord
    whole: ProbeRecord
    files: dict[str, str] = field(default_factory=dict)
    derived: derive.Derived = field(default_factory=derive.Derived)


def collect(run: Run, failed: NeverReady | None = None) -> many.Outcome:
    """Verify both ways, and write the bundle of all that can be had; `failed`: why no token came through the proxy.

    Raises:
        ApiError: RunPod does not say anything of the pod any more.
    """
    assert run.owned.url  # noqa: S101 - claimed before
    names = probes.SUITES[run.settings.suite]
    if failed:
        proxied = _unanswered(run, failed)
    else:
        with run.watch.step("verify through the proxy") as detail:
            proxied = many.verify(run.owned.url, run.settings, run.plan.expect.model, (), detail)
    inside = _inside(run, proxied)
    outcome = many.judged(proxied, (*proxied.records, inside.direct, inside.whole))
    outcome = dataclasses.replace(outcome, seconds=round(time.time() - proxied.started, 3))
    files = inside.files | {"pod.json": artifacts.as_json(run.facts)}
    if "server.log" not in files and (log := (failed.detail if failed else "") or run.log()).strip():
        files["pod.log"] = log + "\n"
    for table in inside.derived.tables:
        run.watch.table(*table)
    directory = run.settings.artifacts / artifacts.name(run.plan, time.time())
    return many.kept(directory, outcome, run.settings, names, files, inside.derived)


def _unanswered(run: Run, failed: NeverReady) -> many.Outcome:
    assert run.owned.url  # noqa: S101 - claimed before
    begun = run.facts["created"]
    blank = many.Outcome(
        url=run.owned.url, verdict=Verdict.FAIL, started=begun, seconds=round(time.time() - begun, 3),
        model=run.plan.expect.model,
    )  # fmt: skip
    return many.judged(blank, tuple(probes.unanswered(failed.message, probes.SUITES[run.settings.suite])))


def _inside(run: Run, proxied: many.Outcome) -> Inside:
    """Through SSH; what cannot be had is named, and a stranger who answers in the pod's place is a failure."""
    if run.ssh_key is None:
        return _outside(Status.SKIP, NO_SSH)
    try:
        with contextlib.ExitStack() as held:
            with run.watch.step("connect to the pod by SSH"):
                door = _door(run, run.ssh_key)
                line = held.enter_context(ssh.connect(door))
                _remember(run, door)
                port = held.enter_context(line.forward(SERVER_PORT))
            return _look(run, line, port, proxied)
    except BringupError as e:
        why = e.line + (f"; {e.hint}" if e.hint else "")
        run.watch.say(f"no look into the pod: {why}")
        return _outside(Status.FAIL if isinstance(e, ssh.Stranger) else Status.UNKNOWN, why)


def _outside(status: Status, why: str) -> Inside:
    """Of a pod that nobody looked into."""
    lacking = Status.SKIP if status is Status.SKIP else Status.UNKNOWN
    return Inside(
        direct=ProbeRecord(name="direct", status=status, expected="an SSH connection to the pod itself", found=why),
        whole=ProbeRecord(name="inside", status=lacking, expected="the server's own files", found="none: see direct"),
    )


def _door(run: Run, key: Path) -> ssh.Door:
    """Where the pod's sshd is, and who it must be."""
    owned = run.owned
    pinned = access.Identity(owned.ssh_user or access.USER, owned.host_key) if owned.host_key else None
    lines = [line for _, line in run.cloud.logs(owned.id or "", MOST_LINES, LOG_SECONDS)]
    who = access.trusted(lines, pinned, run.host_key)
    host, port = access.address(run.look())
    return ssh.Door(host=host, port=port, user=who.user, key_file=key, host_key=who.host_key)


def _remember(run: Run, door: ssh.Door) -> None:
    """It is who it must be: from now on nobody else is."""
    run.facts["ssh"] = {"user": door.user, "host_key": door.host_key}
    if (run.owned.ssh_user, run.owned.host_key) != (door.user, door.host_key):
        run.owned = dataclasses.replace(run.owned, ssh_user=door.user, host_key=door.host_key)
        run.state.put(run.owned)


def _look(run: Run, line: ssh.Ssh, port: int, proxied: many.Outcome) -> Inside:
    container = PodContainer(run.cloud, run.owned.id or "", line)
    url = f"http://127.0.0.1:{port}"
    with run.watch.step("verify directly") as detail:
        direct = many.verify(url, run.settings, run.plan.expect.model, probes.SUITES[DIRECT], detail)
    with run.watch.step("collect"):
        server = Server(
            http=Http(url, api_key(run.settings)), expect=run.plan.expect, deadline=run.plan.request_timeout,
            container=container,
        )  # fmt: skip
        files, missing = artifacts.gather(server, run.plan, {"reference": run.plan.image})
        for name, path in (FACTS if run.plan.weights == VOLUME else FACTS | BAKED).items():
            try:
                files[name] = container.copy_out(path).decode("utf-8", "replace")
            except EvidenceMissing as e:
                missing.append(f"{name} ({e.message})")
        log = files.get("server.jsonl") or files.get("server.log", "")
        with contextlib.suppress(BringupError):  # the API may be down by now
            run.moments.container_started = _not_after(started(container.state()), log)
        derived = derive.derive(
            derive.Evidence(
                plan=run.plan, log=log, moments=run.moments, observed=Observation(), card=None, local=False
            ),
            container,
        )
    run.facts["ssh"] |= {"files": line.copied, "clock": dataclasses.asdict(clock.offset(lambda: _now(line), "date"))}
    files |= derived.files() | {"direct.json": artifacts.as_json(direct.to_dict() | {"url": "through SSH"})}
    whole = artifacts.completeness(missing + derived.missing, len(files))
    return Inside(
        direct=compared(proxied, direct), whole=dataclasses.replace(whole, name="inside"), files=files, derived=derived,
    )  # fmt: skip


def _not_after(moment: float | None, log: str) -> float | None:
    """When the container started: not after the server's first words, whatever RunPod's clock and whole seconds say."""
    words = (e.t for e in timeline.read_events(log) if e.t is not None)
    return None if moment is None else min((moment, *words))


def _now(line: ssh.Ssh) -> float:
    _, output = line.execute(["date", "+%s.%N"])
    return float(output)


def compared(proxied: many.Outcome, direct: many.Outcome) -> ProbeRecord:
    """What the direct way says beside the proxy's: which of them is at fault where they differ. Pure."""
    good = {Verdict.PASS: Status.PASS, Verdict.FAIL: Status.FAIL, Verdict.UNKNOWN: Status.UNKNOWN}
    if direct.verdict is Verdict.PASS and proxied.verdict is Verdict.PASS:
        found = "passes directly, as through the proxy"
    elif direct.verdict is Verdict.PASS:
        found = f"passes directly: the server is good, the way through RunPod's proxy is not ({proxied.why})"
    elif proxied.verdict is Verdict.PASS:
        found = f"passes through the proxy, and not directly ({direct.why})"
    else:
        found = f"does not pass directly either, so that it is the server ({direct.why})"
    data: dict[str, Any] = {"suite": DIRECT, "verdict": direct.verdict, "proxy": proxied.verdict}
    return ProbeRecord(
        name="direct", status=good[direct.verdict], expected=f"the {DIRECT} suite passes without the proxy",
        found=found, seconds=direct.seconds, data=data,
    )  # fmt: skip
