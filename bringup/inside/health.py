"""The image's HEALTHCHECK: does /health answer 200 within four seconds?

It runs every few seconds for as long as the server lives, so it imports next to nothing.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

PORT = "8000"  # plan.SERVER_PORT; importing plan would double the cost of every check
DEADLINE = 4  # seconds, for everything together


def healthy(connect: Callable[[], http.client.HTTPConnection]) -> tuple[bool, str]:
    """Whether the server says that its engine lives, and what was seen."""
    try:
        connection = connect()
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as e:
        return False, f"{type(e).__name__}: {e}"
    return status == http.client.OK, f"HTTP {status}"


def _too_late(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"no answer within {DEADLINE} s")


def main() -> int:
    """0 when healthy, else 1; the line goes to `docker inspect`'s health log."""
    signal.signal(signal.SIGALRM, _too_late)  # http.client's timeout counts per read, a dripping answer never ends
    signal.alarm(DEADLINE)
    port = int(os.environ.get("PORT") or PORT)
    ok, found = healthy(lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE))
    sys.stdout.write(f"/health: {found}\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
