"""How many sockets this process may have open at once."""

from __future__ import annotations

import resource
from contextlib import suppress

OWN = 64  # files and pipes of the process itself


def room(wanted: int) -> int:
    """How many of the wanted descriptors there may be; a soft limit that is too low is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + OWN
    if soft != resource.RLIM_INFINITY and soft < need:
        with suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (need if hard == resource.RLIM_INFINITY else min(need, hard), hard)
            )
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(min(wanted, soft - OWN), 1)
