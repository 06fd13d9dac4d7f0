"""The health check: 200 and nothing else is healthy."""

from __future__ import annotations

import http.client
import signal
from typing import Any, cast

import pytest

from bringup.inside import health
from bringup.plan import SERVER_PORT


class Connection:
    """Answers a status, or fails where told."""

    def __init__(self, status: int = 200, error: Exception | None = None) -> None:
        self.status, self.error = status, error
        self.asked: list[tuple[str, str]] = []

    def request(self, method: str, path: str) -> None:
        self.asked.append((method, path))
        if self.error:
            raise self.error

    def getresponse(self) -> Connection:
        return self


def check(connection: Connection) -> tuple[bool, str]:
    return health.healthy(lambda: cast(http.client.HTTPConnection, connection))


def test_the_port_is_the_servers() -> None:
    assert int(health.PORT) == SERVER_PORT


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (204, False), (301, False), (401, False), (503, False)])
def test_only_200_is_healthy(status: int, healthy: bool) -> None:
    connection = Connection(status)
    assert check(connection) == (healthy, f"HTTP {status}")
    assert connection.asked == [("GET", "/health")]


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(111, "refused"), TimeoutError("late"), http.client.BadStatusLine("x"), OSError("gone")],
)
def test_no_answer_is_unhealthy_and_says_why(error: Exception) -> None:
    healthy, found = check(Connection(error=error))
    assert not healthy
    assert found.startswith(type(error).__name__)


@pytest.mark.parametrize(("status", "code", "port"), [(200, 0, ""), (503, 1, "9000")])
def test_main_has_one_deadline_for_everything(
    status: int, code: int, port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alarms: list[int] = []
    handlers: dict[int, Any] = {}
    made: list[Any] = []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)

    def connect(*args: Any, **options: Any) -> Connection:
        made.append((args, options))
        return Connection(status)

    monkeypatch.setattr(http.client, "HTTPConnection", connect)
    monkeypatch.setenv("PORT", port)
    assert health.main() == code
    assert alarms == [4]
    assert made == [(("127.0.0.1", int(port or 8000)), {"timeout": 4})]
    assert capsys.readouterr().out == f"/health: HTTP {status}\n"
    with pytest.raises(TimeoutError, match="4 s"):
        handlers[signal.SIGALRM](signal.SIGALRM, None)
