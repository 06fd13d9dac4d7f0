"""The compose target: what compose is told, whose words are shown when it fails."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from bringup.edge import process
from bringup.edge.docker import ContainerState, Engine
from bringup.edge.process import Outcome
from bringup.errors import NeverReady, TargetUnavailable, UsageError
from bringup.targets import compose
from bringup.targets.compose import ComposeTarget, explain, variables
from tests.unit.fakes import plan, state


class FakeEngine:
    def __init__(self, found: ContainerState | None) -> None:
        self.found = found
        self.asked: list[tuple[str, str]] = []

    def find(self, project: str, service: str) -> ContainerState | None:
        self.asked.append((project, service))
        return self.found


def target(found: ContainerState | None = None) -> ComposeTarget:
    return ComposeTarget(cast("Engine", FakeEngine(found)), "p", ("compose.yaml", "compose.cpu.yaml"))


@dataclass
class Programs:
    """Stands for `process.run`: keeps the calls, ends as it is told."""

    code: int = 0
    tail: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)

    def run(self, argv: list[str], **more: Any) -> Outcome:
        self.calls.append({"argv": argv, **more})
        return Outcome(tuple(argv), self.code, "", self.tail, 0.0)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(process, "run", made.run)
    return made


def test_variables_are_the_plan() -> None:
    made = variables(plan(port=81, image="i", max_model_len=5), None)
    assert made["BRINGUP_IMAGE"] == "i"
    assert made["BRINGUP_PORT"] == "81"
    assert made["BRINGUP_BIND"] == "127.0.0.1"
    assert made["BRINGUP_MAX_MODEL_LEN"] == "5"
    assert made["BRINGUP_MODEL"] == "m"
    assert "BRINGUP_USER" not in made


def test_a_key_file_is_absolute_and_its_owner_runs_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = variables(plan(api_key_file=Path("key")), 1001)
    assert made["BRINGUP_API_KEY_FILE"] == str(tmp_path / "key")
    assert made["BRINGUP_USER"] == "1001:0"


def test_up(programs: Programs) -> None:
    container = target(state()).up(plan())
    assert container.id == "c1"
    argv = programs.calls[-1]["argv"]
    assert argv[:4] == ["docker", "compose", "--project-name", "p"]
    assert [Path(argv[i + 1]).name for i, a in enumerate(argv) if a == "--file"] == ["compose.yaml", "compose.cpu.yaml"]
    assert argv[-5:] == ["up", "--detach", "--no-build", "--pull", "never"]
    assert programs.calls[-1]["extra_env"]["BRINGUP_IMAGE"] == "bringup:cpu-m"


def test_up_tells_the_engines_own_words(programs: Programs) -> None:
    programs.code, programs.tail = 1, " Container p-server-1 Starting\nError response: port is already allocated\n"
    with pytest.raises(NeverReady, match="port is already allocated") as e:
        target(state("created")).up(plan())
    assert "Starting" in e.value.detail


def test_up_without_a_container_is_no_success(programs: Programs) -> None:
    with pytest.raises(NeverReady):
        target(None).up(plan())
    assert len(programs.calls) == 1


def test_a_key_file_that_is_not_there_is_usage_and_nothing_runs(programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        target(state()).up(plan(api_key_file=tmp_path / "key"))
    assert programs.calls == []


def as_root(mode: int) -> Any:
    """`lstat` of files that belong to root, with that mode."""
    return lambda self: os.stat_result(((stat.S_IFDIR if self.suffix == "" else stat.S_IFREG) | mode, *[0] * 9))


def test_a_directory_of_weights_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad in ("none", "file", "volum"):
        with pytest.raises(UsageError, match="is no directory of this host"):
            compose.require_weights(plan(weights=tmp_path / bad))
    compose.require_weights(plan())


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o755, True), (0o750, True), (0o705, False), (0o700, False), (0o444, False)]
)
def test_the_containers_user_must_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, fine: bool
) -> None:
    (tmp_path / "w").mkdir()
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr(Path, "lstat", as_root(mode))
    made = plan(weights=tmp_path / "w")
    if fine:
        compose.require_weights(made)
        return
    with pytest.raises(UsageError, match=f"mode {mode:04o}, owner 0:0"):
        compose.require_weights(made)


def test_a_file_of_it_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch(0o600)
    (tmp_path / "config.json").chmod(0)
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match=r"config\.json \(mode 0000"):
        compose.require_weights(plan(weights=tmp_path))


def test_the_container_runs_as_the_owner_of_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, token = tmp_path / "key", tmp_path / "token"
    key.touch()
    token.touch()
    mine = key.stat().st_uid
    assert compose.secrets_owner(plan()) is None
    assert compose.secrets_owner(plan(hf_token_file=token)) is None, "for the build only"
    both = replace(plan(hf_token_file=token, api_key_file=key), weights="volume")
    assert compose.secrets_owner(both) == mine
    owners = {"key": mine, "token": mine + 1}
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((0, 0, 0, 0, owners[self.name], *[0] * 5)))
    assert compose.secrets_owner(replace(plan(hf_token_file=token), weights="volume")) == mine + 1
    with pytest.raises(UsageError, match=f"{mine} and {mine + 1}"):
        compose.secrets_owner(both)


def test_a_token_file_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = variables(plan(hf_token_file=Path("token")), None)
    assert made["BRINGUP_HF_TOKEN_FILE"] == str(tmp_path / "token")


def test_down_with_volumes_removes_the_weights_too(programs: Programs) -> None:
    target().down(volumes=True)
    argv, env = programs.calls[-1]["argv"], programs.calls[-1]["extra_env"]
    assert any(a.endswith("compose.weights-volume.yaml") for a in argv)
    assert env["BRINGUP_IMAGE"], "the override wants one"
    target().down()
    assert not any(a.endswith("compose.weights-volume.yaml") for a in programs.calls[-1]["argv"])


@pytest.mark.parametrize(("volumes", "flags"), [(False, []), (True, ["--volumes"])])
def test_down_keeps_the_caches_unless_asked(programs: Programs, volumes: bool, flags: list[str]) -> None:
    target().down(volumes=volumes)
    argv = programs.calls[-1]["argv"]
    assert argv[argv.index("down") :] == ["down", "--remove-orphans", "--timeout", "10", *flags]


def test_down_that_fails_is_told(programs: Programs) -> None:
    programs.code, programs.tail = 1, "Cannot connect to the Docker daemon\n"
    with pytest.raises(TargetUnavailable, match="Cannot connect"):
        target().down()


def test_no_container() -> None:
    assert target(None).container() is None


def test_another_directory_is_no_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compose, "__file__", str(tmp_path / "a" / "b" / "compose.py"))
    with pytest.raises(UsageError, match="has no compose"):
        compose.project_root()


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", "no output"),
        ("one\n\n two \n", "two"),
        ("Error: first\nafter", "Error: first"),
        ("Error: first\ndependency failed to start: second\nafter", "dependency failed to start: second"),
    ],
)
def test_the_line_that_explains(output: str, line: str) -> None:
    assert explain(output) == line
