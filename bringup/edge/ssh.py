"""The only door to SSH (paramiko): one connection to a machine whose host key is known before anything is sent.

The other side may lie. Names are never its own, sizes are held against limits before a byte is read, nothing but
regular files is read, and what hangs or drips loses the connection. Files are read with one request at a time:
paramiko's prefetching is quicker, but keeps threads and buffers that the other side's answers fill.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import shlex
import socket
import socketserver
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bringup.errors import BringupError, EvidenceMissing, TargetUnavailable, UsageError

if TYPE_CHECKING:
    import paramiko

KIND = "ssh-ed25519"  # of host keys; a server that has none is not talked to
PATIENCE = 20.0  # seconds to connect, to authenticate, to open a channel
COPY = 300.0  # seconds of one file
RUN = 60.0  # seconds of one program
KEEPALIVE = 15  # seconds
MAX_FILE = 64 * 2**20  # bytes of one file
MAX_ALL = 256 * 2**20  # bytes of all files of a connection
MAX_OUTPUT = 2**20  # bytes of a program's output
PIECE = 2**15  # bytes; more than this no SFTP server gives at once
PROHIBITED = 1  # RFC 4254, 5.1: the server forbids this kind of channel; 2 is that nobody listens
NO_STATUS = 126  # as docker has it of a program that ended without an exit code


class Stranger(TargetUnavailable):
    """Whoever answers has another host key than the one that is known; nothing was sent."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where to connect, as whom, with which private key, and who must be there: a host key or its fingerprint."""

    host: str
    port: int
    user: str
    key_file: Path
    host_key: str


def require() -> None:
    """Make sure that there is paramiko.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("paramiko") is None:
        raise UsageError(
            "SSH needs the package paramiko, which is not installed",
            hint="pip install 'bringup[runpod]', or give --no-ssh",
        )


def fingerprint(host_key: str) -> str:
    """`SHA256:...` of an ed25519 key as OpenSSH writes it (`ssh-ed25519 AAAA...`), or such a fingerprint itself.

    Raises:
        UsageError: it is neither.
    """
    words = host_key.split()
    with contextlib.suppress(binascii.Error, ValueError):
        if len(words) == 1 and words[0].startswith("SHA256:"):
            digest = base64.b64decode(words[0].removeprefix("SHA256:") + "=", validate=True)
            if len(digest) == hashlib.sha256().digest_size:
                return words[0]
        elif len(words) >= 2 and words[0] == KIND:
            blob = base64.b64decode(words[1], validate=True)
            if blob.startswith(len(KIND).to_bytes(4) + KIND.encode()):
                return _fingerprint(blob)
    raise UsageError(
        f"{host_key!r} is no host key", hint="give it as `ssh-ed25519 AAAA...`, or its fingerprint as `SHA256:...`"
    )


def _fingerprint(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def make_key(comment: str) -> tuple[str, str]:
    """A new ed25519 key: the private half as OpenSSH keeps it, and the public half as one line."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return private.decode(), f"{public.decode()} {comment}"


def public_half(key_file: Path) -> str:
    """The public half of a private key of the user's, as one line.

    Raises:
        UsageError: it cannot be read or used, has a passphrase, or others can read it; or there is no paramiko.
    """
    require()
    key = _private_key(key_file)
    if key_file.stat().st_mode & 0o077:
        raise UsageError(f"others can read the SSH key file {key_file}", hint=f"chmod 600 {key_file}")
    return f"{key.get_name()} {key.get_base64()}"


def _private_key(file: Path) -> paramiko.PKey:
    import paramiko

    hint = "give a private key without a passphrase: ssh-keygen -t ed25519 -N '' -f FILE"
    try:
        key: paramiko.PKey = paramiko.PKey.from_path(file)
    except OSError as e:
        raise UsageError(f"the SSH key file {file} cannot be read: {e.strerror}", hint=hint) from e
    except Exception as e:  # noqa: BLE001, RUF100 - a damaged file raises what the part that it damages raises
        raise UsageError(f"the SSH key file {file} cannot be used: {type(e).__name__}", hint=hint) from e
    return key


@contextlib.contextmanager
def connect(door: Door) -> Iterator[Ssh]:
    """A connection, until the end of `with`.

    Raises:
        Stranger: another host key; nothing was sent, not even the user's name.
        TargetUnavailable: nobody answers, or the key is not taken.
        UsageError: the private key cannot be used.
    """
    require()
    transport = _opened(door, _private_key(door.key_file))
    try:
        yield Ssh(transport)
    finally:
        transport.close()


def _opened(door: Door, key: paramiko.PKey) -> paramiko.Transport:
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # what it has to say comes as an exception, too
    where, transport = f"{door.host} port {door.port}", None
    try:
        transport = paramiko.Transport(socket.create_connection((door.host, door.port), PATIENCE))
        transport.banner_timeout = transport.auth_timeout = PATIENCE
        transport.get_security_options().key_types = (KIND,)
        transport.start_client(timeout=PATIENCE)
        found, wanted = _fingerprint(transport.get_remote_server_key().asbytes()), fingerprint(door.host_key)
        if found != wanted:
            raise Stranger(
                f"whoever answers at {where} has the host key {found}, and must have {wanted}; nothing was sent",
                id="ssh-host-key", hint="look into the pod's log in RunPod's console before you trust it",
            )  # fmt: skip
        transport.auth_publickey(door.user, key)
        transport.set_keepalive(KEEPALIVE)
        return transport
    except BaseException as e:
        if transport is not None:
            transport.close()
        if isinstance(e, paramiko.AuthenticationException):
            raise TargetUnavailable(
                f"sshd at {where} does not take the key of {door.user}", id="ssh", hint="give --ssh-key FILE"
            ) from e
        if isinstance(e, BringupError) or not isinstance(e, Exception):
            raise
        raise TargetUnavailable(f"no SSH connection to {where}: {_said(e)}", id="ssh") from e


class Ssh:
    """A connection that is open. `copied`: of each file that was had, its bytes and sha256, and whether the other
    side's own `sha256sum` said the same (None: it could not say)."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport
        self._files: paramiko.SFTPClient | None = None
        self._room = MAX_ALL
        self.copied: dict[str, dict[str, Any]] = {}

    def execute(self, argv: list[str]) -> tuple[int, str]:
        """Run a program there, with nothing to read: exit code, and both its streams.

        Raises:
            EvidenceMissing: it did not run, did not end in time, or says too much.
        """
        with self._within(RUN, f"`{argv[0]}` in the pod"), self._transport.open_session(timeout=PATIENCE) as channel:
            channel.set_combine_stderr(True)
            channel.exec_command(shlex.join(argv))
            channel.shutdown_write()
            output = bytearray()
            while piece := channel.recv(PIECE):
                output += piece
                if len(output) > MAX_OUTPUT:
                    raise EvidenceMissing(f"`{argv[0]}` in the pod says more than {MAX_OUTPUT} bytes")
            code = channel.recv_exit_status()
            return (NO_STATUS if code < 0 else code), output.decode("utf-8", "replace")

    def copy_out(self, path: str) -> bytes:
        """The bytes that one regular file has now; one that grows meanwhile is cut there.

        Raises:
            EvidenceMissing: there is no such file, it is a link or device or too large, it came incomplete, or differs
                from what the other side's sha256sum says of it.
        """
        limit = min(MAX_FILE, self._room)
        with self._within(COPY, f"{path} in the pod"):
            files = self._files = self._files or self._sftp()
            _require_regular(path, files.lstat(path), limit)
            with files.open(path, "rb") as file:
                size = _require_regular(path, file.stat(), limit)
                data = bytearray()
                while len(data) < size:
                    if not (piece := file.read(min(PIECE, size - len(data)))):
                        raise EvidenceMissing(f"{path} in the pod broke off after {len(data)} of {size} bytes")
                    data += piece
        self._room -= size
        digest = hashlib.sha256(data).hexdigest()
        there = self._sum(path, size)
        if there not in (None, digest):
            raise EvidenceMissing(f"{path} came with sha256 {digest}, and the pod's own sha256sum says {there}")
        self.copied[path] = {"bytes": size, "sha256": digest, "checked": there is not None}
        return bytes(data)

    def _sftp(self) -> paramiko.SFTPClient:
        import paramiko

        channel = self._transport.open_session(timeout=PATIENCE)
        channel.settimeout(PATIENCE)
        channel.invoke_subsystem("sftp")
        return paramiko.SFTPClient(channel)

    def _sum(self, path: str, size: int) -> str | None:
        """What sha256sum there says of the first `size` bytes; None: it says nothing."""
        with contextlib.suppress(EvidenceMissing):
            code, output = self.execute(["sh", "-c", f'head -c {size} "$1" | sha256sum', "sh", path])
            word = output.partition(" ")[0]
            if code == 0 and len(word) == 64 and set(word) <= set("0123456789abcdef"):
                return word
        return None

    @contextlib.contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """A port of 127.0.0.1 here that leads to that port of 127.0.0.1 there, until the end of `with`.

        Raises:
            EvidenceMissing: the other side forbids it, or the connection is gone.
        """
        import paramiko

        to = ("127.0.0.1", port)
        with self._within(PATIENCE, f"the way to port {port} in the pod"):
            try:
                self._transport.open_channel("direct-tcpip", to, to, timeout=PATIENCE).close()
            except paramiko.ChannelException as e:  # that nobody listens there is for the caller to find out
                if e.code == PROHIBITED:
                    raise EvidenceMissing("the pod's sshd forbids port forwarding") from e
        with _Forwarder(self._transport, to) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), name="forward", daemon=True).start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()

    @contextlib.contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[None]:
        """Whoever keeps us longer loses the connection: closing it is what ends a read that drips."""
        over = threading.Event()

        def end() -> None:
            over.set()
            self._transport.close()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except BringupError:
            raise
        except FileNotFoundError as e:
            raise EvidenceMissing(f"{what}: there is none") from e
        except Exception as e:  # noqa: BLE001, RUF100 - a hostile answer raises what its reader happens to raise
            why = f"not done within {seconds:g} s" if over.is_set() else _said(e)
            raise EvidenceMissing(f"{what}: {why}") from e
        finally:
            timer.cancel()


def _require_regular(path: str, found: paramiko.SFTPAttributes, limit: int) -> int:
    """Its size in bytes, if it may be read."""
    size = found.st_size
    if not stat.S_ISREG(found.st_mode or 0) or size is None or size > limit:
        raise EvidenceMissing(f"{path} in the pod is no regular file of at most {limit} bytes")
    return size


def _said(error: Exception) -> str:
    """An error on one line."""
    if isinstance(error, EOFError):
        return "the connection broke off"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Forwarder(socketserver.ThreadingTCPServer):
    """Each connection gets a channel of its own; one that cannot be had is a connection that is closed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, transport: paramiko.Transport, to: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self._transport, self._to = transport, to

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(Exception):  # the caller sees a connection that ends, and says so
            channel = self._transport.open_channel("direct-tcpip", self._to, client_address, timeout=PATIENCE)
            with channel:
                back = threading.Thread(target=_pour, args=(channel, request), daemon=True)
                back.start()
                _pour(request, channel)
                back.join()


def _pour(source: Any, to: Any) -> None:
    """All that comes from one, to the other, and then its end."""
    with contextlib.suppress(OSError, EOFError):
        while data := source.recv(PIECE):
            to.sendall(data)
    with contextlib.suppress(OSError, EOFError):
        to.shutdown(socket.SHUT_WR)
