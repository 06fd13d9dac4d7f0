"""The only door to HTTP: one request, bounded in time and size, with the arrival time of what came back."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bringup.edge import direct
from bringup.edge.attention import attention
from bringup.errors import UsageError

if TYPE_CHECKING:
    import requests

    Response = requests.Response | direct.Reply

MAX_BODY = 16 * 2**20  # bytes; more than any answer of a probe can need


class NoAnswer(Exception):
    """No complete HTTP answer: refused, reset, cut off, too large, or not within the deadline."""


@dataclass(frozen=True)
class Answer:
    """A complete answer; `seconds` from sending the request to its last byte.

    `waited`: seconds of them in which a stream's reader was ready and this host gave it no CPU.
    """

    status: int
    content_type: str
    body: bytes
    seconds: float
    waited: float = 0.0

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: the body is not UTF-8, or not JSON.
        """
        return json.loads(self.body.decode("utf-8"))

    def excerpt(self) -> str:
        """The start of the body, for messages."""
        return " ".join(self.body[:200].decode("utf-8", "replace").split())


@dataclass(frozen=True)
class Event:
    """One server-sent event: seconds from sending the request to its arrival, and its data."""

    at: float
    data: str


class Http:
    """Requests to one server. `api_key` goes into the Authorization header and nowhere else; `request_id` into each
    request's X-Request-Id, where one is given."""

    def __init__(self, base_url: str, api_key: str | None = None, request_id: str = "") -> None:
        wrong = UsageError(f"{base_url!r} is not an http(s) address", hint="give one like http://127.0.0.1:8000")
        try:
            parts = urlsplit(base_url)
            _ = parts.port  # parsed here, and not before
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise wrong
        if parts.username or parts.password or parts.query:
            raise UsageError("the address carries credentials or a query", hint="use --api-key-file for the key")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._local = _is_local(parts.hostname)
        self._direct = direct.serves(base_url, local=self._local)
        self._api_key = api_key
        self._fixed = {"X-Request-Id": request_id} if request_id else {}

    def get(self, path: str, timeout: float) -> Answer:
        """GET a path; see `post`."""
        return self._whole("GET", path, None, timeout)

    def post(self, path: str, payload: Any, timeout: float) -> Answer:
        """POST JSON and read the whole answer within `timeout` seconds; redirects are not followed.

        Raises:
            NoAnswer: nothing complete came back; the message says how far it got.
        """
        return self._whole("POST", path, payload, timeout)

    def send(self, method: str, path: str, data: bytes, content_type: str, timeout: float) -> Answer:
        """Send bytes as they are, whatever they are; see `post`."""
        return self._whole(method, path, data, timeout, content_type)

    def abandon(self, path: str, payload: Any, timeout: float, events: int) -> tuple[int, float]:
        """Begin a stream, read so many events of it, and hang up: how many came, and after how many seconds.

        See `post`.
        """
        seen, started = 0, time.monotonic()
        with attention(), self._open("POST", path, payload, timeout) as response:
            for chunk in self._chunks(response, started, timeout):
                seen += chunk.count(b"data:")
                if seen >= events:
                    break
        return seen, time.monotonic() - started

    @property
    def has_key(self) -> bool:
        """Whether requests carry a key."""
        return bool(self._api_key)

    def with_key(self, api_key: str | None) -> Http:
        """The same server, asked with another key or none."""
        return Http(self.base_url, api_key)

    def events(self, path: str, payload: Any, timeout: float) -> tuple[Answer, list[Event]]:
        """POST JSON and read server-sent events until the stream ends; see `post`."""
        events: list[Event] = []
        rest = b""
        started = time.monotonic()
        with attention() as waited, self._open("POST", path, payload, timeout) as response:
            body = bytearray()
            for chunk in self._chunks(response, started, timeout):
                body += chunk
                at = time.monotonic() - started
                *lines, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
                events += [
                    Event(at, line[5:].decode("utf-8", "replace").strip())
                    for line in lines
                    if line.startswith(b"data:")
                ]
            answer = self._answer(response, bytes(body), started)
            return dataclasses.replace(answer, waited=waited.seconds), events

    def _whole(self, method: str, path: str, payload: Any, timeout: float, content_type: str = "") -> Answer:
        started = time.monotonic()
        with self._open(method, path, payload, timeout, content_type) as response:
            body = b"".join(self._chunks(response, started, timeout))
            return self._answer(response, body, started)

    def _open(self, method: str, path: str, payload: Any, timeout: float, content_type: str = "") -> Response:
        headers = dict(self._fixed)
        if payload is not None:
            headers["Content-Type"] = content_type or "application/json"
        body = payload if content_type or payload is None else json.dumps(payload).encode()
        if self._direct:
            headers |= {"User-Agent": "bringup", "Accept": "*/*"}
            if self._api_key:
                headers["Authorization"] = f"Bearer {self._api_key}"
            try:
                return direct.request(method, self.base_url + path, body, headers, timeout)
            except OSError as e:
                raise NoAnswer(_why(e, timeout)) from e
        return self._by_requests(method, path, body, headers, timeout)

    def _by_requests(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> requests.Response:
        import requests

        # A proxy from the environment must not stand between us and this host.
        session = requests.Session()
        session.trust_env = not self._local
        try:
            return session.request(
                method,
                self.base_url + path,
                data=body,
                headers=headers,
                auth=self._authorize,
                timeout=timeout,
                stream=True,
                allow_redirects=False,
            )
        except requests.RequestException as e:
            raise NoAnswer(_why(e, timeout)) from e

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    @staticmethod
    def _chunks(response: Response, started: float, timeout: float) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in response.iter_content(None):
                size += len(chunk)
                if size > MAX_BODY:
                    raise NoAnswer(f"the answer is larger than {MAX_BODY} bytes")
                if time.monotonic() - started > timeout:
                    raise NoAnswer(f"the answer was not complete after {timeout:g} s ({size} bytes so far)")
                yield chunk
        except OSError as e:  # those of requests are of that kind, too
            raise NoAnswer(f"{_why(e, timeout)} ({size} bytes so far)") from e

    @staticmethod
    def _answer(response: Response, body: bytes, started: float) -> Answer:
        return Answer(response.status_code, response.headers.get("Content-Type", ""), body, time.monotonic() - started)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why(error: Exception, timeout: float) -> str:
    import requests

    if isinstance(error, requests.ConnectTimeout | direct.NotConnected):
        return f"no connection within {timeout:g} s"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"connected, but no answer within {timeout:g} s"
    text = str(error)
    for words in ("Connection refused", "Connection reset", "Name or service not known", "CERTIFICATE_VERIFY_FAILED"):
        if words in text:
            return words.lower()
    return " ".join(text.split())[:200] or type(error).__name__
