"""compose.yaml and compose.cpu.yaml say what the settings, the Dockerfile and the entry point say.

Read as text: that Compose accepts the files is for the integration tests.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bringup import plan, settings
from bringup.catalog import TINY
from bringup.inside import parts
from bringup.inside.state import DEFAULT

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()
CPU = (ROOT / "compose.cpu.yaml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VOLUME = (ROOT / "compose.weights-volume.yaml").read_text()
DIRECTORY = (ROOT / "compose.weights-dir.yaml").read_text()


def block(text: str, key: str, indent: int = 4) -> list[str]:
    """The lines below `key:`, as far as they are indented deeper; comments and indentation removed."""
    found = re.search(rf"^ {{{indent}}}{key}:[^\n]*\n((?: {{{indent + 1},}}[^\n]*\n)*)", text, re.MULTILINE)
    assert found, key
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in found[1].splitlines())
    return [line for line in lines if line]


ENVIRONMENT = [line.removeprefix("- ") for line in block(COMPOSE, "environment")]


def test_every_server_setting_is_passed_on() -> None:
    wanted = {settings.variable(n) for n, (_, option) in settings.fields().items() if option.server}
    volume = [line.removeprefix("- ") for line in block(VOLUME, "environment")]
    # Where the weights are is said by the override alone; without one they are baked.
    assert "BRINGUP_WEIGHTS=volume" in volume
    assert {e.partition("=")[0] for e in ENVIRONMENT + volume if e.startswith("BRINGUP_")} == {*wanted, parts.VARIABLE}
    assert not {e.partition("=")[0] for e in ENVIRONMENT} & {e.partition("=")[0] for e in volume}


def test_the_volume_of_weights_is_where_the_container_looks() -> None:
    assert block(VOLUME, "volumes") == [f"- weights:{plan.WEIGHTS_DIR}"]
    assert re.search(rf"install -d -o 1000 -g 0 -m 0775 .* {plan.WEIGHTS_DIR}$", DOCKERFILE, re.MULTILINE)


def test_a_directory_of_weights_is_mounted_read_only_and_where_the_container_looks() -> None:
    place = f"{plan.WEIGHTS_DIR}/${{BRINGUP_MODEL:-{TINY}}}"
    assert block(DIRECTORY, "environment") == [f"- BRINGUP_WEIGHTS={place}"]
    mount = block(DIRECTORY, "volumes")
    assert f"target: {place}" in mount
    assert {"read_only: true", "create_host_path: false"} <= set(mount)


@pytest.mark.parametrize("text", [VOLUME, DIRECTORY])
def test_an_image_without_weights_is_built_without(text: str) -> None:
    assert block(text, "args", 6) == [f"MODEL: {plan.NO_MODEL}"]
    assert f'"$MODEL" = {plan.NO_MODEL} ]' in DOCKERFILE


def test_every_slot_of_weights_is_a_layer() -> None:
    made = re.findall(r" /slots/(\d)\b", next(line for line in DOCKERFILE.splitlines() if "mkdir -p /receipt" in line))
    copied = re.findall(r"^COPY --link --from=weights /slots/(\d)/ /opt/bringup/$", DOCKERFILE, re.MULTILINE)
    assert made == copied == [str(n) for n in range(9)]
    assert "n % 8 + 1" in DOCKERFILE


def test_what_the_host_gives_is_what_the_container_reads() -> None:
    given = settings.Settings(max_model_len=64, profile="fast", vllm_args=("--a", "b c"), bind="::1")
    names = {e.partition("=")[0] for e in ENVIRONMENT}
    passed = {k: v for k, v in settings.server_environment(given).items() if k in names}
    assert settings.from_environment(passed) == replace(given)


def test_unset_stays_unset() -> None:
    assert [e for e in ENVIRONMENT if "=" in e] == [
        "BRINGUP_BIND=${BRINGUP_BIND:-127.0.0.1}",
        "BRINGUP_API_KEY_FILE=/run/secrets/api_key",
    ]


def test_the_key_is_a_secret_file_and_nothing_else() -> None:
    assert not re.search(r"VLLM_API_KEY|HF_TOKEN\b|BRINGUP_API_KEY\b", COMPOSE + CPU + VOLUME + DIRECTORY)
    secret = block(COMPOSE, "api_key", 2)
    assert secret == ["file: ${BRINGUP_API_KEY_FILE:-/dev/null}"]


def test_nothing_that_the_image_sets_is_passed_on() -> None:
    # A variable that is passed on and unset outside is removed from the image's own environment.
    continued = DOCKERFILE.replace("\\\n", " ")
    baked = set(re.findall(r"\b([A-Z_]+)=", " ".join(re.findall(r"^ENV (.*)$", continued, re.MULTILINE))))
    assert "BRINGUP_FLAVOUR" in baked
    # Harmless: the entry point knows the only model, and no hf_transfer is what unset means too.
    assert baked & {e.partition("=")[0] for e in ENVIRONMENT} <= {"BRINGUP_MODEL", "HF_HUB_ENABLE_HF_TRANSFER"}


def test_the_port() -> None:
    assert block(COMPOSE, "ports") == [
        f"- target: {plan.SERVER_PORT}",
        f"published: ${{BRINGUP_PORT:-{settings.Settings().port}}}",
        f"host_ip: ${{BRINGUP_BIND:-{settings.Settings().bind}}}",
    ]


@pytest.mark.parametrize(("text", "flavour"), [(COMPOSE, "gpu"), (CPU, "cpu")])
def test_image_and_build_are_of_one_flavour(text: str, flavour: str) -> None:
    default = TINY
    assert f"image: ${{BRINGUP_IMAGE:-bringup:{flavour}-${{BRINGUP_MODEL:-{default}}}}}\n" in text
    assert f"FLAVOUR: {flavour}" in block(text, "args", 6)


def test_the_build_is_one_that_the_dockerfile_knows() -> None:
    target = next(line for line in block(COMPOSE, "build") if line.startswith("target:")).split()[1]
    assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
    arguments = {line.partition(":")[0] for line in block(COMPOSE, "args", 6)}
    assert arguments <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    for secret in ("ca", "hf_token"):
        assert f"id={secret}," in DOCKERFILE
        assert block(COMPOSE, secret, 2)[0].endswith(":-/dev/null}")


def test_only_the_gpu_flavour_reserves_a_gpu() -> None:
    assert "driver: nvidia" in " ".join(block(COMPOSE, "deploy"))
    assert "\n    deploy: !reset null\n" in CPU


def test_hardening() -> None:
    for line in ("read_only: true", "cap_drop: [ALL]", "- no-new-privileges:true", "init: true", "pull_policy: never"):
        assert f"    {line}\n" in COMPOSE
    for word in ("privileged:", "network_mode", "docker.sock", "pid: host", "ipc: host"):
        assert word not in COMPOSE + CPU + VOLUME + DIRECTORY


def test_the_state_volume_is_where_the_entry_point_writes() -> None:
    assert block(COMPOSE, "volumes") == [f"- state:{DEFAULT}"]
    assert re.search(rf"^VOLUME {DEFAULT}$", DOCKERFILE, re.MULTILINE)
