"""The official Hub client in its own environments: each version as locked, with and without the hf_transfer wheel."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.hub import ROOT

LOCKS = {"0.36.2": ROOT / "locks" / "hub-0.36.lock", "2.4.0": ROOT / "locks" / "hub-2.lock"}
CACHE = ROOT / ".cache" / "venvs"


def hub_python(version: str, hf_transfer: bool) -> Path:
    """The Python of an environment with that huggingface_hub; made when it is not there yet."""
    lock = LOCKS[version]
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    venv = (
        CACHE / f"{lock.stem}-{digest}-{sys.version_info.major}.{sys.version_info.minor}{'-hf_transfer' * hf_transfer}"
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{venv.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # another test run may be making it
        if not (venv / "complete").exists():
            shutil.rmtree(venv, ignore_errors=True)
            _uv("venv", "--quiet", "--python", sys.executable, str(venv))
            _uv("pip", "install", "--quiet", "--python", str(venv), "--require-hashes", "-r", str(lock))
            if not hf_transfer:
                _uv("pip", "uninstall", "--quiet", "--python", str(venv), "hf_transfer")
            (venv / "complete").touch()
    return venv / "bin" / "python"


def _uv(*args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *args], capture_output=True, text=True, check=False, timeout=300, cwd=CACHE
    )
    assert done.returncode == 0, f"uv {' '.join(args)} ends with {done.returncode}:\n{done.stderr}"
