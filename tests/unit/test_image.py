"""What a build is asked for: variables, arguments, and what is said when it fails."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from bringup import __version__, image
from bringup.edge import process
from bringup.edge.process import Outcome
from bringup.errors import BuildFailed, UsageError
from bringup.lock import LOCK, read_lock
from bringup.settings import Settings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "locks").mkdir()
    for flavour in ("cpu", "gpu"):
        (tmp_path / "locks" / f"{flavour}.lock").write_text(flavour)
    return tmp_path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_least_that_a_build_is_told(root: Path) -> None:
    assert image.bake_environment(Settings(model="m"), "cpu", root) == {
        "MODEL": "m",
        "HF_ENDPOINT": "",
        "TRANSFER": "hf_transfer",
        "WEIGHTS_DIGEST": "",
        "VERSION": __version__,
        "CPU_LOCK_SHA256": sha(b"cpu"),
        "WEIGHTS_LOCK_SHA256": sha(LOCK.read_bytes()),
    }


def test_the_digest_is_that_of_the_baked_model(root: Path) -> None:
    locked = read_lock()["tiny-qwen2"]
    assert image.bake_environment(Settings(model="tiny-qwen2"), "cpu", root)["WEIGHTS_DIGEST"] == locked.digest


@pytest.mark.parametrize("weights", ["volume", Path("/srv/w")])
def test_weights_elsewhere_are_not_baked(root: Path, weights: Any) -> None:
    values = image.bake_environment(Settings(model="tiny-qwen2", weights=weights), "cpu", root)
    assert (values["MODEL"], values["WEIGHTS_DIGEST"]) == ("none", "")


def test_a_mirror_and_another_transport(root: Path) -> None:
    values = image.bake_environment(Settings(hf_endpoint="http://mirror", transfer="auto"), "cpu", root)
    assert (values["HF_ENDPOINT"], values["TRANSFER"]) == ("http://mirror", "auto")


def test_a_token_is_in_the_environment_of_the_build_and_never_in_its_arguments(root: Path) -> None:
    values = image.bake_environment(Settings(hf_token="hf_s3cret"), "cpu", root)
    assert values["HF_TOKEN"] == "hf_s3cret"
    assert "s3cret" not in " ".join(image.bake_argv("cpu", "t", values))
    (root / "token").write_text("other")
    both = image.bake_environment(Settings(hf_token="hf_s3cret", hf_token_file=root / "token"), "cpu", root)
    assert "HF_TOKEN" not in both, "the file comes first"


@pytest.mark.parametrize(("flavour", "name"), [("cpu", "CPU_BASE"), ("gpu", "CUDA_BASE")])
def test_a_base_is_that_of_its_flavour(root: Path, flavour: str, name: str) -> None:
    values = image.bake_environment(Settings(base="debian:13"), flavour, root)
    assert {k: v for k, v in values.items() if k.endswith("BASE")} == {name: "debian:13"}
    assert values[f"{flavour.upper()}_LOCK_SHA256"] == sha(flavour.encode())


def test_wheels_beside_the_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = root / "wheels"
    wheels.mkdir()
    monkeypatch.chdir(root)
    settings = Settings(find_links=Path("wheels"))
    values = image.bake_environment(settings, "cpu", root)
    assert values["WHEELHOUSE"] == str(wheels), "relative paths are the caller's"
    assert "TORCH_INDEX" not in values
    (wheels / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert image.bake_environment(settings, "cpu", root)["TORCH_INDEX"] == ""
    assert "WHEELHOUSE" not in image.bake_environment(settings, "gpu", root)


def test_wheels_that_are_a_web_page_are_not_a_directory(root: Path) -> None:
    values = image.bake_environment(Settings(find_links=Path("https://example.org/wheels")), "cpu", root)
    assert "WHEELHOUSE" not in values


@pytest.mark.parametrize(("setting", "name"), [("ca_file", "CA_FILE"), ("hf_token_file", "HF_TOKEN_FILE")])
def test_files_of_the_build_are_absolute_and_there(root: Path, setting: str, name: str) -> None:
    file = root / "file"
    with pytest.raises(UsageError, match="is not a file") as e:
        image.bake_environment(Settings(**{setting: file}), "cpu", root)  # type: ignore[arg-type]
    assert name in e.value.hint
    file.write_text("s3cret")
    values = image.bake_environment(Settings(**{setting: file}), "cpu", root)  # type: ignore[arg-type]
    assert values[name] == str(file)
    assert "s3cret" not in str(values)


def test_argv_names_the_tag_and_allows_what_lies_outside() -> None:
    values = {"MODEL": "m", "CA_FILE": "/ca", "WHEELHOUSE": "/wheels", "HF_TOKEN_FILE": "/token"}
    argv = image.bake_argv("cpu", "bringup:cpu-m", values)
    assert argv[:3] == ["docker", "buildx", "bake"]
    assert argv[-1] == "cpu"
    assert "cpu.tags=bringup:cpu-m" in argv
    allowed = [argv[i + 1] for i, part in enumerate(argv) if part == "--allow"]
    assert allowed == ["fs.read=/wheels", "fs.read=/ca", "fs.read=/token"]
    assert "--allow" not in image.bake_argv("cpu", "t", {"MODEL": "m"})


def fake_run(monkeypatch: pytest.MonkeyPatch, code: int, tail: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def run(argv: list[str], **more: Any) -> Outcome:
        calls.append({"argv": argv, **more})
        if argv[0] == "git":
            return Outcome(tuple(argv), 0, "abc123 1795000000\n", "", 0.0)
        return Outcome(tuple(argv), code, "", tail, 0.0)

    monkeypatch.setattr(process, "run", run)
    return calls


def test_a_build_of_a_clone_is_labelled_with_its_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".git").mkdir()
    calls = fake_run(monkeypatch, 0, "")
    image.build(root, "cpu", "t", {"MODEL": "m"}, lambda _: None)
    assert calls[-1]["extra_env"] == {"MODEL": "m", "REVISION": "abc123", "SOURCE_DATE_EPOCH": "1795000000"}
    assert calls[-1]["cwd"] == root


def test_a_build_that_fails_says_the_line_that_matters(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_run(monkeypatch, 1, "#1 doing\n#2 ERROR: no such wheel\n------\nlast words\n")
    with pytest.raises(BuildFailed, match="the cpu image was not built: ERROR: no such wheel") as e:
        image.build(root, "cpu", "t", {}, lambda _: None)
    assert "last words" in e.value.detail
    assert len(calls) == 1, "no clone, no commit"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", "no output"),
        ("a\nb\n", "b"),
        ("a\nerror: x\nb", "error: x"),
        ("ERROR: 1\nERROR: 2\nc", "ERROR: 2"),
        (
            "#18 44.91 error: no `x`\n#18 44.91   cause: y\n#18 ERROR: process z\nERROR: failed to solve: z",
            "error: no `x`",
        ),
        ("#9 1.2   | more\n#9 1.2 no access [hub-gated]\n#9 1.2   -> a token\nERROR: x", "no access [hub-gated]"),
        ("#9 1.2 E: Unable to locate package x\nERROR: failed to solve: z", "E: Unable to locate package x"),
    ],
)
def test_the_last_error(output: str, line: str) -> None:
    assert image.last_error(output) == line


def test_the_excerpt_ends_where_the_dockerfile_is_quoted() -> None:
    assert image.excerpt("#1 a\n\nerror: b\nDockerfile:7\n 7 | >>> RUN c\n") == "#1 a\nerror: b"
    assert image.excerpt("x" * 999) == "x" * image.LINE


def test_the_summary_identifies_the_image() -> None:
    raw = {
        "Id": "sha256:1", "RepoTags": ["a:b"], "RepoDigests": [], "Created": "now", "Architecture": "amd64", "Size": 5,
        "Config": {"Labels": {"x": "y"}, "Env": ["SECRET=1"]}, "RootFS": {"Layers": ["sha256:2"]},
    }  # fmt: skip
    found = image.summary(raw)
    assert found["id"] == "sha256:1"
    assert (found["layers"], found["labels"], found["size"]) == (["sha256:2"], {"x": "y"}, 5)
    assert "SECRET" not in str(found)


def test_the_summary_of_little_is_no_crash() -> None:
    assert image.summary({})["layers"] == []
    assert image.summary({"Config": None, "RootFS": None, "RepoTags": None})["tags"] == []
