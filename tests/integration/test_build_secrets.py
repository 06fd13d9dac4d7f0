"""The Hub's token is the build's secret: no layer, history or output has it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import docker
import pytest

from bringup import image
from bringup.settings import Settings
from tests.integration.canaries import canaries, leaks
from tests.integration.support import MODEL, ROOT, SESSION, environment

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("way", ["file", "variable"])
def test_a_build_with_a_token_leaves_none(way: str, engine: docker.DockerClient, base: str, tmp_path: Path) -> None:
    """The stage that is given it, built anew: what the image gets from there is in this stage's own layers."""
    told = canaries([f"hub-{way}"])
    (token,) = told.values()
    file = tmp_path / "token"
    file.write_text(token)
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
    settings = Settings(
        model=MODEL,
        base=base,
        ca_file=Path(ca) if (ca := os.environ.get("SSL_CERT_FILE")) else None,
        find_links=Path(links) if links else None,
        hf_token_file=file if way == "file" else None,
        hf_token=token if way == "variable" else None,
    )
    values = image.bake_environment(settings, "cpu", ROOT)
    tag = f"{SESSION}-secrets:{way}"
    only = ["--set", "cpu.target=weights", "--set", "cpu.no-cache-filter=weights"]
    done = subprocess.run(
        [*image.bake_argv("cpu", tag, values), *only],
        capture_output=True, check=False, cwd=ROOT, env=environment(values), timeout=600,
    )  # fmt: skip
    try:
        assert done.returncode == 0, done.stderr.decode()
        assert b"bringup.weights stage" in done.stderr, "the stage was not built"
        built = engine.images.get(tag)
        sinks = {
            "output": done.stdout + done.stderr,
            "layers": b"".join(built.save()),
            "inspect": json.dumps(built.attrs).encode(),
            "history": json.dumps(built.history()).encode(),
        }
        assert b"model.safetensors" in sinks["layers"], "the layers are packed: nothing could be found in them"
        assert leaks(told, sinks) == []
    finally:
        if engine.images.list(tag):
            engine.images.remove(tag, force=True)
