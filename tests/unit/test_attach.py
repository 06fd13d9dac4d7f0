"""Servers that ran before: whose port, whose model, which key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bringup import address, probes, workflow
from bringup.catalog import Canary
from bringup.edge.http import Http
from bringup.errors import TargetUnavailable, UsageError
from bringup.key import api_key
from bringup.records import ProbeRecord, Status
from bringup.server import Server
from bringup.settings import Settings
from bringup.targets.compose import ComposeTarget
from tests.unit.fakes import FakeContainer, FakeHttp, answer, state
from tests.unit.runs import Silent, a_run

UP = {"/health": answer(b""), "/v1/completions": answer({"usage": {"completion_tokens": 1}})}


def attach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, container: FakeContainer | None) -> Any:
    monkeypatch.setattr(ComposeTarget, "container", lambda _: container)
    return workflow.attach(a_run(tmp_path))


def on_port(*ports: str, status: str = "running") -> FakeContainer:
    published = {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": p} for p in ports] or None}
    return FakeContainer(states=[state(status)], inspected={"NetworkSettings": {"Ports": published}})


def test_attach_to_the_running_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    container, server = attach(monkeypatch, tmp_path, on_port("8000"))
    assert server.container is container
    assert server.http.base_url == "http://127.0.0.1:8000"
    attach(monkeypatch, tmp_path, on_port("8000", status="paused"))


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (None, "it has no container"),
        (FakeContainer(states=[state("exited")]), "its container is exited"),
        (on_port("8123"), "published on port 8123, not on 8000"),
        (on_port(), "published on port none"),
        (FakeContainer(inspected={"NetworkSettings": {"Ports": None}}), "published on port none"),
    ],
)
def test_there_is_no_such_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, container: FakeContainer | None, words: str
) -> None:
    with pytest.raises(TargetUnavailable, match=words):
        attach(monkeypatch, tmp_path, container)


def verify_address(monkeypatch: pytest.MonkeyPatch, http: FakeHttp, named: str | None = None) -> list[ProbeRecord]:
    monkeypatch.setattr(address, "Http", lambda *_: http)
    return list(
        address.verify_address("http://x", Settings(request_timeout=0.2, suite="smoke"), named, cast("Any", Silent()))
    )


def test_an_address_that_does_not_answer_costs_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    http = FakeHttp({})
    seen = verify_address(monkeypatch, http)
    assert len(http.asked) == 1
    assert {r.status for r in seen} == {Status.FAIL, Status.UNKNOWN}


@pytest.mark.parametrize("body", [{}, {"data": []}, {"data": [5]}, {"data": None}, [], {"data": [{}]}])
def test_a_list_without_a_model_is_not_a_crash(monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    seen = {r.name: r for r in verify_address(monkeypatch, FakeHttp({**UP, "/v1/models": answer(body)}))}
    assert seen["models"].status is Status.FAIL


@pytest.mark.parametrize(("named", "asked"), [(None, "tiny-qwen2"), ("other", "other")])
def test_the_named_model_or_the_first_listed_is_asked(
    monkeypatch: pytest.MonkeyPatch, named: str | None, asked: str
) -> None:
    expected: list[tuple[str | None, tuple[Canary, ...]]] = []

    def verify(server: Server, _: Any, __: Any) -> Iterator[ProbeRecord]:
        expected.append((server.expect.model, server.expect.canaries))
        return iter(())

    monkeypatch.setattr(probes, "verify", verify)
    verify_address(monkeypatch, FakeHttp({"/v1/models": answer({"data": [{"id": "tiny-qwen2"}]})}), named)
    assert expected[0][0] == asked
    assert bool(expected[0][1]) is (asked == "tiny-qwen2"), "known answers belong to the model that is asked"


# ---- the key


def test_the_key_comes_from_the_file_before_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" abc-123\n")
    assert api_key(Settings(api_key_file=file, api_key="other")) == "abc-123"
    assert api_key(Settings(api_key="other")) == "other"
    assert api_key(Settings()) is None


@pytest.mark.parametrize("content", [b"", b" \n", b"first second", "schlüssel".encode(), b"\xff\xfe"])
def test_a_key_that_cannot_be_sent_is_usage_and_is_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(UsageError) as e:
        api_key(Settings(api_key_file=file))
    assert not [word for word in content.split() if len(word) > 2 and word in str(e.value.message).encode()]


def test_a_key_file_that_is_not_there_is_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        api_key(Settings(api_key_file=tmp_path / "none"))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[::1", "http://x:99999", "http://u:p@x"]
)
def test_an_address_that_is_none_is_usage(url: str) -> None:
    with pytest.raises(UsageError):
        Http(url)
