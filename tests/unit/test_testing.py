"""What `VLLMContainer` asks the engine for, without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

import bringup
from bringup import testing
from bringup.edge.docker import Engine, EngineFacts
from bringup.errors import UsageError
from bringup.plan import EVERYWHERE

OURS = {"Config": {"Labels": {"dev.bringup.flavour": "cpu", "dev.bringup.model": "tiny-qwen2"}}}
GPU = {"Config": {"Labels": {"dev.bringup.flavour": "gpu", "dev.bringup.model": "tiny-qwen2"}}}
THEIRS: dict[str, Any] = {"Config": {"Labels": None}}


def container(**given: Any) -> testing.VLLMContainer:
    """One whose client was told its version, and so asks nobody."""
    return testing.VLLMContainer(docker_client_kw={"version": "1.47"}, **given)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(testing.VLLMContainer, "_engine_is_here", lambda _: True)
    monkeypatch.setattr(Engine, "image", lambda *_: OURS)
    return monkeypatch


def configured(made: testing.VLLMContainer) -> testing.VLLMContainer:
    made._configure()
    return made


def test_settings_become_the_images_variables_and_a_variable_of_the_callers_wins(here: pytest.MonkeyPatch) -> None:
    made = configured(
        container(api_key="k3y")
        .with_settings(max_model_len=256)
        .with_vllm_args("--seed", "1")
        .with_vllm_args("--x y")
        .with_profile("fast")
        .with_env("BRINGUP_LAUNCH", "plain")
        .with_env("BRINGUP_BIND", "10.0.0.1")
    )
    assert made.env.items() >= {
        "BRINGUP_MODEL": "tiny-qwen2", "BRINGUP_MAX_MODEL_LEN": "256", "BRINGUP_VLLM_ARGS": "--seed 1 '--x y'",
        "BRINGUP_PROFILE": "fast", "BRINGUP_LAUNCH": "plain", "BRINGUP_BIND": "10.0.0.1", "VLLM_API_KEY": "k3y",
    }.items()  # fmt: skip
    assert made._command is None
    assert str(made.ports) == "{'8000/tcp': ('127.0.0.1', None)}"
    assert "device_requests" not in made._kwargs
    assert made._kwargs["shm_size"] == "2g"


def test_another_image_is_given_vllms_arguments(here: pytest.MonkeyPatch) -> None:
    here.setattr(Engine, "image", lambda *_: THEIRS)
    made = configured(container(image="vllm/vllm-openai:v0.11.2", model="Qwen/Qwen2.5-0.5B-Instruct", api_key="k3y"))
    assert made._command == [
        "--model", "Qwen/Qwen2.5-0.5B-Instruct", "--served-model-name", "Qwen/Qwen2.5-0.5B-Instruct",
        "--host", EVERYWHERE, "--port", "8000",
    ]  # fmt: skip
    assert made.env == {"VLLM_API_KEY": "k3y"}
    own = configured(container(image="x", model="/m").with_command(["serve", "/m"]))
    assert own._command == ["serve", "/m"]


def test_the_gpu_flavour_gets_the_first_gpu_and_others_what_was_asked(here: pytest.MonkeyPatch) -> None:
    here.setattr(Engine, "image", lambda *_: GPU)
    here.setattr(Engine, "facts", lambda _: EngineFacts(reachable=True, runtimes=("nvidia",)))
    (first,) = configured(container())._kwargs["device_requests"]
    assert (first["Driver"], first["Count"], first["DeviceIDs"]) == ("nvidia", 1, [])
    (two,) = configured(container().with_gpus("device=0,2"))._kwargs["device_requests"]
    assert (two["Count"], two["DeviceIDs"]) == (0, ["0", "2"])
    here.setattr(Engine, "facts", lambda _: EngineFacts(reachable=True, gpu_devices=("nvidia.com/gpu=0",)))
    (cdi,) = configured(container().with_gpus())._kwargs["device_requests"]
    assert (cdi["Driver"], cdi["DeviceIDs"]) == ("cdi", ["nvidia.com/gpu=all"])


def test_without_a_key_it_is_on_loopback_or_not_at_all(here: pytest.MonkeyPatch) -> None:
    assert "VLLM_API_KEY" not in configured(container(api_key="")).env
    with pytest.raises(UsageError, match="reachable from elsewhere, and no API key"):
        configured(container(api_key="").with_bind_ports(8000, 8001))
    public = configured(container().with_bind_ports(8000, 8001))
    assert (public.ports, public.env["BRINGUP_BIND"]) == ({"8000": 8001}, EVERYWHERE)
    assert str(configured(container().with_exposed_ports(8000)).ports) == "{'8000/tcp': ('127.0.0.1', None)}"
    here.setattr(testing.VLLMContainer, "_engine_is_here", lambda _: False)
    assert configured(container()).ports == {"8000/tcp": None}
    with pytest.raises(UsageError, match="no API key"):
        configured(container(api_key=""))


def test_it_can_be_started_again(here: pytest.MonkeyPatch) -> None:
    made = configured(container(api_key=""))
    assert configured(made).ports == configured(container(api_key="")).ports


def test_what_cannot_be_is_refused_when_it_is_said() -> None:
    with pytest.raises(UsageError, match="'len' is no setting"):
        container().with_settings(len=1)
    with pytest.raises(UsageError, match="'bind' is no setting"):
        container().with_settings(bind="::")
    with pytest.raises(UsageError, match="max_model_len: 'many' is not a number"):
        container().with_settings(max_model_len="many")
    with pytest.raises(UsageError, match="--api-key is among"):
        container().with_vllm_args("--api-key", "x")
    with pytest.raises(UsageError, match="with_gpus"):
        container().with_gpus("some")


def test_gpus_for_the_cpu_flavour_are_refused(here: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the cpu flavour uses none"):
        configured(container().with_gpus())


def test_what_is_not_started_has_no_address() -> None:
    made = container()
    for name in ("base_url", "openai_url", "model"):
        with pytest.raises(UsageError, match="not started"):
            getattr(made, name)
    with pytest.raises(UsageError, match="not started"):
        made.verify()


def test_a_missing_testcontainers_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "testcontainers.core.container", None)
    monkeypatch.delitem(sys.modules, "bringup.testing")
    with pytest.raises(ImportError, match=r"^bringup\.testing needs the package testcontainers: pip install"):
        importlib.import_module("bringup.testing")


def test_the_page_names_every_public_name() -> None:
    page = (Path(bringup.__file__).parents[1] / "docs" / "testing.md").read_text("utf-8")
    assert [n for n in vars(testing.VLLMContainer) if not n.startswith("_") and n not in page] == []
