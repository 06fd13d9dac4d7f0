"""What a pod's host says by variables, and the environment of whoever logs in."""

from __future__ import annotations

import shlex

import pytest

from bringup.errors import UsageError
from bringup.inside import pod, session
from bringup.inside.pod import Ports
from bringup.plan import SERVER_PORT


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Ports()),
        ({"PORT": "", "PORT_HEALTH": ""}, Ports()),
        ({"PORT": "80"}, Ports(80, None, "/ping")),
        ({"PORT_HEALTH": "8001"}, Ports(SERVER_PORT, 8001, "/ping")),
        ({"PORT": "9000", "PORT_HEALTH": "9001", "HEALTH_CHECK_PATH": "/alive"}, Ports(9000, 9001, "/alive")),
        ({"PORT": "9000", "PORT_HEALTH": "9000"}, Ports(9000, None, "/ping")),
        ({"PORT_HEALTH": str(SERVER_PORT)}, Ports(SERVER_PORT, None, "/ping")),
        ({"HEALTH_CHECK_PATH": "/health"}, Ports(SERVER_PORT, None, "/health")),
    ],
)
def test_ports(environ: dict[str, str], expected: Ports) -> None:
    assert pod.ports(environ) == expected


def test_what_a_port_means_is_said_in_one_line() -> None:
    assert Ports().meaning == ""
    assert "on port 9 is 204 while the server loads" in Ports(8, 9, "/ping").meaning
    assert "nothing listens while it loads: set PORT_HEALTH" in Ports(8, None, "/ping").meaning


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"), ("PORT", "x"), ("PORT_HEALTH", "65536"), ("PORT_HEALTH", "-1"), ("HEALTH_CHECK_PATH", "ping"),
        ("HEALTH_CHECK_PATH", "/a b"), ("HEALTH_CHECK_PATH", "/a?b"), ("HEALTH_CHECK_PATH", "/%70"),
        ("HEALTH_CHECK_PATH", "/v1/models"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}: "):
        pod.ports({name: value})


NASTY = {
    "QUOTES": """a"b'c""",
    "RUN": "$(touch /tmp/pwned)`touch /tmp/pwned`${HOME}!!",
    "LINES": "one\ntwo\n\nexport OTHER=1",
    "SPACES": "  a  b ",
    "BACK": "\\n\\",
    "EMPTY": "",
    "BYTES": "\udcff\u00e9",
    "lower": "x",
}


def test_values_arrive_as_they_are() -> None:
    words = shlex.split(session.lines(NASTY))
    assert words[0::2] == ["export"] * len(NASTY)
    assert dict(word.split("=", 1) for word in words[1::2]) == NASTY


def test_what_is_the_sessions_own_is_left_out() -> None:
    own = ["HOME", "PWD", "SHLVL", "USER", "TERM", "SSH_CLIENT", "PUBLIC_KEY", "SSH_PUBLIC_KEY", "BRINGUP_SESSION",
           "PS1", "PROMPT_COMMAND", "BASH_ENV", "IFS", "UID", "ENV"]  # fmt: skip
    odd = ["BASH_FUNC_x%%", "a-b", "1A", "a b", "A;touch /tmp/pwned;B", "\nA"]
    kept = ["RUNPOD_POD_ID", "RUNPOD_API_KEY", "VLLM_API_KEY", "CUDA_VERSION", "PATH", "PORT", "USERNAME"]
    lines = session.lines(dict.fromkeys([*own, *odd, *kept], "1"))
    assert lines.splitlines() == [f"export {name}=1" for name in sorted(kept)]
