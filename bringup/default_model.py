"""Which model a command means when none is named."""

from __future__ import annotations

import dataclasses

from bringup import catalog, targets
from bringup.catalog import TINY, Model
from bringup.edge.docker import Engine
from bringup.errors import TargetUnavailable, UsageError
from bringup.plan import NO_MODEL
from bringup.settings import AUTO, BAKED, LOCAL, VOLUME, Settings, variable
from bringup.targets.local import is_there, weights_place
from bringup.weights.hub import Hub

PATIENCE = 3.0  # seconds for the Hub's first word


def resolve(settings: Settings, engine: Engine, reachable: bool, flavour: str) -> tuple[Settings, Model, str]:
    """Settings with a model's name in them, that model, and why it is that one (empty when it was named).

    The project's own container comes first, so that `verify` asks about what `up` started; then the flavour's default,
    if its image or its weights are there or the Hub answers; then the model that needs no Hub.

    Raises:
        UsageError: no such model, or nothing pins it.
    """
    models = catalog.load()
    name, reason = settings.model, ""
    here = settings.target == LOCAL
    if name == AUTO or (here and name == NO_MODEL):  # so the image without weights calls what it serves by itself
        name, reason = _served(settings, engine) if reachable or here else ("", "")
        if not name:
            name, reason = _default(models, settings, engine if reachable and not here else None, flavour)
    return dataclasses.replace(settings, model=name), catalog.choose(models, name), reason


def _served(settings: Settings, engine: Engine) -> tuple[str, str]:
    container = targets.of(settings.target, settings.project, engine).container()
    variables = container.inspect().get("Config", {}).get("Env") or [] if container else []
    name = next((v.partition("=")[2] for v in variables if v.startswith(variable("model") + "=")), "")
    return name, f"the server of the project {settings.project} has it"


def _default(models: dict[str, Model], settings: Settings, engine: Engine | None, flavour: str) -> tuple[str, str]:
    name, reason = catalog.default(models, flavour)
    if name == TINY or (settings.weights == BAKED and engine and engine.image(f"bringup:{flavour}-{name}")):
        return name, reason
    if settings.target == LOCAL and settings.weights != VOLUME and is_there(weights_place(settings, name), name):
        return name, reason
    hub, pinned = Hub(settings.hf_endpoint, read=PATIENCE), models[name].lock
    try:
        if pinned:
            hub.head(hub.url(pinned, pinned.files[0])).close()
    except TargetUnavailable as e:
        return TINY, f"{name} is {reason}, but the model hub does not answer ({e.message})"
    except UsageError:  # it answers; what it refuses is for the fetch to tell
        pass
    return name, reason
