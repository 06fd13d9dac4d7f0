"""The container's environment for whoever logs in, as lines that bash reads at the start of a session. Pure.

sshd gives a session an environment of its own. The image's /etc/bash.bashrc and /etc/profile.d source the file that
the variable `BRINGUP_SESSION` names, which only sessions of our sshd have. Secrets are in it (the API key, RunPod's key
of the pod): who may log in may read them in /proc as well, and RunPod's own tools look for theirs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

VARIABLE = "BRINGUP_SESSION"
PUBLIC_KEYS = ("SSH_PUBLIC_KEY", "PUBLIC_KEY")  # the pod's own before the account's
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN = re.compile(
    # The session's own, and how it was begun.
    r"HOME|PWD|OLDPWD|SHLVL|_|USER|LOGNAME|SHELL|TERM|MAIL|SSH_\w+|BRINGUP_SESSION"
    # Bash does not let these be set, or executes or obeys what is in them.
    r"|UID|EUID|PPID|BASH\w*|SHELLOPTS|ENV|IFS|PS[0-4]|PROMPT_COMMAND"
)


def lines(environ: Mapping[str, str]) -> str:
    """One `export` a variable, quoted so that a value arrives as it is and nothing in it is executed.

    Left out: the public keys, what belongs to the session or to bash itself, and names that no shell can have.
    """
    return "".join(
        f"export {name}={shlex.quote(value)}\n"
        for name, value in sorted(environ.items())
        if _NAME.fullmatch(name) and not _OWN.fullmatch(name) and name not in PUBLIC_KEYS
    )
