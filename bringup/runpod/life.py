"""How a pod comes, is proven and goes. Whatever happens in between, it is gone at the end or known in the state."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from bringup import artifacts, many
from bringup.edge.http import Http
from bringup.edge.runpod import ApiError, RunPod
from bringup.errors import BringupError, NeverReady, TargetUnavailable, UsageError
from bringup.key import api_key
from bringup.plan import SERVER_PORT
from bringup.ready import ask
from bringup.records import Status, Verdict
from bringup.runpod import bodies, evidence
from bringup.runpod.run import Run
from bringup.runpod.state import Owned, State
from bringup.server import Server
from bringup.watch import Watch

PROXY_CUT = 100.0  # seconds after which RunPod's proxy ends a request
LOOKS = (0.0, 0.5, 1.0, 2.0, 4.0)  # seconds before each look whether a pod is gone
REFUSED = 3  # refusals in a row before they are believed: a fresh route of the proxy answers 404 for a while
DEAD = ("EXITED", "ERROR", "TERMINATED")
STALE = 600.0  # seconds; no `up` needs longer to learn its pod's id


def bring_up(run: Run, wish: bodies.Wish) -> tuple[many.Outcome, bool]:
    """Create, wait for the first token, verify, write the bundle; then leave the pod or remove it.

    Returns:
        What it came to, and whether the pod goes on running.

    Raises:
        ApiError: RunPod refused, or nobody knows what it did.
        TargetUnavailable: no GPU type could be had, or the pod could not be removed at the end.
        NeverReady: the pod died, was lost, or gave no token in time; there is a bundle of that.
    """
    try:
        artifacts.check_destination(run.settings.artifacts, run.settings.sign_key)
        good = _choices(run, wish)
        run.state.put(run.owned)
        with run.watch.step("create the pod"):
            made = _create(run, wish, good)
        _claim(run, wish, made)
        outcome = _prove(run)
    except BaseException:
        _unless_kept(run)
        raise
    if outcome.verdict is not Verdict.PASS:
        return outcome, not _unless_kept(run)
    if run.leave:
        run.watch.say(f"the pod {run.owned.id} goes on running and costs money: `{run.owned.remove}` removes it")
        return outcome, True
    if not give_back(run):
        raise TargetUnavailable(f"the pod {run.owned.id} passed, but is not gone", hint=run.owned.remove)
    return outcome, False


def _choices(run: Run, wish: bodies.Wish) -> list[bodies.Choice]:
    good, out = bodies.choices(run.plan, wish, run.cloud.gpus())
    for line in out:
        run.watch.say(f"not asked for: {line}")
    if not good:
        raise TargetUnavailable(
            "no GPU type is left to ask for: " + "; ".join(out),
            hint="give other --gpu-type, another --cloud, or a higher --max-price",
        )
    return good


def _create(run: Run, wish: bodies.Wish, good: list[bodies.Choice]) -> dict[str, Any]:
    """The first GPU type that RunPod gives; a refusal for other reasons than 400 would be the same for the next."""
    key = api_key(run.settings) or ""
    refused: list[str] = []
    for choice in good:
        body = bodies.pod(run.plan, wish, choice.gpu_type, key)
        run.sent, run.moments.asked = True, time.time()
        try:
            made = run.cloud.create_pod(body)
        except ApiError as e:
            run.sent = not e.settled
            if e.status != 400:
                raise
            refused.append(f"{choice.gpu_type}: {e.message}")
            run.watch.say(f"{choice.gpu_type}: {e.message}")
            continue
        run.facts = {"gpu_type": choice.gpu_type, "list_price": choice.price, "created": time.time()}
        return made
    raise TargetUnavailable(
        f"RunPod gave no pod of {len(good)} GPU types", detail="\n".join(refused), id="runpod-400",
        hint="this is want of capacity or a broken rule: try other --gpu-type, another --cloud, or later",
    )  # fmt: skip


def _claim(run: Run, wish: bodies.Wish, made: dict[str, Any]) -> None:
    """Note what we own now, tell it, and hold its price against the cap."""
    pod_id, cost = str(made["id"]), made.get("cost")
    url = run.proxy.format(pod=pod_id, port=SERVER_PORT)
    run.owned = dataclasses.replace(run.owned, id=pod_id, url=url)
    run.state.put(run.owned)
    price = f"{cost:.2f} USD an hour" if isinstance(cost, int | float) else "price not said"
    until = bodies.moment(run.owned.expires)
    run.watch.say(f"pod {pod_id} ({run.facts['gpu_type']}, {price}), due to go: {until}; `{run.owned.remove}`")
    if wish.price is not None and isinstance(cost, int | float) and cost > wish.price:
        raise TargetUnavailable(
            f"the pod costs {cost:.2f} USD an hour, the cap is {wish.price:.2f}", hint="raise --max-price",
            id="runpod-price",
        )  # fmt: skip


def _prove(run: Run) -> many.Outcome:
    try:
        with run.watch.step("wait for the first token through the proxy"):
            run.facts["ready_seconds"] = round(wait_ready(run), 3)
    except NeverReady as e:
        failed = evidence.collect(run, e)
        directly = next(r for r in failed.records if r.name == "direct")
        also = f"; it {directly.found}" if directly.status is Status.PASS else ""
        hint = e.hint + f"; the evidence: {failed.bundle or 'none'}"
        raise NeverReady(e.message + also, hint=hint, detail=e.detail) from e
    return evidence.collect(run)


def wait_ready(run: Run) -> float:
    """Seconds until a token came through the proxy. RUNNING is no proof: RunPod says it while the image is pulled.

    Raises:
        NeverReady: it died, was lost, refuses us, or gave no token in time.
    """
    assert run.owned.url  # noqa: S101 - claimed before
    started = time.monotonic()
    server = Server(
        http=Http(run.owned.url, api_key(run.settings)), expect=run.plan.expect, deadline=run.plan.request_timeout
    )
    status, last, refused = "", "no answer yet", 0
    while (left := run.plan.timeout - (time.monotonic() - started)) > 0:
        found = run.look()
        if found["status"] != status:
            status = found["status"]
            run.watch.say(f"{time.monotonic() - started:.0f} s: {status}")
        if status in DEAD:
            raise NeverReady(f"the pod died while starting: it is {status}", hint="look at its log", detail=run.log())
        if status == "RUNNING":
            try:
                last, refused = ask(server, left, run.moments) or last, 0
            except NeverReady as e:
                last, refused = e.message, refused + 1
                if refused >= REFUSED:
                    raise
            if run.moments.first_token is not None:
                return time.monotonic() - started
        time.sleep(min(run.poll, max(left, 0)))
    raise NeverReady(
        f"no token within {run.plan.timeout:g} s: the pod is {status or 'not seen'}, the last try: {last}",
        hint="a large image takes minutes to be pulled: give a longer --timeout, or look at the log",
        detail=run.log(),
    )


def _unless_kept(run: Run) -> bool:
    """Remove the pod of a run that failed, unless it is to be looked into; whether it is gone."""
    if not (run.settings.keep and run.sent):
        return give_back(run)
    run.watch.say(f"the pod is kept and costs money: `{run.owned.remove}` removes it")
    return False


def give_back(run: Run) -> bool:
    """Remove the pod of this run, if there may be one; whether it is gone. Ctrl-C in here begins anew, and the next
    ones are ignored."""
    try:
        return _give_back(run)
    except BaseException:
        _give_back(run)
        raise


def _give_back(run: Run) -> bool:
    if not run.sent:
        run.state.drop(run.owned)
        return True
    with run.watch.step("remove the pod"):
        return remove(run.cloud, run.state, run.owned, run.watch)


def remove(cloud: RunPod, state: State, owned: Owned, watch: Watch) -> bool:
    """Delete a pod and see that it is gone; what cannot be known to be gone stays in the state, with a line of how to
    remove it. A pod whose id we never learned is looked for by its name."""
    known = {owned.id} if owned.id else set()
    why = "RunPod still lists it"
    try:
        for pod_id in known:
            cloud.delete_pod(pod_id)
        for pause in cloud.patient(LOOKS):
            time.sleep(pause)
            found = {str(p["id"]) for p in cloud.named(owned.name)}
            if known and not found:
                state.drop(owned)
                watch.say(f"the pod {', '.join(sorted(known))} is gone")
                return True
            for pod_id in found:
                cloud.delete_pod(pod_id)
            known |= found
        if not known and time.time() - owned.created > STALE:
            state.drop(owned)
            watch.say(f"RunPod has no pod {owned.name}, and no request for it can be under way any more")
            return True
        if not known:
            why = "RunPod gave no clear answer when it was asked for, and does not list it"
    except BringupError as e:
        why = e.message
    ids = ", ".join(sorted(known)) or "(no id)"
    watch.say(f"the pod {owned.name} {ids} may still cost money: {why}")
    watch.say(f"  -> `{owned.remove}` removes it; it stays in {state.file}")
    return False


def ours(cloud: RunPod, state: State) -> list[tuple[Owned, dict[str, Any] | None]]:
    """All that we own: what the state knows, and pods that carry our mark, from whatever machine; None: not listed."""
    listed = [p for p in cloud.pods() if p.get("status") != "TERMINATED"]
    found: list[tuple[Owned, dict[str, Any] | None]] = []
    known = state.all()
    for owned in known:
        pod = next((p for p in listed if p.get("id") == owned.id or p.get("name") == owned.name), None)
        found.append((owned, pod))
    names = {o.name for o in known}
    for pod in listed:
        expires = bodies.expiry(pod)
        if expires is not None and pod["name"] not in names:
            found.append((_elsewhere(pod, expires), pod))
    return found


def _elsewhere(pod: dict[str, Any], expires: float) -> Owned:
    return Owned(
        name=str(pod["name"]), id=str(pod["id"]), created=bodies.created(pod) or time.time(),
        expires=None if expires == float("inf") else expires, key_file="", made_key=False,
    )  # fmt: skip


def chosen(owned: list[tuple[Owned, dict[str, Any] | None]], wanted: tuple[str, ...], *, every: bool) -> list[Owned]:
    """Those of these names or ids; the only one where none is named.

    Raises:
        UsageError: there is none of that name, or several and none was named.
    """
    by_name = {word: o for o, pod in owned for word in (o.name, o.id, (pod or {}).get("id")) if word}
    if strange := [w for w in wanted if w not in by_name]:
        raise UsageError(f"bringup owns no pod {', '.join(strange)}", hint="`bringup runpod ls` shows what it owns")
    if wanted or every:
        return [by_name[w] for w in wanted] or [o for o, _ in owned]
    if len(owned) > 1:
        raise UsageError(f"bringup owns {len(owned)} pods", hint="name one, or give --all")
    return [o for o, _ in owned]


def due(owned: list[tuple[Owned, dict[str, Any] | None]], now: float) -> tuple[list[Owned], list[Owned]]:
    """What is to be removed (past its date, or left by an `up` that died before it knew the id), and what is to be
    forgotten (RunPod has no such pod, for long enough)."""
    over = [
        o
        for o, pod in owned
        if pod and ((o.expires is not None and o.expires <= now) or (o.id is None and now - o.created > STALE))
    ]
    return over, [o for o, pod in owned if pod is None and now - o.created > STALE]
