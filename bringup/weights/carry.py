"""The child process that carries files: hf_transfer holds Python's global lock for a whole file, so it gets a process.

It does all that touches the network, so that the parent can end anything by killing it: a stalled HEAD too. It decides
nothing: the parent checks sizes and hashes, and tries again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import requests
import urllib3

from bringup.errors import BringupError, CheckFailed, TargetUnavailable, WeightsDiffer
from bringup.lock import LockedFile, LockedModel
from bringup.weights.hub import AGENT, Hub, reason, unsigned
from bringup.weights.place import FULL

# Bytes of one ranged request of hf_transfer, and requests at once for a file. A chunk is seen only when it is complete,
# and chunks that share a slow link are complete at about the same time: with two files at once and the stall timeout of
# 60 s that takes 2.2 MB/s. After each stall a file goes on with half as many chunks at once: 0.3 MB/s is the least.
CHUNK = 8 * 2**20
CHUNKS = 8
PIECE = 256 * 2**10  # bytes of one read of plain http
READY = "ready"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """One file to carry to `path`: `by` hf_transfer (to a new name, `chunks` at once) or http (goes on at its end)."""

    model: LockedModel
    file: LockedFile
    path: str
    by: str
    chunks: int = CHUNKS


@dataclass(frozen=True)
class Failure:
    """Why a file did not come: `again` where another try may help, after `pause` seconds if the hub named some."""

    error: BringupError
    again: bool = True
    pause: float | None = None


def serve(pipe: Connection, parent: int, endpoint: str, token: str | None, patience: float) -> None:
    """Carry what comes through the pipe until it closes. Answers: READY once, then for each task bytes so far (int)
    and at last None or a Failure.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it kills us
    die_with(parent)
    _trust()
    hub = Hub(endpoint, token, read=patience)
    with contextlib.suppress(EOFError, OSError):
        pipe.send(READY)
        while True:
            pipe.send(attempt(hub, token, pipe.recv(), pipe.send))


def die_with(parent: int) -> None:
    """End when the thread that started us ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _trust() -> None:
    """Give hf_transfer the CA bundle that requests was given; each has a variable of its own."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle and not os.environ.get("SSL_CERT_FILE"):
        os.environ["SSL_CERT_FILE"] = bundle


def attempt(hub: Hub, token: str | None, task: Task, report: Callable[[int], None]) -> Failure | None:
    """Ask what the hub has, then carry it."""
    hub.retry_after = None
    try:
        expect(hub, task)
        if task.by == "hf_transfer":
            _by_hf_transfer(hub, token, task, report)
        else:
            _by_http(hub, task, report)
    except TargetUnavailable as e:
        return Failure(_clean(e, token), pause=hub.retry_after)
    except BringupError as e:
        return Failure(_clean(e, token), again=False)
    except OSError as e:
        if e.errno in FULL:
            return Failure(full(task), again=False)
        return Failure(_clean(incomplete(task, reason(e)), token))
    except Exception as e:  # whatever it is, the parent must hear of it
        return Failure(_clean(incomplete(task, reason(e)), token))
    return None


def expect(hub: Hub, task: Task) -> None:
    """Does the hub have the locked file at the locked commit, and may we read it?

    Raises:
        WeightsDiffer: another commit (hub-wrong-commit) or size (weights-size); and what `Hub.head` raises.
    """
    url = hub.url(task.model, task.file)
    headers = hub.head(url).headers
    commit = headers.get("X-Repo-Commit")
    if commit is None:
        raise TargetUnavailable(
            f"{url}: the answer has no X-Repo-Commit", hint="is HF_ENDPOINT a model hub?", id="hub-wrong-answer"
        )
    if commit != task.model.revision:
        raise WeightsDiffer(
            f"{url}: the answer is of commit {ascii(commit)[:60]}; {task.model.revision} is locked",
            hint="the hub or something before it is broken; try again, or another HF_ENDPOINT", id="hub-wrong-commit",
        )  # fmt: skip
    # A redirect's own Content-Length is that of its few words, not that of the file.
    size = headers.get("X-Linked-Size") or (None if "Location" in headers else headers.get("Content-Length"))
    if size is not None and size != str(task.file.size):
        raise WeightsDiffer(
            f"{url}: the hub has {ascii(size)[:40]} bytes; {task.file.size} are locked",
            hint="compare the lock with the hub: bringup lock --check", id="weights-size",
        )  # fmt: skip


def _by_hf_transfer(hub: Hub, token: str | None, task: Task, report: Callable[[int], None]) -> None:
    import hf_transfer  # only here: it is not needed for small files, nor everywhere installed

    done = 0

    def count(more: int) -> None:
        nonlocal done
        done = min(done + more, task.file.size)
        report(done)

    headers = {"user-agent": AGENT} | ({"authorization": f"Bearer {token}"} if token else {})
    try:
        hf_transfer.download(  # type: ignore[attr-defined]  # its one file is compiled
            hub.url(task.model, task.file), task.path, task.chunks, CHUNK,
            parallel_failures=min(3, task.chunks), max_retries=3, headers=headers, callback=count,
        )  # fmt: skip
    except Exception as e:  # it raises nothing else, and no type of its own
        if "os error 28" in str(e) or "os error 122" in str(e):  # ENOSPC, EDQUOT
            raise full(task) from e
        raise incomplete(task, str(e)) from e


def _by_http(hub: Hub, task: Task, report: Callable[[int], None]) -> None:
    """Go on where the file ends; begin anew if the hub does not do ranges."""
    size = task.file.size
    fd = os.open(task.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        have = os.lseek(fd, 0, os.SEEK_END)
        if have >= size:  # nothing is left to ask for, and yet it was not right
            os.ftruncate(fd, have := os.lseek(fd, 0, os.SEEK_SET))
        try:
            answer = hub.get(
                hub.url(task.model, task.file), stream=True, headers={"Range": f"bytes={have}-"} if have else {}
            )
        except BringupError as e:
            if e.id == "hub-range-refused":  # the next try asks for all
                os.ftruncate(fd, 0)
            raise
        with answer:
            if answer.status_code == 200 and have:
                os.ftruncate(fd, have := os.lseek(fd, 0, os.SEEK_SET))
            elif answer.status_code == 206 and answer.headers.get("Content-Range") != f"bytes {have}-{size - 1}/{size}":
                os.ftruncate(fd, 0)
                found = ascii(answer.headers.get("Content-Range"))[:60]
                raise incomplete(task, f"bytes {have}-{size - 1}/{size} were asked for; the answer has {found}")
            _pour(answer, fd, have, task, report)
    finally:
        os.close(fd)


def _pour(answer: requests.Response, fd: int, have: int, task: Task, report: Callable[[int], None]) -> None:
    raw: Any = answer.raw
    try:
        while piece := raw.read(PIECE, decode_content=True):
            have += len(piece)
            if have > task.file.size:
                os.ftruncate(fd, 0)
                raise incomplete(task, f"more than the locked {task.file.size} bytes came")
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            report(have)
    except (urllib3.exceptions.HTTPError, requests.RequestException) as e:
        raise incomplete(task, f"the connection broke after {have} bytes: {reason(e)}") from e
    if have != task.file.size:
        raise incomplete(task, f"{have} bytes came; {task.file.size} are locked")


def incomplete(task: Task, why: str) -> TargetUnavailable:
    """A transfer that did not end well."""
    return TargetUnavailable(
        f"{task.file.path} did not come whole by {task.by}: {unsigned(why)}",
        hint="check the network and try again: whole files stay", id="transfer-incomplete",
    )  # fmt: skip


def full(task: Task) -> CheckFailed:
    """No space is left."""
    return CheckFailed(
        f"the disk is full: {task.file.path} needs {task.file.size} bytes",
        hint="free space, then fetch again: whole files stay", id="disk-full",
    )  # fmt: skip


def _clean(error: BringupError, token: str | None) -> BringupError:
    """The error as it may be shown; a server may answer with our own token."""
    error.message = unsigned(error.message)
    if token:
        error.message = error.message.replace(token, "<token>")
    error.args = (error.message,)
    return error
