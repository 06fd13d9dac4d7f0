"""What the Hub says about one repository: its commits, its files, and the small files themselves.

None of it is believed without limits: every answer has a size it must not exceed and a time to be complete in.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import requests

from bringup.errors import BringupError, TargetUnavailable, UsageError, WeightsDiffer
from bringup.lock import COMMIT, is_plain
from bringup.weights.hub import Hub

LARGEST = 16 * 2**20  # bytes of one answer; the Hub wants every file above 10 MB in LFS, and LFS files are not read
PAGES, ENTRIES = 100, 50_000  # of one list of files

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """A commit of a repository, and what its card says."""

    commit: str
    license: str
    gated: str


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its sha256 if it lies in LFS, else git's sha1 of it."""

    path: str
    size: int
    sha256: str = ""
    sha1: str = ""


class Repository:
    """One repository of a hub; every answer must be complete within `patience` seconds.

    Every method raises what `Hub` raises, and TargetUnavailable for an answer that a hub would not give.
    """

    def __init__(self, hub: Hub, name: str, patience: float) -> None:
        self.name = name
        self._hub = hub
        self._patience = patience

    def about(self, revision: str = "") -> About:
        """The commit that a revision is: a branch, a tag, a commit, or the default branch.

        Raises:
            UsageError: the repository has another name by now.
            WeightsDiffer: a commit was asked for, and the Hub answers with another one.
        """
        path = f"/api/models/{self.name}" + (f"/revision/{quote(revision, safe='')}" if revision else "")
        raw, _ = self._json(self._hub.endpoint + path)
        commit = raw.get("sha") if isinstance(raw, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(raw.get("id"), str):
            raise _no_hub(path, "has no id, or no commit")
        if raw["id"] != self.name:
            raise UsageError(f"the Hub calls {self.name} {plain(raw['id'])} by now", id="repo-renamed",
                             hint=f"use that name: bringup lock {plain(raw['id'])}")  # fmt: skip
        if COMMIT.fullmatch(revision) and commit != revision:
            raise _other_commit(path, commit, revision)
        return About(commit, _license(raw), str(raw.get("gated") or ""))

    def tree(self, commit: str) -> tuple[Entry, ...]:
        """All files of a commit.

        Raises:
            UsageError: what no sound repository has: unsafe-path, not-a-file, tree-too-large.
        """
        entries = [e for raw in self._pages(commit) if (e := _entry(raw))]
        seen: set[str] = set()
        for e in entries:
            # Below the root nothing is taken, so that only there two spellings of one name do harm.
            key = e.path if "/" in e.path else e.path.lower()
            if key in seen:
                raise UsageError(
                    f"{self.name}: {e.path!r} is there twice, or again in other case: one of them would be lost",
                    hint=_OTHER, id="unsafe-path",
                )  # fmt: skip
            seen.add(key)
        return tuple(entries)

    def content(self, commit: str, entry: Entry) -> bytes:
        """A small file, with the size and hash that the list of files gives.

        Raises:
            UsageError: it is not small.
            WeightsDiffer: it is another file, or of another commit.
        """
        if entry.size > LARGEST:
            raise UsageError(
                f"{self.name}: {entry.path} has {entry.size} bytes and is not in LFS; the limit is {LARGEST}",
                hint=_OTHER, id="file-too-large",
            )  # fmt: skip
        url = f"{self._hub.endpoint}/{self.name}/resolve/{commit}/{quote(entry.path)}"
        body, answer = self._read(url, entry.size)
        said = next((c for a in (*answer.history, answer) if (c := a.headers.get("X-Repo-Commit"))), None)
        if said != commit:
            raise _other_commit(url, said, commit)
        if len(body) != entry.size:
            more = "more than that" if len(body) > entry.size else f"{len(body)}"
            raise WeightsDiffer(
                f"{url}: the list of files says {entry.size} bytes, the Hub sent {more}", hint=_AGAIN, id="weights-size"
            )
        kind, expected = ("sha256", entry.sha256) if entry.sha256 else ("git sha1", entry.sha1)
        found = hashlib.sha256(body).hexdigest() if entry.sha256 else git_sha1(body)
        if found != expected:
            raise WeightsDiffer(f"{url}: {kind} {found}, the list of files says {expected}", hint=_AGAIN,
                                id="weights-hash")  # fmt: skip
        return body

    def _pages(self, commit: str) -> Iterator[Any]:
        url = f"{self._hub.endpoint}/api/models/{self.name}/tree/{commit}?recursive=true&expand=false"
        count = 0
        for _ in range(PAGES):
            raw, answer = self._json(url)
            said = answer.headers.get("X-Repo-Commit", commit)
            if said != commit:
                raise _other_commit(url, said, commit)
            if not isinstance(raw, list):
                raise _no_hub(url, "is no list")
            count += len(raw)
            if count > ENTRIES:
                break
            yield from raw
            following = answer.links.get("next", {}).get("url")
            if not following:
                return
            url = urljoin(url, following)
            if _host(url) != _host(self._hub.endpoint):
                raise _no_hub(url, "is the next page of a list, on another host")
        raise UsageError(f"{self.name} has more than {ENTRIES} files, or more than {PAGES} pages of them",
                         hint=_OTHER, id="tree-too-large")  # fmt: skip

    def _json(self, url: str) -> tuple[Any, requests.Response]:
        body, answer = self._read(url, LARGEST)
        if len(body) > LARGEST:
            raise _no_hub(url, f"has more than {LARGEST} bytes")
        try:
            return json.loads(body), answer
        except (ValueError, RecursionError) as e:
            raise _no_hub(url, "is no JSON") from e

    def _read(self, url: str, most: int) -> tuple[bytes, requests.Response]:
        """The body of an answer, as far as one byte beyond `most`."""

        def read() -> tuple[bytes, requests.Response]:
            body = bytearray()
            with self._hub.get(url, stream=True) as answer:
                try:
                    for piece in answer.iter_content(2**16):
                        body += piece
                        if len(body) > most:
                            break
                except requests.RequestException as e:
                    raise TargetUnavailable(f"{url}: the answer broke off: {e}", hint="try again",
                                            id="hub-unavailable") from e  # fmt: skip
            return bytes(body[: most + 1]), answer

        return within(self._patience, url, read)


def within(seconds: float, what: str, task: Callable[[], T]) -> T:
    """The result of a task, or an error when it takes longer.

    A socket's own timeout is not enough: a server that sends a byte now and then would hold us for ever. The thread
    that is left behind ends with the process.

    Raises:
        TargetUnavailable: it takes longer; or whatever the task raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(task())
        except BaseException as e:  # whatever it was, the caller must learn it
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TargetUnavailable(f"{what}: no complete answer within {seconds:g} s", id="hub-unavailable",
                                hint="try again, or give it more time: --stall-timeout")  # fmt: skip
    return results[0]


def git_sha1(content: bytes) -> str:
    """The name that git gives a file: the Hub's hash of what is not in LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def plain(text: str) -> str:
    """A text of the Hub, safe to print."""
    return text if text.isprintable() else ascii(text)


_OTHER = "pin another repository or commit"
_AGAIN = "try again; if it stays so, the hub or something before it is broken"


def _no_hub(url: str, why: str) -> BringupError:
    return TargetUnavailable(f"{url}: the answer {why}", hint="is HF_ENDPOINT a model hub?", id="hub-wrong-answer")


def _other_commit(url: str, said: str | None, commit: str) -> BringupError:
    found = f"of commit {plain(said)}" if said else "without X-Repo-Commit"
    return WeightsDiffer(f"{url}: the answer is {found}; {commit} was asked for", hint=_AGAIN, id="hub-wrong-commit")


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _license(raw: Mapping[str, Any]) -> str:
    """What the card says, or the tags that the Hub makes of it."""
    card = raw.get("cardData")
    card = card if isinstance(card, dict) else {}
    tags = raw.get("tags")
    said = [card.get("license_name") if card.get("license") == "other" else None, card.get("license")]
    said += (
        [t.removeprefix("license:") for t in tags if isinstance(t, str) and t.startswith("license:")]
        if isinstance(tags, list)
        else []
    )
    flat = (one for text in said for one in (text if isinstance(text, list) else [text]))
    return next((t for t in flat if isinstance(t, str) and t.isprintable() and 0 < len(t) <= 100), "")


def _entry(raw: Any) -> Entry | None:
    """An entry of the list, None for a directory; its path is checked whatever it is."""
    path, kind = (raw.get("path"), raw.get("type")) if isinstance(raw, dict) else (None, None)
    if not isinstance(path, str) or not isinstance(kind, str):
        raise _no_hub("the list of files", f"has an entry that is none: {ascii(raw)[:80]}")
    if not is_plain(path):
        raise UsageError(f"the repository has a file at {path!r}: no plain path below it", hint=_OTHER,
                         id="unsafe-path")  # fmt: skip
    if kind == "directory":
        return None
    if kind != "file" or str(raw.get("mode", "100")).startswith("12"):
        raise UsageError(f"{path} of the repository is neither a file nor a directory, but: {plain(kind)}",
                         hint=_OTHER, id="not-a-file")  # fmt: skip
    lfs = raw.get("lfs")
    size, hashed = (lfs.get("size"), lfs.get("oid")) if isinstance(lfs, dict) else (raw.get("size"), raw.get("oid"))
    length = 64 if isinstance(lfs, dict) else 40
    if type(size) is not int or size < 0 or not re.fullmatch(rf"[0-9a-f]{{{length}}}", str(hashed)):
        raise _no_hub("the list of files", f"has no size or hash for {path}")
    return Entry(path, size, sha256=str(hashed)) if length == 64 else Entry(path, size, sha1=str(hashed))


def is_link(content: bytes, path: str, paths: frozenset[str]) -> bool:
    """Is this file a symbolic link in git? Such a one's content is the path it leads to, and the Hub shows no mode."""
    if not 0 < len(content) <= 4096 or b"\n" in content:
        return False
    target = content.decode("utf-8", "replace")
    return (
        target.startswith(("/", "../")) or posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) in paths
    )
