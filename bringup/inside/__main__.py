"""The image's entry point: `python -m bringup.inside [--check] [vLLM arguments...]`.

It checks, starts vLLM's server, passes signals on to it and ends with it, with an exit code of `errors.Exit`, or
128 + n when the server was killed by signal n. `--check` only looks: settings and weights are checked and the
command is printed as JSON. BRINGUP_HOLD=1 keeps a container whose server ended by itself, until a signal.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bringup.errors import BringupError, UsageError
from bringup.inside import events, marks, pod, prefetch, ssh, warm
from bringup.inside.parts import parts
from bringup.inside.pulse import Pulse, asker
from bringup.inside.start import Launch, configure_logging, prepare
from bringup.inside.state import State, open_state
from bringup.inside.supervise import HOLD, End, hold, start_beside, supervise
from bringup.inside.weights import Baked
from bringup.settings import boolean


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
    if args[:1] == ["--check"]:
        log = make_logger(None)
        return _told(lambda: _check(args[1:], environ, log), log).code
    state = open_state(environ)
    log = make_logger(state.log)
    if state.problem:
        log.warning("%s", state.problem)
    if environ.get(pod.POD):
        log.info("pod %s of RunPod, state directory %s", environ[pod.POD], state.directory)
    marks.begin(str(state.log))
    marks.reached("entry")
    environ = {**environ, **state.environment}
    ssh.start(environ, log)
    return _told(lambda: _hold_at_the_end(environ, partial(_start, args, environ, state), log), log).code


def _hold_at_the_end(
    environ: dict[str, str], start: Callable[[Pulse, logging.Logger], End], log: logging.Logger
) -> End:
    """Start, and stay afterwards where that is wanted and nobody asked for the end.

    Raises:
        UsageError: whether it is wanted cannot be understood.
    """
    try:
        holds = boolean(environ.get(HOLD) or "0")
    except ValueError as e:
        raise UsageError(f"{HOLD}: {e}", hint="correct or unset the variable") from e
    pulse = Pulse(log)
    end = _told(lambda: start(pulse, log), log)
    pulse.over()
    if holds and not end.asked:
        hold(end, log)
    return end


def _told(act: Callable[[], End], log: logging.Logger) -> End:
    """How it ended; an expected failure is an end like any other, and logged."""
    try:
        return act()
    except BringupError as e:
        log.error("%s%s", e.message, f"; {e.hint}" if e.hint else "")
        for line in e.detail.splitlines():
            log.error("  %s", line)
        return End(int(e.exit_code), e.message)


def _check(args: list[str], environ: dict[str, str], log: logging.Logger) -> End:
    launch = prepare(environ, args, Baked(), log)
    launch.weights()
    sys.stdout.write(json.dumps(launch.argv) + "\n")
    return End(0, "")


def _start(args: list[str], environ: dict[str, str], state: State, pulse: Pulse, log: logging.Logger) -> End:
    """Check, and serve until the end."""
    ports = pod.ports(environ)
    if ports.health:
        pulse.listen(ports.health, ports.path)
    if ports.path:
        log.info("%s", ports.meaning)
    launch = configure_logging(prepare(environ, args, Baked(), log), state.log, log)
    warm.before_start(launch.argv, launch.environment, state.directory, log)
    if ports.health:
        pulse.watch(asker(launch.argv, launch.environment))
    return serve(launch, log, pulse.over)


def serve(launch: Launch, log: logging.Logger, stopping: Callable[[], None] = lambda: None) -> End:
    """Start the server, with its weights checked before or meanwhile, and wait for its end.

    `stopping` is called as soon as somebody asks for the end.

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
        return supervise(launch.argv, launch.environment, log, stopping=stopping)
    marks.reached("server spawned")
    child = start_beside(launch.argv, launch.environment, check)
    return supervise(launch.argv, launch.environment, log, lambda *_: child, stopping)


if __name__ == "__main__":
    # The check maps the weights: a disk that fails to read them ends the process, and this says where.
    faulthandler.enable()
    # Until vLLM runs, Ctrl-C ends this process like any other signal would, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Group 0 owns the state volume: what root wrote there, a later start as uid 1000 can replace, and vice versa.
    os.umask(0o002)
    sys.exit(main(sys.argv[1:], dict(os.environ)))
