"""What the engine's refusals become."""

from __future__ import annotations

from typing import Any, cast

import pytest
import requests
from docker.errors import APIError

from bringup.edge.docker import answers, unframed
from bringup.errors import BringupError, EvidenceMissing, TargetUnavailable


def refusal(status: int, explanation: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return APIError("refused", cast("Any", response), explanation)


@pytest.mark.parametrize(
    ("status", "explanation", "kind", "said"),
    [
        (409, "can not get logs from container which is dead or marked for removal", EvidenceMissing, "is gone"),
        (409, "container 1234 is not running", EvidenceMissing, "refused: container 1234 is not running"),
        (500, "no space left on device", TargetUnavailable, "failed"),
    ],
)
def test_a_refusal_is_told_from_a_failure(status: int, explanation: str, kind: type[BringupError], said: str) -> None:
    with pytest.raises(kind, match=said), answers():
        raise refusal(status, explanation)


def framed(*pieces: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([stream, 0, 0, 0]) + len(data).to_bytes(4) + data for stream, data in pieces)


def test_both_streams_come_as_they_were_written() -> None:
    assert unframed(framed((1, b"out\n"), (2, b"err\n"), (1, b""), (1, b"x" * 70_000))) == b"out\nerr\n" + b"x" * 70_000
    assert unframed(b"") == b""


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_output_that_ends_in_the_middle_is_no_output(cut: int) -> None:
    with pytest.raises(EvidenceMissing, match="too early"):
        unframed(framed((1, b"abc"), (1, b"def"))[:-cut])
