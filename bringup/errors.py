"""Every way bringup can end badly, one exit code each.

A message says what was found and what was needed; `hint` is the next action. Only `cli.main` catches these.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line and of the image's entry point; the README's table is made from this."""

    PASS = 0
    BUG = 1
    REGRESSION = 1  # of `compare`, as diff(1) has it for a difference
    USAGE = 2
    CHECK_FAILED = 3
    BUILD_FAILED = 4
    WEIGHTS_DIFFER = 5
    NEVER_READY = 6
    PROBE_FAILED = 7
    TARGET_UNAVAILABLE = 8
    UNKNOWN = 9
    BUNDLE_DIFFERS = 10
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.PASS: "pass: everything that should be there was seen",
    Exit.BUG: "a bug in bringup; of `compare`: a regression",
    Exit.USAGE: "usage or configuration",
    Exit.CHECK_FAILED: "a check of the host failed before anything was started",
    Exit.BUILD_FAILED: "the image could not be built",
    Exit.WEIGHTS_DIFFER: "the weights differ from the lock",
    Exit.NEVER_READY: "the server died or never answered",
    Exit.PROBE_FAILED: "the server answered, but a probe failed",
    Exit.TARGET_UNAVAILABLE: "the target (Docker Engine, server address, model hub) cannot be reached or used",
    Exit.UNKNOWN: "unknown: evidence that should be there is missing",
    Exit.BUNDLE_DIFFERS: "the bundle is not what its sums or its signature say",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.TERMINATED: "terminated (SIGTERM)",
}


class BringupError(Exception):
    """Base of all expected failures.

    Args:
        message: what was found and what was needed, one line.
        hint: the next action, one line.
        detail: lines that help (the last lines of a log), already redacted.
        id: a short name that scripts can rely on, where one exit code covers several failures.
    """

    exit_code = Exit.BUG

    def __init__(self, message: str, *, hint: str = "", detail: str = "", id: str = "") -> None:  # noqa: A002
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail
        self.id = id

    @property
    def line(self) -> str:
        """The message, and the id if there is one."""
        return self.message + (f" [{self.id}]" if self.id else "")


class UsageError(BringupError):
    """A setting, a name or a file that the user gave cannot be used."""

    exit_code = Exit.USAGE


class CheckFailed(BringupError):
    """The host lacks something that the plan needs."""

    exit_code = Exit.CHECK_FAILED


class BuildFailed(BringupError):
    """The image was not built."""

    exit_code = Exit.BUILD_FAILED


class WeightsDiffer(BringupError):
    """A weights file is missing, unexpected or not what the lock says."""

    exit_code = Exit.WEIGHTS_DIFFER


class NeverReady(BringupError):
    """The server died while starting, or gave no token before the deadline."""

    exit_code = Exit.NEVER_READY


class TargetUnavailable(BringupError):
    """The Docker Engine, the server's address or the model hub does not answer."""

    exit_code = Exit.TARGET_UNAVAILABLE


class EvidenceMissing(BringupError):
    """Something that should have been seen could not be looked at."""

    exit_code = Exit.UNKNOWN


class BundleDiffers(BringupError):
    """A bundle is not what was written, or not by whom it should be."""

    exit_code = Exit.BUNDLE_DIFFERS
