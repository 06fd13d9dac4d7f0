"""RunPod's API for tests: `FakeRunPod` starts it as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
KEY = "rpa_TESTKEYTESTKEYTESTKEYTESTKEY"
GPUS = ("NVIDIA L4", "NVIDIA RTX A5000", "NVIDIA GeForce RTX 4090")


class FakeRunPod:
    """The API from `with` to its end; it ends with this process, however that ends."""

    def __enter__(self) -> Self:
        argv = [sys.executable, "-m", "tests.runpod.server"]
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the fake API did not start; what it said is above")
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def environment(self, state: Path) -> dict[str, str]:
        """The variables that lead the command line here."""
        return {
            "RUNPOD_API_KEY": KEY, "BRINGUP_RUNPOD_API": self.url, "BRINGUP_RUNPOD_STATE": str(state),
            "BRINGUP_RUNPOD_PROXY": self.url + "/proxy/{pod}-{port}",
        }  # fmt: skip

    def fault(self, kind: str, method: str = "*", path: str = ".*", times: int = -1, **given: Any) -> None:
        """Set a rule: see `tests.runpod.server.FAULTS`."""
        self._control("fault", kind=kind, method=method, path=path, times=times, given=given)

    def mend(self) -> None:
        """No faults any more."""
        self._control("mend")

    def manner(self, **given: Any) -> None:
        """How pods created from now on behave: see `tests.runpod.server.Manner`."""
        self._control("manner", **given)

    def clear(self) -> None:
        """No faults, no pods, no templates, honest pods, an empty log."""
        self._control("clear")

    def pods(self) -> list[dict[str, Any]]:
        """The pods that there are, with their bodies."""
        found: list[dict[str, Any]] = self._control("pods")
        return found

    def requests(self) -> list[str]:
        """What was asked of the API since `clear`: method, path, status."""
        lines: list[str] = self._control("requests")
        return lines

    def _control(self, action: str, **given: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/_control/{action}", json.dumps(given).encode(), method="POST")  # noqa: S310
        with self._direct.open(request, timeout=60) as answer:
            return json.load(answer)
