"""Both ways in one server: through the gate, or past it for a request that says so. For gate.py."""

from __future__ import annotations

from bringup.inside import gate

PAST = "x-past-the-gate"


class Switch:
    """An ASGI middleware."""

    def __init__(self, app: gate.App) -> None:
        self._past, self._through = app, gate.Gate(app)

    async def __call__(self, scope: gate.Scope, receive: gate.Receive, send: gate.Send) -> None:
        """Pass the request on, by the way that its headers choose."""
        past = any(name == PAST.encode() for name, _ in scope.get("headers", ()))
        await (self._past if past else self._through)(scope, receive, send)
