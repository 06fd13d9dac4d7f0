"""Plain HTTP to a server without a proxy between: the door for many requests to many servers.

`requests` costs more than twice the CPU for one request (benchmarks/many.py), and with hundreds of servers
asked at once the asking is what takes the time. It stays the door for HTTPS and for proxies.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from types import TracebackType
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

AUTOMATIC = zlib.MAX_WBITS | 32  # gzip or zlib, as its first bytes say
PIECE = 2**16  # bytes read at once
SAFE = "/%:@!$&'()*+,;=~"  # of a path that is a path already


class NotConnected(TimeoutError):
    """The address took no connection within the deadline."""


class Broken(OSError):
    """What came is no HTTP, or not all of it came."""


class Reply:
    """An answer whose body is still to be read; has what is used of `requests.Response`."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        self._connection, self._response = connection, response
        self.status_code = response.status
        self.headers: Mapping[str, str] = response.headers  # type: ignore[assignment]

    def iter_content(self, _size: None = None) -> Iterator[bytes]:
        """The body as it arrives.

        Raises:
            OSError: it did not arrive, or not all of it.
        """
        coding = self.headers.get("Content-Encoding", "identity").lower()
        if coding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise Broken(f"the answer is encoded as {coding}, which nobody asked for")
        decoder = None if coding == "identity" else zlib.decompressobj(AUTOMATIC)
        try:
            while piece := self._response.read1(PIECE):
                yield decoder.decompress(piece) if decoder else piece
        except (HTTPException, ValueError, zlib.error) as e:
            raise Broken(_said(e)) from e
        if self._response.length:
            raise Broken(f"broken off, {self._response.length} bytes are missing")
        if decoder and not decoder.eof:
            raise Broken(f"the answer broke off within its {coding}")

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._response.close()
        self._connection.close()


def serves(base_url: str, *, local: bool) -> bool:
    """Whether this door leads there: plain HTTP, and no proxy of the environment is to be used."""
    parts = urlsplit(base_url)
    if parts.scheme != "http":
        return False
    proxies = {} if local else getproxies()
    return not (proxies.get("http") or proxies.get("all")) or bool(proxy_bypass(parts.netloc))


def request(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout: float
) -> Reply:  # fmt: skip
    """Send a request, and read the answer up to its body; each wait ends after `timeout` seconds.

    Raises:
        OSError: NotConnected, Broken, or what the system says.
    """
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        try:
            connection.connect()
        except TimeoutError as e:
            raise NotConnected("timed out") from e
        target = quote(parts.path, safe=SAFE) + (f"?{parts.query}" if parts.query else "")
        with suppress(BrokenPipeError):  # whoever refuses a large body early has answered already
            connection.request(method, target, body, dict(headers))
        return Reply(connection, connection.getresponse())
    except BaseException as e:
        connection.close()
        if isinstance(e, HTTPException | UnicodeError):  # no HTTP; a name that cannot be asked for
            raise Broken(_said(e)) from e
        raise


def _said(e: Exception) -> str:
    if isinstance(e, RemoteDisconnected):
        return "it hung up without an answer"
    return "the answer broke off" if isinstance(e, IncompleteRead) else f"no HTTP ({type(e).__name__}: {e})"
