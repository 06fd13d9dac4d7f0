"""Memory of the server while it starts, serves and after it ended: of GPUs by NVML, of the host by /proc.

A signal that is missing leaves None in a sample, never a zero.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from bringup.edge import gpu, proc
from bringup.errors import BringupError
from bringup.ledger import Observation, Sample
from bringup.server import Container

PERIOD = 0.25  # seconds between samples
REMOTE_PERIOD = 2.0  # seconds, where each sample is a question to an engine elsewhere
MOST = 2048  # samples kept: beyond it, of each pair the smaller one goes and the period doubles
RELEASED_WITHIN = 10.0  # seconds after the end of a container; the driver needs less than one
KIB, MIB = 2**10, 2**20


class Eye:
    """Takes samples. `local`: the engine runs on this host, so its processes and GPUs are those seen here."""

    def __init__(self, read_gpu: Callable[[], gpu.Reading | None], *, local: bool) -> None:
        self._read_gpu = read_gpu
        self._local = local
        self._container: Container | None = None
        self._members: proc.Members | None = None
        self.pids: frozenset[int] = frozenset()

    def follow(self, container: Container) -> None:
        """From now on look at the processes of this container, too."""
        self._members = container.members() if self._local else None
        self._container = container

    def look(self, *, closely: bool = False) -> Sample:
        """One sample; `closely`: with PSS, which takes a while."""
        now, reading = time.time(), self._read_gpu()
        rss = pss = None
        if self._members is not None:
            pids = self._members.pids()
            self.pids |= pids
            rss = _sum(proc.rss, pids)
            pss = _sum(proc.pss, pids) if closely else None
        elif self._container is not None:
            rss = _rss_by_engine(self._container)
        return Sample(now, reading.used if reading else None, reading.by_pid if reading else None, rss, pss)


def _sum(read: Callable[[int], int | None], pids: frozenset[int]) -> int | None:
    """Over the processes that are still there; None when not one of them can be read."""
    known = [n for n in map(read, pids) if n is not None]
    return sum(known) if known else None


def _rss_by_engine(container: Container) -> int | None:
    """By the column of `ps` on the engine's host, KiB."""
    try:
        sizes = [row.get("RSS", "") for row in container.top()]
    except BringupError:
        return None
    return sum(int(s) for s in sizes) * KIB if sizes and all(s.isdigit() for s in sizes) else None


@contextmanager
def eye(*, on_gpu: bool, local: bool, gpus: str | None = "all") -> Iterator[Eye]:
    """An eye with NVML open, where there are GPUs to look at; `gpus`: those, as the setting says it."""
    if on_gpu and local:
        with gpu.meter(gpus) as read_gpu:
            yield Eye(read_gpu, local=local)
    else:
        yield Eye(lambda: None, local=local)


class Sampler:
    """Samples in a thread of its own from `with` to its end, whatever ends it."""

    def __init__(
        self, *, on_gpu: bool, local: bool, gpus: str | None = "all", period: float | None = None, most: int = MOST
    ) -> None:
        self._on_gpu, self._local, self._gpus, self._most = on_gpu, local, gpus, most
        self._period = period if period is not None else PERIOD if local else REMOTE_PERIOD
        self._samples: list[Sample] = []
        self._container: Container | None = None
        self._pids: frozenset[int] = frozenset()
        self._fault = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def follow(self, container: Container) -> None:
        """There is a container now."""
        self._container = container

    def seen(self) -> Observation:
        """What was seen so far."""
        return Observation(tuple(self._samples), self._pids, self._fault)

    def _work(self) -> None:
        try:
            with eye(on_gpu=self._on_gpu, local=self._local, gpus=self._gpus) as looking:
                following = None
                while True:
                    if self._container is not following:
                        following = self._container
                        assert following is not None  # noqa: S101 - it never goes back
                        looking.follow(following)
                    self._keep(looking.look())
                    self._pids = looking.pids
                    if self._done.wait(self._period):
                        return
        except Exception as e:  # noqa: BLE001, RUF100 - a thread has nobody to raise to; the ledger says it
            self._fault = f"{type(e).__name__}: {e}"

    def _keep(self, sample: Sample) -> None:
        self._samples.append(sample)
        if len(self._samples) > self._most:
            self._samples = thinned(self._samples)
            self._period *= 2


def weight(sample: Sample) -> tuple[int, int]:
    """What makes a sample larger than another: the GPUs' memory first, then the host's."""
    return sum(sample.used or ()), sample.rss or 0


def thinned(samples: list[Sample]) -> list[Sample]:
    """Half of the samples: of each pair the larger, so that a peak stays."""
    return [max(samples[i : i + 2], key=weight) for i in range(0, len(samples), 2)]


@dataclass(frozen=True)
class Held:
    """What a server that is about to end holds; `members` None: nobody could look; `gpu` None: no NVML."""

    members: proc.Members | None = None
    pids: frozenset[int] = frozenset()
    gpu: int | None = None


@dataclass(frozen=True)
class Release:
    """What became of it. `verdict`: released, leaked, or unknown; bytes and process ids that are left after `seconds`.

    `gpu_before`, `gpu_left`: None where nothing was to be seen.
    """

    verdict: str
    seconds: float = 0.0
    gpu_before: int | None = None
    gpu_left: int | None = None
    pids_left: tuple[int, ...] = ()
    reason: str = ""

    @property
    def line(self) -> str:
        """For people."""
        if self.verdict == "unknown":
            return f"whether the server's memory was released is not known: {self.reason}"
        gpu_memory = None if not self.gpu_before else f"{self.gpu_before / MIB:,.0f} MiB of GPU memory"
        if self.verdict == "released":
            return f"released: the server's processes{f' and {gpu_memory}' if gpu_memory else ''} are gone"
        left = f"{self.gpu_left / MIB:,.0f} MiB of GPU memory are still held" if self.gpu_left else ""
        running = f"these processes still run: {', '.join(map(str, self.pids_left))}" if self.pids_left else ""
        return f"{self.seconds:.0f} s after the end of the server " + "; ".join(filter(None, (left, running)))


def held(container: Container | None, *, local: bool, known: frozenset[int] = frozenset()) -> Held:
    """Look before the container is stopped. `known`: processes that it was seen to have before."""
    if container is None or not local:
        return Held()
    with eye(on_gpu=True, local=True) as looking:
        looking.follow(container)
        now, pids = looking.look(), looking.pids | known
        return Held(container.members(), pids, now.held(pids))


def release(before: Held, *, within: float = RELEASED_WITHIN) -> Release:
    """Look after the container was stopped, until nothing is left or the time is over."""
    members = before.members
    if members is None:
        return Release("unknown", reason="its processes are not on this host, or could not be seen")
    begun = time.monotonic()
    with eye(on_gpu=True, local=True) as looking:
        while True:
            left, memory = members.pids(), looking.look().held(before.pids)
            seconds = round(time.monotonic() - begun, 3)
            if (not left and not memory) or seconds > within:
                break
            time.sleep(PERIOD)
    if before.gpu is not None and memory is None:
        return Release("unknown", seconds, before.gpu, None, tuple(sorted(left)), "NVML does not answer any more")
    verdict = "leaked" if left or memory else "released"
    return Release(verdict, seconds, before.gpu, memory, tuple(sorted(left)))
