"""The image: what `docker buildx bake` is asked for, and building it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bringup.edge import process
from bringup.errors import BuildFailed, UsageError
from bringup.settings import Settings

BUILD_DEADLINE = 3600.0  # seconds


def bake_environment(settings: Settings, flavour: str, version: str) -> dict[str, str]:
    """The variables of docker-bake.hcl for these settings; a variable that is not named keeps its default there.

    Raises:
        UsageError: a file or directory that the build needs is not there.
    """
    values = {"MODEL": settings.model, "VERSION": version}
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
    return values


def bake_argv(flavour: str, tag: str) -> list[str]:
    """The build command; `tag` names the result."""
    target = f"{flavour}.tags={tag}"
    return ["docker", "buildx", "bake", "--file", "docker-bake.hcl", "--progress", "plain", "--set", target, flavour]


def build(
    root: Path, flavour: str, tag: str, values: dict[str, str], on_line: Callable[[str], None]
) -> process.Outcome:
    """Build one flavour from the checkout at `root`.

    Raises:
        BuildFailed: with the build's last lines.
    """
    outcome = process.run(
        bake_argv(flavour, tag),
        extra_env=values,
        on_line=on_line,
        timeout=BUILD_DEADLINE,
        cwd=root,
    )
    if outcome.code:
        raise BuildFailed(
            f"the {flavour} image was not built: {last_error(outcome.tail)}",
            hint="the lines above are the build's own; -v shows all of them",
            detail=outcome.tail,
        )
    return outcome


def last_error(output: str) -> str:
    """The line of a build's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [line for line in lines if "ERROR" in line or line.lower().startswith("error")]
    return (marked or lines or ["no output"])[-1]


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
