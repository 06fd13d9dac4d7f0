"""The signature of a bundle: SHA256SUMS, signed and checked by OpenSSH's ssh-keygen with keys that people have.

The namespace keeps a signature that was made for something else (a commit, a mail) from passing for one of a bundle.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from bringup.edge import process
from bringup.errors import BundleDiffers, EvidenceMissing, TargetUnavailable, UsageError

SUMS = "SHA256SUMS"
SIGNATURE = f"{SUMS}.sig"
NAMESPACE = "bringup-bundle"
DEADLINE = 60.0  # seconds; a key of a hardware token waits for a finger
# Nobody sits before a prompt here: a passphrase is the agent's business, and without it signing fails at once.
_NO_PROMPT = {"SSH_ASKPASS_REQUIRE": "force", "SSH_ASKPASS": "false"}


def require(key: Path) -> None:
    """Sign something with the key, to know that it can.

    Raises:
        UsageError: it cannot.
    """
    with tempfile.TemporaryDirectory(prefix="bringup-") as trial:
        Path(trial, SUMS).write_text("a trial\n")
        try:
            sign(Path(trial), key)
        except EvidenceMissing as e:
            raise UsageError(e.message, hint=e.hint) from e


def sign(directory: Path, key: Path) -> Path:
    """Sign the directory's SHA256SUMS; the file with the signature, beside it and on the disk.

    Raises:
        EvidenceMissing: ssh-keygen is not there, or cannot sign with this key.
    """
    if fault := _unreadable(key):
        raise EvidenceMissing(f"the key {key} cannot be read: {fault}", hint="make one: ssh-keygen -t ed25519 -f FILE")
    done = _ssh_keygen("sign", "-n", NAMESPACE, "-f", key.absolute(), directory.absolute() / SUMS)
    made = directory / SIGNATURE
    if done.code or not made.is_file():
        raise EvidenceMissing(
            f"the key {key} does not sign: {_reason(done.tail)}",
            hint="its file must be yours alone (chmod 600), and a key with a passphrase in ssh-agent (ssh-add FILE)",
        )
    with made.open("rb") as f:
        os.fsync(f.fileno())
    return made


def check(directory: Path, allowed_signers: Path) -> str:
    """Who signed the directory's SHA256SUMS: a principal of the file, which is as ssh-keygen(1) has it.

    Raises:
        BundleDiffers: the signature is wrong, or by nobody in that file.
        EvidenceMissing: there is no signature, or no ssh-keygen to check it.
        UsageError: the file of the signers cannot be read.
    """
    if fault := _unreadable(allowed_signers):
        raise UsageError(
            f"the allowed signers {allowed_signers} cannot be read: {fault}",
            hint="a line of it is: NAME KEYTYPE KEY, as in the signer's .pub file",
        )
    sums, made = directory.absolute() / SUMS, directory.absolute() / SIGNATURE
    if fault := _unreadable(sums):
        raise BundleDiffers(f"{sums} cannot be read: {fault}", hint="ask for the bundle again")
    if not made.is_file():
        raise EvidenceMissing(
            f"{directory} is not signed: it has no {SIGNATURE}", hint="give --sign-key to `bringup up` or `collect`"
        )
    given = ("-s", made, "-f", allowed_signers.absolute())
    found = _ssh_keygen("find-principals", *given)
    names = [line for line in found.out.splitlines() if line.strip()]
    if found.code or not names:
        raise BundleDiffers(
            f"{made.name} is by nobody in {allowed_signers}: {_reason(found.tail)}",
            hint="ask for the bundle again, or for the signer's public key",
        )
    for name in names:
        seen = _ssh_keygen("verify", "-I", name, "-n", NAMESPACE, *given, source=sums)
        if seen.code == 0:
            return name
    raise BundleDiffers(
        f"{made.name} is no signature of this {SUMS} by {', '.join(names)}: {_reason(seen.tail)}",
        hint="do not trust this bundle; ask for it again",
    )


def _unreadable(path: Path) -> str:
    """Why a file cannot be read; empty if it can."""
    try:
        path.open("rb").close()
    except OSError as e:
        return e.strerror or str(e)
    return ""


def _ssh_keygen(what: str, *argv: str | Path, source: Path | None = None) -> process.Outcome:
    try:
        return process.run(
            ["ssh-keygen", "-Y", what, *map(str, argv)], extra_env=_NO_PROMPT, timeout=DEADLINE, source=source
        )
    except TargetUnavailable as e:
        raise EvidenceMissing(e.message, hint="install OpenSSH's client: it has ssh-keygen") from e


def _reason(output: str) -> str:
    """The line of ssh-keygen's output that says most: it ends with the least."""
    lines = [line.strip() for line in output.splitlines() if line.strip(" @")]
    telling = [line for line in lines if re.search(r"too open|passphrase|parse|namespace|incorrect", line)]
    return (telling or lines or ["no reason given"])[0]
