"""A model hub for tests: `HubServer` starts it, `make_repo` fills it, `lock_of` locks what it has."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import blake3

from bringup.lock import LockedFile, LockedModel
from tests.hub.store import add_blob, load, make_repo, noise

__all__ = ["HubServer", "add_blob", "lock_of", "make_repo", "noise"]
ROOT = Path(__file__).resolve().parents[2]


class HubServer:
    """The server as a process of its own, from `with` to its end; it ends with this process, however that ends.

    To be reached from a container, it needs `bind="0.0.0.0"` and `name`, an address of this machine there.
    """

    def __init__(self, root: Path, *, bind: str = "127.0.0.1", name: str = "127.0.0.1", cdn: str = "localhost") -> None:
        self.root = root
        self.endpoint = ""
        self._argv = [sys.executable, "-m", "tests.hub.server", str(root.resolve()), "--bind", bind]
        self._argv += ["--name", name, "--cdn-name", cdn]
        self._process: subprocess.Popen[str] | None = None
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Self:
        try:
            self._process = self._start()
        except OSError as e:  # seen once in some thousand starts, its errno was not kept: it is shown, and tried again
            files = sum(1 for _ in Path("/proc/self/fd").iterdir())
            warnings.warn(f"the test hub's process did not start: {e!r}; {files} open files", stacklevel=2)
            self._process = self._start()
        assert self._process.stdout
        self.endpoint = self._process.stdout.readline().strip()
        if not self.endpoint:
            self.stop()
            raise RuntimeError("the test hub did not start; what it said is above")
        self._control_at = f"http://127.0.0.1:{self.endpoint.rpartition(':')[2]}/_control/"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process
        return self._process.pid

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fault(
        self, kind: str, path: str = "*", *, method: str = "*", host: str = "*", times: int = -1, skip: int = 0,
        **given: Any,
    ) -> None:  # fmt: skip
        """Set a rule: see `tests.hub.faults` for the kinds and what they take."""
        rule = {"kind": kind, "path": path, "method": method, "host": host, "times": times, "skip": skip}
        self._control("fault", **rule, given=given)

    def clear(self) -> None:
        """No faults and an empty log; what hangs or stalls ends."""
        self._control("clear")

    def throttle(self, megabytes_per_second: float) -> None:
        """Limit what the whole server sends (10^6 bytes); 0 is no limit."""
        self._control("throttle", rate=megabytes_per_second * 1e6)

    def page(self, size: int) -> None:
        """Entries of one page of a tree."""
        self._control("page", size=size)

    def requests(self) -> list[dict[str, Any]]:
        """What was asked since the last `clear`: host, method, path, range, names of headers, status, bytes sent."""
        lines: list[dict[str, Any]] = self._control("requests")
        return lines

    def stop(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _control(self, action: str, **given: Any) -> Any:
        request = urllib.request.Request(self._control_at + action, json.dumps(given).encode(), method="POST")  # noqa: S310
        with self._direct.open(request, timeout=60) as answer:
            return json.load(answer)


def lock_of(root: Path, repo: str, commit: str, name: str) -> LockedModel:
    """What `bringup lock` would write for a commit."""
    found = load(root, repo)
    assert found, f"{root} has no {repo}"
    files = []
    for e in found.commits[commit].values():
        hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
        if e.size:
            hasher.update_mmap(found.blob(e))
        files.append(LockedFile(e.path, e.size, e.sha256, hasher.hexdigest()))
    return LockedModel(name, "hub", "Apache-2.0", tuple(files), repo, commit)
