"""The way into a pod: what its sshd says of itself in the log, whom that makes us trust, where it listens. Pure.

The image writes one line when its sshd is up. It reaches us through RunPod's API over TLS, so that nobody on the way
to the pod's public port can have written it. Whoever can make the server log a line of their choice could: so the
first line of a pod's life counts, and a later one with another key is told, and not believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bringup.edge.ssh import Stranger, fingerprint
from bringup.errors import EvidenceMissing, UsageError

PORT = 22
USER = "root"  # where only the key is known; RunPod's own images have it
LINE = re.compile(
    r"bringup: ssh: listening on port \d+ as (root|bringup), "
    r"host key (ssh-ed25519 [A-Za-z0-9+/]+=*) (SHA256:[A-Za-z0-9+/]{43})"
)
BY_HAND = "--host-key 'ssh-ed25519 AAAA...', as the pod's log in RunPod's console has it"


@dataclass(frozen=True)
class Identity:
    """Who a pod's sshd is: the user it lets in, its host key or the fingerprint of that."""

    user: str
    host_key: str

    @property
    def fingerprint(self) -> str:
        """`SHA256:...`."""
        return fingerprint(self.host_key)


def announced(lines: Iterable[str]) -> list[Identity]:
    """Each identity that a log tells, in its order; a line whose fingerprint is not that of its key tells none."""
    found: dict[Identity, None] = {}
    for line in lines:
        if match := LINE.fullmatch(line.strip()):
            try:
                made = Identity(match[1], match[2])
                if made.fingerprint == match[3]:
                    found[made] = None
            except UsageError:
                continue
    return list(found)


def trusted(lines: Iterable[str], pinned: Identity | None, given: str | None) -> Identity:
    """Whom to talk to; `pinned`: known from before; `given`: a host key or its fingerprint by hand, which decides.

    Raises:
        EvidenceMissing: nobody says who the pod's sshd is.
        Stranger: the log tells another key than the one that is pinned, or two.
        UsageError: what is given is no host key.
    """
    told = announced(lines)
    if given is not None:
        wanted = fingerprint(given)
        known = (one for one in (*told, pinned) if one and one.fingerprint == wanted)
        return next(known, Identity(pinned.user if pinned else USER, given))
    first = pinned or next(iter(told), None)
    if first is None:
        raise EvidenceMissing(
            "the pod's log has no line of its sshd, so that its host key is not known", id="ssh-unknown",
            hint=f"wait until it is there; give {BY_HAND}; an image without sshd: --no-ssh",
        )  # fmt: skip
    if other := next((one for one in reversed(told) if one.fingerprint != first.fingerprint), None):
        raise Stranger(
            f"the pod's log tells the host key {other.fingerprint}, and {first.fingerprint} before; nothing was sent",
            id="ssh-host-key-changed",
            hint=f"was the pod restarted? Then give {BY_HAND}; else somebody may have written into its log",
        )
    return first


def address(found: Mapping[str, Any]) -> tuple[str, int]:
    """Host and port of a pod's sshd, as RunPod's API says it.

    Raises:
        EvidenceMissing: it says none.
    """
    direct = (found.get("ssh") or {}).get("direct") or {}
    ports = [p for p in (found.get("runtime") or {}).get("ports") or [] if p.get("private") == PORT]
    mapped: Mapping[str, Any] = next((p for p in ports if p.get("type") == "tcp"), {})
    for host, port in ((direct.get("host"), direct.get("port")), (mapped.get("ip"), mapped.get("public"))):
        if isinstance(host, str) and host and isinstance(port, int) and 0 < port < 2**16:
            return host, port
    raise EvidenceMissing(
        "RunPod names no public address for the pod's port 22", id="ssh-no-address",
        hint="was it created with --no-ssh, or on a host without public addresses? Try --cloud SECURE",
    )  # fmt: skip
