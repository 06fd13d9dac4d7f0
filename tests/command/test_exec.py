"""A program in a container, by an engine that answers before its client looks (a stand-in: the real one rarely does).

No engine is needed.
"""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from bringup.edge.docker import Engine
from bringup.errors import EvidenceMissing
from tests.unit.test_edge_docker import framed


class OnePacket(http.server.BaseHTTPRequestHandler):
    """An engine whose exec is done before its client looks: headers and output arrive together."""

    protocol_version = "HTTP/1.1"
    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/start"):
            self.reply(201, b'{"Id": "e1"}')
        elif self.status != 200:
            self.reply(self.status, b'{"message": "container 1234 is not running"}')
        else:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n\r\n"
            self.wfile.write(head + framed((1, b"one\n"), (2, b"two\n")))
            self.close_connection = True

    def do_GET(self) -> None:
        self.reply(200, b'{"ExitCode": 3}')

    def reply(self, status: int, body: bytes) -> None:
        self.wfile.write(
            b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            + body
        )

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def engine(status: int = 200) -> Iterator[Engine]:
    handler = type("Handler", (OnePacket,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        client = docker.DockerClient(base_url=f"tcp://127.0.0.1:{server.server_port}", version="1.44")
        try:
            yield Engine(client=client)
        finally:
            client.close()
            server.shutdown()


def test_what_an_exec_says_at_once_is_not_lost() -> None:
    with engine() as there:
        assert there.execute("c", ["true"]) == (3, "one\ntwo\n")


def test_an_exec_that_is_refused() -> None:
    with engine(409) as there, pytest.raises(EvidenceMissing, match="is not running"):
        there.execute("c", ["true"])
