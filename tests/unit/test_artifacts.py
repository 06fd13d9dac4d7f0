"""The bundle is complete or absent, its sums are right, and nothing that was not seen is in it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bringup import artifacts
from bringup.edge import process
from bringup.edge.http import NoAnswer
from bringup.errors import EvidenceMissing, UsageError
from tests.unit.fakes import FakeContainer, FakeHttp, answer, make_server, plan

FILES = {"b.txt": "two\n", "a.json": "{}\n", "ü.txt": "ü\n"}


def listing(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_every_file_is_in_the_sums_and_the_sums_are_right(tmp_path: Path) -> None:
    bundle = artifacts.write(tmp_path / "deep" / "bundle", FILES, [])
    assert bundle == tmp_path / "deep" / "bundle"
    assert listing(tmp_path / "deep") == ["bundle"]
    assert listing(bundle) == sorted([*FILES, "SHA256SUMS"])
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{hashlib.sha256((bundle / f).read_bytes()).hexdigest()}  {f}" for f in sorted(FILES)]
    assert (bundle / "b.txt").read_text() == "two\n"


def test_secrets_are_taken_out_and_the_sums_are_those_of_the_result(tmp_path: Path) -> None:
    bundle = artifacts.write(tmp_path / "b", {"log": "the key s3cretkey and HF_TOKEN=abcdef\n"}, ["s3cretkey"])
    data = (bundle / "log").read_bytes()
    assert data == b"the key [redacted] and HF_TOKEN=[redacted]\n"
    assert hashlib.sha256(data).hexdigest() in (bundle / "SHA256SUMS").read_text()


def test_half_a_surrogate_pair_is_written_as_json_has_it(tmp_path: Path) -> None:
    text = artifacts.as_json(json.loads('{"text": "\\ud83d"}'))
    bundle = artifacts.write(tmp_path / "b", {"sample.json": text}, [])
    assert json.loads((bundle / "sample.json").read_text()) == {"text": "\ud83d"}


@pytest.mark.parametrize("failing", ["a.json", "b.txt", "SHA256SUMS"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    real = artifacts._write

    def write(path: Path, data: bytes) -> None:
        if path.name == failing:
            path.write_bytes(data[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr(artifacts, "_write", write)
    with pytest.raises(EvidenceMissing, match="No space left on device"):
        artifacts.write(tmp_path / "bundle", FILES, [])
    assert listing(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write(tmp_path / "bundle", FILES, [])
    assert listing(tmp_path) == []


def test_a_bundle_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    first = artifacts.write(tmp_path / "bundle", {"a": "first"}, [])
    with pytest.raises(EvidenceMissing, match="could not be written"):
        artifacts.write(tmp_path / "bundle", {"a": "second"}, [])
    assert (first / "a").read_text() == "first"
    assert listing(tmp_path) == ["bundle"]


def test_the_work_of_another_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    other = tmp_path / ".bundle.2.part"
    other.mkdir()
    (other / "a").write_text("half")
    artifacts.write(tmp_path / "bundle", FILES, [])
    assert (other / "a").read_text() == "half"


# ---- signed


def signer(monkeypatch: pytest.MonkeyPatch, outcome: process.Outcome) -> list[list[str]]:
    """Stands for ssh-keygen: it writes a signature if it ends well."""
    asked: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> process.Outcome:
        asked.append(argv)
        if outcome.code == 0:
            Path(argv[-1] + ".sig").write_text("signed\n")
        return outcome

    monkeypatch.setattr(process, "run", run)
    return asked


def ended(code: int, tail: str = "") -> process.Outcome:
    return process.Outcome((), code, "", tail, 0.0)


def test_the_sums_are_signed_before_the_bundle_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").touch()
    asked = signer(monkeypatch, ended(0))
    bundle = artifacts.write(tmp_path / "out" / "b", FILES, [], tmp_path / "key")
    ((*fixed, sums),) = asked
    assert fixed == ["ssh-keygen", "-Y", "sign", "-n", "bringup-bundle", "-f", str(tmp_path / "key")]
    assert sums.startswith(str(tmp_path / "out" / ".b.")), "still in the hidden directory"
    assert listing(bundle) == sorted([*FILES, "SHA256SUMS", "SHA256SUMS.sig"])
    assert "SHA256SUMS" not in (bundle / "SHA256SUMS").read_text()


@pytest.mark.parametrize("code", [0, 255])
def test_no_signature_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "key").touch()
    monkeypatch.setattr(process, "run", lambda *_, **__: ended(code, "No private key found"))
    with pytest.raises(EvidenceMissing, match="does not sign: No private key found"):
        artifacts.write(tmp_path / "out" / "b", FILES, [], tmp_path / "key")
    assert listing(tmp_path / "out") == []


def test_a_key_that_cannot_sign_is_usage_and_makes_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").touch()
    signer(monkeypatch, ended(255, "Permissions 0644 for 'key' are too open.\nNo private key found"))
    with pytest.raises(UsageError, match="Permissions 0644 for 'key' are too open") as e:
        artifacts.check_destination(tmp_path / "out", tmp_path / "key")
    assert "ssh-add" in e.value.hint
    assert not (tmp_path / "out").exists()


# ---- the destination


def test_a_usable_destination_is_made_and_left_empty(tmp_path: Path) -> None:
    artifacts.check_destination(tmp_path / "a" / "b")
    assert listing(tmp_path / "a" / "b") == []


def test_below_a_file_is_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory") as e:
        artifacts.check_destination(tmp_path / "file" / "x")
    assert "--artifacts" in e.value.hint


def test_no_room_is_usage_and_leaves_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match="No space left on device"):
        artifacts.check_destination(tmp_path)
    assert listing(tmp_path) == []


# ---- what goes in

COMPLETION = {"choices": [{"text": " Paris."}]}


def gather(
    container: FakeContainer | None = None, response: Any = COMPLETION, flavour: str = "cpu"
) -> tuple[dict[str, str], list[str]]:
    made = response if isinstance(response, NoAnswer) or hasattr(response, "status") else answer(response)
    server = make_server(FakeHttp({"/v1/completions": made}), container=container or FakeContainer())
    return artifacts.gather(server, plan(flavour), {"id": "sha256:1"})


def test_all_there(tmp_path: Path) -> None:
    files, missing = gather()
    assert missing == []
    assert set(files) == {
        "plan.json", "image.json", "server.log", "server.jsonl", "vllm_process.txt", "nvidia_smi_serving.txt",
        "sample_response.json",
    }  # fmt: skip
    assert json.loads(files["sample_response.json"]) == COMPLETION
    assert files["vllm_process.txt"].splitlines()[0] == "PID\tCOMMAND"
    assert json.loads(files["image.json"]) == {"id": "sha256:1"}
    assert "no GPU" in files["nvidia_smi_serving.txt"]


BROKEN: dict[str, tuple[FakeContainer, str]] = {
    "log cannot be had": (FakeContainer(logs_=EvidenceMissing("gone")), "server.log"),
    "log is empty": (FakeContainer(logs_=""), "server.log"),
    "records are not there": (FakeContainer(file=EvidenceMissing("not in the container")), "server.jsonl"),
    "records are empty": (FakeContainer(file=b"\n"), "server.jsonl"),
    "no processes": (FakeContainer(rows=[]), "vllm_process.txt"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_missing_is_named_and_not_written(name: str) -> None:
    container, file = BROKEN[name]
    files, missing = gather(container)
    assert [m.split(" ")[0] for m in missing] == [file]
    assert file not in files


@pytest.mark.parametrize(
    "response",
    [
        NoAnswer("refused"),
        answer({"error": "x"}, status=500),
        answer(b"<html>", content_type="text/html"),
        answer({"error": "x"}),
        answer({"choices": []}),
        answer({"choices": [{"text": " "}]}),
        answer({"choices": [{"text": None}]}),
        answer([1]),
    ],
)
def test_no_completion_is_no_sample(response: Any) -> None:
    files, missing = gather(response=response)
    assert "sample_response.json" not in files
    assert [m.split(" ")[0] for m in missing] == ["sample_response.json"]


def test_on_a_gpu_nvidia_smi_is_asked_in_the_container() -> None:
    files, missing = gather(FakeContainer(executed=(0, "| NVIDIA-SMI 580 |")), flavour="gpu")
    assert (files["nvidia_smi_serving.txt"], missing) == ("| NVIDIA-SMI 580 |", [])
    files, missing = gather(FakeContainer(executed=(127, "not found")), flavour="gpu")
    assert "nvidia_smi_serving.txt" not in files
    assert missing == ["nvidia_smi_serving.txt (nvidia-smi in the container ended with 127)"]


def test_the_name_is_utc_time_and_model() -> None:
    assert artifacts.name(plan(), 0.0) == "19700101T000000Z-m"
