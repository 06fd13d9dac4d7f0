"""Record a real server: ask it all probes, then each of their requests once more, alone and to its end.

    python -m tests.stub.record URL --key-file FILE

The server must serve tiny-qwen2 and demand the key; the probes ask as of a model with known answers, and as of a
stranger. docs/verify.md names the command that started it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import requests

from bringup import catalog, probes
from bringup.edge.http import Http
from bringup.plan import expect_remote
from bringup.records import Status
from bringup.server import Server
from tests.stub.recording import NONE, OWN, PATH, WRONG, Ask, Exchange, save

MODEL = "tiny-qwen2"
JSON = "application/json"
HUGE = 10**5  # bytes of a request that nobody reads


class Spy(Http):
    """Notes every request that it makes."""

    def __init__(self, base_url: str, api_key: str | None, own: str, noted: dict[str, Ask]) -> None:
        super().__init__(base_url, api_key)
        self.own, self.noted = own, noted
        self.auth = OWN if api_key == own else WRONG if api_key else NONE

    def with_key(self, api_key: str | None) -> Spy:
        return Spy(self.base_url, api_key, self.own, self.noted)

    def _open(self, method: str, path: str, payload: Any, timeout: float, content_type: str = "") -> Any:
        body = payload if content_type else b"" if payload is None else json.dumps(payload).encode()
        ask = Ask(method, path, self.auth, content_type or (JSON if body else ""), body)
        self.noted[ask.digest] = ask
        return super()._open(method, path, payload, timeout, content_type)


def answered(url: str, ask: Ask, key: str) -> Exchange:
    """The whole answer to one ask."""
    headers = {"Content-Type": ask.content_type} if ask.content_type else {}
    headers |= {OWN: {"Authorization": f"Bearer {key}"}, WRONG: {"Authorization": "Bearer wrong"}, NONE: {}}[ask.auth]
    answer = requests.request(ask.method, url + ask.path, data=ask.body or None, headers=headers, timeout=300)
    kind = answer.headers.get("Content-Type", "")
    text = answer.content.decode()
    events: tuple[str, ...] = ()
    if kind.startswith("text/event-stream"):
        events, text = tuple(line[6:] for line in text.splitlines() if line.startswith("data: ")), ""
    sent = "" if len(ask.body) > HUGE else ask.body.decode()
    return Exchange(ask.method, ask.path, ask.auth, ask.content_type, sent, answer.status_code, kind, text, events)


@click.command()
@click.argument("url")
@click.option("--key-file", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=PATH)
def main(url: str, key_file: Path, out: Path) -> None:
    """Record the server at URL."""
    key = key_file.read_text("utf-8").strip()
    noted: dict[str, Ask] = {}
    known = expect_remote(catalog.load(), MODEL)
    stranger = dataclasses.replace(known, canaries=(), parameters=None, fingerprint=None)
    for expect in (known, stranger):
        for record in probes.verify(Server(http=Spy(url, key, key, noted), expect=expect, deadline=120)):
            click.echo(f"{record.name} {record.status} {record.found[:100]}")
            fine = (Status.PASS, Status.SKIP)
            if record.status not in fine and not (expect is stranger and record.name.startswith("canar")):
                raise SystemExit(f"{record.name}: {record.found}")
    # The rhythm's further streams are asked for only on a busy host; they belong to the recording all the same.
    for tokens in {t for t in probes.streaming.AGAIN if t}:
        for expect in (known, stranger):
            payload = probes.streaming.question(expect) | {"max_tokens": tokens, "ignore_eos": True}
            body = json.dumps(payload | {"stream": True, "stream_options": {"include_usage": True}}).encode()
            ask = Ask("POST", "/v1/completions", OWN, JSON, body)
            noted[ask.digest] = ask
    save({digest: answered(url, ask, key) for digest, ask in noted.items()}, out)
    click.echo(f"{len(noted)} exchanges, {out.stat().st_size} bytes: {out}")


if __name__ == "__main__":
    main()
