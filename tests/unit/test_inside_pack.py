"""The import pack: the same modules as by the ordinary search, and none at all once the installation differs."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from bringup.inside import pack

NAMES = (
    "packed_one",
    "packed_one.inner",
    "packed_one.inner.leaf",
    "torch",
    "torch._dynamo",
    "torch._dynamo.late",
    "packed_one.plain",
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site-packages with two packages, one of them named like one that is packed whole; nothing of it is imported."""
    place = tmp_path / "site"
    files = {
        "packed_one/__init__.py": "WHO = __name__\n",
        "packed_one/inner/__init__.py": "from packed_one.inner import leaf\n",
        "packed_one/inner/leaf.py": "def f():\n    return 'leaf'\n",
        "packed_one/plain.py": "X = 1\n",
        "torch/__init__.py": "",
        "torch/_dynamo/__init__.py": "",
        "torch/_dynamo/late.py": "LATE = True\n",
    }
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.name != "plain.py":
            py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(importlib.metadata, "packages_distributions", importlib.metadata.packages_distributions)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv(pack.VARIABLE, "")
    kept = {n: sys.modules.pop(n) for n in NAMES if n in sys.modules}
    yield place
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


@pytest.fixture
def packed(site: Path, tmp_path: Path) -> Path:
    """A pack made after the first package was imported; the modules are forgotten again."""
    modules = [importlib.import_module(n) for n in ("packed_one", "packed_one.inner", "packed_one.inner.leaf")]
    file = tmp_path / "imports.pack"
    odd = [ModuleType("without_a_spec"), sys.modules["builtins"]]
    assert pack.write(file, [*modules, *odd], pack.installation(), pack.directories()) == 5
    for name in NAMES:
        sys.modules.pop(name, None)
    return file


def test_modules_come_from_the_pack_and_look_as_ever(site: Path, packed: Path) -> None:
    made = pack.install(packed)
    assert made is not None
    assert sorted(made.modules) == [
        "packed_one",
        "packed_one.inner",
        "packed_one.inner.leaf",
        "torch._dynamo",
        "torch._dynamo.late",
    ]
    (site / "packed_one/inner/leaf.py").write_text("def f():\n    return 'edited'\n")
    leaf = importlib.import_module("packed_one.inner.leaf")
    assert leaf.f() == "leaf"  # by its bytecode, like a .pyc with an unchecked hash
    assert isinstance(leaf.__spec__.loader if leaf.__spec__ else None, pack.PackLoader)
    assert leaf.__file__ == str(site / "packed_one/inner/leaf.py")
    assert leaf.f.__code__.co_filename == leaf.__file__
    assert leaf.__cached__.endswith(".pyc")
    package = sys.modules["packed_one"]
    assert package.__path__ == [str(site / "packed_one")]
    assert package.WHO == "packed_one"
    assert "edited" in inspect.getsource(leaf)
    made.cool()
    assert importlib.import_module("torch._dynamo.late").LATE


def test_what_is_not_in_it_is_searched_for(packed: Path) -> None:
    assert pack.install(packed)
    plain = importlib.import_module("packed_one.plain")
    assert plain.X == 1
    assert not isinstance(plain.__spec__.loader if plain.__spec__ else None, pack.PackLoader)


def test_what_the_distributions_say_is_remembered(packed: Path) -> None:
    before = importlib.metadata.packages_distributions()
    assert pack.install(packed)
    now = importlib.metadata.packages_distributions()
    assert {k: sorted(v) for k, v in before.items()} == now
    assert "pytest" in now


SCANNER = """
calls = []
def create_import_structure_from_path(path):
    calls.append(str(path))
    return {"albert": {frozenset(): {"configuration_albert": {"AlbertConfig"}}}}
"""


@pytest.fixture
def scanned(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A pack made with a transformers that scans its models; nothing of it is imported."""
    names = ("transformers", "transformers.utils", pack.SCANNER, pack.SCANNED)
    for name in names[:2] + names[3:]:
        (site / name.replace(".", "/")).mkdir()
        (site / name.replace(".", "/") / "__init__.py").write_text("")
    (site / "transformers/utils/import_utils.py").write_text(SCANNER)
    for source in (site / "transformers").rglob("*.py"):
        py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    kept = {n: sys.modules.pop(n) for n in names if n in sys.modules}
    modules = [importlib.import_module(name) for name in names]
    file = tmp_path / "scanned.pack"
    pack.write(file, modules, pack.installation(), pack.directories())
    for name in names:
        sys.modules.pop(name)
    yield file
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def test_what_transformers_finds_in_its_models_is_remembered(site: Path, scanned: Path, tmp_path: Path) -> None:
    assert pack.install(scanned)
    scanner = importlib.import_module(pack.SCANNER)
    models = site / "transformers/models"
    found = scanner.create_import_structure_from_path(models)
    assert found == {"albert": {frozenset(): {"configuration_albert": {"AlbertConfig"}}}}
    found.clear()  # whoever asks may change it
    assert scanner.create_import_structure_from_path(str(models / "__init__.py"))["albert"]
    assert scanner.calls == []
    assert scanner.create_import_structure_from_path(tmp_path)
    assert scanner.calls == [str(tmp_path)]


def test_of_a_damaged_pack_nothing_is_told(site: Path, scanned: Path) -> None:
    made = pack.install(scanned)
    assert made is not None
    made.scanned = (made.scanned[0], made.scanned[1][:-9])
    scanner = importlib.import_module(pack.SCANNER)
    models = site / "transformers/models"
    assert scanner.create_import_structure_from_path(models)["albert"]
    assert scanner.calls == [str(models)]


def test_a_transformers_that_scans_in_another_way_is_left_alone(scanned: Path) -> None:
    made = pack.install(scanned)
    assert made is not None
    other = ModuleType(pack.SCANNER)
    made.answer_scan(other)
    assert not hasattr(other, pack.SCAN)


def test_a_pack_without_transformers_tells_nothing(packed: Path) -> None:
    made = pack.install(packed)
    assert made is not None
    assert made.scanned == ("", b"")
    scanner = ModuleType(pack.SCANNER)
    setattr(scanner, pack.SCAN, len)
    made.answer_scan(scanner)
    assert getattr(scanner, pack.SCAN) is len


def test_another_installation_leaves_it_out(site: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "packed_one-2.0.dist-info").mkdir()
    assert pack.install(packed) is None
    (site / "packed_one-2.0.dist-info").rmdir()
    monkeypatch.setattr(sys, "path", [str(site / "packed_one"), *sys.path])
    assert pack.install(packed) is None


def test_a_process_of_its_own_trusts_the_first_ones_finding(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack.install(packed)
    assert pack.install(packed) is first
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if f is not first])
    monkeypatch.setattr(sys, "path", ["/put/there/by/an/import", *sys.path])
    again = pack.install(packed)
    assert again is not None
    assert again is not first


@pytest.mark.parametrize("keep", [0, 3, 25, 40, 400, -1])
def test_a_torn_pack_is_left_out(packed: Path, keep: int) -> None:
    packed.write_bytes(packed.read_bytes()[:keep])
    before = list(sys.meta_path)
    assert pack.install(packed) is None
    assert sys.meta_path == before


def test_no_pack_is_no_matter(tmp_path: Path) -> None:
    assert pack.install(tmp_path / "none") is None


def test_damaged_code_is_taken_from_its_file(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    made = pack.install(packed)
    assert made is not None
    sys.meta_path.remove(made)
    size = made.modules["packed_one"][3]
    base = len(content) - sum(m[3] for m in made.modules.values())
    content[base : base + size] = b"\0" * size
    packed.write_bytes(content)
    assert pack.install(packed)
    assert importlib.import_module("packed_one").WHO == "packed_one"


def test_another_parent_finds_its_own(packed: Path, tmp_path: Path) -> None:
    made = pack.install(packed)
    assert made is not None
    assert made.find_spec("packed_one.inner", [str(tmp_path / "elsewhere")]) is None
    assert made.find_spec("packed_one.inner", [str(tmp_path / "site" / "packed_one")]) is not None
