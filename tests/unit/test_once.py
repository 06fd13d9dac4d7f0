"""A container for one program: what it is given, and that it is gone afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest

from bringup import gpus
from bringup.edge.docker import Engine
from bringup.errors import NeverReady, TargetUnavailable


class Container:
    """A made-up container of the SDK."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, Exception] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def start(self) -> None:
        self._call("start")

    def wait(self, timeout: float) -> dict[str, int]:
        assert timeout > 0
        self._call("wait")
        return {"StatusCode": 3}

    def logs(self, *, stdout: bool, stderr: bool) -> bytes:
        assert (stdout, stderr) == (True, False)
        self._call("logs")
        return b"said\n"

    def remove(self, *, force: bool, v: bool) -> None:
        assert (force, v) == (True, True)
        self._call("remove")


@pytest.fixture
def container() -> Container:
    return Container()


@pytest.fixture
def given() -> dict[str, Any]:
    return {}


@pytest.fixture
def engine(container: Container, given: dict[str, Any]) -> Engine:
    def create(image: str, **options: Any) -> Container:
        given.update(options, image=image)
        return container

    made = Engine()
    made._client = SimpleNamespace(containers=SimpleNamespace(create=create))  # type: ignore[assignment]
    return made


def test_a_program_runs_and_its_container_goes(engine: Engine, container: Container, given: dict[str, Any]) -> None:
    assert engine.once("i", ["python", "-c", "x"], gpus.request(None, cdi=False)) == (3, "said\n")
    assert container.calls == ["start", "wait", "logs", "remove"]
    assert (given["image"], given["entrypoint"], given["command"]) == ("i", ["python"], ["-c", "x"])
    assert (given["network_mode"], given["read_only"], given["cap_drop"]) == ("none", True, ["ALL"])
    (request,) = given["device_requests"]
    assert (request["Driver"], request["Count"], request["DeviceIDs"]) == ("nvidia", 1, [])
    assert request["Capabilities"] == [["gpu"]]


def test_a_device_is_asked_for_by_its_name(engine: Engine, given: dict[str, Any]) -> None:
    engine.once("i", ["x"], gpus.request("device=1", cdi=True))
    (request,) = given["device_requests"]
    assert (request["Driver"], request["Count"], request["DeviceIDs"]) == ("cdi", 0, ["nvidia.com/gpu=1"])


def test_all_of_them(engine: Engine, given: dict[str, Any]) -> None:
    engine.once("i", ["x"], gpus.request("all", cdi=False))
    (request,) = given["device_requests"]
    assert (request["Count"], request["DeviceIDs"]) == (-1, [])


@pytest.mark.parametrize(
    ("call", "error", "kind", "words"),
    [
        (
            "start",
            docker.errors.APIError("500", explanation="could not select device driver"),
            NeverReady,
            "^could not",
        ),
        ("start", docker.errors.APIError("500 no words"), NeverReady, "500 no words"),
        ("start", OSError("gone"), TargetUnavailable, "gone"),
        ("wait", OSError("timed out"), TargetUnavailable, "timed out"),
        ("logs", KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_fails_leaves_no_container(
    engine: Engine, container: Container, call: str, error: Any, kind: type[BaseException], words: str | None
) -> None:
    container.fails[call] = error
    with pytest.raises(kind, match=words):
        engine.once("i", ["x"], gpus.request(None, cdi=False))
    assert container.calls[-1] == "remove"
