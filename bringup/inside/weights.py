"""The weights of this start: baked, fetched onto a volume, or in a mounted directory; always compared with the lock."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bringup.errors import UsageError, WeightsDiffer
from bringup.lock import LOCK, LockedModel, read_lock
from bringup.plan import MODELS_DIR, NO_MODEL, WEIGHTS_DIR
from bringup.settings import AUTO, BAKED, VOLUME, Settings, variable
from bringup.weights.fetch import How, fetch
from bringup.weights.place import PAUSE, WORK
from bringup.weights.progress import Progress
from bringup.weights.verify import verify_dir

IN_IMAGE = Path("/opt/bringup/weights.lock")
SAY_EVERY = 10.0  # seconds between two lines about a transfer
TOKENS = (variable("hf_token"), "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # vLLM gets none of them: it works offline


@dataclass(frozen=True)
class Baked:
    """Where the image holds what was built into it, and where a volume of weights belongs."""

    models: Path = Path(MODELS_DIR)
    lock: Path = field(default_factory=lambda: IN_IMAGE if IN_IMAGE.is_file() else LOCK)  # a bare box has no image's
    volume: Path = Path(WEIGHTS_DIR)

    def held(self) -> list[str]:
        """Names of the baked models."""
        return sorted(p.name for p in self.models.iterdir() if p.is_dir()) if self.models.is_dir() else []


def model_name(environ: Mapping[str, str], baked: Baked) -> str:
    """The model to serve: the one asked for, or the only one there is.

    Raises:
        UsageError: none was asked for, and there is not exactly one.
    """
    name = environ.get(variable("model"), "")
    if name not in ("", AUTO, NO_MODEL):
        return name
    is_baked = environ.get(variable("weights"), BAKED) in ("", BAKED)
    names = baked.held() if is_baked else sorted(read_lock(baked.lock))
    if len(names) == 1:
        return names[0]
    if is_baked and not names:
        raise UsageError(
            "this image holds no weights, and nothing says where they are",
            hint=f"set {variable('model')} to a pinned model, and {variable('weights')} to volume, with a volume at "
            f"{baked.volume}, or to a directory that is mounted: {', '.join(sorted(read_lock(baked.lock)))}",
        )
    raise UsageError(f"{variable('model')} is not set", hint=f"set it to one of: {', '.join(names)}")


def locked_model(settings: Settings, baked: Baked) -> LockedModel:
    """What the lock says about the model.

    Raises:
        UsageError: the image does not hold it, or the lock does not pin it.
    """
    held, name = baked.held(), settings.model
    if settings.weights == BAKED and name not in held:
        raise UsageError(
            f"this image does not hold the model {name!r}; it holds: {', '.join(held) or 'none'}",
            hint=f"set BRINGUP_MODEL to one of these, build the image of {name!r}, or set BRINGUP_WEIGHTS=volume",
        )
    locked = read_lock(baked.lock)
    if name not in locked:
        raise UsageError(
            f"the weights lock {baked.lock} does not pin {name!r}; it pins: {', '.join(locked)}",
            hint="build the image again",
        )
    return locked[name]


def place_of(model: LockedModel, settings: Settings, baked: Baked) -> Path:
    """The directory of the model's files."""
    if isinstance(settings.weights, Path):
        return settings.weights
    return (baked.volume if settings.weights == VOLUME else baked.models) / model.name


def provide(model: LockedModel, settings: Settings, baked: Baked, token: str, log: logging.Logger) -> None:
    """See to it that the model's files are there, as locked.

    Raises:
        WeightsDiffer: they are not, and nothing here may change them.
        BringupError: what `fetch` raises.
    """
    if settings.weights == VOLUME:
        _fill(model, settings, place_of(model, settings, baked), token, log)
        return
    directory = place_of(model, settings, baked)
    if not directory.is_dir():
        raise UsageError(
            f"{directory} is not a directory in this container", hint=f"mount the weights of {model.name} there"
        )
    check(model, directory, log)


def check(model: LockedModel, directory: Path, log: logging.Logger) -> None:
    """Compare every byte with the lock, and say how fast that was.

    Raises:
        WeightsDiffer: naming what differs.
    """
    log.info("checking %d bytes of weights against the lock", model.size)
    begun = time.monotonic()
    verify_dir(model, directory)
    took = time.monotonic() - begun
    log.info("weights of %s are as locked: %d files, %d bytes in %.2f s, %.2f GB/s, digest %s", model.name,
             len(model.files), model.size, took, model.size / 1e9 / max(took, 1e-6), model.digest)  # fmt: skip


def _fill(model: LockedModel, settings: Settings, directory: Path, token: str, log: logging.Logger) -> None:
    """The volume as locked: looked at first, so that only a start that lacks something asks the Hub."""
    if directory.is_dir():
        try:
            check(model, directory, log)
            return
        except WeightsDiffer as e:
            log.warning("%s; fetching what is missing", e.message)
    if model.source != "hub":
        raise UsageError(
            f"{model.name} is no model of the Hub, so it cannot be fetched into {directory}",
            hint=f"build an image that holds it: bringup build --model {model.name}",
        )
    log.info("fetching %s at %s from %s into %s: %d files, %d bytes, by %s", model.repo, model.revision,
             settings.hf_endpoint, directory, len(model.files), model.size, settings.transfer)  # fmt: skip
    how = How(
        endpoint=settings.hf_endpoint,
        token=token or None,
        transfer=settings.transfer,
        stall_timeout=settings.stall_timeout,
        timeout=settings.fetch_timeout,
    )
    receipt = fetch(model, directory, how, _teller(log))
    log.info("fetched %s", receipt.summary())
    deadline = time.monotonic() + settings.fetch_timeout
    while True:
        try:
            check(model, directory, log)
            return
        except WeightsDiffer as e:
            # Another start that waited for us looks at the volume now, and its lock is all that is there too many.
            if not all(WORK in line for line in e.detail.splitlines()) or time.monotonic() >= deadline:
                raise
        time.sleep(PAUSE)


def _teller(log: logging.Logger) -> Callable[[Progress], None]:
    """Says how far a transfer is, now and then; the last line is the receipt's."""
    begun = said = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SAY_EVERY:
            said = now
            share = 100 * progress.done / progress.size if progress.size else 100.0
            log.info("fetching: %d of %d bytes (%.0f %%) after %.0f s", progress.done, progress.size, share,
                     now - begun)  # fmt: skip

    return tell


def read_token(file: Path | None, environ: Mapping[str, str]) -> str:
    """The Hub token, of the file before the variables; empty when there is none (/dev/null is compose's "none").

    Raises:
        UsageError: the file cannot be read, or what is in it cannot be sent in an HTTP header.
    """
    token = next((text for name in TOKENS if (text := environ.get(name, "").strip())), "")
    token = (read_text(file, "Hub token", 4096) if file else "") or token
    return require_word(token, "Hub token", "copy it from the Hub's settings page, on one line")


def read_text(file: Path, what: str, limit: int) -> str:
    """A file with secrets, without the space around.

    Raises:
        UsageError: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with file.open("rb") as f:
            content = f.read(limit + 1)
    except OSError as e:
        raise UsageError(
            f"the {what} file {file} cannot be read by uid {os.getuid()} ({e.strerror})",
            hint="give a regular file, readable by that user: chmod/chown it, or set BRINGUP_USER=OWNER_UID:0",
        ) from e
    if len(content) > limit:
        raise UsageError(f"the {what} file {file} is larger than {limit} bytes", hint="one word a line is all it holds")
    return content.decode("ascii", "replace").strip()


def require_word(word: str, what: str, hint: str, limit: int = 4096) -> str:
    """The word itself, never shown.

    Raises:
        UsageError: it cannot be sent in an HTTP header.
    """
    if len(word) > limit or not all("!" <= c <= "~" for c in word):
        raise UsageError(f"the {what} is not one word of printable ASCII characters", hint=hint)
    return word
