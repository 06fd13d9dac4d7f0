"""scripts/base-image: what it does when the image is there, and when it cannot be made."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engines import PREFIX, SCRIPTS, Engine, failing_docker

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="starting an engine needs root"),
    pytest.mark.skipif(shutil.which("debootstrap") is None and shutil.which("apt-get") is None, reason="needs apt"),
]


def _release() -> str:
    lines = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    values = {key: value.strip('"') for key, _, value in lines}
    return f"{values['ID']}{values['VERSION_ID']}"


TAG = f"bringup-base:{_release()}"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="bu", dir="/var/tmp") as name:
        place = Path(name)
        prefix = PREFIX if (PREFIX / "versions").exists() else place / "prefix"
        one = Engine(place / "a", prefix, failing_docker(place / "no-docker"))
        try:
            done = one.call("up")
            assert done.returncode == 0, done.stderr
            one.load_image()
            yield one
        finally:
            one.call("down", "--purge")


def _base_image(engine: Engine, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPTS / "base-image", *arguments],
        env=engine.environment | extra,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_image_that_is_there_is_named_and_left_alone(engine: Engine) -> None:
    engine.docker("tag", "probe", TAG)
    before = engine.docker("images", "--quiet", TAG)
    done = _base_image(engine)
    assert (done.returncode, done.stdout) == (0, f"{TAG}\n"), done.stderr
    assert engine.docker("images", "--quiet", TAG) == before
    engine.docker("rmi", TAG)


def test_a_failed_bootstrap_shows_why_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    stubs, work = tmp_path / "stubs", tmp_path / "work"
    stubs.mkdir()
    work.mkdir()
    (stubs / "debootstrap").write_text("#!/bin/sh\necho 'E: Failed getting release file' >&2\nexit 1\n")
    (stubs / "debootstrap").chmod(0o755)
    done = _base_image(engine, "--force", PATH=f"{stubs}:{engine.environment['PATH']}", TMPDIR=str(work))
    assert (done.returncode, done.stdout) == (4, "")
    assert "E: Failed getting release file" in done.stderr
    assert "debootstrap failed" in done.stderr.splitlines()[-1]
    assert list(work.iterdir()) == []
    assert engine.docker("images", "--quiet", TAG) == ""


def test_another_system_is_told_so(engine: Engine, tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('ID=fedora\nVERSION_ID=42\nPRETTY_NAME="Fedora Linux 42"\n')
    done = _base_image(engine, BRINGUP_OS_RELEASE=str(release))
    assert (done.returncode, done.stdout) == (8, "")
    assert "bringup-base:fedora42 is not there and cannot be made" in done.stderr


def test_unknown_arguments_and_no_engine(engine: Engine) -> None:
    assert _base_image(engine, "--frce").returncode == 2
    done = _base_image(engine, BRINGUP_ENGINE_DIR="/var/tmp/no-such-engine")
    assert (done.returncode, done.stdout) == (8, "")
