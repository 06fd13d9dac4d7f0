"""A way in by SSH for a container that was given a public key: sshd, started and watched by the entry point.

Pods have no `docker exec`. Keys only, one user, a host key made at this start, and no forwarding but to the server's
port. Whatever goes wrong with it is said and does not stop the server. Runs as root (login root) and as the image's
user (login bringup; an sshd that is not root can let in nobody else).
"""

from __future__ import annotations

import logging
import os
import pwd
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bringup.errors import UsageError
from bringup.inside import pod, session
from bringup.settings import between

PORT = "BRINGUP_SSH_PORT"
DEFAULT_PORT = 22
# Memory of this container alone: no volume, no layer, and there with a read-only root too.
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made there
SSHD = "/usr/sbin/sshd"  # it wants its own whole path
SEPARATION = Path("/run/sshd")  # where a root sshd confines its half that is not yet logged in
KEYGEN_DEADLINE = 20.0  # seconds
LONGEST_PAUSE = 60.0  # seconds between two starts of an sshd that keeps dying
LISTENS = "Server listening on "
TOLD = "Accepted "  # of sshd's lines; strangers cause most of the others, and could fill the log with them


class Unusable(Exception):
    """Why there can be no sshd, one line."""


def given_keys(environ: Mapping[str, str]) -> str:
    """The public keys that may log in, one a line; empty when nobody may."""
    return next((text for name in session.PUBLIC_KEYS if (text := environ.get(name, "").strip())), "")


def chosen_port(environ: Mapping[str, str], ports: pod.Ports) -> int:
    """Where sshd is to listen.

    Raises:
        Unusable: it is no port, or the server's or the health check's.
    """
    try:
        port = int(between(1, 65535, int)(environ.get(PORT) or str(DEFAULT_PORT)))
    except ValueError as e:
        raise Unusable(f"{PORT}: {e}") from e
    if port in (ports.server, ports.health):
        raise Unusable(f"{PORT}: port {port} is the server's or its health check's")
    return port


def config(place: Path, port: int, user: str, server: int) -> str:
    """sshd_config: everything beside is OpenSSH's default.

    The file of keys lies outside HOME, which is a volume. StrictModes would refuse it for the sake of /dev/shm, which
    everyone may write to; the directory itself is only ours.
    """
    options = {
        "Port": port,
        "HostKey": place / "host_key",
        "AuthorizedKeysFile": place / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "AllowUsers": user,
        "PermitRootLogin": "prohibit-password",
        "AuthenticationMethods": "publickey",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "AllowTcpForwarding": "local",
        "PermitOpen": f"127.0.0.1:{server} localhost:{server}",
        "AllowStreamLocalForwarding": "no",
        "AllowAgentForwarding": "no",
        "X11Forwarding": "no",
        "PermitTunnel": "no",
        "GatewayPorts": "no",
        "LoginGraceTime": 30,
        "ClientAliveInterval": 60,  # seconds; a client that is gone is noticed
        "PrintMotd": "no",
        "SetEnv": f"{session.VARIABLE}={place / 'environment'}",
        "Subsystem": "sftp internal-sftp",
    }
    return "".join(f"{name} {value}\n" for name, value in options.items())


def start(environ: Mapping[str, str], log: logging.Logger) -> None:
    """Start it beside the server, where a public key was given; returns at once."""
    if keys := given_keys(environ):
        threading.Thread(target=_run, args=(keys, dict(environ), log), name="ssh", daemon=True).start()


def _run(keys: str, environ: Mapping[str, str], log: logging.Logger) -> None:
    try:
        ports = pod.ports(environ)
    except UsageError:
        ports = pod.Ports()  # the server is refused for it, and a held container is to be looked into
    try:
        port = chosen_port(environ, ports)
        user = _user()
        _require_public(keys)
        place = _prepare(keys, environ, port, user, ports.server)
        watch(place, f"listening on port {port} as {user}, host key {_host_key(place)}", log)
    except (Unusable, OSError, subprocess.SubprocessError) as e:
        log.error("ssh: nobody can log in, the server goes on without: %s", e)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise Unusable(f"uid {os.getuid()} has no name in this image; run the container as 1000:0 or 0:0") from None


def _require_public(keys: str) -> None:
    """The keys are none that somebody else must not see, and one of them at least is one."""
    if "PRIVATE KEY" in keys:
        raise Unusable("what was given as the public key is a private one: make a new pair, this one was shown")
    done = _keygen("-l", "-f", "-", text=f"{keys}\n", check=False)
    if done.returncode:
        raise Unusable(f"{' or '.join(session.PUBLIC_KEYS)} holds no public key (ssh-keygen: {done.stderr.strip()})")


def _prepare(keys: str, environ: Mapping[str, str], port: int, user: str, server: int) -> Path:
    """Everything that sshd reads, in a directory that only this user can enter."""
    place = Path(tempfile.mkdtemp(prefix="bringup-ssh-", dir=MEMORY))
    _write(place / "authorized_keys", f"{keys}\n")
    _keygen("-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(place / "host_key"))
    _write(place / "environment", session.lines(environ))
    _write(place / "sshd_config", config(place, port, user, server))
    if os.getuid() == 0:
        SEPARATION.mkdir(mode=0o755, exist_ok=True)
    return place


def _write(path: Path, text: str) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as f:
        f.write(os.fsencode(text))  # a variable's bytes as they were


def _keygen(*args: str, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh-keygen", *args], input=text, capture_output=True, check=check, timeout=KEYGEN_DEADLINE,
        text=True, errors="surrogateescape",
    )  # fmt: skip


def _host_key(place: Path) -> str:
    """`ssh-ed25519 AAAA... SHA256:...`, which a client compares."""
    public = place / "host_key.pub"
    fingerprint = _keygen("-l", "-f", str(public)).stdout.split()[1]
    return f"{' '.join(public.read_text('ascii').split()[:2])} {fingerprint}"


def watch(place: Path, listening: str, log: logging.Logger) -> None:
    """Run sshd for as long as this process lives: one that ends is told of and started again, ever more slowly.

    Raises:
        Unusable: it never listened.
    """
    wait, once = 1.0, False
    while True:
        child = subprocess.Popen(
            [SSHD, "-D", "-E", "/dev/stderr", "-f", str(place / "sshd_config")],
            env={"PATH": os.defpath}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        listener = _Listener(child, listening, log)
        code = child.wait()
        listener.join(1.0)  # its sessions may go on, and hold the pipe
        once = once or listener.listened
        if not once:
            raise Unusable(f"sshd ended (exit {code}): {listener.last}")
        log.error("ssh: sshd ended (exit %d), and is started again in %.0f s: %s", code, wait, listener.last)
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_PAUSE)


class _Listener:
    """Reads what one sshd says, and passes on the little that is for people."""

    def __init__(self, child: subprocess.Popen[str], listening: str, log: logging.Logger) -> None:
        self.listened = False
        self._child, self._listening, self._log = child, listening, log
        self._said: deque[str] = deque(maxlen=2)
        self._thread = threading.Thread(target=self._read, name="ssh log", daemon=True)
        self._thread.start()

    @property
    def last(self) -> str:
        """Its last words."""
        return " ".join(self._said) or "it said nothing"

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _read(self) -> None:
        assert self._child.stderr  # noqa: S101 - PIPE above
        with suppress(ValueError, OSError), self._child.stderr as lines:
            for line in lines:
                self._hear(line.strip())

    def _hear(self, line: str) -> None:
        if not line.startswith(LISTENS):
            self._said.append(line)
        elif not self.listened:  # once for IPv4, once for IPv6
            self.listened = True
            self._log.info("ssh: %s", self._listening)
        if line.startswith(TOLD):
            self._log.info("ssh: %s", line)
