"""Private engines for tests of scripts/: each in a directory of its own, called with no other engine in sight."""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# The default engine's unpacked programs are used again when they are there: no download per test run.
PREFIX = Path(os.environ.get("BRINGUP_ENGINE_PREFIX", "/var/lib/bringup-engine/prefix"))


@dataclass
class Engine:
    """One private directory, and the script called for it."""

    directory: Path
    prefix: Path
    no_docker: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "BRINGUP_"))}
        return kept | {
            "PATH": f"{self.no_docker}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "BRINGUP_ENGINE_DIR": str(self.directory),
            "BRINGUP_ENGINE_PREFIX": str(self.prefix),
            **self.extra,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPTS / "engine"), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def docker(self, *arguments: str) -> str:
        """What docker prints, in a shell that evaluated the script's env."""
        script = f'set -e; eval "$({SCRIPTS}/engine env)"; exec docker "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answers(self) -> bool:
        return self.call("status").returncode == 0

    def config(self) -> dict[str, object]:
        found = json.loads((self.directory / "daemon.json").read_text())
        assert isinstance(found, dict)
        return found

    @property
    def bridge(self) -> str:
        return str(self.config()["bridge"])

    def processes(self, program: str = "") -> list[int]:
        """Processes of `program` (of any, if empty) with a path below the directory in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                executable = (path / "exe").readlink().name
            except OSError:
                continue
            if any(word.startswith(f"{self.directory}/".encode()) for word in words) and program in executable:
                found.append(int(path.name))
        return found

    def load_image(self) -> None:
        """Import `probe`: the host's bash, cat and sleep with their libraries. Bash alone can open connections."""
        programs = [Path("/bin/bash"), Path("/bin/cat"), Path("/bin/sleep")]
        wanted = set(programs)
        for program in programs:
            linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
            wanted |= {Path(name) for name in re.findall(r"(/\S+) \(0x", linked)}
        archive = self.directory / "probe.tar"
        subprocess.run(["tar", "-chPf", archive, "--transform", "s|^/||", *wanted], check=True)
        self.docker("import", str(archive), "probe")

    def reaches(self, host: str, port: int, network: str = "bridge") -> bool:
        shell = f'exec 3<>/dev/tcp/{host}/{port} && echo reached || echo "not reached"'
        said = self.docker("run", "--rm", "--init", "--network", network, "probe", "/bin/bash", "-c", shell)
        return said == "reached"


def ip(*arguments: str) -> str:
    path = f"{PREFIX}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    environment = os.environ | {"PATH": path}
    return subprocess.run(["ip", *arguments], env=environment, capture_output=True, text=True, check=True).stdout


def chains() -> str:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin:{PREFIX}/bin"
    listed = [
        subprocess.run(
            ["iptables", "-w", "-t", table, "-S"],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for table in ("filter", "nat")
    ]
    return "".join(listed)


def failing_docker(directory: Path) -> Path:
    """Make `directory` hold a `docker` that reaches nothing, to be first in PATH."""
    directory.mkdir(parents=True)
    program = directory / "docker"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return directory
