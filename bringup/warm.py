"""The warm layer of `build --warm`: start the image once, and bake the caches that this filled into it.

The layer is made by an ordinary build from the archive that `bringup.inside.warm` packs, so that the same caches are
the same layer. A start uses it when its own caches are empty and every known factor of their keys is the same.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

from bringup import image, workflow
from bringup.errors import BringupError, BuildFailed, EvidenceMissing
from bringup.plan import Plan
from bringup.server import Container
from bringup.targets.compose import ComposeTarget
from bringup.workflow import Run

LOOPBACK = "127.0.0.1"


def bake(run: Run) -> dict[str, Any]:
    """Give the plan's image the caches of one start; the engine's description of the new image.

    Raises:
        NeverReady: the image's server did not come up; the image is there, without caches.
        BuildFailed: it filled no cache, or the layer was not built.
    """
    trial = dataclasses.replace(run, plan=trial_plan(run.plan, _free_port()))
    target = ComposeTarget(trial.engine, trial.plan.project, trial.plan.compose_files)
    try:
        container, _ = workflow.start(trial, target, None)
        with run.step("pack the caches"):
            told = packed(container)
            archive = container.copy_out(told.pop("archive"))
    finally:
        target.down(volumes=True)
    with run.step(f"bake the caches into {run.plan.image}") as detail, tempfile.TemporaryDirectory() as context:
        image.write_warm(Path(context), run.plan.image, told, archive)
        image.build_warm(Path(context), run.plan.image, detail)
    raw = run.engine.image(run.plan.image)
    if raw is None:
        raise EvidenceMissing(f"the build ended well, but the engine has no image {run.plan.image}")
    run.watch.say(f"{told['files']} files of caches, {told['bytes'] / 1e6:.1f} MB, are part of {run.plan.image}")
    return raw


def trial_plan(plan: Plan, port: int) -> Plan:
    """The same server in a project of its own, on a port of this host's loopback that is free."""
    return dataclasses.replace(
        plan,
        project=f"{plan.project}-warm",
        bind=LOOPBACK,
        port=port,
        base_url=f"http://{LOOPBACK}:{port}",
        environment={**plan.environment, "BRINGUP_BIND": LOOPBACK},
    )


def packed(container: Container) -> dict[str, Any]:
    """Let the container pack its caches: what factors.json is to hold, and `archive`, a path in the container.

    Raises:
        BuildFailed: it could not, or there was nothing to pack.
    """
    code, output = container.execute([container.python, "-m", "bringup.inside.warm", "pack"])
    try:
        told = dict(json.loads(output)) if code == 0 else {}
    except (ValueError, TypeError):
        told = {}
    if not told.get("files"):
        raise BuildFailed(
            f"the start filled no cache that could be baked: {output.strip()[-200:] or f'exit {code}'}",
            hint="on a CPU the profile is eager unless told otherwise, and compiles nothing: --profile default",
        )
    return told


def _free_port() -> int:
    try:
        with socket.socket() as s:
            s.bind((LOOPBACK, 0))
            return int(s.getsockname()[1])
    except OSError as e:
        raise BringupError(f"no port of {LOOPBACK} is free: {e.strerror}") from e
