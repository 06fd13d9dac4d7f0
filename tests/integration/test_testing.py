"""`bringup.testing.VLLMContainer` on the real image: it waits for an answer, dies fast, and leaves nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import docker
import pytest
import requests

from bringup.errors import NeverReady, UsageError
from bringup.records import Status, verdict_of
from bringup.redact import redact
from bringup.testing import VLLMContainer
from tests.integration.support import LABEL, MODEL, ROOT, SESSION, labelled, vllm

pytestmark = pytest.mark.integration

FOREIGN = f"{SESSION}:plain-vllm"


@pytest.fixture(scope="module")
def server(image: str) -> Iterator[VLLMContainer]:
    with vllm(image).with_settings(max_model_len=512).with_vllm_args("--max-num-seqs", "16") as made:
        yield made


def test_it_has_answered_when_it_is_there(server: VLLMContainer) -> None:
    assert server.moments.first_token is not None
    assert server.moments.first_200 is not None
    body = {"model": server.model, "prompt": "What is a GPU?", "max_tokens": 1}
    answer = requests.post(
        f"{server.openai_url}/completions", json=body, headers={"Authorization": f"Bearer {server.api_key}"}, timeout=60
    )
    assert answer.json()["usage"]["completion_tokens"] == 1
    assert (server.model, server.openai_url) == (MODEL, f"{server.base_url}/v1")


def test_its_key_is_made_demanded_and_in_no_argument(server: VLLMContainer) -> None:
    assert len(server.api_key) >= 32
    assert server.api_key != VLLMContainer().api_key
    assert requests.get(f"{server.openai_url}/models", timeout=10).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert requests.get(f"{server.openai_url}/models", headers=wrong, timeout=10).status_code == 401
    raw = server.get_wrapped_container()
    processes = json.dumps(raw.top(ps_args="-eo pid,args"))
    assert "--max-num-seqs" in processes
    assert server.api_key not in processes + json.dumps(raw.attrs["Config"]["Cmd"]) + raw.logs().decode()


def test_verify_asks_everything_and_it_passes(server: VLLMContainer) -> None:
    records = server.verify()
    assert verdict_of(records) == "pass", records
    seen = {r.name: r.status for r in records}
    assert seen["auth"] == seen["completion"] == seen["version"] == Status.PASS
    with pytest.raises(UsageError, match="no suite 'all'"):
        server.verify("all")


def test_it_listens_on_loopback_only(server: VLLMContainer) -> None:
    (published,) = server.get_wrapped_container().attrs["NetworkSettings"]["Ports"]["8000/tcp"]
    assert published["HostIp"] == "127.0.0.1"


def test_the_example_of_the_docs_is_true(image: str) -> None:
    """The block as it stands; its container is found by its image, for it has no label of ours."""
    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    space: dict[str, object] = {}
    exec(compile(block, "docs/testing.md", "exec"), space)  # noqa: S102 - it is our own page
    test = space["test_it_answers"]
    assert callable(test)
    test()


# ---- dying


def failing(engine: docker.DockerClient, container: VLLMContainer, kind: type[Exception], words: str) -> str:
    """Start it; what the exception's notes say. Nothing may be left of it."""
    before = labelled(engine)
    with pytest.raises(kind, match=words) as caught:
        container.start()
    assert labelled(engine) == before
    return "\n".join(getattr(caught.value, "__notes__", []))


def test_a_crash_ends_the_wait_with_vllms_own_reason(engine: docker.DockerClient, image: str) -> None:
    started = time.monotonic()
    said = failing(engine, vllm(image).with_vllm_args("--max-model-len", "99999999"), NeverReady, "exited, exit code 6")
    assert "User-specified max_model_len (99999999) is greater than the derived" in said
    assert time.monotonic() - started < 300, "nobody waited for the deadline of 600 s"


def test_a_model_that_is_not_in_the_image_is_the_entry_points_to_refuse(
    engine: docker.DockerClient, image: str
) -> None:
    container = vllm(image, model="qwen2.5-0.5b-instruct")
    assert "does not hold the model" in failing(engine, container, NeverReady, "usage or configuration")


def test_a_model_that_nobody_knows_starts_nothing(engine: docker.DockerClient, image: str) -> None:
    assert "bringup models" in failing(engine, vllm(image, model="nope"), UsageError, "no model is named 'nope'")


def test_a_server_that_serves_another_name_is_no_reason_to_wait(engine: docker.DockerClient, image: str) -> None:
    container = vllm(image).with_env("BRINGUP_SERVED_MODEL_NAME", "other")
    failing(engine, container, NeverReady, f"answers, but not this request: HTTP 404.*{MODEL}")


def test_the_deadline_is_kept_and_the_last_lines_are_told(engine: docker.DockerClient, image: str) -> None:
    """Which lines those are depends on how far this machine gets in 4 s: they are compared with the log itself."""

    class Logged(VLLMContainer):
        log = ""

        def _wait(self) -> None:
            try:
                super()._wait()
            finally:
                self.log = self.get_wrapped_container().logs().decode()

    container = Logged(image, timeout=4.0).with_kwargs(labels={LABEL: SESSION})
    said = failing(engine, container, NeverReady, "no token within 4 s; the container is running")
    told = said.partition("\n-> ")[0]
    assert "bringup: starting vLLM" in container.log
    assert told, "no line was told"
    assert told in "\n".join(redact(container.log).splitlines())  # vLLM ends some of them by CR and LF


def test_an_image_that_is_not_there_names_the_build(engine: docker.DockerClient) -> None:
    said = failing(engine, vllm("bringup:cpu-nobody"), UsageError, "no image bringup:cpu-nobody")
    assert "bringup build --flavour cpu --model nobody" in said


def test_stopped_by_somebody_else_it_is_told(engine: docker.DockerClient, image: str) -> None:
    """`with` must not hide what the test body raised."""

    class Stopped(VLLMContainer):
        def _wait(self) -> None:
            self.get_wrapped_container().kill()
            super()._wait()

    container = Stopped(image).with_kwargs(labels={LABEL: SESSION})
    failing(engine, container, NeverReady, "exited, exit code 137")


# ---- an image that is not bringup's


@pytest.fixture(scope="module")
def foreign(engine: docker.DockerClient, image: str) -> Iterator[str]:
    """Plain vLLM behind the entry point that vLLM's own image has, without our labels."""
    made = engine.containers.create(image)
    try:
        made.commit(
            *FOREIGN.split(":"),
            changes=[
                'ENTRYPOINT ["/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]',
                'LABEL dev.bringup.flavour="" dev.bringup.model=""',
                "ENV VLLM_CPU_KVCACHE_SPACE=1",
            ],
        )
    finally:
        made.remove(v=True)
    yield FOREIGN
    engine.images.remove(FOREIGN)


def test_plain_vllm_is_given_its_arguments_and_the_key(foreign: str) -> None:
    container = vllm(foreign, model=f"/opt/bringup/models/{MODEL}").with_settings(
        served_model_name=MODEL, max_model_len=256
    )
    with container.with_profile("eager") as server:
        seen = {r.name: r.status for r in server.verify("smoke")}
        assert {n for n, s in seen.items() if s == Status.SKIP} == {"process", "vram"}
        assert seen["completion"] == seen["auth"] == Status.PASS, seen
        argv = server.get_wrapped_container().attrs["Config"]["Cmd"]
    assert argv[:4] == ["--model", f"/opt/bringup/models/{MODEL}", "--served-model-name", MODEL]
    assert "--enforce-eager" in argv
    assert server.api_key not in argv


def test_plain_vllm_needs_to_be_told_its_model(engine: docker.DockerClient, foreign: str) -> None:
    failing(engine, vllm(foreign), UsageError, "which model it is to serve is not known")
