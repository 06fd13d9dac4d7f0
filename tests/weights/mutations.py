"""Seeded damage to a model's directory: every kind of difference from the lock that we could think of.

`mutate` proves that it changed something by looking at the directory itself, before and after, and draws again when it
did not (a hole where zeros were already, two equal files swapped). Nothing here knows how `verify_dir` looks.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DRAWS = 200


@dataclass(frozen=True)
class Mutation:
    """What was done: its kind, the locked files that are no longer right (or the extra one), and in words."""

    kind: str
    paths: tuple[str, ...]
    what: str


def state(directory: Path) -> dict[str, tuple[str, int, str]]:
    """Every entry below a directory but plain directories: kind, size, and sha256 or the link's target."""
    found = {}
    for path in _entries(directory):
        status = path.lstat()
        name = path.relative_to(directory).as_posix()
        if stat.S_ISLNK(status.st_mode):
            found[name] = ("link", 0, str(path.readlink()))
        elif stat.S_ISREG(status.st_mode):
            found[name] = ("file", status.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        else:
            found[name] = ("other", 0, oct(stat.S_IFMT(status.st_mode)))
    return found


def _entries(directory: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))
        else:
            yield Path(entry.path)


def mutate(directory: Path, pristine: Path, kind: str, rng: random.Random) -> Mutation:
    """Damage `directory`, a copy of `pristine`; what it then is differs from `pristine` in the files that are named."""
    before = state(pristine)
    for _ in range(DRAWS):
        mutation = KINDS[kind](directory, pristine, rng)
        after = state(directory)
        changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        if changed:
            assert set(mutation.paths) <= changed, f"{mutation.what}: changed were {sorted(changed)}"
            return mutation
        restore(directory, pristine)
    raise AssertionError(f"{kind}: {DRAWS} draws changed nothing")


def restore(directory: Path, pristine: Path) -> None:
    """Make `directory` a copy of `pristine` again."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(pristine, directory)


def _pick(directory: Path, rng: random.Random, smallest: int = 0) -> str:
    return rng.choice([p for p, (_, size, _) in sorted(state(directory).items()) if size >= smallest])


def _bit_flip(directory: Path, _: Path, rng: random.Random) -> Mutation:
    name = _pick(directory, rng, 1)
    content = bytearray((directory / name).read_bytes())
    at = rng.choice([0, len(content) - 1, rng.randrange(len(content))])
    bit = rng.randrange(8)
    content[at] ^= 1 << bit
    (directory / name).write_bytes(content)
    return Mutation("bit flip", (name,), f"bit {bit} of byte {at} of {name}")


def _truncation(directory: Path, _: Path, rng: random.Random) -> Mutation:
    name = _pick(directory, rng, 1)
    size = (directory / name).stat().st_size
    left = rng.choice([0, size - 1, rng.randrange(size)])
    os.truncate(directory / name, left)
    return Mutation("truncation", (name,), f"{name} cut from {size} to {left} bytes")


def _append(directory: Path, _: Path, rng: random.Random) -> Mutation:
    name = _pick(directory, rng)
    tail = rng.choice([b"\0", b"\n", bytes(4096), rng.randbytes(rng.randrange(1, 5000))])
    with (directory / name).open("ab") as f:
        f.write(tail)
    return Mutation("append", (name,), f"{len(tail)} bytes appended to {name}")


def _hole(directory: Path, pristine: Path, rng: random.Random) -> Mutation:
    """A real hole, as a lost write leaves it: same size, nothing was ever written there."""
    name = _pick(directory, rng, 1)
    content = (pristine / name).read_bytes()
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 512, 4096, rng.randrange(1, len(content) + 1)]))
    (directory / name).unlink()
    with (directory / name).open("wb") as f:
        f.write(content[:start])
        f.truncate(len(content))
        f.seek(end)
        f.write(content[end:])
    return Mutation("zero-filled hole", (name,), f"bytes {start} to {end} of {name}")


def _stale(directory: Path, _: Path, rng: random.Random) -> Mutation:
    """Other content of the same size and time: what a size check, or a look at the clock, lets through."""
    name = _pick(directory, rng, 1)
    path = directory / name
    times = path.stat()
    path.write_bytes(rng.randbytes(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return Mutation("other content, same size and time", (name,), name)


def _swap(directory: Path, a: str, b: str, kind: str) -> Mutation:
    (directory / a).rename(directory / "swapping")
    (directory / b).rename(directory / a)
    (directory / "swapping").rename(directory / b)
    return Mutation(kind, (a, b), f"{a} and {b}")


def _swap_any(directory: Path, _: Path, rng: random.Random) -> Mutation:
    a, b = rng.sample(sorted(state(directory)), 2)
    return _swap(directory, a, b, "two files swapped")


def _swap_same_size(directory: Path, _: Path, rng: random.Random) -> Mutation:
    sizes = {p: size for p, (_, size, _) in sorted(state(directory).items())}
    pairs = [(a, b) for a in sizes for b in sizes if a < b and sizes[a] == sizes[b] > 0]
    a, b = rng.choice(pairs)
    return _swap(directory, a, b, "two files of one size swapped")


def _rename(directory: Path, _: Path, rng: random.Random) -> Mutation:
    name = _pick(directory, rng)
    new = rng.choice([name + ".bak", name.upper(), "." + Path(name).name, f"moved/{name}", name + " ", "zz" + name])
    (directory / new).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).rename(directory / new)
    return Mutation("renamed", (name,), f"{name} to {new!r}")


def _delete(directory: Path, _: Path, rng: random.Random) -> Mutation:
    name = _pick(directory, rng)
    (directory / name).unlink()
    return Mutation("deleted", (name,), name)


def _symlink(directory: Path, pristine: Path, rng: random.Random) -> Mutation:
    """To the right content too: what a link points to can change after it was checked."""
    name = _pick(directory, rng)
    path = directory / name
    near = path.with_name("kept.json")
    target = rng.choice([pristine / name, Path("nowhere"), Path(path.name), Path("/dev/zero"), near])
    if target == near:  # relative, beside it, right content: so there is an extra file, too
        path.rename(near)
        target = Path(near.name)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return Mutation("replaced by a symbolic link", (name,), f"{name} to {target}")


def _symlinked_directory(directory: Path, pristine: Path, rng: random.Random) -> Mutation:
    inner = sorted({str(Path(p).parts[0]) for p in state(directory) if "/" in p})
    name = rng.choice(inner)
    shutil.rmtree(directory / name)
    (directory / name).symlink_to(pristine / name)
    return Mutation("subdirectory replaced by a symbolic link", (name,), f"{name} to its right copy")


def _other_kind(directory: Path, pristine: Path, rng: random.Random) -> Mutation:
    """A directory of that name (with the right file in it, perhaps), or a fifo, which nobody may wait for."""
    name = _pick(directory, rng)
    path = directory / name
    path.unlink()
    what = rng.choice(["empty directory", "directory", "fifo"])
    if what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
        if what == "directory":
            shutil.copyfile(pristine / name, path / path.name)
    return Mutation("replaced by a directory or fifo", (name,), f"{name}: {what}")


def _extra(directory: Path, pristine: Path, rng: random.Random) -> Mutation:
    names = ["model.bin", "modeling_x.py", ".hidden", "extra.json", "a/b/c.json", "onnx/model.safetensors"]
    name = rng.choice([n for n in names if not (directory / n).exists()])
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    what = rng.choice(["empty file", "file", "link", "dangling link", "fifo"])
    if what == "fifo":
        os.mkfifo(path)
    elif "link" in what:
        path.symlink_to("nowhere" if "dangling" in what else pristine / "config.json")
    else:
        path.write_bytes(b"" if "empty" in what else rng.randbytes(100))
    return Mutation("extra file", (name,), f"{name}: {what}")


KINDS: dict[str, Callable[[Path, Path, random.Random], Mutation]] = {
    "bit flip": _bit_flip,
    "truncation": _truncation,
    "append": _append,
    "zero-filled hole": _hole,
    "other content, same size and time": _stale,
    "two files swapped": _swap_any,
    "two files of one size swapped": _swap_same_size,
    "renamed": _rename,
    "deleted": _delete,
    "replaced by a symbolic link": _symlink,
    "subdirectory replaced by a symbolic link": _symlinked_directory,
    "replaced by a directory or fifo": _other_kind,
    "extra file": _extra,
}
