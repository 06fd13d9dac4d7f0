"""What this user owns at RunPod, in a file that only they can read: written before a pod can exist, cleared after it
is gone."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bringup.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Owned:
    """A pod that was asked for. `id` is None while RunPod has not named it; times in epoch seconds, `expires` None is
    never; `key_file` holds the endpoint's key, and is removed with the pod where `made_key` says that we made it.

    `ssh_key`: the file of the private key that its sshd lets in, None without SSH; `made_ssh_key` as above. `ssh_user`
    and `host_key`: who its sshd is, once that was seen.
    """

    name: str
    created: float
    expires: float | None
    key_file: str
    made_key: bool
    id: str | None = None
    url: str | None = None
    ssh_key: str | None = None
    made_ssh_key: bool = False
    ssh_user: str | None = None
    host_key: str | None = None

    @property
    def remove(self) -> str:
        """The command that removes it."""
        return f"bringup runpod down {self.id or self.name}"


def default_directory(environ: Mapping[str, str]) -> Path:
    """Where it lies unless told otherwise: XDG's place for state."""
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "."), ".local", "state"))
    return Path(base, "bringup", "runpod")


class State:
    """The file, one entry a pod.

    Raises (every method): UsageError, it cannot be read or written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "pods.json"

    def all(self) -> list[Owned]:
        """The entries, oldest first."""
        with self._refused():
            return sorted(self._read().values(), key=lambda o: o.created)

    def put(self, owned: Owned) -> None:
        """Add or replace an entry; on the disk when this returns."""
        with self._locked():
            self._write(self._read() | {owned.name: owned})

    def drop(self, owned: Owned) -> None:
        """Forget an entry, and the keys that were made for it."""
        with self._locked():
            self._write({name: o for name, o in self._read().items() if name != owned.name})
            if owned.made_key:
                Path(owned.key_file).unlink(missing_ok=True)
            if owned.made_ssh_key and owned.ssh_key:
                Path(owned.ssh_key).unlink(missing_ok=True)

    def keep_key(self, name: str, key: str, kind: str = "key") -> Path:
        """Keep a key in a file of its own, mode 0600; `kind`: the end of the file's name."""
        with self._locked():
            place = self.directory / f"{name}.{kind}"
            _private(place, key.rstrip("\n") + "\n")
            return place

    def _read(self) -> dict[str, Owned]:
        if not self.file.exists():
            return {}
        return {name: Owned(**entry) for name, entry in json.loads(self.file.read_text("utf-8")).items()}

    def _write(self, entries: dict[str, Owned]) -> None:
        text = json.dumps({name: dataclasses.asdict(o) for name, o in entries.items()}, indent=2)
        part = self.file.with_suffix(f".{os.getpid()}.part")
        _private(part, text + "\n")
        part.replace(self.file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._refused():
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.directory / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError, AttributeError) as e:
            raise UsageError(
                f"the list of pods {self.file} cannot be used: {e}",
                hint="repair it, or give --state another directory; RunPod's console shows all pods",
            ) from e


def _private(place: Path, text: str) -> None:
    place.unlink(missing_ok=True)
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
