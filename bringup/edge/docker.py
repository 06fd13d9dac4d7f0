"""The only door to the Docker Engine's API (docker's own SDK). Compose and buildx go through `edge.process`.

Nothing is ever copied into a container (CVE-2026-41567); files come out through our own tar filter.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bringup.edge import process
from bringup.errors import EvidenceMissing, NeverReady, TargetUnavailable

if TYPE_CHECKING:
    import docker

START_ENGINE = 'start Docker, or run `./scripts/engine up` and `eval "$(./scripts/engine env)"`'
MAX_FILE = 256 * 2**20  # bytes; the most that one file may bring out of a container


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the engine says of itself; None or empty where it said nothing.

    `runtimes`: names of OCI runtimes; `gpu_devices`: CDI names like nvidia.com/gpu=0; versions as printed.
    """

    reachable: bool
    error: str = ""
    version: str | None = None
    compose: str | None = None
    buildx: str | None = None
    architecture: str | None = None
    root_dir: str | None = None
    runtimes: tuple[str, ...] = ()
    gpu_devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """A container as the engine sees it. `started` is the engine's own ISO 8601 time."""

    id: str
    name: str
    status: str
    exit_code: int
    oom_killed: bool
    started: str
    image_id: str


@contextmanager
def answers() -> Iterator[None]:
    """Turn the SDK's many errors into ours, which name the next action.

    Raises:
        EvidenceMissing: the engine refused what it was asked.
        TargetUnavailable: it does not answer, or failed.
    """
    import docker.errors
    import requests.exceptions

    try:
        yield
    except docker.errors.APIError as e:
        if e.is_client_error():  # it did answer: the container is gone, paused, not running
            why = e.explanation or reason(e)
            if "marked for removal" in why:  # somebody removes it at this moment
                raise EvidenceMissing(f"the container is gone: {why}", hint="run `bringup up`") from e
            raise EvidenceMissing(f"the Docker Engine refused: {why}") from e
        raise TargetUnavailable(f"the Docker Engine failed: {reason(e)}", hint=_hint(e)) from e
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as e:
        raise TargetUnavailable(f"the Docker Engine does not answer: {reason(e)}", hint=_hint(e)) from e


def reason(error: BaseException) -> str:
    """The innermost message of an error chain, on one line."""
    text = str(error)
    for words in ("PermissionError", "FileNotFoundError", "ConnectionRefusedError"):
        if words in text:
            return f"{words}: " + text.split(words, 1)[1].strip("(),' ").replace("'", "")
    return " ".join(text.split()) or type(error).__name__


def _hint(error: BaseException) -> str:
    text = str(error)
    if "PermissionError" in text or "Permission denied" in text:
        return "your user may not use the engine's socket: join the `docker` group or run as root"
    return START_ENGINE


class Engine:
    """The Docker Engine that DOCKER_HOST (or the default socket) names, or the one of a client that is there."""

    def __init__(self, timeout: float = 60.0, client: docker.DockerClient | None = None) -> None:
        self._timeout = timeout
        self._client = client

    @property
    def client(self) -> docker.DockerClient:
        """The SDK's client, connected on first use.

        Raises:
            TargetUnavailable: no engine answers.
        """
        if self._client is None:
            import docker

            with answers():
                self._client = docker.from_env(timeout=int(self._timeout))
        return self._client

    def facts(self) -> EngineFacts:
        """What the engine is; an engine that does not answer is a fact, not an error."""
        try:
            client = self.client
            with answers():
                info = client.info()
        except TargetUnavailable as e:
            return EngineFacts(reachable=False, error=e.message)
        return EngineFacts(
            reachable=True,
            version=info.get("ServerVersion"),
            compose=_plugin("compose", "--short"),
            buildx=_plugin("buildx"),
            architecture=info.get("Architecture"),
            root_dir=info.get("DockerRootDir"),
            runtimes=tuple(sorted(info.get("Runtimes") or {})),
            gpu_devices=tuple(
                d["ID"]
                for d in info.get("DiscoveredDevices") or []
                if str(d.get("ID", "")).startswith("nvidia.com/gpu=")
            ),
        )

    def clock(self) -> float:
        """Epoch seconds by the clock of the engine's machine.

        Raises:
            TargetUnavailable: no engine answers; ValueError: it tells no time.
        """
        client = self.client
        with answers():
            told = str(client.info().get("SystemTime") or "")
        return datetime.fromisoformat(told).timestamp()

    def image(self, reference: str) -> dict[str, Any] | None:
        """`docker image inspect`, or None when the engine has no such image."""
        import docker.errors

        client = self.client
        with answers():
            try:
                return dict(client.images.get(reference).attrs)
            except docker.errors.ImageNotFound:
                return None

    def has_volume(self, name: str) -> bool:
        """Whether the engine has a volume of that name."""
        client = self.client
        with answers():
            return any(v.name == name for v in client.volumes.list(filters={"name": name}))  # a part of it is enough

    def find(self, project: str, service: str) -> ContainerState | None:
        """The newest container of a compose service, running or not."""
        client = self.client
        labels = [f"com.docker.compose.project={project}", f"com.docker.compose.service={service}"]
        with answers():
            found = client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
            newest = max(found, key=lambda c: str(c.attrs["Created"]), default=None)
            return self.state(str(newest.id)) if newest else None

    def inspect(self, container: str) -> dict[str, Any]:
        """`docker inspect` of a container.

        Raises:
            EvidenceMissing: there is no such container any more.
        """
        import docker.errors

        client = self.client
        with answers():
            try:
                return dict(client.api.inspect_container(container))
            except docker.errors.NotFound as e:
                raise EvidenceMissing(f"the container {container[:12]} is gone", hint="run `bringup up`") from e

    def state(self, container: str) -> ContainerState:
        """State of a container; see `inspect` for what it raises."""
        raw = self.inspect(container)
        state = raw["State"]
        return ContainerState(
            id=raw["Id"],
            name=raw["Name"].lstrip("/"),
            status=state["Status"],
            exit_code=state["ExitCode"],
            oom_killed=state["OOMKilled"],
            started=state["StartedAt"],
            image_id=raw["Image"],
        )

    def logs(self, container: str, tail: int | None = None, since: int | None = None) -> str:
        """Console output of a container, both streams, with the engine's timestamps; `since`: epoch seconds."""
        client = self.client
        with answers():
            raw = client.api.logs(container, timestamps=True, tail=tail if tail is not None else "all", since=since)
        return bytes(raw).decode("utf-8", "replace")

    def top(self, container: str) -> list[dict[str, str]]:
        """Processes of a running container, as `ps` on the host sees them: one dict of its columns each."""
        client = self.client
        with answers():
            table = client.api.top(container, ps_args="-eo pid,ppid,user,rss,etime,args")
        return [dict(zip(table["Titles"], row, strict=False)) for row in table["Processes"] or []]

    def execute(self, container: str, argv: list[str]) -> tuple[int, str]:
        """Run a program in a running container: exit code and its output, both streams as they came."""
        import docker.errors
        import requests

        client = self.client
        with answers():
            made = client.api.exec_create(container, argv)["Id"]
            # Not exec_start: it reads on from the bare socket, and what came together with the answer's headers is
            # lost (docker/docker-py#3332, with 7.2.0). Without an upgrade the answer is an ordinary one.
            url = f"{client.api.base_url}/v{client.api.api_version}/exec/{made}/start"
            body = {"Detach": False, "Tty": False}
            answer = client.api.post(url, json=body, timeout=(self._timeout, None))  # the program may take long
            try:
                answer.raise_for_status()
            except requests.HTTPError as e:
                docker.errors.create_api_error_from_http_exception(e)
            code = client.api.exec_inspect(made)["ExitCode"]
        return (126 if code is None else int(code)), unframed(answer.content).decode("utf-8", "replace")

    def once(self, image: str, argv: list[str], reserve: dict[str, Any]) -> tuple[int, str]:
        """Run a program in a container of its own, with GPUs reserved: exit code and standard output.

        `reserve`: an item of Compose's `devices` (see `gpus.request`). The container has no network and is gone
        afterwards.

        Raises:
            NeverReady: the engine could not start it; the message is the engine's own.
            TargetUnavailable: no engine answers, or the program does not end.
        """
        import docker.errors

        client = self.client
        with answers():
            container = client.containers.create(
                image, entrypoint=argv[:1], command=argv[1:], device_requests=[device_request(reserve)],
                network_mode="none", read_only=True, tmpfs={"/tmp": "exec"}, cap_drop=["ALL"],  # noqa: S108
                security_opt=["no-new-privileges:true"],
            )  # fmt: skip
        try:
            with answers():
                try:
                    container.start()
                except docker.errors.APIError as e:
                    raise NeverReady(str(e.explanation or reason(e))) from e
            with answers():
                code = int(container.wait(timeout=self._timeout)["StatusCode"])
                return code, bytes(container.logs(stdout=True, stderr=False)).decode("utf-8", "replace")
        finally:
            with answers():
                container.remove(force=True, v=True)

    def copy_out(self, container: str, path: str) -> bytes:
        """The bytes of one regular file in a container.

        Raises:
            EvidenceMissing: there is no such file, it is a link or device, or larger than `MAX_FILE`.
        """
        import docker.errors

        client = self.client
        with answers():
            try:
                stream, _ = client.api.get_archive(container, path)
                data = _bounded(stream)
            except docker.errors.NotFound as e:
                raise EvidenceMissing(f"{path} is not in the container") from e
        return first_file(data, path)


def unframed(stream: bytes) -> bytes:
    """The output of an exec or attach without a terminal: each piece has 8 bytes before it, the last 4 its length.

    Raises:
        EvidenceMissing: it ends in the middle of a piece.
    """
    output, at = b"", 0
    while at < len(stream):
        start = at + 8
        at = start + int.from_bytes(stream[at + 4 : start])
        output += stream[start:at]
    if at > len(stream):
        raise EvidenceMissing("the Docker Engine's answer to an exec ended too early")
    return output


def device_request(reserve: dict[str, Any]) -> docker.types.DeviceRequest:
    """An item of Compose's `devices` (see `gpus.request`) in the SDK's words."""
    import docker.types

    count = {"all": -1}.get(reserve.get("count", 0), reserve.get("count", 0))
    return docker.types.DeviceRequest(
        driver=reserve["driver"], count=count, device_ids=reserve.get("device_ids", []),
        capabilities=[reserve["capabilities"]],
    )  # fmt: skip


def _bounded(stream: Any) -> bytes:
    data = bytearray()
    for chunk in stream:
        data += chunk
        if len(data) > MAX_FILE + 2**20:
            raise EvidenceMissing(f"a file of the container is larger than {MAX_FILE} bytes")
    return bytes(data)


def first_file(archive: bytes, path: str) -> bytes:
    """The content of a tar's first member, which must be one regular file; links and devices are refused."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.next()
        if member is None or not member.isreg() or member.size > MAX_FILE:
            raise EvidenceMissing(f"{path} in the container is no regular file of at most {MAX_FILE} bytes")
        content = tar.extractfile(member)
        return content.read() if content else b""


def _plugin(name: str, *flags: str) -> str | None:
    """Version of a CLI plugin, or None when docker has no such plugin."""
    try:
        outcome = process.run(["docker", name, "version", *flags], timeout=20)
    except TargetUnavailable:
        return None
    return outcome.out.strip().splitlines()[0] if outcome.code == 0 and outcome.out.strip() else None
