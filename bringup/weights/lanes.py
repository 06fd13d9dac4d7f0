"""Files carried side by side: who is next, what to do when one fails, hashing and flushing while others come.

One thread per worker process (a lane) and as many that finish files; the caller's thread only waits. Everything
looks at `_check` several times a second, so the deadline, a failure or Ctrl-C ends all of it.
"""

from __future__ import annotations

import collections
import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bringup.errors import BringupError, TargetUnavailable, WeightsDiffer
from bringup.lock import LockedFile, LockedModel
from bringup.weights.carry import CHUNK, CHUNKS, Failure, Task, full
from bringup.weights.digest import Digests, digests
from bringup.weights.follow import LEAST, Follower
from bringup.weights.place import Place, flush, unwritable
from bringup.weights.progress import FileProgress, Progress
from bringup.weights.receipt import Carried
from bringup.weights.worker import TICK, Stalled, Worker

BEFORE_HTTP = 2  # attempts that `auto` gives to hf_transfer
LONGEST = 30.0  # seconds between two attempts, unless the hub asks for more
LAST = "config.json"  # what makes a directory a model: it gets its name when all others have theirs


@dataclass(frozen=True, kw_only=True)
class How:
    """How to fetch. `transfer`: hf_transfer, http, or auto; times in seconds; `backoff`: before the second attempt."""

    endpoint: str
    token: str | None = field(default=None, repr=False)
    transfer: str = "hf_transfer"
    stall_timeout: float = 60.0
    timeout: float = 7200.0
    files_at_once: int = 2
    attempts: int = 5
    backoff: float = 1.0


class Over(BaseException):
    """The fetch is over; whoever sees this lets everything go."""


@dataclass(kw_only=True)
class Job:
    """One file on its way."""

    file: LockedFile
    shown: FileProgress
    by: str
    temp: Path | None = None
    attempts: int = 0
    stalls: int = 0
    wrong: int = 0
    seconds: float = 0.0
    not_before: float = 0.0
    note: str = ""
    follower: Follower | None = None
    error: BringupError | None = None


@dataclass
class Lanes:
    """Carry `jobs` into `place`; `carried` fills with what has its final name.

    `digest` hashes a temp file; `deadline` is monotonic.
    """

    model: LockedModel
    how: How
    place: Place
    jobs: list[Job]
    progress: Progress
    deadline: float
    digest: Callable[[Path, Callable[[], None]], Digests] = digests
    carried: list[Carried] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._over = False
        self._failed: BaseException | None = None
        self._waiting = collections.deque(self.jobs)
        self._arrived: collections.deque[Job] = collections.deque()
        self._open = len(self.jobs)
        self._quiet_until = 0.0
        self._last: list[tuple[Job, Digests]] = []

    def run(self, watch: Callable[[Progress], None]) -> None:
        """Carry them all.

        Raises:
            BringupError: the first failure that trying again does not mend; nothing runs any more.
        """
        many = min(self.how.files_at_once, len(self.jobs))
        threads = [threading.Thread(target=self._guard, args=(part,), daemon=True, name="bringup lane")
                   for part in (self._carry_files, self._finish_files) for _ in range(many)]  # fmt: skip
        for thread in threads:
            thread.start()
        try:
            while self._wait():
                watch(self.progress)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            for thread in threads:
                thread.join(1)
        for job, hashes in self._last:
            self.place.flush()
            self._put(job, hashes)
        self.place.flush()
        watch(self.progress)

    def _wait(self) -> bool:
        """Is there more to wait for? Waits a moment."""
        with self._changed:
            if self._failed:
                raise self._failed
            if not self._open:
                return False
            if time.monotonic() >= self.deadline:
                raise self._late()
            self._changed.wait(TICK)
        return True

    def _late(self) -> TargetUnavailable:
        left = [j for j in self.jobs if j.shown.state not in ("done", "checked")]
        why = next((f"; {j.error.message}" for j in left if j.error), "")
        return TargetUnavailable(
            f"{self.model.name}: the deadline passed with {len(left)} of {len(self.progress.files)} files to go{why}",
            hint="fetch again: whole files stay; or raise --fetch-timeout", id="fetch-deadline",
        )  # fmt: skip

    def _check(self) -> None:
        if self._over or time.monotonic() >= self.deadline:
            raise Over

    def _guard(self, part: Callable[[], None]) -> None:
        """Run a thread's part; what it raises is the caller's to see."""
        try:
            part()
        except Over:
            pass
        except BaseException as e:
            with self._changed:
                self._failed = self._failed or e
                self._changed.notify_all()

    def _next(self, queue: collections.deque[Job]) -> Job:
        """The next job of a queue whose time has come."""
        with self._changed:
            while True:
                self._check()
                now = time.monotonic()
                for job in queue if queue is self._arrived or now >= self._quiet_until else ():
                    if job.not_before <= now:
                        queue.remove(job)
                        return job
                self._changed.wait(TICK)

    # ---- carrying

    def _carry_files(self) -> None:
        worker = None
        try:
            while True:
                job = self._next(self._waiting)
                if not job.file.size:  # a range of nothing is an error to hf_transfer
                    job.by, job.temp, job.attempts = "http", self.place.fresh(), 1
                    with self.place.writing():
                        job.temp.touch()
                else:
                    if worker is None or not worker.alive:
                        worker = Worker(self.how.endpoint, self.how.token, self.how.stall_timeout)
                    if not self._carry(worker, job):
                        continue
                with self._changed:
                    job.shown.done, job.shown.state = job.file.size, "checking"
                    self._arrived.append(job)
                    self._changed.notify_all()
        finally:
            if worker is not None:
                worker.kill()

    def _carry(self, worker: Worker, job: Job) -> bool:
        """One attempt. Did it bring a file of the right size?"""
        goes_on = job.by == "http" and job.temp is not None
        if not goes_on:
            self._drop(job)
            job.temp, job.seconds = self.place.fresh(), 0.0
        assert job.temp is not None  # noqa: S101 - for mypy
        job.attempts += 1
        job.shown.state = "fetching"
        task = Task(model=self.model, file=job.file, path=str(job.temp), by=job.by, chunks=max(1, CHUNKS >> job.stalls))

        def watch(done: int) -> None:
            job.shown.done = done

        if job.file.size >= LEAST:
            job.follower = Follower(job.temp, job.file.size, self._check, hashing=self.digest is digests)
        failure = worker.carry(task, watch, self._check)
        job.seconds += worker.seconds
        found = job.temp.stat().st_size if job.temp.exists() else 0
        if failure is None and found != job.file.size:
            failure = Failure(
                TargetUnavailable(
                    f"{job.file.path} came with {found} bytes by {job.by}; {job.file.size} are locked",
                    hint="the hub, or something before it, does not serve ranges as it should: try --transfer http",
                    id="transfer-incomplete",
                )
            )
        if failure is not None:
            self._unfollow(job)
            if self._has_no_room(job):  # whatever the transport made of that: hf_transfer tries again, or stalls
                failure = Failure(full(task), again=False)
            self._again(job, failure)
        elif job.follower is not None:
            job.follower.complete()
        return failure is None

    def _has_no_room(self, job: Job) -> bool:
        there = job.temp.stat().st_blocks * 512 if job.temp is not None and job.temp.exists() else 0
        return self.place.free() + there < job.file.size

    def _unfollow(self, job: Job) -> None:
        if job.follower is not None:
            job.follower.stop()
            job.follower = None

    def _drop(self, job: Job) -> None:
        self._unfollow(job)
        if job.temp is not None:
            with contextlib.suppress(OSError):
                job.temp.unlink(missing_ok=True)
            job.temp = None

    def _again(self, job: Job, failure: Failure) -> None:
        """Put a job back for its next attempt, or end all of it.

        Raises:
            BringupError: no attempt is left, none would help, or the hub wants a longer pause than there is time.
        """
        error, now = failure.error, time.monotonic()
        job.error = error
        job.stalls += isinstance(failure, Stalled)
        if job.by == "hf_transfer":
            self._drop(job)
        if not failure.again:
            raise error
        if job.attempts >= self.how.attempts:
            error.message += f" (after {job.attempts} attempts)"
            raise error
        if self.how.transfer == "auto" and job.by == "hf_transfer" and job.attempts >= BEFORE_HTTP:
            job.by, job.note = "http", f"hf_transfer failed {job.attempts} times: {error.message}"
        wait = failure.pause
        if wait is None:
            wait = min(LONGEST, self.how.backoff * 2 ** (job.attempts - 1)) * random.uniform(0.5, 1)  # noqa: S311
        if now + wait >= self.deadline:
            error.message += f" (the next attempt, in {wait:.0f} s, would be after the deadline)"
            raise error
        with self._changed:
            if failure.pause is not None:
                self._quiet_until = max(self._quiet_until, now + wait)
            job.not_before, job.shown.state = now + wait, "retrying"
            self._waiting.append(job)
            self._changed.notify_all()

    # ---- finishing

    def _finish_files(self) -> None:
        while True:
            self._finish(self._next(self._arrived))

    def _finish(self, job: Job) -> None:
        """Hash and flush at the same time, then give the file its name."""
        assert job.temp is not None  # noqa: S101 - for mypy
        trouble: list[OSError] = []
        flushing = threading.Thread(target=_flush, args=(job.temp, trouble), daemon=True)
        flushing.start()
        with self.place.writing():
            if job.follower is not None and self.digest is digests:
                hashes = job.follower.digests()
            else:
                hashes = self.digest(job.temp, self._check)
        if hashes.sha256 != job.file.sha256:
            self._wrong(job, hashes.sha256)
            return
        while flushing.is_alive():
            self._check()
            flushing.join(TICK)
        if trouble:
            raise unwritable(self.place.directory, trouble[0])
        with self._changed:  # so that nothing gets a name when all is over
            self._check()
            if job.file.path == LAST:
                job.shown.state = "checked"
                self._last.append((job, hashes))
            else:
                self._put(job, hashes)
            self._open -= 1
            self._changed.notify_all()

    def _wrong(self, job: Job, sha256: str) -> None:
        self._drop(job)
        error = WeightsDiffer(
            f"{job.file.path} came by {job.by} with sha256 {sha256}; {job.file.sha256} is locked",
            hint="the hub or something before it serves other bytes: try later, or compare: bringup lock --check",
            id="weights-hash",
        )
        job.wrong += 1
        if self.how.transfer == "auto" and job.by == "hf_transfer":
            job.by, job.note, job.wrong = "http", f"hf_transfer brought other bytes: {error.message}", 0
        elif job.wrong >= 2:
            raise error
        self._again(job, Failure(error, pause=None))

    def _put(self, job: Job, hashes: Digests) -> None:
        assert job.temp is not None  # noqa: S101 - for mypy
        self.place.put(job.temp, job.file.path)
        job.shown.state = "done"
        self.carried.append(
            Carried(path=job.file.path, size=job.file.size, sha256=job.file.sha256, blake3=hashes.blake3, by=job.by,
                    seconds=round(job.seconds, 4), attempts=job.attempts, note=job.note)
        )  # fmt: skip


def _flush(path: Path, trouble: list[OSError]) -> None:
    try:
        flush(path)
    except OSError as e:
        trouble.append(e)


def carrier(file: LockedFile, transfer: str, available: bool) -> tuple[str, str]:
    """Who carries a file at first, and why it is not who was asked for.

    A file of one chunk gains nothing from hf_transfer.
    """
    if transfer == "http" or file.size <= CHUNK:
        return "http", ""
    return ("hf_transfer", "") if available else ("http", "hf_transfer is not installed")
