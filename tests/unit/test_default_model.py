"""Which model a command means when none is named: the one that serves, the flavour's, or the one that needs no hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bringup import default_model
from bringup.catalog import TINY
from bringup.edge.docker import Engine
from bringup.errors import TargetUnavailable, UsageError
from bringup.settings import AUTO, Settings
from bringup.weights.hub import Hub

CPU = "qwen2.5-0.5b-instruct"
GPU = "qwen2.5-1.5b-instruct"


class FakeEngine:
    """An engine with some images, and perhaps a container whose environment names a model."""

    def __init__(self, images: tuple[str, ...] = (), serves: str = "") -> None:
        self.images, self.serves = images, serves

    def image(self, reference: str) -> dict[str, Any] | None:
        return {"Id": reference} if reference in self.images else None

    def find(self, _project: str, _service: str) -> Any:
        return type("State", (), {"id": "c"})() if self.serves else None

    def inspect(self, _container: str) -> dict[str, Any]:
        return {"Config": {"Env": ["PATH=/bin", f"BRINGUP_MODEL={self.serves}"]}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that the Hub was asked for; it does not answer."""
    urls: list[str] = []

    def head(_hub: Hub, url: str) -> Any:
        urls.append(url)
        raise TargetUnavailable("no route")

    monkeypatch.setattr(Hub, "head", head)
    return urls


def resolve(engine: FakeEngine, flavour: str = "cpu", reachable: bool = True, **settings: Any) -> tuple[str, str]:
    made, model, why = default_model.resolve(Settings(**settings), cast("Engine", engine), reachable, flavour)
    assert made.model == model.name != AUTO
    return model.name, why


def test_a_named_model_is_that_model(asked: list[str]) -> None:
    assert resolve(FakeEngine(serves=TINY), model=CPU) == (CPU, "")
    assert asked == []


def test_what_the_project_serves_comes_first(asked: list[str]) -> None:
    name, why = resolve(FakeEngine(serves=TINY), project="mine")
    assert (name, asked) == (TINY, [])
    assert "project mine" in why


@pytest.mark.parametrize(("flavour", "name"), [("cpu", CPU), ("gpu", GPU)])
def test_an_image_that_is_there_needs_no_hub(asked: list[str], flavour: str, name: str) -> None:
    assert resolve(FakeEngine(images=(f"bringup:{flavour}-{name}",)), flavour)[0] == name
    assert asked == []


@pytest.mark.parametrize("reachable", [True, False])
def test_without_a_hub_it_is_the_model_that_needs_none(asked: list[str], reachable: bool) -> None:
    name, why = resolve(FakeEngine(), reachable=reachable, hf_endpoint="http://mirror")
    assert name == TINY
    assert "no route" in why
    assert [url.startswith("http://mirror/Qwen/Qwen2.5-0.5B-Instruct/resolve/") for url in asked] == [True]


@pytest.mark.parametrize(("flavour", "name"), [("cpu", CPU), ("gpu", GPU)])
@pytest.mark.parametrize("refused", [True, False])
def test_a_hub_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch, flavour: str, name: str, refused: bool) -> None:
    def head(_hub: Hub, _url: str) -> Any:
        if refused:
            raise UsageError("HTTP 401")
        return type("Answer", (), {"close": lambda _: None})()

    monkeypatch.setattr(Hub, "head", head)
    assert resolve(FakeEngine(), flavour)[0] == name


def test_weights_that_are_there_need_no_hub(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(FakeEngine(), target="local", project="none-such")[0] == TINY
    (tmp_path / "weights" / CPU).mkdir(parents=True)
    assert resolve(FakeEngine(), target="local", project="none-such")[0] == CPU
    assert len(asked) == 1


def test_a_volume_is_filled_by_the_hub_whatever_images_there_are(asked: list[str]) -> None:
    assert resolve(FakeEngine(images=(f"bringup:cpu-{CPU}",)), weights="volume")[0] == TINY
    assert len(asked) == 1
