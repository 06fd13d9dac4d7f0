"""`bringup doctor`: recorded hosts, the facts file, and torch in the image."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import catalog, gpus, workflow
from bringup.checks import in_image, recorded
from bringup.checks.facts import HostFacts, ImageFacts, TorchFacts
from bringup.commands import doctor
from bringup.console import Console
from bringup.edge.docker import Engine
from bringup.errors import EvidenceMissing, Exit, NeverReady, TargetUnavailable, UsageError
from bringup.records import CheckRecord, Status
from bringup.settings import Settings
from tests.unit.samples import ENGINE, FACTS, GPU, IMAGE, NO_ENGINE, plan
from tests.unit.test_cli import Invoke
from tests.unit.test_cli import invoke as invoke  # noqa: PLC0414 - a fixture

HOSTS = Path(__file__).resolve().parents[1] / "data" / "hosts"
ON_GPU = replace(FACTS, gpu=GPU, engine=replace(ENGINE, runtimes=("nvidia",)))


@pytest.fixture(autouse=True)
def nothing_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    def probed(*_: Any, **__: Any) -> None:
        raise AssertionError("a recorded host is judged without looking at this one")

    monkeypatch.setattr(workflow, "prepare", probed)
    monkeypatch.setattr(Engine, "facts", probed)


@pytest.mark.parametrize(
    ("name", "code"),
    [("h200", 0), ("rtx-4090", 0), ("ecc-uncorrected", 3), ("kernel-log-unreadable", 9), ("h200-no-engine", 8)],
)
def test_a_recorded_host_is_judged_as_if_it_were_this_one(invoke: Invoke, name: str, code: int) -> None:
    seen, out, err = invoke(
        "doctor", "--facts", str(HOSTS / f"{name}.json"), "--flavour", "gpu", "--model", "tiny-qwen2", "--json"
    )
    assert seen == code
    checks = {r["name"]: r for r in json.loads(out)}
    assert checks["ecc"]["source"].startswith("NVML")
    assert "flavour gpu: gpu was asked for" in err


def test_the_flavour_is_chosen_by_what_was_recorded(invoke: Invoke) -> None:
    _, _, err = invoke("doctor", "--facts", str(HOSTS / "h200.json"))
    assert "flavour gpu: NVIDIA H200, and the engine has the nvidia runtime" in err
    _, _, err = invoke("doctor", "--facts", str(HOSTS / "no-driver.json"))
    assert "flavour cpu: no NVIDIA driver answers" in err


@pytest.mark.parametrize(
    ("name", "more", "code", "words"),
    [
        ("pod", (), 0, "flavour gpu: /opt/venv/bin/python has vLLM 0.32.0, built for a GPU"),
        ("pod-driver-550", (), 3, "a pod cannot change it"),
        ("pod", ("--target", "compose"), 8, "not asked: the server is a process of this machine"),
        ("h200-no-engine", ("--target", "local"), 9, "not told"),
    ],
)
def test_a_file_knows_its_target_unless_another_is_asked_for(
    invoke: Invoke, name: str, more: tuple[str, ...], code: int, words: str
) -> None:
    seen, _, err = invoke("doctor", "--facts", str(HOSTS / f"{name}.json"), "--model", "tiny-qwen2", *more)
    assert seen == code
    assert words in " ".join(err.split())


def test_a_recorded_host_has_its_flavours_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run = doctor.from_file(HOSTS / "h200.json", Settings(), {}, Console())
    assert run.plan.model == catalog.default(catalog.load(), "gpu")[0]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read: No such file"), (b"\xff", "cannot be read"), (b"{}", "`schema`")]
)
def test_a_file_that_cannot_be_used(
    invoke: Invoke,
    tmp_path: Path,
    content: bytes | None,
    words: str,
) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    code, out, err = invoke("doctor", "--facts", "x.json")
    assert (code, out) == (2, "")
    assert words in err
    assert "[facts-unusable]" in err


@pytest.mark.parametrize("other", [["--in-image"], ["--save-facts", "y.json"]])
def test_a_recorded_host_is_not_looked_at(invoke: Invoke, tmp_path: Path, other: list[str]) -> None:
    code, _, err = invoke("doctor", "--facts", str(HOSTS / "h200.json"), *other)
    assert code == 2
    assert f"{other[0]} does" in err
    assert not list(tmp_path.iterdir())


def a_run(facts: HostFacts) -> workflow.Run:
    return workflow.Run("doctor", Settings(), plan("gpu"), Engine(), facts, Console())


def test_torch_in_the_image_is_no_question_for_a_process(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(replace(FACTS, target="local"))
    run.plan = replace(run.plan, target="local")
    monkeypatch.setattr(workflow, "prepare", lambda *_: run)
    code, _, err = invoke("doctor", "--target", "local", "--in-image")
    assert (code, "--target local has none" in err) == (2, True)


def test_what_is_saved_is_what_was_seen(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "prepare", lambda *_: a_run(ON_GPU))
    assert invoke("doctor", "--save-facts", "host.json")[0] == Exit.CHECK_FAILED  # the image is of the other flavour
    text = (tmp_path / "host.json").read_text("utf-8")
    assert recorded.load(text, "host.json") == ON_GPU
    head = json.loads(text)
    assert (head["flavour"], head["model"]) == ("gpu", "tiny-qwen2")
    assert [p.name for p in tmp_path.iterdir()] == ["host.json"]


def test_no_secret_is_saved(tmp_path: Path) -> None:
    token = "hf_" + "a" * 30
    doctor.write(tmp_path / "host.json", a_run(replace(ON_GPU, port_holder=f"x {token}")))
    assert token not in (tmp_path / "host.json").read_text("utf-8")


def test_a_place_that_cannot_be_written_is_told_and_left_clean(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        doctor.write(tmp_path / "absent" / "host.json", a_run(ON_GPU))
    (tmp_path / "directory").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        doctor.write(tmp_path / "directory", a_run(ON_GPU))
    assert [p.name for p in tmp_path.iterdir()] == ["directory"]


@pytest.mark.parametrize(
    ("seen", "reachable", "code"),
    [
        ({Status.PASS, Status.WARN, Status.SKIP}, True, Exit.PASS),
        ({Status.PASS, Status.UNKNOWN}, True, Exit.UNKNOWN),
        ({Status.FAIL, Status.UNKNOWN}, True, Exit.CHECK_FAILED),
        ({Status.FAIL, Status.PASS}, False, Exit.TARGET_UNAVAILABLE),
    ],
)
def test_exit_code(seen: set[Status], reachable: bool, code: Exit) -> None:
    assert doctor.verdict(seen, reachable=reachable) is code


def test_checks_that_one_cause_keeps_from_knowing_share_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    def one(name: str, status: Status, found: str) -> CheckRecord:
        return CheckRecord(name=name, status=status, found=found, needed="need", remedy="do it")

    blind = [one(name, Status.UNKNOWN, "no GPU") for name in ("ecc", "mig")]
    Console().checks(
        (*blind, one("disk", Status.UNKNOWN, "other"), one("a", Status.FAIL, "x"), one("b", Status.FAIL, "x"))
    )
    err = capsys.readouterr().err
    assert "ecc, mig" in err
    assert err.count("no GPU") == 1
    assert err.count("-> do it") == 4


# ---- torch in the image


class Once(Engine):
    """An engine that runs one container."""

    def __init__(self, answer: Callable[[], tuple[int, str]]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def once(self, image: str, argv: list[str], reserve: dict[str, Any]) -> tuple[int, str]:
        assert argv[:2] == [in_image.PYTHON, "-c"]
        self.asked.append((image, reserve))
        return self.answer()


SAID = '{"available": true, "computes": true, "torch": "2.13.0+cu130", "cuda": "13.0", "devices": ["NVIDIA H100"]}'
GOOD = TorchFacts(
    started=True, available=True, computes=True, torch="2.13.0+cu130", cuda="13.0", devices=("NVIDIA H100",)
)


def raises(error: Exception) -> Callable[[], tuple[int, str]]:
    def answer() -> tuple[int, str]:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (lambda: (0, f"a warning\n{SAID}\n"), GOOD),
        (lambda: (0, '{"available": false, "computes": false, "error": "no"}'),
         TorchFacts(started=True, available=False, computes=False, error="no")),
        (lambda: (139, ""), TorchFacts(started=True, error="exit code 139, and no answer")),
        (lambda: (0, "[]"), TorchFacts(started=True, error="exit code 0, and no answer")),
        (lambda: (0, "null"), TorchFacts(started=True, error="exit code 0, and no answer")),
        (raises(NeverReady("no device driver")), TorchFacts(started=False, error="no device driver")),
        (raises(TargetUnavailable("gone")), TorchFacts(started=None, error="gone")),
        (raises(EvidenceMissing("refused")), TorchFacts(started=None, error="refused")),
    ],
)  # fmt: skip
def test_what_torch_says(answer: Callable[[], tuple[int, str]], facts: TorchFacts) -> None:
    engine = Once(answer)
    assert in_image.ask(engine, plan("gpu"), ON_GPU) == facts
    assert engine.asked == [("bringup:gpu-tiny-qwen2", gpus.request(None, cdi=False))]


def test_the_gpu_is_reserved_the_way_that_the_engine_has() -> None:
    engine = Once(lambda: (0, SAID))
    by_cdi = replace(ON_GPU, engine=replace(ENGINE, gpu_devices=("nvidia.com/gpu=0", "nvidia.com/gpu=1")))
    in_image.ask(engine, plan("gpu", gpus="device=1"), by_cdi)
    assert engine.asked == [("bringup:gpu-tiny-qwen2", gpus.request("device=1", cdi=True))]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(ON_GPU, engine=NO_ENGINE), "does not answer"),
        (replace(ON_GPU, image=ImageFacts(present=False)), "is not there"),
        (replace(ON_GPU, image=ImageFacts(present=None)), "is not there"),
    ],
)
def test_without_an_engine_or_an_image_nothing_is_started(facts: HostFacts, words: str) -> None:
    engine = Once(raises(AssertionError("started")))
    found = in_image.ask(engine, plan("gpu"), facts)
    assert found.started is None
    assert words in found.error
    assert not engine.asked


def test_torch_is_asked_when_it_is_asked_for(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "prepare", lambda *_: a_run(replace(ON_GPU, image=IMAGE)))
    monkeypatch.setattr(in_image, "ask", lambda *_: GOOD)
    _, out, _ = invoke("doctor", "--json")
    assert {r["name"]: r["status"] for r in json.loads(out)}["torch"] == "skip"
    _, out, _ = invoke("doctor", "--json", "--in-image")
    assert {r["name"]: r["found"] for r in json.loads(out)}[
        "torch"
    ] == "torch 2.13.0+cu130 (CUDA 13.0) computes on NVIDIA H100"
