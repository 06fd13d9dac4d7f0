"""server.jsonl: one JSON object for each log record, of vLLM's processes and of the entry point.

vLLM loads `Handler` in every process through the `dictConfig` that `logging_config` makes. A record keeps the
message template and its arguments apart, so a reader need not parse text that changes with every release.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LINE_LIMIT = 16_384  # bytes of one line, newline included
TEXT_LIMIT = 2_000  # characters of one template or argument
ARGS_LIMIT = 32
FILE_LIMIT = 64 * 2**20  # bytes; the start is what matters, a server that runs for months must not fill the disk
REDACTED = "[redacted]"

# vLLM's own format (vllm/logger.py of the locked version), so that the console reads as if nothing was configured.
_VLLM_FORMAT = "(%(vllm_process_name)s pid=%(process)d) %(levelname)s %(asctime)s [%(fileinfo)s:%(lineno)d] %(message)s"
GATE_FORMAT = "gate: %(asctime)s %(message)s"
# Torch tells at INFO whether its cache of compiled graphs was hit; nobody else does where vLLM's own cache is not used.
_TORCH_CACHES = ("torch._inductor.codecache", "torch._functorch._aot_autograd.autograd_cache")


def _plain(value: Any, secret: str) -> Any:
    """A JSON value that is short and does not hold the secret; numbers stay numbers."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    if secret:
        for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]):  # bare, in a list or dict, in JSON
            text = text.replace(form, REDACTED)
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}… ({len(text)} characters)"


def to_line(record: logging.LogRecord, secret: str = "") -> bytes:
    """One record as one line of at most `LINE_LIMIT` bytes."""
    args: Any = record.args or ()
    if isinstance(args, Mapping):
        args = {_plain(str(k), secret): _plain(v, secret) for k, v in list(args.items())[:ARGS_LIMIT]}
    else:
        args = [_plain(a, secret) for a in (args if isinstance(args, tuple) else (args,))[:ARGS_LIMIT]]
    entry = {
        "t": record.created,
        "pid": record.process,
        "proc": getattr(record, "vllm_process_name", record.processName),
        "level": record.levelname,
        "logger": record.name,
        "func": record.funcName,
        "file": record.filename,
        "line": record.lineno,
        "msg": _plain(str(record.msg), secret),
        "args": args,
    }
    line = json.dumps(entry).encode()
    if len(line) >= LINE_LIMIT:
        size = len(line)
        entry |= {"msg": str(entry["msg"])[: LINE_LIMIT // 16], "args": [f"(dropped: the line had {size} bytes)"]}
        line = json.dumps(entry).encode()
    return line + b"\n"


class Handler(logging.Handler):
    """Appends to `path`; opened for each record.

    Several processes share the file (appends of one write do not mix), and uvicorn's own logging set-up closes
    every handler that exists by then: a handler that kept its file open would go silent halfway through the start.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; whatever goes wrong stays here, for a log must never break the server."""
        try:
            line = to_line(record, os.environ.get("VLLM_API_KEY", ""))
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o664)
            try:
                if os.fstat(fd).st_size + len(line) <= FILE_LIMIT:
                    os.write(fd, line)
            finally:
                os.close(fd)
        except Exception:  # noqa: S110
            pass


def start_file(path: Path) -> None:
    """Make way for this start's file; the one of the start before is kept beside it.

    Raises:
        OSError: the directory cannot be written.
    """
    with suppress(FileNotFoundError):  # no start before, or another one that begins now was quicker
        path.replace(path.with_name("server.previous.jsonl"))
    path.touch(0o664)


def logging_config(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The `dictConfig` for `VLLM_LOGGING_CONFIG_PATH`: vLLM's console as it is, and server.jsonl beside it.

    vLLM gives the same file to uvicorn, so uvicorn's loggers stand here too. Its access log has no handler, which
    switches it off: the gate writes the one line of a request, on the console alone, since what matters in
    server.jsonl is the start.
    """
    level = environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    stream = environ.get("VLLM_LOGGING_STREAM", "ext://sys.stdout")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {
                "()": "vllm.logging_utils.NewLineFormatter",
                "datefmt": "%m-%d %H:%M:%S",
                "format": environ.get("VLLM_LOGGING_PREFIX", "") + _VLLM_FORMAT,
                "log_level": level,
            },
            "default": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s"},
            "gate": {"format": GATE_FORMAT},
        },
        "handlers": {
            "vllm": {"class": "logging.StreamHandler", "formatter": "vllm", "level": level, "stream": stream},
            "default": {"class": "logging.StreamHandler", "formatter": "default", "stream": "ext://sys.stderr"},
            "gate": {"class": "logging.StreamHandler", "formatter": "gate", "stream": "ext://sys.stdout"},
            "jsonl": {"class": f"{Handler.__module__}.{Handler.__name__}", "path": str(path)},
            "warnings": {
                "class": "logging.StreamHandler",
                "formatter": "default",
                "level": "WARNING",
                "stream": "ext://sys.stderr",
            },
        },
        "loggers": {
            "vllm": {"handlers": ["vllm", "jsonl"], "level": level, "propagate": False},
            "uvicorn": {"handlers": ["default", "jsonl"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"handlers": [], "level": "INFO", "propagate": False},
            "bringup.gate": {"handlers": ["gate"], "level": "INFO", "propagate": False},
            **{
                name: {"handlers": ["jsonl", "warnings"], "level": "INFO", "propagate": False} for name in _TORCH_CACHES
            },
        },
    }
