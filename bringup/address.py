"""Asking a server of which nothing but its address is known."""

from __future__ import annotations

import dataclasses

from bringup import catalog, probes
from bringup.edge.http import Http
from bringup.key import api_key
from bringup.plan import expect_remote
from bringup.probes import answers
from bringup.records import ProbeRecord, Status
from bringup.server import Server
from bringup.settings import Settings
from bringup.watch import Watch


def verify_address(
    url: str, settings: Settings, named: str | None, watch: Watch, asked: tuple[str, ...] = ()
) -> tuple[ProbeRecord, ...]:
    """Ask a server anywhere; `named`: the model it must serve, else whatever it lists first; `asked`: those
    probes, instead of the suite."""
    names = asked or probes.SUITES[settings.suite]
    server, silent = server_at(url, settings, named)
    if silent:
        return tuple(probes.unanswered(silent, names))
    with watch.step("verify") as detail:
        return tuple(probes.verify(server, detail, names))


def server_at(url: str, settings: Settings, named: str | None) -> tuple[Server, str]:
    """The server at an address, and why it does not answer; `named`: see `verify_address`."""
    models = catalog.load()
    http = Http(url, api_key(settings))
    server = Server(http=http, expect=expect_remote(models, named), deadline=settings.request_timeout)
    if named is not None:
        return server, ""
    listed = probes.ask("models", answers.first_listed, server)
    if listed.status is Status.FAIL:  # one deadline is enough to know
        return server, listed.found
    return dataclasses.replace(server, expect=expect_remote(models, listed.data.get("id"))), ""
