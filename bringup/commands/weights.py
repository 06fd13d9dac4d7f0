"""`bringup weights fetch|verify`: the files of a model, by the lock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import lock_option, standard
from bringup.errors import Exit, UsageError
from bringup.lock import LockedModel, read_lock
from bringup.options import takes
from bringup.settings import AUTO, Settings

if TYPE_CHECKING:
    from bringup.weights.receipt import Receipt

WHERE = Path("weights")  # below the current directory


@click.group
def weights() -> None:
    """Fetch a model's files by the lock, or compare a directory with it."""


@weights.command
@standard
@takes("model", "hf_endpoint", "hf_token_file", "hf_token", "transfer", "stall_timeout", "fetch_timeout")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR",
              help="Directory for the files; weights/MODEL by default.")  # fmt: skip
@click.option("--receipt", "receipt_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write into FILE who carried what, as JSON.")  # fmt: skip
@lock_option
def fetch(
    watch: Any,
    settings: Settings,
    sources: dict[str, str],  # noqa: ARG001
    to: Path | None,
    receipt_file: Path | None,
    path: Path,
) -> int:
    """Fetch a model's files: each gets its name when its size and sha256 are right, and what is right stays.

    A token for gated models comes from --hf-token-file or the variable HF_TOKEN.
    """
    model = _pinned(path, settings.model)
    directory = to or WHERE / model.name
    if receipt_file and not receipt_file.parent.is_dir():
        raise UsageError(f"the receipt {receipt_file} cannot be written: there is no directory {receipt_file.parent}")
    receipt = _bring(watch, settings, model, directory)
    if receipt_file:
        receipt.write(receipt_file)
    watch.say(receipt.summary())
    watch.say(f"{directory}: all as locked, digest {model.digest}")
    watch.result(receipt.to_dict() | {"directory": str(directory)})
    return Exit.PASS


@weights.command
@standard
@takes("model")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@lock_option
def verify(watch: Any, settings: Settings, sources: dict[str, str], directory: Path, path: Path) -> int:  # noqa: ARG001
    """Compare a directory with the lock: every name, every size, every byte."""
    from bringup.weights.verify import verify_dir

    model = _pinned(path, settings.model)
    started = time.monotonic()
    verify_dir(model, directory)
    seconds = time.monotonic() - started
    watch.say(
        f"{model.name} in {directory} is as locked: {len(model.files)} files, {model.size} bytes in {seconds:.2f} s"
    )
    watch.result({
        "model": model.name, "directory": str(directory), "files": len(model.files), "bytes": model.size,
        "digest": model.digest, "seconds": round(seconds, 3),
    })  # fmt: skip
    return Exit.PASS


def _pinned(path: Path, name: str) -> LockedModel:
    models = read_lock(path)
    if name == AUTO and len(models) == 1:
        return next(iter(models.values()))
    if name == AUTO:
        raise UsageError(f"{path} pins several models", hint=f"give --model, one of: {', '.join(models)}")
    if name not in models:
        raise UsageError(
            f"the model {name!r} is not pinned in {path} (pinned: {', '.join(models)})", hint=f"bringup lock {name}",
            id="not-pinned",
        )  # fmt: skip
    return models[name]


def _bring(watch: Any, settings: Settings, model: LockedModel, directory: Path) -> Receipt:
    from bringup.key import hub_token
    from bringup.targets.compose import project_root
    from bringup.weights.fetch import How, copy
    from bringup.weights.fetch import fetch as from_hub

    if model.source != "hub":
        return copy(model, project_root() / model.source.removeprefix("local:"), directory)
    how = How(
        endpoint=settings.hf_endpoint, token=hub_token(settings), transfer=settings.transfer,
        stall_timeout=settings.stall_timeout, timeout=settings.fetch_timeout,
    )  # fmt: skip
    with watch.transfer(f"fetching {model.name} from {settings.hf_endpoint}") as shown:
        return from_hub(model, directory, how, shown)
