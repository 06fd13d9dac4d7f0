"""1,000 seeded mutations of a model's directory, each seen by both checks; 100 untouched copies, none accused.

The checks are the one of `bringup weights verify` and the one the container makes before it starts a server, both with
BLAKE3 in the lock and with sha256 alone. `MUTATION_SEED=N` repeats one mutation, N as a failure names it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest

from bringup.errors import Exit, WeightsDiffer
from bringup.inside.start import prepare
from bringup.inside.weights import Baked
from bringup.lock import LockedFile, LockedModel, write_lock
from bringup.weights.verify import verify_dir
from tests.weights import mutations
from tests.weights.mutations import KINDS, Mutation, mutate, restore

NAME = "victim"
MUTATIONS = 1000
UNTOUCHED = 100
ROOT = Path(__file__).resolve().parents[2]
IDS = {
    "bit flip": {"weights-hash"},
    "truncation": {"weights-size"},
    "append": {"weights-size"},
    "zero-filled hole": {"weights-hash"},
    "other content, same size and time": {"weights-hash"},
    "two files swapped": {"weights-hash", "weights-size"},
    "two files of one size swapped": {"weights-hash"},
    "renamed": {"weights-missing", "weights-extra"},
    "deleted": {"weights-missing"},
    "replaced by a symbolic link": {"weights-not-a-file", "weights-extra"},
    "subdirectory replaced by a symbolic link": {"weights-missing", "weights-not-a-file", "weights-extra"},
    "replaced by a directory or fifo": {"weights-not-a-file", "weights-missing", "weights-extra"},
    "extra file": {"weights-extra", "weights-not-a-file"},
}
FILES = {
    "config.json": 700,
    "generation_config.json": 0,
    "tokenizer.json": 150_000,
    "merges.txt": 4096,
    "model-00001-of-00003.safetensors": 900_000,
    "model-00002-of-00003.safetensors": 900_000,
    "model-00003-of-00003.safetensors": 1_200_001,
    "1_Pooling/config.json": 190,
    "templates/chat.jinja": 2_000,
    "templates/tools.jinja": 2_000,
}
START = {"BRINGUP_FLAVOUR": "cpu", "BRINGUP_MODEL": NAME, "BRINGUP_BIND": "127.0.0.1"}
# The entry point, with other directories than the image's; it checks, and says what it would start.
ENTRY = """
import os, sys
from pathlib import Path
from bringup.inside import __main__ as entry
from bringup.inside.weights import Baked
entry.Baked = lambda: Baked(Path(sys.argv[1]), Path(sys.argv[2]))
sys.exit(entry.main(["--check"], dict(os.environ)))
"""
LOG = logging.getLogger("test.mutations")
Check = Callable[[Path], None]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it was fetched; runs of zeros in it are what a hole may not change."""
    rng = random.Random(3)
    directory = tmp_path_factory.mktemp("pristine") / NAME
    for name, size in FILES.items():
        content = rng.randbytes(size // 2) + bytes(size // 8)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content + rng.randbytes(size - len(content)))
    return directory


@pytest.fixture(scope="session")
def models(pristine: Path) -> dict[str, LockedModel]:
    """The lock's entry, with BLAKE3 and without."""
    found = {}
    for how in ("blake3", "sha256"):
        files = []
        for name in FILES:
            content = (pristine / name).read_bytes()
            extra = blake3.blake3(content).hexdigest() if how == "blake3" else ""
            files.append(LockedFile(name, len(content), hashlib.sha256(content).hexdigest(), extra))
        found[how] = LockedModel(NAME, f"local:models/{NAME}", "Apache-2.0", tuple(files))
    return found


@pytest.fixture(scope="session")
def locks(models: dict[str, LockedModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same as lock files."""
    directory = tmp_path_factory.mktemp("locks")
    for how, model in models.items():
        write_lock({NAME: model}, directory / how)
    return {how: directory / how for how in models}


class Summary:
    """Prints the counts at the end of the run."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("mutations seen by all four checks")
        for what, number in sorted(self.counts.items()):
            terminalreporter.line(f"{number:5d}  {what}")


@pytest.fixture(scope="session")
def mutation_counts(pytestconfig: pytest.Config) -> Counter[str]:
    """How many of each kind; printed at the end."""
    counts: Counter[str] = Counter()
    pytestconfig.pluginmanager.register(Summary(counts))
    return counts


@pytest.fixture(scope="session")
def checks(models: dict[str, LockedModel], locks: dict[str, Path]) -> dict[str, Check]:
    """The four ways in which a directory is held against the lock."""

    def start(how: str) -> Check:
        return lambda directory: prepare(START, (), Baked(directory.parent, locks[how]), LOG).weights()

    def verify(how: str) -> Check:
        return lambda directory: verify_dir(models[how], directory)

    return {f"verify, {how}": verify(how) for how in models} | {f"start, {how}": start(how) for how in models}


def refusal(check: Check, directory: Path) -> WeightsDiffer | None:
    """What a check has against a directory."""
    try:
        check(directory)
    except WeightsDiffer as e:
        return e
    return None


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Where the copy to be damaged lies."""
    return tmp_path / "models" / NAME


def draw(seed: int, victim: Path, pristine: Path) -> Mutation:
    """The mutation of a seed."""
    kind = sorted(KINDS)[seed % len(KINDS)]
    restore(victim, pristine)
    return mutate(victim, pristine, kind, random.Random(seed))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_mutation_is_seen_by_every_check(
    kind: str, victim: Path, pristine: Path, checks: dict[str, Check], mutation_counts: Counter[str]
) -> None:
    only = os.environ.get("MUTATION_SEED")
    for seed in [int(only)] if only else range(MUTATIONS):
        if sorted(KINDS)[seed % len(KINDS)] != kind:
            continue
        mutation = draw(seed, victim, pristine)
        for check, run in checks.items():
            where = f"MUTATION_SEED={seed}: {mutation.kind}: {mutation.what}: {check}"
            error = refusal(run, victim)
            assert error is not None, f"{where}: not seen"
            assert error.exit_code == Exit.WEIGHTS_DIFFER, where
            assert error.id in IDS[kind], f"{where}: {error.id}"
            assert all(path in error.detail for path in mutation.paths), f"{where}: {error.detail}"
        mutation_counts[kind] += 1


def test_the_generator_changes_what_it_says_and_nothing_else(victim: Path, pristine: Path) -> None:
    before = mutations.state(pristine)
    for seed in range(len(KINDS)):
        mutation = draw(seed, victim, pristine)
        assert mutations.state(pristine) == before, "the pristine copy is no longer pristine"
        assert mutations.state(victim) != before, mutation.what
        assert mutation == draw(seed, victim, pristine), "a seed says which mutation it is"


def test_a_mutation_that_changes_nothing_is_drawn_again(tmp_path: Path) -> None:
    pristine = tmp_path / "pristine"
    pristine.mkdir()
    (pristine / "a.txt").write_bytes(bytes(100_000) + b"x")
    for seed in range(20):
        restore(tmp_path / "victim", pristine)
        mutate(tmp_path / "victim", pristine, "zero-filled hole", random.Random(seed))
        assert (tmp_path / "victim" / "a.txt").read_bytes() == bytes(100_001)
    (pristine / "a.txt").write_bytes(bytes(10))
    restore(tmp_path / "victim", pristine)
    with pytest.raises(AssertionError, match="changed nothing"):
        mutate(tmp_path / "victim", pristine, "zero-filled hole", random.Random(1))


def test_no_untouched_copy_is_accused(
    tmp_path: Path, pristine: Path, checks: dict[str, Check], mutation_counts: Counter[str]
) -> None:
    """Times, modes, owners' habits and the way a copy was made are no difference."""
    rng = random.Random(100)
    ways: dict[str, Callable[[str, str], object]] = {
        "copy": shutil.copyfile, "copy with times": shutil.copy2, "hard link": os.link, "sparse": copy_sparse,
    }  # fmt: skip
    for number in range(UNTOUCHED):
        directory = tmp_path / str(number) / NAME
        way = rng.choice(sorted(ways))
        shutil.copytree(pristine, directory, copy_function=ways[way])
        for name in FILES if way != "hard link" else ():
            (directory / name).chmod(rng.choice([0o400, 0o444, 0o644, 0o755]))
            os.utime(directory / name, (0, rng.randrange(2**31)))
        for check, run in checks.items():
            error = refusal(run, directory)
            assert error is None, f"copy {number} ({way}), {check}: accused though untouched: {error}"
        mutation_counts["untouched, and not accused"] += 1
        shutil.rmtree(directory.parent)


def copy_sparse(source: str, target: str) -> None:
    """Copy without writing zeros: the same bytes, with holes where the disk keeps none."""
    content = Path(source).read_bytes()
    with Path(target).open("wb") as f:
        for at in range(0, len(content), 4096):
            if any(block := content[at : at + 4096]):
                f.seek(at)
                f.write(block)
        f.truncate(len(content))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_program_says_which_file_and_ends_with_5(
    kind: str, victim: Path, pristine: Path, locks: dict[str, Path]
) -> None:
    """The command, the check of an image's build, and the container's entry point, which has nothing to start then."""
    mutation = draw(sorted(KINDS).index(kind) + len(KINDS) * 100, victim, pristine)
    for args in (*verifying(victim, locks), ["-c", ENTRY, str(victim.parent), str(locks["blake3"])]):
        done = program(args)
        assert done.returncode == Exit.WEIGHTS_DIFFER, f"{mutation.what}: {done.stderr}"
        assert any(path in done.stderr for path in mutation.paths), f"{mutation.what}: {done.stderr}"
        assert "Traceback" not in done.stderr
        assert not done.stdout


def test_every_program_passes_an_untouched_copy(pristine: Path, locks: dict[str, Path]) -> None:
    verify = [
        "-m",
        "bringup.weights",
        "verify",
        "--model",
        NAME,
        "--lock",
        str(locks["blake3"]),
        "--out",
        str(pristine),
    ]
    assert program(verify).returncode == 0
    done = program(["-c", ENTRY, str(pristine.parent), str(locks["blake3"])])
    assert done.returncode == 0, done.stderr
    assert "bringup.inside.serve" in done.stdout


def verifying(directory: Path, locks: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Arguments of `bringup weights verify`, and of what an image's build runs."""
    given = ["verify", "--model", NAME, "--lock", str(locks["blake3"])]
    command = ["-m", "bringup", "weights", *given, str(directory)]
    return command, ["-m", "bringup.weights", *given, "--out", str(directory)]


def program(args: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, with what the entry point needs."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **START}
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
