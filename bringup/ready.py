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
from bringup.timeline import Anchors

POLL = 0.25  # seconds between looks at a starting server
LOOK = 1.0  # seconds between looks at its console
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

    def anchors(self) -> Anchors:
        """As they are now, for a timeline."""
        return Anchors(self.asked, self.container_started, self.first_200, self.first_token)


Seen = Callable[[str, Moments], None]  # takes the console's new lines, with the engine's timestamps, and the moments


class Tail:
    """A container's console as it grows: each line once."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._last = ""  # the time of the last line, as the engine writes it: as text it sorts like the time

    def read(self) -> str:
        """The lines that are new, redacted; the engine is asked for those of the last second and later only."""
        since = int(datetime.fromisoformat(self._last).timestamp()) if self._last else None
        lines = self._container.logs(since=since).split("\n")  # a carriage return is part of a bar
        new = [line for line in lines if line.partition(" ")[0] > self._last]
        if new:
            self._last = new[-1].partition(" ")[0]
        return redact("".join(f"{line}\n" for line in new))


def wait_ready(
    server: Server, container: Container, timeout: float, moments: Moments, seen: Seen | None = None
) -> float:
    """Seconds from the container's start to the first token; watches the container, so that a death ends the wait.

    `moments` is filled as far as it gets; `seen` is told every second, and when there is a token or a death.

    Raises:
        NeverReady: it died, or no token came within `timeout` seconds.
        EvidenceMissing: somebody removed the container.
    """
    deadline = time.monotonic() + timeout
    tail = Tail(container)
    told, last = 0.0, "no answer yet"

    def tell() -> None:
        nonlocal told
        told = time.monotonic()
        if seen:
            seen(tail.read(), moments)

    while (left := deadline - time.monotonic()) > 0:
        state = container.state()
        moments.container_started = started(state)
        if state.status not in ("running", "created"):
            tell()
            raise NeverReady(died(state), detail=last_lines(container))
        if time.monotonic() - told > LOOK:
            tell()
        last = ask(server, left, moments) or last
        if moments.first_token is not None:
            tell()
            return max(0.0, moments.first_token - (moments.container_started or moments.first_token))
        time.sleep(POLL)
    raise NeverReady(
        f"no token within {timeout:g} s; the {state.noun} is {container.state().status}, the last try: {last}",
        detail=last_lines(container),
    )


def ask(server: Server, left: float, moments: Moments) -> str:
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
        return f"the {state.noun} is paused"
    if state.exit_code < 0:
        return f"the server died while starting: the {state.noun} is {state.status}, and nobody saw it end"
    why = f" ({Exit(state.exit_code).meaning})" if state.exit_code in TELLING else ""
    return f"the server died while starting: the {state.noun} is {state.status}, exit code {state.exit_code}{why}"


def last_lines(container: Container) -> str:
    """The end of its log, redacted."""
    lines = [line.split(" ", 1)[-1] for line in container.logs(tail=LAST_LINES).splitlines()]
    return redact("\n".join(lines))
