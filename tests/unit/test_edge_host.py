"""Facts of the host, from made-up /proc and /sys trees."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from bringup.edge import host

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(total: int, available: int) -> str:
    return f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\nHugePages_Total: 0\n"


# ---- memory


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        pytest.param({}, 16, 12, id="no control group"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": str(8 * GIB),
                "sys/fs/cgroup/job/memory.current": str(3 * GIB),
                "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            8, 6, id="v2, page cache counts as free",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/slice/job\n",
                "sys/fs/cgroup/slice/memory.max": str(4 * GIB),
                "sys/fs/cgroup/slice/memory.current": str(1 * GIB),
                "sys/fs/cgroup/slice/job/memory.max": "max\n",
                "sys/fs/cgroup/slice/job/memory.current": "0\n",
            },
            4, 3, id="v2, limit of a parent",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/../../host/path\n",
                "sys/fs/cgroup/memory.max": str(2 * GIB),
                "sys/fs/cgroup/memory.current": str(GIB),
            },
            2, 1, id="v2, path of another name space",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": str(64 * GIB),
                "sys/fs/cgroup/memory.current": "0",
            },
            16, 12, id="limit above the host",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpuacct,memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(6 * GIB),
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(5 * GIB),
                "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 7\ntotal_inactive_file {2 * GIB}\n",
            },
            6, 3, id="v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * GIB),
            },
            16, 12, id="v1, no limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/job\n",
                "sys/fs/cgroup/job/memory.max": str(GIB),
                "sys/fs/cgroup/job/memory.current": str(2 * GIB),
            },
            1, 0, id="over the limit is zero, not negative",
        ),
    ],
)  # fmt: skip
def test_memory(tmp_path: Path, files: dict[str, str], total: int, available: int) -> None:
    root = write(tmp_path, {"proc/meminfo": meminfo(16 * GIB, 12 * GIB), **files})
    assert host.memory(root) == host.Memory(total=total * GIB, available=available * GIB)


@pytest.mark.parametrize("text", [None, "", "MemTotal: 5 kB\n", "MemAvailable: 5 kB\n", "MemTotal:\nMemAvailable:\n"])
def test_memory_that_nobody_tells_is_none(tmp_path: Path, text: str | None) -> None:
    write(tmp_path, {} if text is None else {"proc/meminfo": text})
    assert host.memory(tmp_path) is None


# ---- system


@pytest.mark.parametrize(
    ("flags", "avx2", "avx512"),
    [("fpu avx avx2 avx512f avx512bw", True, True), ("fpu avx avx2", True, False), ("fpu avx", False, False)],
)
def test_cpu_flags(tmp_path: Path, flags: str, avx2: bool, avx512: bool) -> None:
    found = host.info(write(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\n"}))
    assert (found.avx2, found.avx512) == (avx2, avx512)


def test_cpu_flags_that_nobody_tells_are_none(tmp_path: Path) -> None:
    found = host.info(write(tmp_path, {"proc/cpuinfo": "processor: 0\nFeatures: fp asimd\n"}))
    assert (found.avx2, found.avx512) == (None, None)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"etc/os-release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\n'}, "Debian GNU/Linux 12"),
        ({"usr/lib/os-release": "PRETTY_NAME=Plain\n"}, "Plain"),
        ({"etc/os-release": "ID=x\n"}, None),
        ({}, None),
    ],
)
def test_system_name(tmp_path: Path, files: dict[str, str], name: str | None) -> None:
    assert host.info(write(tmp_path, files)).system == name


def test_machine_of_this_host() -> None:
    found = host.info()
    assert found.cpus == os.cpu_count()
    assert found.kernel == os.uname().release
    assert found.architecture == os.uname().machine


# ---- disk and engine


def test_disk_free_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    free = host.disk_free(tmp_path / "not" / "yet")
    here = os.statvfs(tmp_path)
    assert free is not None
    assert abs(free - here.f_bavail * here.f_frsize) < GIB  # others write at the same time


def test_disk_free_that_nobody_tells_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert host.disk_free(tmp_path) is None
    assert host.disk_free("relative/and/not/there") is None


@pytest.mark.parametrize(
    ("docker_host", "here"),
    [
        (None, True), ("", True), ("unix:///run/docker.sock", True),
        ("tcp://10.0.0.1:2376", False), ("ssh://me@there", False), ("http://127.0.0.1:2375", False),
    ],
)  # fmt: skip
def test_where_the_engine_is(docker_host: str | None, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if docker_host is None:
        monkeypatch.delenv("DOCKER_HOST", raising=False)
    else:
        monkeypatch.setenv("DOCKER_HOST", docker_host)
    assert host.engine_is_here() is here


# ---- port

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(address: str, port: int, state: str, inode: int) -> str:
    return f"   0: {address}:{port:04X} 00000000:0000 {state} 0:0 0:0 0 1000 0 {inode} 1 0 100 0\n"


class Socket:
    """As much of a socket as `port_holder` uses; `fails` is what bind raises."""

    fails: OSError | None = None
    made: list[Socket]

    def __init__(self, family: int, _kind: int) -> None:
        self.family = family
        self.address: object = None
        self.listens = False
        self.options: list[tuple[int, ...]] = []
        type(self).made.append(self)

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)

    def bind(self, address: object) -> None:
        self.address = address
        if self.fails:
            raise self.fails

    def listen(self, _: int) -> None:
        self.listens = True


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> type[Socket]:
    class Fresh(Socket):
        made: list[Socket] = []  # noqa: RUF012

    monkeypatch.setattr(socket, "socket", Fresh)
    return Fresh


@pytest.mark.parametrize(
    ("address", "bound", "family"),
    [
        ("127.0.0.1", "127.0.0.1", socket.AF_INET),
        ("localhost", "127.0.0.1", socket.AF_INET),
        ("::1", "::1", socket.AF_INET6),
    ],
)
def test_a_free_port(sockets: type[Socket], address: str, bound: str, family: int) -> None:
    assert host.port_holder(address, 8000) is None
    (tried,) = sockets.made
    assert (tried.address, tried.family, tried.listens, tried.closed) == ((bound, 8000), family, True, True)
    only_v6 = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    assert (only_v6 in tried.options) == (family == socket.AF_INET6)
    assert (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1) in tried.options


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        pytest.param({"proc/net/tcp": HEAD + row("0100007F", 8000, "0A", 77)}, "nginx (pid 4242)", id="IPv4"),
        pytest.param({"proc/net/tcp6": HEAD + row("0" * 32, 8000, "0A", 77)}, "nginx (pid 4242)", id="IPv6"),
        pytest.param({"proc/net/tcp": HEAD + row("0100007F", 8000, "0A", 78)}, "another process", id="not visible"),
        pytest.param({"proc/net/tcp": HEAD + row("0100007F", 8001, "0A", 77)}, "another process", id="other port"),
        pytest.param({"proc/net/tcp": HEAD + row("0100007F", 8000, "01", 77)}, "another process", id="connected only"),
        pytest.param({}, "another process", id="no tables"),
    ],
)
def test_who_holds_a_port(sockets: type[Socket], tmp_path: Path, table: dict[str, str], expected: str) -> None:
    sockets.fails = OSError(errno.EADDRINUSE, "Address already in use")
    root = write(tmp_path, {"proc/4242/comm": "nginx\n", "proc/7/comm": "other\n", **table})
    for pid, target in (("4242", "socket:[77]"), ("7", "/dev/null")):
        (root / "proc" / pid / "fd").mkdir()
        (root / "proc" / pid / "fd" / "3").symlink_to(target)
    assert host.port_holder("127.0.0.1", 8000, root) == expected


def test_a_low_port_that_we_may_not_try(sockets: type[Socket], tmp_path: Path) -> None:
    sockets.fails = PermissionError(errno.EACCES, "Permission denied")
    assert host.port_holder("127.0.0.1", 80, tmp_path) is None
    write(tmp_path, {"proc/net/tcp": HEAD + row("0100007F", 80, "0A", 77)})
    assert host.port_holder("127.0.0.1", 80, tmp_path) == "another process"


def test_an_address_of_another_host(sockets: type[Socket], tmp_path: Path) -> None:
    sockets.fails = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    found = host.port_holder("192.0.2.1", 8000, tmp_path)
    assert found is not None
    assert "Cannot assign requested address" in found
    assert "192.0.2.1" in found
