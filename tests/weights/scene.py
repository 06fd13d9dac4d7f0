"""One row's own world: a test hub, a model, a lock and a directory, and the command line run on them."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bringup.lock import LockedModel, write_lock
from tests.hub import HubServer
from tests.weights.support import environment, lock_is_free, survivors, wrong_files

TOKEN = "hf_never_to_be_seen"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
HIDE_WHEEL = """
import importlib.machinery as machinery
real = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *given: None if name == "hf_transfer" else real(name, *given)
)
"""


@dataclass
class Outcome:
    """How one command ended; `said` is what it printed under --json."""

    code: int
    said: dict[str, Any]
    out: str
    err: str
    seconds: float


@dataclass(kw_only=True)
class Scene:
    """What a row may change before the fetch, and put right after it."""

    name: str
    work: Path
    hub: HubServer
    model: LockedModel
    transfer: str
    stall: float
    timeout: float
    directory: Path = field(init=False)
    endpoint: str = field(init=False)
    variables: dict[str, str] = field(default_factory=dict)
    after: list[Callable[[], object]] = field(default_factory=list)  # before we look at what is left
    undo: list[Callable[[], object]] = field(default_factory=list)  # before the fetch that must succeed
    meanwhile: Callable[[subprocess.Popen[str]], None] | None = None
    action: str = "fetch"
    at_once: int = 1
    not_before: float = 0.0  # when the hub wants to be asked again, if it names a time
    powerless: bool = False  # root without the right to write where the mode forbids it

    def __post_init__(self) -> None:
        self.directory, self.endpoint = self.work / "weights" / "model", self.hub.endpoint
        self.lock = self.work / "weights.lock"
        write_lock({"model": self.model}, self.lock)

    def locked(self, path: str, **changes: Any) -> None:
        """Another entry for one file; the right lock comes back before the fetch that must succeed."""
        files = tuple(dataclasses.replace(f, **changes) if f.path == path else f for f in self.model.files)
        self.relock(files=files)

    def relock(self, **changes: Any) -> None:
        """Another entry for the model."""
        write_lock({"model": dataclasses.replace(self.model, **changes)}, self.lock)
        self.undo.append(lambda: write_lock({"model": self.model}, self.lock))

    def edit(self, old: str, new: str) -> None:
        """Edit the lock by hand."""
        text = self.lock.read_text("utf-8")
        assert old in text
        self.lock.write_text(text.replace(old, new, 1), "utf-8")
        self.undo.append(lambda: self.lock.write_text(text, "utf-8"))

    def place(self, contents: dict[str, bytes]) -> None:
        """Files that are there before."""
        for path, content in contents.items():
            (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / path).write_bytes(content)

    def hide_wheel(self) -> None:
        """As if hf_transfer were not installed."""
        (self.work / "site").mkdir()
        (self.work / "site" / "sitecustomize.py").write_text(HIDE_WHEEL)
        self.variables["PYTHONPATH"] = str(self.work / "site")
        self.undo.append(lambda: self.variables.pop("PYTHONPATH"))

    def mount(self, megabytes: int) -> None:
        """A small disk to fetch onto."""
        if os.geteuid():
            raise AssertionError("this row requires root: it mounts a small tmpfs")
        at = self.work / "disk"
        at.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(at)], check=True, timeout=30)
        self.directory = at / "model"

    def remount(self, options: str) -> None:
        """Change the small disk."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.work / "disk")], check=True, timeout=30)

    def mend(self) -> None:
        """Everything is as it should be; a fetch now must succeed."""
        self.hub.clear()
        self.hub.throttle(0)
        self.endpoint, self.action, self.at_once, self.meanwhile = self.hub.endpoint, "fetch", 1, None
        self.stall, self.timeout = 60.0, 120.0
        for act in reversed(self.undo):
            act()

    def close(self) -> None:
        """Leave nothing mounted."""
        if (self.work / "disk").exists():
            subprocess.run(["umount", "-l", str(self.work / "disk")], check=False, timeout=30)

    def start(self, action: str) -> subprocess.Popen[str]:
        """The command line, as a child."""
        argv = [sys.executable, "-m", "bringup", "weights", action, "--json", "--model", "model"]
        argv += ["--lock", str(self.lock)]
        if action == "fetch":
            argv += ["--to", str(self.directory), "--hf-endpoint", self.endpoint, "--transfer", self.transfer]
            argv += ["--stall-timeout", f"{self.stall:g}", "--fetch-timeout", f"{self.timeout:g}"]
        else:
            argv.append(str(self.directory))
        return subprocess.Popen(
            argv, cwd=self.work, env=environment(self.name, **self.variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_no_override if self.powerless else None,  # noqa: PLW1509
        )  # fmt: skip

    def run(self, action: str) -> Outcome:
        """One command to its end (the worst one, of several at once)."""
        started = time.monotonic()
        processes = [self.start(action) for _ in range(self.at_once)]
        try:
            if self.meanwhile:
                self.meanwhile(processes[0])
            ended = [(*p.communicate(timeout=self.timeout + 60), p.returncode) for p in processes]
        finally:
            for p in processes:
                p.kill()
                p.wait()
        out, err, code = max(ended, key=lambda e: e[2])
        said: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            said = json.loads(out)
        return Outcome(code, said, out, err, time.monotonic() - started)

    def broken(self, outcome: Outcome, theirs: tuple[str, ...]) -> list[str]:
        """Which of the things that must hold after any end do not; `theirs` were wrong before we came."""
        found = []
        if left := survivors(self.name):
            found.append(f"these live on: {left}")
        if wrong := [w for w in wrong_files(self.model, self.directory) if w not in theirs]:
            found.append(f"wrong under a final name: {wrong}")
        if not lock_is_free(self.directory):
            found.append("the lock is held")
        if (self.directory / ".bringup-fetch").exists():
            found.append(".bringup-fetch is left")
        if TOKEN in outcome.out + outcome.err:
            found.append("the token was printed")
        if "Traceback" in outcome.err:
            found.append(f"a traceback: {outcome.err[-2000:]}")
        return found

    def interrupt(self, number: int) -> None:
        """Send a signal as soon as something is being fetched."""

        def send(process: subprocess.Popen[str]) -> None:
            self.await_transfer(process)
            process.send_signal(number)

        self.meanwhile = send

    def await_transfer(self, process: subprocess.Popen[str]) -> None:
        """Wait until the hub was asked for a file's content."""
        until = time.monotonic() + self.timeout
        while not any(r["method"] == "GET" for r in self.hub.requests()):
            assert process.poll() is None, "it ended before it asked for anything"
            assert time.monotonic() < until, "nothing was asked for"
            time.sleep(0.05)


def _no_override() -> None:
    """Root obeys the mode of a directory like everybody else; without root this changes nothing."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
