"""The image's entry point: `python -m bringup.inside [--check] [vLLM arguments...]`.

It checks, starts vLLM's server, passes signals on to it and ends with it, with an exit code of `errors.Exit`, or
128 + n when the server was killed by signal n. `--check` only looks: settings and weights are checked and the
command is printed as JSON.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from pathlib import Path

from bringup.errors import BringupError
from bringup.inside import events, marks, prefetch, warm
from bringup.inside.parts import parts
from bringup.inside.start import Launch, configure_logging, prepare
from bringup.inside.state import open_state
from bringup.inside.supervise import start_beside, supervise
from bringup.inside.weights import Baked


class OneLine(logging.Formatter):
    """`bringup: ...`, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The message without line breaks."""
        return "bringup: " + " ".join(super().format(record).split("\n"))


def make_logger(log_file: Path | None) -> logging.Logger:
    """Lines for people on stderr; the same records in server.jsonl."""
    log = logging.getLogger("bringup.inside")
    log.setLevel(logging.INFO)
    log.propagate = False
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(OneLine())
    log.handlers = [console] if log_file is None else [console, events.Handler(str(log_file))]
    return log


def main(args: list[str], environ: dict[str, str]) -> int:
    """Check, serve, and return the exit code."""
    check = args[:1] == ["--check"]
    state = None if check else open_state(environ)
    log = make_logger(state.log if state else None)
    if state and state.problem:
        log.warning("%s", state.problem)
    if state:
        marks.begin(str(state.log))
        marks.reached("entry")
    try:
        launch = prepare({**environ, **(state.environment if state else {})}, args[check:], Baked(), log)
        if state is None:
            launch.weights()
            sys.stdout.write(json.dumps(launch.argv) + "\n")
            return 0
        launch = configure_logging(launch, state.log, log)
        warm.before_start(launch.argv, launch.environment, state.directory, log)
        return serve(launch, log)
    except BringupError as e:
        log.error("%s%s", e.message, f"; {e.hint}" if e.hint else "")
        for line in e.detail.splitlines():
            log.error("  %s", line)
        return int(e.exit_code)


def serve(launch: Launch, log: logging.Logger) -> int:
    """Start the server, with its weights checked before or meanwhile, and wait for its end.

    Raises:
        BringupError: the weights are not as locked.
    """

    def check() -> None:
        launch.weights()
        marks.reached("weights checked")

    log.info("starting vLLM: %s", " ".join(launch.argv[3:]))
    if "prefetch" in parts(launch.environment):
        prefetch.start()
    if not launch.beside:
        check()
        marks.reached("server spawned")
        return supervise(launch.argv, launch.environment, log)
    marks.reached("server spawned")
    child = start_beside(launch.argv, launch.environment, check)
    return supervise(launch.argv, launch.environment, log, lambda *_: child)


if __name__ == "__main__":
    # The check maps the weights: a disk that fails to read them ends the process, and this says where.
    faulthandler.enable()
    # Until vLLM runs, Ctrl-C ends this process like any other signal would, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Group 0 owns the state volume: what root wrote there, a later start as uid 1000 can replace, and vice versa.
    os.umask(0o002)
    sys.exit(main(sys.argv[1:], dict(os.environ)))
