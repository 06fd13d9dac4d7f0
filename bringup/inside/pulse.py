"""Does the server answer? Told on a port of its own, for hosts that ask before and while they send requests there.

204 while it loads, 200 when it answers, 503 when it hangs or is dead; that is RunPod's contract for endpoints with load
balancing. To answer is to give a token under a deadline, as everywhere in bringup: vLLM's /health is 200 while its
engine hangs. The server is looked at every `EVERY` seconds, however often somebody asks here. A look first reads vLLM's
counter of tokens: one that has moved since the last look is proof enough, so that a busy server is not asked for more.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from bringup.edge.http import Http, NoAnswer
from bringup.errors import UsageError
from bringup.inside import gate
from bringup.inside.pod import PORT_HEALTH
from bringup.plan import SERVER_PORT
from bringup.profile import given

EVERY = 10.0  # seconds between two looks at a server that has answered
WHILE_LOADING = 1.0  # seconds
DEADLINE = 20.0  # seconds; no token in this time, and no other token either, and it hangs
COUNTING = 2.0  # seconds for the counters, which a hanging engine does not delay
MADE = re.compile(rb"^vllm:generation_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Asker:
    """Asks one server whether it answers."""

    def __init__(self, http: Http, model: str) -> None:
        self._http = http
        self._request = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        self._made: float | None = None  # tokens at the last look, with the one that it asked for

    def fault(self) -> str:
        """Why it does not answer; empty when it does.

        Raises:
            Refused: it answers, and not this.
        """
        if self._moved():
            return ""
        try:
            answer = self._http.post("/v1/completions", self._request, DEADLINE)
        except NoAnswer as e:
            return "" if self._moved() else str(e)  # a long queue is no hang
        if answer.status in (400, 401, 403, 404):
            raise Refused(f"HTTP {answer.status}: {answer.excerpt()}")
        if answer.status != HTTPStatus.OK:
            return f"HTTP {answer.status}"
        self._made = None if self._made is None else self._made + 1
        return ""

    def _moved(self) -> bool:
        before, self._made = self._made, self._tokens()
        return before is not None and self._made is not None and self._made > before

    def _tokens(self) -> float | None:
        """How many it has made since its start; None where it does not tell."""
        try:
            answer = self._http.get("/metrics", COUNTING)
        except NoAnswer:
            return None
        found = [float(value) for value in MADE.findall(answer.body)]
        return sum(found) if answer.status == HTTPStatus.OK and found else None


class Refused(Exception):
    """The server will never answer what is asked."""


def asker(argv: Sequence[str], environment: Mapping[str, str]) -> Asker:
    """For the server that is started so; its gate does not log these requests (see there)."""
    address = f"http://127.0.0.1:{given(argv, '--port') or SERVER_PORT}"
    http = Http(address, environment.get("VLLM_API_KEY"), request_id=environment.get(gate.ASKER, ""))
    return Asker(http, given(argv, "--served-model-name") or "")


class Pulse:
    """The state of one server, and the port that tells it."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._seen = HTTPStatus.NO_CONTENT
        self._over = False

    @property
    def status(self) -> HTTPStatus:
        """What is answered now."""
        return HTTPStatus.SERVICE_UNAVAILABLE if self._over else self._seen

    def listen(self, port: int, path: str) -> None:
        """Tell it to whoever asks for `path`, from now on.

        Raises:
            UsageError: the port cannot be had.
        """
        from bringup.inside import tell  # most starts tell nobody, and asyncio takes 20 ms

        try:
            listener = socket.create_server(("0.0.0.0", port), backlog=128)  # noqa: S104 - the host asks from outside
        except OSError as e:
            raise UsageError(
                f"{PORT_HEALTH}: port {port} cannot be had ({e.strerror or e})", hint="choose a port that is free"
            ) from e
        args = (listener, path, lambda: self.status)
        threading.Thread(target=tell.serve, args=args, name="health", daemon=True).start()

    def watch(self, asker: Asker, pause: Callable[[float], None] = time.sleep) -> None:
        """Look at the server for as long as there is one, in a thread of its own."""
        threading.Thread(target=self._watch, args=(asker, pause), name="pulse", daemon=True).start()

    def over(self) -> None:
        """There is no server any more, or it is about to end."""
        self._over = True

    def _watch(self, asker: Asker, pause: Callable[[float], None]) -> None:
        while not self._over:
            self.look(asker)
            pause(WHILE_LOADING if self._seen is HTTPStatus.NO_CONTENT else EVERY)

    def look(self, asker: Asker) -> None:
        """Ask once, and say what changed."""
        before = self._seen
        try:
            fault = asker.fault()
            now = HTTPStatus.OK if not fault else HTTPStatus.SERVICE_UNAVAILABLE
            if fault and before is HTTPStatus.NO_CONTENT:
                now = before  # it has never answered: it loads
        except Refused as e:
            fault, now = str(e), HTTPStatus.SERVICE_UNAVAILABLE
        self._seen = now
        if now is not before and not self._over:
            tell = self._log.error if fault else self._log.info
            tell("health: %d from now on: %s", now, fault or "the server answers")
