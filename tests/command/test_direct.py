"""The door to plain HTTP, with servers that break off, babble, or encode: what came and what did not is told."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from bringup.edge.http import Http, NoAnswer
from tests.integration.support import free_port

PACKED = gzip.compress(b'{"a": 1}')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@contextmanager
def saying(*parts: bytes, family: int = socket.AF_INET) -> Iterator[str]:
    """A server that answers its one request with these bytes and hangs up."""
    with closing(socket.socket(family)) as listening:
        listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                heard = b""
                while not heard.endswith(b"\r\n\r\n"):
                    heard += connection.recv(65536)
                for part in parts:
                    connection.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = listening.getsockname()[:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b'Content-Length: 8\r\n\r\n{"a": 1}',
        HEAD + b'\r\n{"a": 1}',  # until it hangs up
        CHUNKED + b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\n',
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED,
    ],
)
def test_whole_answers(answer: bytes) -> None:
    with saying(answer[:50], answer[50:]) as url:
        found = Http(url).get("/v1/models", 5)
    assert (found.status, found.content_type, found.json()) == (200, "application/json", {"a": 1})


def test_ipv6() -> None:
    with saying(HEAD + b"Content-Length: 1\r\n\r\n1", family=socket.AF_INET6) as url:
        assert Http(url).get("/", 5).body == b"1"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (HEAD + b'Content-Length: 9\r\n\r\n{"a": 1}', "1 bytes are missing (8 bytes so far)"),
        (CHUNKED + b'8\r\n{"a": 1}\r\n', "the answer broke off"),
        (CHUNKED + b'9\r\n{"a": 1}', "broke off"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + b'{"a": 1}', "no HTTP (error"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n" + PACKED[:-3], "broke off within its gzip"),
        (HEAD + b"Content-Encoding: br\r\n\r\nx", "encoded as br"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP (BadStatusLine"),
        (b"", "it hung up without an answer"),
    ],
)
def test_what_is_no_whole_answer(answer: bytes, said: str) -> None:
    with saying(answer) as url, pytest.raises(NoAnswer) as e:
        Http(url).get("/v1/models", 5)
    assert said in str(e.value)


def test_nobody_listens_and_nobody_answers() -> None:
    with pytest.raises(NoAnswer, match="connection refused"):
        Http(f"http://127.0.0.1:{free_port()}").get("/", 5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent, pytest.raises(NoAnswer, match="connected, but no"):
        Http(f"http://127.0.0.1:{silent.getsockname()[1]}").get("/", 0.2)
    with pytest.raises(NoAnswer, match="not known"):
        Http("http://no-such-host.invalid").get("/", 5)
