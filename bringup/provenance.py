"""Where a run came from, for its record: model, locks, settings, the container as it was started, and the clocks."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

from bringup import catalog, clock, image
from bringup.errors import BringupError
from bringup.lock import LOCK
from bringup.plan import Plan
from bringup.redact import shown_variables
from bringup.server import Container
from bringup.settings import LOCAL, Settings, fields, render
from bringup.targets.compose import project_root
from bringup.targets.local import IN_IMAGE
from bringup.weights.verify import sha256_of

DATE = ["date", "+%s.%N"]


@dataclasses.dataclass(frozen=True)
class Began:
    """The moment a run began, by both clocks of this host; seconds."""

    wall: float = dataclasses.field(default_factory=time.time)
    monotonic: float = dataclasses.field(default_factory=time.monotonic)


def iso(moment: float) -> str:
    """Epoch seconds as the record has them."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def model(plan: Plan) -> dict[str, Any] | None:
    """What the weights lock pins for the plan's model, but for its files (the ledger has them); None: nothing."""
    known = catalog.load().get(plan.model)
    if known is None or known.lock is None:
        return None
    lock = known.lock
    return {
        "source": lock.source,
        "repo": lock.repo or None,
        "revision": lock.revision or None,
        "license": lock.license,
        "bytes": lock.size,
        "digest": lock.digest,
    }


def locks(plan: Plan) -> dict[str, str]:
    """The sums of this checkout's locks; those that the image was built from are its labels.

    Of a server without an image: of what its interpreter was made from, if that says so, and of the weights' lock.
    """
    if plan.target == LOCAL:
        return {"weights": sha256_of(LOCK)} | ({"wheels": sha256_of(IN_IMAGE)} if IN_IMAGE.is_file() else {})
    return image.lock_sums(project_root(), plan.flavour)


def settings_shown(settings: Settings) -> dict[str, str | None]:
    """Each setting as its variable would hold it, None where it is not set; secrets are not among them."""
    values = {name: getattr(settings, name) for name, (_, option) in fields().items() if not option.hidden}
    return {name: None if value in (None, ()) else render(value) for name, value in values.items()}


def container(seen: Container | None) -> dict[str, Any]:
    """The container's state, command line and variables; what cannot be had any more is an `error`."""
    if seen is None:
        return {}
    try:
        state, raw = dataclasses.asdict(seen.state()), seen.inspect()
    except BringupError as e:
        return {"error": e.message}
    variables = dict(v.partition("=")[::2] for v in (raw.get("Config") or {}).get("Env") or [])
    argv = [raw["Path"], *(raw.get("Args") or [])] if raw.get("Path") else None
    return state | {"argv": argv, "environment": shown_variables(variables)}


def clocks(began: Began, engine: clock.Offset, seen: Container | None) -> dict[str, Any]:
    """This host's clock against the engine's and the container's, and whether it was set while we looked."""
    wall, monotonic = time.time() - began.wall, time.monotonic() - began.monotonic
    return {
        "wall_seconds": round(wall, 6),
        "monotonic_seconds": round(monotonic, 6),
        "stepped_seconds": round(wall - monotonic, 6),
        "engine": dataclasses.asdict(engine),
        "container": dataclasses.asdict(clock.offset(lambda: _date(seen), f"`{' '.join(DATE)}` in the container")),
    }


def _date(seen: Container | None) -> float:
    if seen is None:
        raise ValueError("there is no container")
    code, output = seen.execute(DATE)
    try:
        return float(output)
    except ValueError:
        raise ValueError(f"it ended with {code} and said {output.strip()[:80]!r}") from None
