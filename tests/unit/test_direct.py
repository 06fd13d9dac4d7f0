"""Which addresses the door to plain HTTP is for."""

from __future__ import annotations

import pytest

from bringup.edge import direct


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_plain_http_without_a_proxy() -> None:
    assert direct.serves("http://10.0.0.5:8000", local=False)
    assert not direct.serves("https://10.0.0.5:8000", local=False)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_not_where_a_proxy_is_to_be_used(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://proxy:3128")
    assert not direct.serves("http://10.0.0.5:8000", local=False)
    assert direct.serves("http://127.0.0.1:8000", local=True)
    monkeypatch.setenv("no_proxy", "10.0.0.5")
    assert direct.serves("http://10.0.0.5:8000", local=False)


def test_a_proxy_for_https_alone_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert direct.serves("http://10.0.0.5:8000", local=False)
