"""A port that tells a status: one path, GET and HEAD, no bodies, and one deadline for each request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

REQUEST = 5.0  # seconds that somebody who asks may take
HEAD = 2**13  # bytes of a request's head
Status = Callable[[], HTTPStatus]


def serve(listener: socket.socket, path: str, status: Status) -> None:
    """Tell it to whoever asks for `path`; does not return."""
    asyncio.run(_serve(listener, path, status))


async def _serve(listener: socket.socket, path: str, status: Status) -> None:
    server = await asyncio.start_server(partial(_answer, path, status), sock=listener, limit=HEAD)
    await server.serve_forever()


async def _answer(path: str, status: Status, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one answer, and the connection's end; a slow asker gets none."""
    try:
        async with asyncio.timeout(REQUEST):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(reply(head, path, status()))
            await writer.drain()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


def reply(head: bytes, path: str, status: HTTPStatus) -> bytes:
    """What a request's head is answered with: the status for the path, 404 for everything else."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    asked = words[:2] in ([b"GET", path.encode()], [b"HEAD", path.encode()])
    status = status if asked else HTTPStatus.NOT_FOUND
    length = b"" if status is HTTPStatus.NO_CONTENT else b"Content-Length: 0\r\n"
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    return line + length + b"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
