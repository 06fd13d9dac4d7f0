"""HF_HUB_ENABLE_HF_TRANSFER over every combination of hub, variable, wheel and cache: with the guard, and without it.

With the guard, the real entry point runs in each environment (settings, weights check, guard, supervision); what it
starts stands in for vLLM, because the vLLM that is locked refuses huggingface_hub 0.36. Without the guard, the same
stand-in is started directly. The file is larger than what hf_transfer is used for (50 MiB).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bringup.inside.guard import VARIABLE
from bringup.lock import LockedFile, LockedModel, write_lock
from bringup.weights.verify import sha256_of
from tests.hub import HubServer, make_repo

ROOT = Path(__file__).resolve().parents[2]
REPO = "org/stand-in"
SIZE = 52 * 2**20  # huggingface_hub 0.36 takes hf_transfer above 50 MiB only
VERSIONS, VARIABLES, WHEELS, CACHES = ("0.36.2", "2.4.0"), (None, "0", "1"), (True, False), ("cached", "uncached")
CELLS = list(itertools.product(VERSIONS, VARIABLES, WHEELS, CACHES))
CRASH = ("0.36.2", "1", False, "uncached")  # the only one of the 24
# The entry point itself, with other directories than the image's.
DRIVER = """
import sys
from pathlib import Path
models, lock, requests = map(Path, sys.argv[1:4])
sys.path.append(str(requests))
import os
from bringup.inside import __main__ as entry
from bringup.inside.start import Baked
entry.Baked = lambda: Baked(models, lock)
sys.exit(entry.main([], dict(os.environ)))
"""

Cell = tuple[str, str | None, bool, str]


@dataclass(frozen=True)
class Place:
    """What all cells share: the hub with its commit, the stand-in, a served model with its lock."""

    hub: HubServer
    commit: str
    directory: Path
    cached: dict[str, Path]

    def environment(self, cell: Cell, tmp_path: Path, hub_home: Path) -> dict[str, str]:
        """The container's environment in a cell."""
        variable = cell[1]
        found = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": f"{self.directory / 'stand-in'}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HOME": str(hub_home),
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "BRINGUP_FLAVOUR": "cpu",
            "BRINGUP_MODEL": "tiny",
            "BRINGUP_BIND": "127.0.0.1",
            "BRINGUP_LAUNCH": "plain",  # the stand-in has nothing to import beforehand
            "BRINGUP_STATE_DIR": str(tmp_path / "state"),
            "STAND_IN_REPO": REPO,
            "STAND_IN_COMMIT": self.commit,
        }
        return found | ({VARIABLE: variable} if variable is not None else {})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, hub_python: Callable[[str, bool], Path]) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("guard")
    block = os.urandom(2**20)
    files: dict[str, bytes | Path] = {"config.json": b"{}", "model.safetensors": block * (SIZE // len(block))}
    commit = make_repo(directory / "hub", REPO, files)
    package = directory / "stand-in" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("guarded_server.py"), package / "api_server.py")
    model = directory / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}")
    locked = LockedFile("config.json", 2, sha256_of(model / "config.json"))
    write_lock({"tiny": LockedModel("tiny", "local:models/tiny", "Apache-2.0", (locked,))}, directory / "lock")
    _requests_of_the_image(directory / "requests")
    with HubServer(directory / "hub") as hub:
        cached = {version: directory / f"cache-{version}" for version in VERSIONS}
        found = Place(hub, commit, directory, cached)
        for version, home in cached.items():
            done = without_guard(found, (version, None, False, "uncached"), directory, home, hub_python(version, False))
            assert done.code == 0, done.stderr
        yield found
    shutil.rmtree(directory, ignore_errors=True)


def _requests_of_the_image(directory: Path) -> None:
    """The entry point's fetcher needs requests, which the image has and huggingface_hub 2.4.0 does not bring."""
    directory.mkdir()
    here = Path(sysconfig.get_path("purelib"))
    for name in ("requests", "urllib3", "certifi", "idna", "charset_normalizer"):
        (directory / name).symlink_to(here / name)
    for compiled in here.glob("*__mypyc*.so"):  # charset_normalizer's
        (directory / compiled.name).symlink_to(compiled)


@pytest.fixture
def hub_home(place: Place, tmp_path: Path) -> Iterator[Callable[[Cell], Path]]:
    """The client's cache in a cell; an uncached one is thrown away soon, for it holds 52 MiB."""
    yield lambda cell: place.cached[cell[0]] if cell[3] == "cached" else tmp_path / "hf"
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)


@dataclass(frozen=True)
class Run:
    """How a start went: what the stand-in saw (nothing, if it never got so far), stderr, and the exit code."""

    seen: dict[str, Any]
    stderr: str
    code: int


def run(python: Path, args: list[str], environment: dict[str, str], tmp_path: Path) -> Run:
    """Start, wait until the server says that it serves or everything has ended, and ask it to stop."""
    with (tmp_path / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            [str(python), *args], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            assert process.stdout
            line = process.stdout.readline()
            process.terminate()
            rest, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
        assert not rest
        stderr.seek(0)
        return Run(json.loads(line) if line else {}, stderr.read(), process.returncode)


def without_guard(place: Place, cell: Cell, tmp_path: Path, home: Path, python: Path) -> Run:
    """Start the stand-in as nobody guards it."""
    args = ["-m", "vllm.entrypoints.openai.api_server"]
    return run(python, args, place.environment(cell, tmp_path, home), tmp_path)


def with_guard(place: Place, cell: Cell, tmp_path: Path, home: Path, python: Path) -> Run:
    """Start it as the image does."""
    paths = [str(place.directory / name) for name in ("models", "lock", "requests")]
    return run(python, ["-c", DRIVER, *paths], place.environment(cell, tmp_path, home), tmp_path)


def name(cell: Cell) -> str:
    """A cell for people."""
    version, variable, wheel, cache = cell
    shown = "unset" if variable is None else variable
    return f"hub {version}-{shown}-{'wheel' if wheel else 'no wheel'}-{cache}"


def ranges(place: Place) -> list[dict[str, Any]]:
    """The requests for the large file's bytes; a client that has it cached asks only whether it changed."""
    return [r for r in place.hub.requests() if r["method"] == "GET" and "model.safetensors" in r["path"]]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_the_server_starts_under_the_guard(
    cell: Cell, place: Place, tmp_path: Path, hub_python: Callable[[str, bool], Path],
    hub_home: Callable[[Cell], Path], matrix: list[str],
) -> None:  # fmt: skip
    version, variable, wheel, cache = cell
    place.hub.clear()
    done = with_guard(place, cell, tmp_path, hub_home(cell), hub_python(version, wheel))
    assert done.code == 0, done.stderr
    assert "vLLM stopped as asked (exit 0)" in done.stderr
    assert done.seen["hub"] == version
    assert done.seen["sizes"] == {"config.json": 2, "model.safetensors": SIZE}
    works = version == "0.36.2" and wheel
    kept = variable if variable != "1" or works else None
    assert done.seen["variable"] == kept
    assert done.seen["enabled"] == (None if version == "2.4.0" else kept == "1")
    (line,) = [line for line in done.stderr.splitlines() if "hf_transfer:" in line]
    if variable == "1":
        assert f"{VARIABLE}=1 {'kept' if works else 'unset'}: " in line
    else:
        assert f"{VARIABLE} is {'unset' if variable is None else repr(variable)}: off" in line
    assert f"huggingface_hub {version}, hf_transfer {'present' if wheel else 'absent'}" in line
    # The wheel is used where it can be, and nowhere else: it alone asks for one byte first, then for ranges.
    used = kept == "1" and cache == "uncached"
    assert done.seen["imported"] == used
    assert len(ranges(place)) > 2 if used else len(ranges(place)) == (cache == "uncached")
    matrix.append(f"guard: {name(cell):42} started; {line.partition('hf_transfer: ')[2]}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_without_the_guard_one_combination_crashes(
    cell: Cell, place: Place, tmp_path: Path, hub_python: Callable[[str, bool], Path],
    hub_home: Callable[[Cell], Path], matrix: list[str],
) -> None:  # fmt: skip
    """The runbook's crash, by the client's own words; the 23 others start without help."""
    done = without_guard(place, cell, tmp_path, hub_home(cell), hub_python(cell[0], cell[2]))
    if cell == CRASH:
        assert done.code == 1
        assert "ValueError: Fast download using 'hf_transfer' is enabled" in done.stderr
        assert not done.seen
        assert not list((tmp_path / "hf").rglob("config.json")), "it dies at the first file, of two bytes"
        matrix.append(f"guard: {name(cell):42} taken away: crashed with the client's ValueError")
    else:
        assert done.code == 0, done.stderr
        assert done.seen["sizes"]["model.safetensors"] == SIZE
