"""Faults on demand: rules that the test sets, each for the requests that match it."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# kind: what the client sees (arguments)
KINDS = {
    "status": "a refusal (status, code, message, retry_after)",
    "cdn": "302 to another host, with the metadata in the redirect, as the Hub does for LFS files",
    "commit": "another X-Repo-Commit (commit)",
    "size": "another size in X-Linked-Size, or in Content-Length where there is no such header (size)",
    "replaced": "another content, with its own ETag and size (sha256 of a blob of the repository)",
    "hang": "no answer (seconds)",
    "drop": "the connection is closed instead of an answer",
    "html": "200 with a page, as a captive portal does",
    "reset": "TCP reset after some bytes of the body (after)",
    "truncate": "the connection is closed before the body's end (after)",
    "short": "206 with the right Content-Range and only half of the bytes, well-formed",
    "corrupt": "one byte of the file differs, the size is right (at: offset in the file)",
    "content-range": "206 of other bytes than were asked for (shift)",
    "no-range": "200 and the whole file instead of the range",
    "stall": "nothing more after some bytes of the body (after, seconds)",
    "drip": "a slow body (rate in bytes/s)",
}
BODY = ("reset", "truncate", "short", "corrupt", "content-range", "no-range", "stall", "drip")


@dataclass
class Rule:
    """One fault: `path` is a pattern for the file's path, or for the URL's when it begins with a slash.

    Skips the first `skip` requests that match, then meets `times` of them (-1: all). Faults of the body meet only
    GETs that are answered with more than one byte: a client that asks for one byte wants to know the size.
    """

    kind: str
    path: str = "*"
    method: str = "*"
    host: str = "*"  # hub or cdn
    times: int = -1
    skip: int = 0
    given: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is none of {', '.join(KINDS)}")

    def matches(self, host: str, method: str, url: str, file: str, span: range) -> bool:
        """Is the request one of those that this rule is for? `span`: the bytes of the file that it asks for."""
        return (
            fnmatch.fnmatchcase(url if self.path.startswith("/") else file, self.path)
            and self.method in ("*", method)
            and self.host in ("*", host)
            and (self.kind != "corrupt" or self.given["at"] in span)
        )


class Faults:
    """The rules and the throttle; every connection's thread asks here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.cleared = threading.Event()  # ends what hangs and stalls

    def add(self, rule: Rule) -> None:
        """One more rule; the first that matches is used."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """No faults from now on; what hangs or stalls ends."""
        with self._lock:
            self._rules.clear()
            self.cleared.set()
            self.cleared = threading.Event()

    def take(self, kinds: tuple[str, ...], host: str, method: str, url: str, file: str, span: range) -> Rule | None:
        """The rule for this request, used up by one."""
        with self._lock:
            for rule in self._rules:
                if rule.kind not in kinds or rule.times == 0 or not rule.matches(host, method, url, file, span):
                    continue
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                rule.times -= rule.times > 0
                return rule
        return None


class Throttle:
    """Bytes per second for the whole server; 0 is unlimited."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._lock = threading.Lock()
        self._free = 0.0

    def book(self, size: int, now: float) -> float:
        """Seconds to wait before `size` more bytes may be sent."""
        if self.rate <= 0:
            return 0.0
        with self._lock:
            start = max(now, self._free)
            self._free = start + size / self.rate
        return start - now


class Log:
    """What was asked and answered, in the order of the answers' ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        """One request."""
        with self._lock:
            self._lines.append(line)

    def lines(self) -> list[dict[str, Any]]:
        """All so far."""
        with self._lock:
            return list(self._lines)

    def clear(self) -> None:
        """Forget them."""
        with self._lock:
            self._lines.clear()


@contextmanager
def counted(line: dict[str, Any], log: Log) -> Iterator[None]:
    """Write the line whatever happens to the answer; a client that went away is not our error."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        line["gone"] = True
    finally:
        log.add(line)
