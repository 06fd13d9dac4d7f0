"""The bundle: the evidence of one run in one directory, complete or absent, every file in SHA256SUMS."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bringup import signature
from bringup.edge.http import NoAnswer
from bringup.errors import BringupError, EvidenceMissing, UsageError
from bringup.plan import Plan
from bringup.records import ProbeRecord, Status
from bringup.redact import redact
from bringup.server import Container, Server

SUMS = signature.SUMS
ROOM = 4 * 2**20  # bytes; several times what a bundle takes
SAMPLE_PROMPT = "What is inference optimization?"  # the runbook's
Pages = Callable[[Path, Mapping[str, bytes]], dict[str, str]]
NO_GPU = "There is no GPU here: the server runs the cpu flavour.\n"


def check_destination(directory: Path, sign_key: Path | None = None) -> None:
    """Make sure that a bundle can be written (and signed with the key, if there is one), before anything is started.

    Raises:
        UsageError: the directory cannot be made or written to, or the key cannot sign.
    """
    if sign_key:
        signature.require(sign_key)
    trial = directory / f".trial-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with trial.open("wb") as f:
                os.posix_fallocate(f.fileno(), 0, ROOM)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as e:
        raise UsageError(
            f"bundles cannot be written to {directory}: {e.strerror}",
            hint="give --artifacts a directory you can write to",
        ) from e


def name(plan: Plan, now: float) -> str:
    """A bundle's directory name: UTC time and model."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now)) + f"-{plan.model}"


def gather(server: Server, plan: Plan, image: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The files that come from the running (or dead) server, and the names of those that could not be had."""
    container = server.container
    assert container is not None  # noqa: S101 - only targets with a container are collected from
    log = f"{container.state_dir}/run/server.jsonl"
    files = {"plan.json": as_json(plan.to_dict()), "image.json": as_json(image)}
    missing = []
    sources: dict[str, Callable[[], str]] = {
        "server.log": container.logs,
        "server.jsonl": lambda: container.copy_out(log).decode("utf-8", "replace"),
        "vllm_process.txt": lambda: _processes(container),
        "nvidia_smi_serving.txt": lambda: _nvidia_smi(container) if plan.flavour == "gpu" else NO_GPU,
        "sample_response.json": lambda: sample(server),
    }
    for file, source in sources.items():
        try:
            text = source()
            if text.strip():
                files[file] = text
            else:
                missing.append(f"{file} (empty)")
        except BringupError as e:
            missing.append(f"{file} ({e.message})")
    return files, missing


def _processes(container: Container) -> str:
    rows = container.top()
    if not rows:
        raise EvidenceMissing("the container has no processes")
    titles = list(rows[0])
    lines = ["\t".join(titles), *("\t".join(row.get(t, "") for t in titles) for row in rows)]
    return "\n".join(lines) + "\n"


def _nvidia_smi(container: Container) -> str:
    code, output = container.execute(["nvidia-smi"])
    if code:
        raise EvidenceMissing(f"nvidia-smi in the container ended with {code}")
    return output


def completeness(missing: list[str], files: int) -> ProbeRecord:
    """Whether the evidence is whole, as a finding of its own; `files`: how many there are."""
    return ProbeRecord(
        name="evidence",
        status=Status.UNKNOWN if missing else Status.PASS,
        expected="every artifact of the run",
        found="missing: " + "; ".join(missing) if missing else f"{files} files",
    )


def sample(server: Server) -> str:
    """sample_response.json: the answer to the runbook's question.

    Raises:
        EvidenceMissing: there was none, or one without text.
    """
    request = {"model": server.expect.model, "prompt": SAMPLE_PROMPT, "max_tokens": 50}
    try:
        answer = server.http.post("/v1/completions", request, server.deadline)
    except NoAnswer as e:
        raise EvidenceMissing(str(e)) from e
    if answer.status != 200:
        raise EvidenceMissing(f"HTTP {answer.status}: {answer.excerpt()}")
    try:
        body = answer.json()
        text = body["choices"][0]["text"]
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise EvidenceMissing(f"no completion: {answer.excerpt()}") from e
    if not isinstance(text, str) or not text.strip():
        raise EvidenceMissing(f"a completion without text: {answer.excerpt()}")
    return as_json(body)


def as_json(value: Any) -> str:
    """Readable JSON with a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def write(
    destination: Path, files: dict[str, str], secrets: Iterable[str], sign_key: Path | None = None,
    pages: Pages = lambda _destination, _contents: {},
) -> Path:  # fmt: skip
    """Write a bundle, redacted, with its sums and (with a key) their signature: to a hidden directory first, renamed
    when all is on the disk. `pages` makes further files from what the bundle will hold.

    Raises:
        EvidenceMissing: it could not be written or signed; nothing is left behind.
    """
    known = tuple(secrets)
    part = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        # JSON may carry half a surrogate pair
        contents = {file: redact(text, known).encode("utf-8", "backslashreplace") for file, text in files.items()}
        contents |= {file: text.encode() for file, text in pages(destination, contents).items()}
        sums = []
        for file, data in sorted(contents.items()):
            _write(part / file, data)
            sums.append(f"{hashlib.sha256(data).hexdigest()}  {file}\n")
        _write(part / SUMS, "".join(sums).encode())
        if sign_key:
            signature.sign(part, sign_key)
        part.rename(destination)
    except OSError as e:
        raise EvidenceMissing(
            f"the bundle {destination} could not be written: {e.strerror}",
            hint="free space or give --artifacts another directory, then `bringup collect`",
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return destination


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
