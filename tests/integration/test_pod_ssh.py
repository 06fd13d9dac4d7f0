"""A pod that is a container of the image, with its own sshd: one start, and all that SSH is for. The API is a stand-in.

The flavour of the container is cpu and that of a pod gpu: what nvidia-smi says is missing, and nothing else is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bringup import bundle
from bringup.edge import ssh
from bringup.errors import EvidenceMissing, TargetUnavailable
from bringup.redact import redact
from bringup.runpod.access import announced
from bringup.testing import FREE, VLLMContainer
from tests.command.test_runpod import FROM_INSIDE, probe
from tests.integration.support import Result, bringup, execute, vllm
from tests.runpod import FakeRunPod

pytestmark = pytest.mark.integration

STATE = "/var/lib/bringup/elsewhere"  # as on a pod's volume: only the pod knows where
RUN = f"{STATE}/run"
WITHOUT_GPU = "nvidia_smi_serving.txt"


@dataclass(frozen=True)
class Pod:
    """A container that the API shows as a pod, and the user's desk."""

    container: VLLMContainer
    fake: FakeRunPod
    door: ssh.Door
    place: Path

    def run(self, *args: str) -> Result:
        env = self.fake.environment(self.place / "state") | {"BRINGUP_RUNPOD_PROXY": self.container.base_url}
        return bringup("runpod", *args, "--patience", "5s", env=env, timeout=300)

    def look(self, *args: str) -> tuple[Result, bundle.Bundle]:
        """A command with a bundle, and that."""
        before = set(self.place.glob("a/*/*"))
        done = self.run(*args, "--suite", "smoke", "--artifacts", str(self.place / "a"))
        (made,) = set(self.place.glob("a/*/*")) - before
        return done, bundle.read(made)

    def shell(self, *argv: str) -> None:
        done = execute(self.container.get_wrapped_container(), *argv)
        assert done.code == 0, done.err


@pytest.fixture(scope="module")
def pod(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    place = tmp_path_factory.mktemp("pod")
    private, public = ssh.make_key("test")
    key, word = place / "key", place / "word"
    key.write_text(private)
    key.chmod(0o600)
    container = vllm(image).with_envs(PUBLIC_KEY=public, BRINGUP_STATE_DIR=STATE)
    container.ports["22/tcp"] = FREE
    with container, FakeRunPod() as fake:
        word.write_text(container.api_key)
        lines = container.get_wrapped_container().logs().decode().splitlines()
        (who,) = announced(lines)
        port = int(container.get_exposed_port(22))
        fake.manner(sshd=port, log=lines)
        door = ssh.Door(host="127.0.0.1", port=port, user=who.user, key_file=key, host_key=who.host_key)
        yield Pod(container, fake, door, place)


@pytest.fixture(scope="module")
def up(pod: Pod) -> tuple[Result, bundle.Bundle]:
    given = ("--ssh-key", str(pod.door.key_file), "--api-key-file", str(pod.place / "word"))
    return pod.look("up", "--image", "x/y:z", "--gpu-type", "NVIDIA L4", "--poll", "0.1s", "--keep", *given)


def test_the_server_is_verified_both_ways_and_all_of_its_files_are_had(
    pod: Pod, up: tuple[Result, bundle.Bundle]
) -> None:
    done, kept = up
    assert done.code == 9, done.err  # for want of a GPU, as the next lines say
    assert kept.faults == ()
    assert kept.files.keys() >= FROM_INSIDE - {WITHOUT_GPU}
    missing = probe(kept, "inside")["found"]
    assert missing.startswith(f"missing: {WITHOUT_GPU} (")
    assert ";" not in missing
    assert probe(kept, "direct")["found"] == "passes directly, as through the proxy"
    seen = kept.json("pod.json")["ssh"]
    assert (seen["user"], seen["host_key"]) == (pod.door.user, pod.door.host_key)
    assert {Path(path).name for path in seen["files"]} == {
        "server.jsonl", "caches-before.json", "caches-now.json", "weights.lock", "weights.receipt.json",
    }  # fmt: skip
    assert all(copied["checked"] for copied in seen["files"].values())
    assert abs(seen["clock"]["offset_seconds"]) < 60
    assert not any(pod.container.api_key.encode() in data for data in kept.files.values())


def test_what_was_copied_is_this_server(pod: Pod, up: tuple[Result, bundle.Bundle]) -> None:
    _, kept = up
    assert kept.record["caches"]["caches"]
    processes = kept.text("vllm_process.txt") or ""
    assert "bringup.inside.serve" in processes
    assert "EngineCore" in processes
    assert json.loads(kept.text("weights.lock") or "")["models"].keys() == {"tiny-qwen2"}
    log = kept.text("server.jsonl") or ""
    with ssh.connect(pod.door) as line:
        grown = redact(line.copy_out(f"{RUN}/server.jsonl").decode(), [pod.container.api_key])
    assert grown.startswith(log)


def test_a_stranger_is_not_talked_to(pod: Pod, up: tuple[Result, bundle.Bundle]) -> None:
    _, other = ssh.make_key("")
    logged_in = _logins(pod)
    done, kept = pod.look("collect", "--host-key", other)
    assert (done.code, probe(kept, "direct")["status"]) == (7, "fail")
    assert "nothing was sent [ssh-host-key]" in probe(kept, "direct")["found"]
    assert not kept.files.keys() & FROM_INSIDE
    time.sleep(1)  # what sshd would have said, it has
    assert _logins(pod) == logged_in


def _logins(pod: Pod) -> int:
    return int(pod.container.get_wrapped_container().logs().decode().count("Accepted publickey"))


def test_later_the_start_is_told_by_the_log_and_a_link_is_named_and_not_followed(
    pod: Pod, up: tuple[Result, bundle.Bundle]
) -> None:
    pod.shell("mv", f"{RUN}/caches-before.json", f"{RUN}/aside")
    pod.shell("ln", "-s", "/etc/passwd", f"{RUN}/caches-before.json")
    done, kept = pod.look("collect", "--host-key", pod.door.host_key)
    assert done.code == 9, done.err
    assert f"{RUN}/caches-before.json in the pod is no regular file" in probe(kept, "inside")["found"]
    assert not any(b"root:x:0" in data for data in kept.files.values())
    stages = {s["name"]: s for s in kept.record["timeline"]["stages"]}
    assert stages["model load"]["seconds"] > 0
    pod.shell("mv", f"{RUN}/aside", f"{RUN}/caches-before.json")


def test_sshd_lets_in_one_key_and_leads_to_the_server_only(pod: Pod) -> None:
    with ssh.connect(pod.door) as line:
        assert line.execute(["sh", "-c", 'echo "it\'s"; exit 3']) == (3, "it's\n")
        with pytest.raises(EvidenceMissing, match="forbids port forwarding"), line.forward(22):
            pass
    other: Any = pod.place / "other"
    other.write_text(ssh.make_key("")[0])
    other.chmod(0o600)
    door = ssh.Door(**(vars(pod.door) | {"key_file": other}))
    with pytest.raises(TargetUnavailable, match="does not take the key"):
        ssh.connect(door).__enter__()
