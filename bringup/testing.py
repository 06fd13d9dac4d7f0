"""A vLLM server for your tests, on testcontainers: `with VLLMContainer() as server: ...` (docs/testing.md)."""

from __future__ import annotations

import dataclasses
import secrets
from pathlib import Path
from typing import Any, Self

from bringup import catalog, gpus, image, probes
from bringup.checks.facts import needs_cdi
from bringup.edge.docker import Engine, answers, device_request
from bringup.edge.http import Http
from bringup.errors import BringupError, NeverReady, UsageError
from bringup.inside.start import refuse_key_in_argv
from bringup.plan import EVERYWHERE, NO_MODEL, SERVER_PORT, Expect, expect_remote, make_plan, server_argv
from bringup.ready import Moments, died, last_lines, wait_ready
from bringup.records import ProbeRecord
from bringup.server import Server
from bringup.settings import AUTO, Settings, fields, render
from bringup.targets import refusals
from bringup.targets.compose import EngineContainer, refused

try:
    from testcontainers.core.config import ConnectionMode
    from testcontainers.core.container import DockerContainer
except ImportError as e:
    raise ImportError("bringup.testing needs the package testcontainers: pip install testcontainers") from e

IMAGE = "bringup:cpu-tiny-qwen2"
LOOPBACK = "127.0.0.1"
FREE: Any = (LOOPBACK, None)  # any free port, in docker's own form
OWN = ("model", "bind", "api_key_file")  # server settings that the container itself decides


class VLLMContainer(DockerContainer):
    """A container with a vLLM server that has answered, from `start` (or `with`) to `stop`.

    Args:
        image: an image of `bringup build`, or any that takes vLLM's arguments as its command and serves on port 8000.
        model: what to serve: a name of bringup's catalogue, by default the one that the image holds; for an image that
            is not bringup's, a repository of the Hub or a directory in the container.
        api_key: the key that the server demands; made anew by default, empty for a server without one. It travels in
            the container's environment.
        timeout: seconds from the start to the first token.
        request_timeout: seconds that one request of the wait and one probe may take.
        kwargs: of `DockerContainer`.

    Raises:
        TargetUnavailable: no engine answers.
    """

    def __init__(
        self,
        image: str = IMAGE,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        request_timeout: float = 60.0,
        **kwargs: Any,
    ) -> None:
        with answers():
            super().__init__(image, **kwargs)
        self.api_key = secrets.token_urlsafe(32) if api_key is None else api_key
        self.moments = Moments()
        self._settings = Settings(
            image=image, model=model or AUTO, timeout=timeout, request_timeout=request_timeout, bind=LOOPBACK
        )
        self._engine = Engine(client=self.get_docker_client().client)
        self._expect: Expect | None = None
        self._server: Server | None = None

    def with_settings(self, **values: Any) -> Self:
        """Set settings of the server by their names in the README: `max_model_len=256`, `served_model_name="m"`.

        Raises:
            UsageError: no such setting, or a value that it cannot have.
        """
        known = {name: option for name, (_, option) in fields().items() if option.server and name not in OWN}
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"{name!r} is no setting of a container's server: {', '.join(known)}")
            try:
                parsed = known[name].parse(render(value))
            except ValueError as e:
                raise UsageError(f"{name}: {e}") from e
            self._settings = dataclasses.replace(self._settings, **{name: parsed})
        return self

    def with_vllm_args(self, *args: str) -> Self:
        """Add arguments for vLLM: `with_vllm_args("--max-num-seqs", "4")`.

        Raises:
            UsageError: `--api-key` is among them, where everyone could read it.
        """
        refuse_key_in_argv(args)
        self._settings = dataclasses.replace(self._settings, vllm_args=(*self._settings.vllm_args, *args))
        return self

    def with_profile(self, name: str) -> Self:
        """What the start may cost later: `fast`, `default` or `eager`; by itself a CPU gets eager, a GPU default."""
        return self.with_settings(profile=name)

    def with_gpus(self, which: str = "all") -> Self:
        """Reserve GPUs, in Docker's words: `all`, a number, `device=0,2`. An image of the gpu flavour gets the first.

        Raises:
            UsageError: it is none of these.
        """
        try:
            asked = fields()["gpus"][1].parse(which)
        except ValueError as e:
            raise UsageError(f"with_gpus: {e}") from e
        self._settings = dataclasses.replace(self._settings, gpus=asked)
        return self

    def start(self) -> Self:
        """Start it and wait for its first token; whatever goes wrong, no container is left.

        Raises:
            UsageError: the settings or the image cannot be used.
            TargetUnavailable: the engine does not answer, or cannot start the container.
            NeverReady: it exited, answers with an error that will not go away, or gave no token in time; the log's last
                lines are among the exception's notes and in `detail`.
        """
        try:
            self._start()
            self._wait()
        except BaseException as e:
            if isinstance(e, BringupError):  # a traceback shows what the command line would
                for note in filter(None, (e.detail, e.hint and f"-> {e.hint}")):
                    e.add_note(note)
            self.stop()
            raise
        return self

    def stop(self, force: bool = True, delete_volume: bool = True) -> None:
        """Remove the container and its volumes, as often as you like."""
        super().stop(force, delete_volume)
        self._container = self._server = None

    @property
    def base_url(self) -> str:
        """`http://host:port`, where /health and /metrics are."""
        return self._started().http.base_url

    @property
    def openai_url(self) -> str:
        """What OpenAI's clients call base_url."""
        return f"{self.base_url}/v1"

    @property
    def model(self) -> str:
        """The name that requests must give."""
        return str(self._started().expect.model)

    def verify(self, suite: str = "standard") -> tuple[ProbeRecord, ...]:
        """Ask all that `bringup verify` asks; `bringup.records.verdict_of` tells what the records add up to.

        Raises:
            UsageError: there is no such suite.
        """
        if suite not in probes.SUITES:
            raise UsageError(f"there is no suite {suite!r}: {', '.join(probes.SUITES)}")
        return tuple(probes.verify(self._started(), names=probes.SUITES[suite]))

    def _start(self) -> None:
        try:
            with answers():
                super().start()
        except BringupError as e:
            if refusals.find(e.message):  # with its remedy
                raise refused(e.message) from e
            raise

    def _started(self) -> Server:
        if self._server is None:
            raise UsageError("the container is not started", hint="use it in `with`, or call start()")
        return self._server

    def _configure(self) -> None:
        """What is created: environment or command, port, GPUs. testcontainers calls it in `start`."""
        labels = image.summary(self._image())["labels"]
        address = self._address()
        if not self.api_key and address != LOOPBACK:
            raise UsageError(
                "the port would be reachable from elsewhere, and no API key is set",
                hint="leave api_key and the ports to VLLMContainer, and use an engine on this host",
            )
        flavour = labels.get("dev.bringup.flavour", "")
        if flavour:
            self._configure_own(flavour, labels.get("dev.bringup.model", NO_MODEL), address)
        else:
            self._configure_foreign()
        if self.api_key:
            self.env["VLLM_API_KEY"] = self.api_key
        if flavour == "gpu" or self._settings.gpus:
            wanted = gpus.request(self._settings.gpus, cdi=needs_cdi(self._engine.facts()))
            self._kwargs.setdefault("device_requests", [device_request(wanted)])
        self._kwargs.setdefault("shm_size", "2g")  # tensors between vLLM's processes; Docker gives 64 MB

    def _configure_own(self, flavour: str, held: str, address: str) -> None:
        name = held if self._settings.model == AUTO else self._settings.model
        model = catalog.choose(catalog.load(), name)
        settings = dataclasses.replace(self._settings, model=name)
        plan = make_plan(settings, model, (flavour, "the image's label"), {})
        self.env = {**plan.environment, "BRINGUP_BIND": address, **self.env}
        self._expect = plan.expect

    def _configure_foreign(self) -> None:
        """vLLM's own arguments; as little is expected of the server as of an address."""
        if self._settings.model == AUTO:
            raise UsageError(f"{self.image} is no image of bringup's: which model it is to serve is not known",
                             hint='give it: VLLMContainer(image, model="Qwen/Qwen2.5-0.5B-Instruct")')  # fmt: skip
        # A place of the weights is an argument as it stands; `gpu`: nothing is added for this image's sake.
        settings = dataclasses.replace(self._settings, weights=Path(self._settings.model))
        if self._command is None:
            self._command = list(server_argv(settings, "gpu"))
        self._expect = expect_remote(catalog.load(), settings.served_model_name or settings.model)

    def _image(self) -> dict[str, Any]:
        found = self._engine.image(self.image)
        if found is None and self.image.startswith("bringup:"):
            flavour, _, model = self.image.removeprefix("bringup:").partition("-")
            raise UsageError(f"the engine has no image {self.image}",
                             hint=f"bringup build --flavour {flavour} --model {model or 'NAME'}")  # fmt: skip
        if found is None:
            self.get_docker_client().client.images.pull(self.image)
            found = self._engine.image(self.image)
        return found or {}

    def _address(self) -> str:
        """Where the port is published: on loopback unless the engine is elsewhere, or the caller chose a port."""
        given = {port: host for port, host in self.ports.items() if port.partition("/")[0] == str(SERVER_PORT)}
        if any(host not in (None, FREE) for host in given.values()):
            return EVERYWHERE
        here = self._engine_is_here()
        for port in given:
            del self.ports[port]
        self.ports[f"{SERVER_PORT}/tcp"] = FREE if here else None
        return LOOPBACK if here else EVERYWHERE

    def _engine_is_here(self) -> bool:
        client = self.get_docker_client()
        return client.get_connection_mode() is ConnectionMode.docker_host and client.host() in ("localhost", LOOPBACK)

    def _url(self, container: EngineContainer) -> str:
        try:
            port = self.get_exposed_port(SERVER_PORT)
        except (StopIteration, TimeoutError, ConnectionError):  # testcontainers' words for: it does not run
            raise NeverReady(died(container.state()), detail=last_lines(container)) from None
        host = LOOPBACK if self._engine_is_here() else self.get_container_host_ip()
        return f"http://{host}:{port}"

    def _wait(self) -> None:
        assert self._expect is not None  # noqa: S101 - `_configure` made it
        container = EngineContainer(self._engine, self.get_container_id())
        self._server = Server(
            http=Http(self._url(container), self.api_key or None),
            expect=self._expect,
            deadline=self._settings.request_timeout,
            container=container if self._expect.container else None,
            gpus=self._settings.gpus,
        )
        self.moments = Moments()
        wait_ready(self._server, container, self._settings.timeout, self.moments)
