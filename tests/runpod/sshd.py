"""`python -m tests.runpod.sshd PUBLIC_KEY FAULT`: a pod's sshd for tests, with the files of a server that ran, and with
faults that a real one cannot be made to have. What a real one does is tested with the image's (test_pod_ssh).
"""

# ruff: noqa: ARG002 - the arguments are paramiko's
from __future__ import annotations

import hashlib
import io
import json
import logging
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)
from paramiko.sftp import SFTP_EOF, SFTP_NO_SUCH_FILE

from bringup.edge import ssh
from tests.runpod import ROOT

logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # clients that break off are what half of this is about
FAULTS = {
    "": "none",
    "silent": "no line in the log",
    "changed": "a later line in the log tells another host key",
    "stranger": "another host key than the log tells",
    "deaf": "the connection is taken and nothing said",
    "refuses": "no key is taken",
    "cut": "the connection breaks in the middle of the first file",
    "no-sftp": "SFTP is refused",
    "slow": "a byte at a time",
    "short": "files say to be longer than they are",
    "huge": "files say to be of 8 TiB",
    "symlink": "files are links",
    "swapped": "files are regular until they are opened, then devices",
    "names": "every path is answered with a name that leads elsewhere",
    "garbage": "no SFTP at all behind its name",
    "wrong-sum": "sha256sum says something else",
    "no-exec": "no program is run",
    "chatty": "programs say more than anybody wants to read",
    "no-forward": "port forwarding is prohibited",
}
LOG = (ROOT / "tests/data/timeline/cpu-0.32.jsonl").read_bytes()
RUN = "/var/lib/bringup/run"
FILES = {
    f"{RUN}/server.jsonl": LOG,
    f"{RUN}/caches-before.json": b'{"schema": 1, "container": "c", "factors": null, "entries": {}}',
    f"{RUN}/caches-now.json": b'{"schema": 1, "container": "c", "factors": {}, "entries": {}}',
    "/opt/bringup/weights.receipt.json": b'{"files": []}',
    "/opt/bringup/weights.lock": b'{"models": {}}',
}
PROCESSES = ("python -m bringup.inside.serve", "VLLM::EngineCore", "sshd: bringup")


class Sshd:
    """Listens until it is closed. `serves`: the port that its direct-tcpip leads to, None while nobody listens."""

    def __init__(self, public_key: str, fault: str, serves: Callable[[], int | None] = lambda: None) -> None:
        assert fault in FAULTS, fault
        self.fault, self.serves = fault, serves
        self.public_key = " ".join(public_key.split()[:2])
        self.told, self.other = _host_key(), _host_key()
        self.key = self.other if fault == "stranger" else self.told
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def lines(self) -> list[str]:
        """What the log tells of it."""
        told = {"silent": [], "changed": [self.told, self.other]}.get(self.fault, [self.told])
        return [f"bringup: ssh: listening on port 22 as bringup, host key {spelled(key)}" for key in told]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self.fault == "deaf":
            time.sleep(60)
            return
        transport = paramiko.Transport(connection)
        transport.add_server_key(self.key)
        handler = Garbage if self.fault == "garbage" else paramiko.SFTPServer
        transport.set_subsystem_handler("sftp", handler, Files, sshd=self, connection=connection)
        session = Session(self)
        with suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=session)
        channels = []  # one that nobody holds is closed
        while transport.is_active():
            if channel := transport.accept(0.2):
                channels.append(channel)
                if port := session.forwards.pop(channel.get_id(), None):
                    threading.Thread(target=_join, args=(channel, port), daemon=True).start()


def _join(channel: paramiko.Channel, port: int) -> None:
    with suppress(OSError, EOFError), socket.create_connection(("127.0.0.1", port)) as server, channel:
        back = threading.Thread(target=ssh._pour, args=(server, channel), daemon=True)
        back.start()
        ssh._pour(channel, server)
        back.join()


def _host_key() -> paramiko.Ed25519Key:
    return paramiko.Ed25519Key(file_obj=io.StringIO(ssh.make_key("")[0]))


def spelled(key: paramiko.PKey) -> str:
    """A host key as the log has it."""
    line = f"{key.get_name()} {key.get_base64()}"
    return f"{line} {ssh.fingerprint(line)}"


class Session(paramiko.ServerInterface):
    """One client."""

    def __init__(self, sshd: Sshd) -> None:
        self.sshd = sshd
        self.forwards: dict[int, int] = {}  # number of a channel to the port that it leads to

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = f"{key.get_name()} {key.get_base64()}" == self.sshd.public_key and username == "bringup"
        return AUTH_SUCCESSFUL if good and self.sshd.fault != "refuses" else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        return self.sshd.fault != "no-sftp" and super().check_channel_subsystem_request(channel, name)

    def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
        if self.sshd.fault == "no-forward" or destination != ("127.0.0.1", 8000):
            return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        if (port := self.sshd.serves()) is None:
            return OPEN_FAILED_CONNECT_FAILED
        self.forwards[chanid] = port
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.sshd.fault == "no-exec":
            return False
        threading.Thread(target=self._run, args=(channel, shlex.split(command.decode())), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, argv: list[str]) -> None:
        code, output = answer(argv, self.sshd.fault)
        with suppress(OSError, EOFError):
            channel.recv(1)  # its standard input ends: the client knows by now that the program runs
            channel.sendall(output.encode())
            channel.send_exit_status(code)
            channel.close()


def answer(argv: list[str], fault: str) -> tuple[int, str]:
    """What the programs say that bringup runs in a pod."""
    if fault == "chatty":
        return 0, "x" * (ssh.MAX_OUTPUT + 2)
    if "sha256sum" in " ".join(argv):
        size = int(argv[2].split()[2])
        digest = hashlib.sha256(FILES[argv[-1]][:size]).hexdigest()
        return 0, f"{'0' * 64 if fault == 'wrong-sum' else digest}  -\n"
    if "BRINGUP_STATE_DIR" in " ".join(argv):
        return 0, ""
    if argv[:1] == ["date"]:
        return 0, f"{time.time():.9f}\n"
    if argv[:1] == ["du"]:
        return 0, "4096\t/var/lib/bringup/cache\n"
    if argv[:1] == ["nvidia-smi"]:
        return 0, "NVIDIA-SMI, as a stand-in says it\n"
    if "-c" in argv:
        return 0, "".join(json.dumps({"PID": str(n), "RSS": "7", "COMMAND": c}) + "\n" for n, c in enumerate(PROCESSES))
    return 127, f"sh: {argv[0]}: not found\n"


class Garbage(paramiko.SubsystemHandler):
    """Says what is no SFTP."""

    def __init__(self, channel: Any, name: str, server: Any, *_: Any, **__: Any) -> None:
        super().__init__(channel, name, server)

    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        channel.recv(1)  # the client knows by now that the subsystem runs
        channel.sendall(b"\xff" * 4096)


class Files(paramiko.SFTPServerInterface):
    """The files, with the lies about them."""

    def __init__(self, server: Session, sshd: Sshd, connection: socket.socket) -> None:
        self.sshd, self.connection = sshd, connection

    def lstat(self, path: str) -> Any:
        if path not in FILES:
            return SFTP_NO_SUCH_FILE
        return self.attributes(path, stat.S_IFLNK if self.sshd.fault == "symlink" else stat.S_IFREG)

    def attributes(self, path: str, kind: int) -> paramiko.SFTPAttributes:
        """As lstat and fstat give them."""
        made = paramiko.SFTPAttributes()
        made.st_mode = kind | 0o644
        made.st_size = len(FILES[path]) + {"short": 10, "huge": 2**43}.get(self.sshd.fault, 0)
        if self.sshd.fault == "names":
            made.filename = "../../../../tmp/elsewhere"
        return made

    def open(self, path: str, flags: int, attr: Any) -> Any:
        return Handle(path, self) if path in FILES else SFTP_NO_SUCH_FILE


class Handle(paramiko.SFTPHandle):
    """One open file."""

    def __init__(self, path: str, files: Files) -> None:
        super().__init__()
        self.path, self.files, self.fault = path, files, files.sshd.fault

    def stat(self) -> Any:
        return self.files.attributes(self.path, stat.S_IFCHR if self.fault == "swapped" else stat.S_IFREG)

    def read(self, offset: int, length: int) -> Any:
        data = FILES[self.path]
        if self.fault == "slow":
            time.sleep(0.2)
            length = 1
        if self.fault == "cut":
            self.files.connection.shutdown(socket.SHUT_RDWR)
        return data[offset : offset + length] or SFTP_EOF


def main() -> None:
    """Serve until standard input ends."""
    public_key, fault = sys.argv[1:]
    sshd = Sshd(public_key, fault)
    sys.stdout.write(json.dumps({"port": sshd.port, "lines": sshd.lines}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
