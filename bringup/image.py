"""The image: what `docker buildx bake` is asked for, and building it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bringup import __version__
from bringup.edge import process
from bringup.errors import BuildFailed, UsageError
from bringup.lock import LOCK, read_lock
from bringup.plan import baked_model
from bringup.settings import Settings, fields
from bringup.weights.verify import sha256_of

BUILD_DEADLINE = 3600.0  # seconds
WARM = "/opt/bringup/warm"  # where the image keeps caches: bringup.inside.warm
WARM_LABEL = "dev.bringup.warm"
LINE = 200  # characters of a line of the build that are shown


def bake_environment(settings: Settings, flavour: str, root: Path) -> dict[str, str]:
    """The variables of docker-bake.hcl for these settings; a variable that is not named keeps its default there.

    Raises:
        UsageError: a file or directory that the build needs is not there.
    """
    model = baked_model(settings.weights, settings.model)
    pinned = read_lock().get(model)
    endpoint = settings.hf_endpoint
    sums = lock_sums(root, flavour)
    values = {
        "MODEL": model,
        "HF_ENDPOINT": "" if endpoint == fields()["hf_endpoint"][0].default else endpoint,
        "TRANSFER": settings.transfer,
        "VERSION": __version__,
        f"{flavour.upper()}_LOCK_SHA256": sums["wheels"],
        "WEIGHTS_LOCK_SHA256": sums["weights"],
        "WEIGHTS_DIGEST": pinned.digest if pinned else "",
    }
    if settings.base:
        values["CPU_BASE" if flavour == "cpu" else "CUDA_BASE"] = settings.base
    if flavour == "cpu" and settings.find_links and settings.find_links.is_dir():
        values["WHEELHOUSE"] = str(settings.find_links.resolve())
        if any(settings.find_links.glob("torch-*+cpu-*.whl")):
            values["TORCH_INDEX"] = ""  # nothing to ask an index for
    for variable, path in (("CA_FILE", settings.ca_file), ("HF_TOKEN_FILE", settings.hf_token_file)):
        if path is not None:
            if not path.is_file():
                raise UsageError(f"{path} is not a file", hint=f"it was to be the build's {variable}")
            values[variable] = str(path.resolve())
    if settings.hf_token and settings.hf_token_file is None:
        values["HF_TOKEN"] = settings.hf_token
    return values


def lock_sums(root: Path, flavour: str) -> dict[str, str]:
    """sha256 of the files that pin an image's content: the flavour's wheels, and all models' weights."""
    return {"wheels": sha256_of(root / "locks" / f"{flavour}.lock"), "weights": sha256_of(LOCK)}


def bake_argv(flavour: str, tag: str, values: dict[str, str]) -> list[str]:
    """The build command; `tag` names the result. Buildx wants each path outside the checkout allowed by name."""
    paths = [values[name] for name in ("WHEELHOUSE", "CA_FILE", "HF_TOKEN_FILE") if name in values]
    allowed = [part for path in paths for part in ("--allow", f"fs.read={path}")]
    fixed = ["--file", "docker-bake.hcl", "--progress", "plain", "--set", f"{flavour}.tags={tag}"]
    return ["docker", "buildx", "bake", *fixed, *allowed, flavour]


def build(
    root: Path, flavour: str, tag: str, values: dict[str, str], on_line: Callable[[str], None]
) -> process.Outcome:
    """Build one flavour from the checkout at `root`.

    Raises:
        BuildFailed: with the build's last lines.
    """
    show = ["git", "-C", str(root), "show", "--no-patch", "--format=%H %ct", "HEAD"]
    git = process.run(show) if (root / ".git").exists() else None
    words = git.out.split() if git and git.code == 0 else []
    revision = dict(zip(("REVISION", "SOURCE_DATE_EPOCH"), words, strict=False))
    outcome = process.run(
        bake_argv(flavour, tag, values),
        extra_env=values | revision,
        on_line=on_line,
        timeout=BUILD_DEADLINE,
        cwd=root,
    )
    if outcome.code:
        raise BuildFailed(
            f"the {flavour} image was not built: {last_error(outcome.tail)}",
            hint="the lines above are the build's own; -v shows all of them",
            detail=excerpt(outcome.tail),
        )
    return outcome


def write_warm(context: Path, tag: str, told: dict[str, Any], archive: bytes) -> None:
    """A build's context: the image `tag` with one more layer of caches; without times, so that it is the same again."""
    (context / "warm").mkdir()
    (context / "warm/factors.json").write_text(json.dumps(told, indent=1, sort_keys=True), "utf-8")
    (context / "warm/caches.tar").write_bytes(archive)
    (context / "Dockerfile").write_text(
        f'FROM {tag}\nCOPY warm/ {WARM}/\nLABEL {WARM_LABEL}="{told["sha256"]}"\n',
        "utf-8",
    )
    for path in (context / "warm").iterdir():
        path.chmod(0o644)
        os.utime(path, (0, 0))


def build_warm(context: Path, tag: str, on_line: Callable[[str], None]) -> None:
    """Build what `write_warm` wrote; `tag` then names the result.

    Raises:
        BuildFailed: with the build's last lines.
    """
    argv = ["docker", "buildx", "build", "--progress", "plain", "--provenance=false", "--tag", tag, str(context)]
    outcome = process.run(argv, on_line=on_line, timeout=BUILD_DEADLINE)
    if outcome.code:
        raise BuildFailed(
            f"the layer of caches was not built: {last_error(outcome.tail)}",
            hint=f"{tag} is there without it",
            detail=excerpt(outcome.tail),
        )


def last_error(output: str) -> str:
    """The line of a build's output that says what went wrong: the program's own words before BuildKit's."""
    lines = [re.sub(r"^#\d+ ([\d.]+ )?", "", line.strip()) for line in output.splitlines() if line.strip()]
    own = [
        line
        for line in lines
        if re.match(r"E: |(error|fatal)\b.*:", line) or re.search(r" \[[a-z]+(-[a-z]+)+\]$", line)
    ]
    marked = [line for line in lines if "ERROR" in line]
    return (own or marked or lines or ["no output"])[0 if own else -1][:LINE]


def excerpt(output: str) -> str:
    """The build's last lines, up to where BuildKit begins to quote the Dockerfile."""
    lines = [line[:LINE] for line in output.splitlines() if line.strip()]
    quoted = next((n for n, line in enumerate(lines) if line.startswith("Dockerfile:")), len(lines))
    return "\n".join(lines[:quoted])


def summary(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of `docker image inspect` that identifies an image: ids, tags, labels, size in bytes, layers."""
    config = raw.get("Config") or {}
    return {
        "id": raw.get("Id"),
        "tags": raw.get("RepoTags") or [],
        "digests": raw.get("RepoDigests") or [],
        "created": raw.get("Created"),
        "architecture": raw.get("Architecture"),
        "size": raw.get("Size"),
        "labels": config.get("Labels") or {},
        "layers": (raw.get("RootFS") or {}).get("Layers") or [],
    }
