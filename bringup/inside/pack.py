"""Bytecode of everything that the server imports, in one file and without a search: `imports.pack`.

An import asks every directory of sys.path for the module, looks at its source's date, and opens, reads and closes its
bytecode. A server does that for 6,000 modules, in two processes. Where a file system answers slowly (network disks,
sandboxed containers, a cold page cache), that is most of the time of the imports. The pack is written when the image is
built, and left out as soon as anything says that the installation is another one than then.

Format: the line `MAGIC`, 8 bytes with the length of the index (big-endian), the index (marshal), then the bytecode.
The index: `key` (see `installation`), `hot` (bytes at the beginning that a start needs in any case), `size` (bytes of
the bytecode), `modules`: name -> (file, is a package, offset, bytes), with -1 bytes for an extension module,
`distributions`: what importlib.metadata.packages_distributions() says, and `scanned`: the directory of transformers'
models, and what transformers finds there (marshal). It reads the 2,400 sources in it, twice, each time it is imported:
0.6 s with all of them in the page cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import marshal
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

PACK = Path("/opt/bringup/imports.pack")
# The key of the pack that the first process found right, for those it starts: imports have changed their sys.path.
VARIABLE = "BRINGUP_IMPORT_PACK"
MAGIC = b"bringup import pack 2\n"
# Packed whole: what an engine imports later differs by GPU and by model.
WHOLE = ("torch._dynamo", "torch._inductor", "triton", "vllm.compilation", "vllm.v1", "vllm.model_executor.layers")
SCANNER, SCAN, SCANNED = "transformers.utils.import_utils", "create_import_structure_from_path", "transformers.models"
HEADER = 16  # bytes before the code in a .pyc (PEP 552)


def directories() -> list[str]:
    """Where modules come from, but for our own and for the current directory, which `python -m` puts first."""
    left_out = ("", os.getcwd(), str(Path(__file__).parents[2]))  # noqa: PTH109 - compared with sys.path's words
    return [p for p in sys.path if p not in left_out]


def installation() -> str:
    """A key of what is installed: the interpreter, the places, and the names in them; a release is part of a name."""
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    names = []
    for place in directories():
        if place not in standard:
            try:
                names += [place, *sorted(n for n in os.listdir(place) if n != "__pycache__")]  # noqa: PTH208
            except OSError:
                names.append(place)
    text = "\n".join([sys.version, str(sys.flags.optimize), *names])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Pack:
    """An opened pack; a finder for sys.meta_path."""

    def __init__(self, fd: int, base: int, index: dict[str, Any]) -> None:
        self._fd, self._base = fd, base
        self.modules: dict[str, tuple[str, bool, int, int]] = index["modules"]
        self.distributions: dict[str, list[str]] = index["distributions"]
        self.scanned: tuple[str, bytes] = index["scanned"]
        self._hot: bytes | None = os.pread(fd, index["hot"], base)

    def find_spec(self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None) -> Any:
        """The spec that the ordinary search would find; None leaves the search to it."""
        found = self.modules.get(name)
        if found is None:
            return None
        file, is_package, offset, size = found
        place = os.path.dirname(os.path.dirname(file) if is_package else file)  # noqa: PTH120
        if path is not None and place not in path:  # the parent looks elsewhere
            return None
        if size < 0:
            return importlib.util.spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))
        loader = PackLoader(name, file, self, offset, size)
        spec = ModuleSpec(name, loader, origin=file, is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(file)]  # noqa: PTH120
        return spec

    def code(self, offset: int, size: int) -> CodeType:
        """The code at a place of the pack."""
        if self._hot is not None and offset + size <= len(self._hot):
            content: bytes | memoryview = memoryview(self._hot)[offset : offset + size]
        else:
            content = os.pread(self._fd, size, self._base + offset)
        return cast("CodeType", marshal.loads(content))  # noqa: S302 - as in a .pyc

    def answer_scan(self, scanner: ModuleType) -> None:
        """Let transformers be told what it would find in the sources of its models."""
        directory, found = self.scanned
        scan = getattr(scanner, SCAN, None)
        if scan is None or not directory:
            return

        def told(path: Any) -> Any:
            place = os.path.dirname(path) if os.path.isfile(path) else os.fspath(path)  # noqa: PTH113, PTH120
            with suppress(EOFError, ValueError, TypeError):  # a damaged pack
                if place == directory:
                    return marshal.loads(found)  # noqa: S302 - as the code is
            return scan(path)

        setattr(scanner, SCAN, told)

    def cool(self) -> None:
        """Give the memory back when the many imports are over; what is still imported is read one by one."""
        self._hot = None


class PackLoader(SourceFileLoader):
    """Source and everything else from the file, as ever; only the code from the pack."""

    def __init__(self, name: str, file: str, pack: Pack, offset: int, size: int) -> None:
        super().__init__(name, file)
        self._pack, self._at = pack, (offset, size)

    def exec_module(self, module: ModuleType) -> None:
        """Run it."""
        super().exec_module(module)
        if module.__name__ == SCANNER:
            self._pack.answer_scan(module)

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code."""
        try:
            return self._pack.code(*self._at)
        except (EOFError, ValueError, TypeError, OSError):  # a damaged pack
            return super().get_code(fullname)


def install(file: Path = PACK) -> Pack | None:
    """Import from the pack from now on; None when there is none, or it is of another installation."""
    if used := next((finder for finder in sys.meta_path if isinstance(finder, Pack)), None):
        return used
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        start = os.pread(fd, len(MAGIC) + 8, 0)
        length = int.from_bytes(start[len(MAGIC) :], "big")
        base = len(start) + length
        index = marshal.loads(os.pread(fd, length, len(start))) if start.startswith(MAGIC) else {}  # noqa: S302
        if (
            index.get("key") in (os.environ.get(VARIABLE), installation())
            and os.fstat(fd).st_size == base + index["size"]
        ):
            pack = Pack(fd, base, index)
            sys.meta_path.insert(0, pack)
            os.environ[VARIABLE] = index["key"]
            said = pack.distributions
            importlib.metadata.packages_distributions = lambda: {k: list(v) for k, v in said.items()}
            return pack
    except (EOFError, ValueError, TypeError, KeyError, AttributeError, OSError):
        pass
    os.close(fd)
    return None


def write(file: Path, imported: Iterable[ModuleType], key: str, places: Sequence[str]) -> int:
    """Pack these modules and all of `WHOLE`; how many are in it.

    Args:
        file: the pack.
        imported: modules that a start imports.
        key, places: `installation()` and `directories()` before they were imported, for some change sys.path.
    """
    hot = dict(sorted(_imported(imported, places)))
    cold = {n: v for n, v in sorted(_whole(places)) if n not in hot}
    modules: dict[str, tuple[str, bool, int, int]] = {}
    code = bytearray()
    hot_size = 0
    for part in (hot, cold):
        for name, (origin, is_package) in part.items():
            if origin.endswith(".py"):
                content = _bytecode(origin)
                if content is None:
                    continue
                modules[name] = (origin, is_package, len(code), len(content))
                code += content
            else:
                modules[name] = (origin, False, 0, -1)
        hot_size = hot_size or len(code)
    distributions = {k: sorted(v) for k, v in sorted(importlib.metadata.packages_distributions().items())}
    index = marshal.dumps(
        {"key": key, "hot": hot_size, "size": len(code), "modules": modules, "distributions": distributions,
         "scanned": _scan()}
    )  # fmt: skip
    file.write_bytes(MAGIC + len(index).to_bytes(8, "big") + index + code)
    return len(modules)


def _spec(module: ModuleType | None) -> ModuleSpec | None:
    """A module's spec. Not by getattr: a lazy module would import something to answer."""
    spec: ModuleSpec | None = getattr(module, "__dict__", {}).get("__spec__")
    return spec


def _scan() -> tuple[str, bytes]:
    """What transformers finds in its models' directory, and which that is; empty where it does not look like that."""
    scan = getattr(sys.modules.get(SCANNER), SCAN, None)
    spec = _spec(sys.modules.get(SCANNED))
    if scan is None or spec is None or not spec.origin:
        return "", b""
    directory = os.path.dirname(spec.origin)  # noqa: PTH120
    try:
        return directory, marshal.dumps(scan(directory))
    except ValueError:  # something that marshal does not write
        return "", b""


def _imported(modules: Iterable[ModuleType], places: Sequence[str]) -> Iterator[tuple[str, tuple[str, bool]]]:
    for module in modules:
        spec = _spec(module)
        if spec is None or type(spec.loader) not in (SourceFileLoader, ExtensionFileLoader) or not spec.origin:
            continue
        ours = spec.name == "__main__" or spec.name.partition(".")[0] == "bringup"
        if not ours and any(spec.origin.startswith(f"{p}/") for p in places):
            yield spec.name, (spec.origin, spec.submodule_search_locations is not None)


def _whole(places: Sequence[str]) -> Iterator[tuple[str, tuple[str, bool]]]:
    for package in WHOLE:
        for place in places:
            top = Path(place, *package.split("."))
            if (top / "__init__.py").is_file():
                for file in top.rglob("*.py"):
                    inner = file.parent if file.name == "__init__.py" else file.with_suffix("")
                    yield ".".join(inner.relative_to(place).parts), (str(file), file.name == "__init__.py")
                break


def _bytecode(source: str) -> bytes | None:
    """What a .pyc holds after its header, None if it is not there or would not do."""
    try:
        content = Path(importlib.util.cache_from_source(source)).read_bytes()
    except OSError:
        return None
    if content[:4] != importlib.util.MAGIC_NUMBER:
        return None
    code = content[HEADER:]
    if marshal.loads(code).co_filename == source:  # noqa: S302
        return code
    found = SourceFileLoader("", source).get_code("")  # compiled elsewhere, and told its place when it is loaded
    return marshal.dumps(found) if found else None
