"""Waiting for the first token of a container that starts, and when each sign of life was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bringup.edge.docker import ContainerState
from bringup.edge.http import NoAnswer
from bringup.errors import Exit, NeverReady
from bringup.probes import openai
from bringup.redact import redact
from bringup.server import Container, Server

POLL = 0.25  # seconds between looks at a starting server
LAST_LINES = 20
TELLING = (Exit.USAGE, Exit.CHECK_FAILED, Exit.WEIGHTS_DIFFER, Exit.TARGET_UNAVAILABLE)  # of the entry point


@dataclass(kw_only=True)
class Moments:
    """When things were seen from outside, epoch seconds by this host's clock; None: not seen (yet).

    `asked`: we asked for the start; `container_started`: the engine's own word; `first_200`: /health answered 200;
    `first_token`: a token arrived.
    """

    asked: float | None = None
    container_started: float | None = None
    first_200: float | None = None
    first_token: float | None = None


def wait_ready(
    server: Server, container: Container, timeout: float, detail: Callable[[str], None], moments: Moments
) -> float:
    """Seconds from the container's start to the first token; watches the container, so that a death ends the wait.

    `moments` is filled as far as it gets.

    Raises:
        NeverReady: it died, or no token came within `timeout` seconds.
        EvidenceMissing: somebody removed the container.
    """
    deadline = time.monotonic() + timeout
    said, last = 0.0, "no answer yet"
    while (left := deadline - time.monotonic()) > 0:
        state = container.state()
        moments.container_started = started(state)
        if state.status not in ("running", "created"):
            raise NeverReady(died(state), detail=last_lines(container))
        if time.monotonic() - said > 1:
            said = time.monotonic()
            detail(_last_line(container))
        last = _ask(server, left, moments) or last
        if moments.first_token is not None:
            return max(0.0, moments.first_token - (moments.container_started or moments.first_token))
        time.sleep(POLL)
    raise NeverReady(
        f"no token within {timeout:g} s; the container is {container.state().status}, the last try: {last}",
        detail=last_lines(container),
    )


def _ask(server: Server, left: float, moments: Moments) -> str:
    """Ask for health, then for one token; why there was none, empty where there was nothing new.

    Raises:
        NeverReady: the server answers, and will never answer this.
    """
    request = openai.greedy(server.expect.model, openai.PROMPTS[0]) | {"max_tokens": 1}
    try:
        if server.http.get("/health", min(2.0, left)).status != 200:
            return ""
        moments.first_200 = moments.first_200 or time.time()
        answer = server.http.post("/v1/completions", request, min(server.deadline, left))
    except NoAnswer as e:
        return str(e)
    body, fault = openai.decode(answer)
    usage = body.get("usage") if isinstance(body, dict) else None
    if not fault and isinstance(usage, dict) and usage.get("completion_tokens") == 1:
        moments.first_token = time.time()
    elif answer.status in (400, 401, 403, 404):
        raise NeverReady(f"the server answers, but not this request: {fault}")
    return fault


def started(state: ContainerState) -> float | None:
    """Epoch seconds of the container's start; None for one that never started (the engine says year 1)."""
    try:
        moment = datetime.fromisoformat(state.started).timestamp()
    except (ValueError, OverflowError):
        return None
    return moment if moment > 0 else None


def died(state: ContainerState) -> str:
    """What to say of a container that does not run."""
    if state.oom_killed:
        return "the server was killed for want of memory (the host's or the container's limit)"
    if state.status == "paused":
        return "the container is paused"
    why = f" ({Exit(state.exit_code).meaning})" if state.exit_code in TELLING else ""
    return f"the server died while starting: the container is {state.status}, exit code {state.exit_code}{why}"


def _last_line(container: Container) -> str:
    lines = container.logs(tail=1).strip().splitlines()
    return lines[-1].split(" ", 1)[-1][:160] if lines else ""


def last_lines(container: Container) -> str:
    """The end of its log, redacted."""
    lines = [line.split(" ", 1)[-1] for line in container.logs(tail=LAST_LINES).splitlines()]
    return redact("\n".join(lines))
