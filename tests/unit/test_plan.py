"""The plan: argv, addresses and expectations from settings; what contradicts itself is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import catalog
from bringup.catalog import VLLM_VERSION, Canary, Model
from bringup.errors import UsageError
from bringup.lock import LockedFile, LockedModel
from bringup.plan import Plan, expect_remote, is_loopback, make_plan, require_fetchable, server_argv
from bringup.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CANARY = Canary("2 + 2 =", " 4")
LOCK = LockedModel("m", "local:models/m", "MIT", (LockedFile("a.json", 3, "0" * 64), LockedFile("b.json", 4, "1" * 64)))
MODEL = Model(
    name="m", source="models/m", architecture="A", context=1, license="MIT", gated=False, canaries=(CANARY,), lock=LOCK
)
KEY = Path("key")
ANY = "0.0.0.0"  # noqa: S104 - the address under test


def plan(flavour: str = "cpu", **settings: Any) -> Plan:
    return make_plan(Settings(model="m", **settings), MODEL, (flavour, "because"), {"model": "flag"})


# ---- argv

BASE = ["--model", "/opt/bringup/models/m", "--served-model-name", "m", "--host", ANY, "--port", "8000"]


@pytest.mark.parametrize(
    ("flavour", "settings", "added"),
    [
        ("cpu", {}, ["--enforce-eager"]),
        ("gpu", {}, []),
        ("gpu", {"profile": "eager"}, ["--enforce-eager"]),
        ("cpu", {"profile": "default"}, []),
        ("gpu", {"max_model_len": 4096}, ["--max-model-len", "4096"]),
        ("gpu", {"gpu_memory_utilization": 0.5}, ["--gpu-memory-utilization", "0.5"]),
        ("gpu", {"port": 9999, "bind": "::1"}, []),  # the host's side; inside it is always the same
        ("gpu", {"vllm_args": ("--seed", "1")}, ["--seed", "1"]),
        (
            "cpu",
            {"max_model_len": 8, "gpu_memory_utilization": 0.25, "vllm_args": ("--max-model-len", "9")},
            ["--max-model-len", "8", "--gpu-memory-utilization", "0.25", "--enforce-eager", "--max-model-len", "9"],
        ),  # what the user adds comes last, so that it wins
    ],
)
def test_argv(flavour: str, settings: dict[str, Any], added: list[str]) -> None:
    assert list(plan(flavour, **settings).argv) == BASE + added


def test_a_model_that_calls_tools_has_its_parser_and_the_users_wins() -> None:
    models = catalog.load()
    own = Settings(vllm_args=("--tool-call-parser", "pythonic"))
    made = make_plan(own, models["qwen2.5-0.5b-instruct"], ("gpu", "because"), {}).argv
    assert made[8:] == ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--tool-call-parser", "pythonic")
    assert [name for name, m in models.items() if m.tools] == ["qwen2.5-1.5b-instruct", "qwen2.5-0.5b-instruct"]


def test_argv_with_another_served_name() -> None:
    argv = server_argv(Settings(model="m", served_model_name="other"), "gpu")
    assert argv[argv.index("--served-model-name") + 1] == "other"
    assert argv[argv.index("--model") + 1].endswith("/m")


def test_no_secret_in_argv_or_plan(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    made = plan(api_key="s3cret", api_key_file=tmp_path / "key")
    assert "s3cret" not in json.dumps(made.to_dict(), default=str)


# ---- addresses


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True),
        (ANY, False), ("::", False), ("192.0.2.1", False), ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.mark.parametrize("address", ["", "example.org", "127.0.0.1:8000", "[::1]", "256.0.0.1", "127.1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="not an IP address"):
        is_loopback(address)


def test_compose_gets_an_address() -> None:
    assert plan(bind="localhost").bind == "127.0.0.1"  # "invalid ip address: localhost", says compose


@pytest.mark.parametrize("bind", [ANY, "::", "192.0.2.1", "2001:db8::1"])
def test_a_public_address_needs_a_key(bind: str) -> None:
    with pytest.raises(UsageError, match="no API key is set") as caught:
        plan(bind=bind)
    assert "--api-key-file" in caught.value.hint
    assert bind in caught.value.message
    with pytest.raises(UsageError):
        plan(bind=bind, api_key="only for verify URL")
    assert plan(bind=bind, api_key_file=KEY).bind == bind


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://127.0.0.1:8000"),
        (ANY, "http://127.0.0.1:8000"),
        ("192.0.2.1", "http://192.0.2.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("2001:db8::1", "http://[2001:db8::1]:8000"),
    ],
)
def test_where_the_probes_ask(bind: str, url: str) -> None:
    assert plan(bind=bind, api_key_file=KEY).base_url == url


def test_the_port_is_the_hosts() -> None:
    made = plan(port=1234)
    assert (made.port, made.base_url) == (1234, "http://127.0.0.1:1234")


# ---- where the weights are

HUB = replace(LOCK, source="hub", repo="o/m", revision="0" * 40)


def hub_plan(**settings: Any) -> Plan:
    return make_plan(Settings(model="m", **settings), replace(MODEL, lock=HUB), ("cpu", "because"), {})


def test_baked_weights() -> None:
    made = plan()
    assert (made.weights, made.baked_model, made.image) == ("baked", "m", "bringup:cpu-m")
    assert made.timeout == Settings().timeout


def test_a_volume_of_weights() -> None:
    made = hub_plan(weights="volume", timeout=10.0, fetch_timeout=5.0)
    assert (made.weights, made.baked_model, made.image) == ("volume", "none", "bringup:cpu")
    assert made.argv[:2] == ("--model", "/weights/m")
    assert made.compose_files == ("compose.yaml", "compose.cpu.yaml", "compose.weights-volume.yaml")
    assert made.environment["BRINGUP_WEIGHTS"] == "volume"
    assert made.timeout == 15.0, "the first start fetches"
    assert made.build_command.endswith("--model m --weights volume")
    assert made.expect.weights_bytes == 7


def test_a_directory_of_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = plan("gpu", weights=Path("here"))
    assert (made.weights, made.baked_model, made.image) == (str(tmp_path / "here"), "none", "bringup:gpu")
    assert made.argv[:2] == ("--model", "/weights/m")
    assert made.compose_files == ("compose.yaml", "compose.weights-dir.yaml")
    assert made.environment["BRINGUP_WEIGHTS"] == str(tmp_path / "here")
    assert made.timeout == Settings().timeout


def test_the_container_takes_the_path_that_it_is_given() -> None:
    assert server_argv(Settings(model="m", weights=Path("/weights/m")), "cpu")[1] == "/weights/m"


def test_what_lies_in_the_repository_is_not_fetched() -> None:
    with pytest.raises(UsageError, match="cannot be fetched") as caught:
        require_fetchable(Settings(model="m", weights="volume"), MODEL)
    require_fetchable(Settings(model="m"), MODEL)
    require_fetchable(Settings(model="m", weights=Path("here")), MODEL)
    assert "--weights baked" in caught.value.hint


def test_a_gated_model_on_a_volume_needs_its_token_as_a_file() -> None:
    gated = replace(MODEL, lock=HUB, gated=True)
    with pytest.raises(UsageError, match="in the environment only") as caught:
        require_fetchable(Settings(weights="volume", hf_token="hf_s3cret"), gated)
    assert "--hf-token-file" in caught.value.hint
    assert "s3cret" not in caught.value.message + caught.value.hint
    require_fetchable(Settings(weights="volume", hf_token="hf_s3cret", hf_token_file=KEY), gated)
    require_fetchable(Settings(weights="volume"), gated)  # it may be there already
    require_fetchable(Settings(weights="volume", hf_token="hf_s3cret"), replace(MODEL, lock=HUB))


# ---- the rest


@pytest.mark.parametrize(
    ("flavour", "files"), [("gpu", ("compose.yaml",)), ("cpu", ("compose.yaml", "compose.cpu.yaml"))]
)
def test_flavour(flavour: str, files: tuple[str, ...]) -> None:
    made = plan(flavour)
    assert (made.flavour, made.flavour_reason, made.compose_files) == (flavour, "because", files)
    assert made.image == f"bringup:{flavour}-m"
    assert made.expect.gpu is (flavour == "gpu")


@pytest.mark.parametrize(
    ("flavour", "cdi", "files"),
    [
        ("gpu", True, ("compose.yaml", "compose.cdi.yaml")),
        ("gpu", False, ("compose.yaml",)),
        ("cpu", True, ("compose.yaml", "compose.cpu.yaml")),
    ],
)
def test_compose_files(flavour: str, cdi: bool, files: tuple[str, ...]) -> None:
    made = make_plan(Settings(model="m"), MODEL, (flavour, "because"), {}, cdi=cdi)
    assert made.compose_files == files
    assert all((ROOT / name).is_file() for name in files)


def test_another_image() -> None:
    assert plan(image="mine:1").image == "mine:1"


def test_what_is_expected() -> None:
    expect = plan().expect
    assert (expect.model, expect.vllm_version, expect.canaries) == ("m", VLLM_VERSION, (CANARY,))
    assert (expect.weights_bytes, expect.container) == (7, True)
    assert plan(served_model_name="other").expect.model == "other"


def test_the_environment_carries_the_settings() -> None:
    environment = plan(max_model_len=5).environment
    given = {"BRINGUP_MODEL": "m", "BRINGUP_BIND": "127.0.0.1", "BRINGUP_MAX_MODEL_LEN": "5"}
    assert {k: environment.get(k) for k in given} == given
    assert "BRINGUP_SERVED_MODEL_NAME" not in environment


def test_the_plan_becomes_json() -> None:
    again = json.loads(json.dumps(plan().to_dict()))
    assert again["expect"]["canaries"] == [{"prompt": "2 + 2 =", "answer": " 4"}]
    assert again["sources"] == {"model": "flag"}
    assert again["argv"][:2] == BASE[:2]


@pytest.mark.parametrize("served", ["tiny-qwen2", "qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "strange"])
def test_what_is_known_of_a_model_is_known_by_its_name_and_by_its_repositorys(served: str) -> None:
    models = catalog.load()
    expect = expect_remote(models, served)
    if served == "strange":
        assert (expect.parameters, expect.fingerprint, expect.canaries) == (None, None, ())
    elif served == "tiny-qwen2":
        assert (expect.fingerprint, expect.canaries) == (models[served].fingerprint, models[served].canaries)
        assert expect.fingerprint
    else:
        assert expect.parameters == models["qwen2.5-0.5b-instruct"].parameters == 494_032_768


@pytest.mark.parametrize(("served", "canaries"), [("m", (CANARY,)), ("other", ()), (None, ())])
def test_of_a_server_elsewhere_only_answers_are_expected(served: str | None, canaries: tuple[Canary, ...]) -> None:
    expect = expect_remote({"m": MODEL}, served)
    assert (expect.model, expect.canaries) == (served, canaries)
    assert (expect.vllm_version, expect.weights_bytes, expect.container, expect.gpu) == (None, 0, False, False)
