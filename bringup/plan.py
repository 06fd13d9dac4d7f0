"""The frozen request. Pure: settings, catalogue entry and chosen flavour in, Plan out.

Nothing below this module knows where a value came from; nothing after it decides anything anew.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup import fit, gpus, profile
from bringup.catalog import VLLM_VERSION, Canary, Model
from bringup.errors import UsageError
from bringup.fingerprint import Fingerprint
from bringup.settings import BAKED, COMPOSE, LOCAL, VOLUME, Settings, server_environment

MODELS_DIR = "/opt/bringup/models"  # baked weights
WEIGHTS_DIR = "/weights"  # the volume, or where a directory of the host is mounted
NO_MODEL = "none"  # what the Dockerfile and the image's label call no weights
SERVER_PORT = 8000  # inside the container, unless a host that starts containers says otherwise (PORT)
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the container's own address; the host publishes it on `bind`
SERVICE = "server"  # of compose.yaml
CDI_FILE = "compose.cdi.yaml"


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What the probes hold the server against; None means that nothing is known about it.

    `weights_bytes`: size of the weights, the least that VRAM must grow by. `container`: whether there is a
    container to look into; `gpu`: whether the server must be using one. `parameters`: how many the model has;
    `fingerprint`: what it was seen to give (bringup/fingerprint.py).
    """

    model: str | None
    vllm_version: str | None
    canaries: tuple[Canary, ...]
    weights_bytes: int
    container: bool
    gpu: bool
    parameters: int | None = None
    fingerprint: Fingerprint | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a target needs to start the server, and everything the probes expect of it.

    Times in seconds. `target`: compose or local. `weights`: baked, volume, or a directory of the host. `sources` says
    where each setting came from (flag, environment, file, default). `shape`: the model's dimensions, where they are
    known. `gpus`: what is reserved, as the setting says it; None is the first GPU.
    """

    project: str
    model: str
    flavour: str
    flavour_reason: str
    image: str
    weights: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    compose_files: tuple[str, ...]
    base_url: str
    bind: str
    port: int
    timeout: float
    request_timeout: float
    expect: Expect
    sources: dict[str, str]
    shape: fit.Shape | None = None
    gpus: str | None = None
    target: str = COMPOSE

    @property
    def reservation(self) -> str | None:
        """The compose file that reserves the GPUs; None for a server without."""
        if self.flavour != "gpu":
            return None
        return gpus.override(SERVICE, self.gpus, cdi=CDI_FILE in self.compose_files)

    @property
    def baked_model(self) -> str:
        """The model that the image holds, as its label says it."""
        return baked_model(self.weights, self.model)

    @property
    def build_command(self) -> str:
        """What builds the image."""
        weights = "" if self.weights == BAKED else " --weights volume"
        return f"bringup build --flavour {self.flavour} --model {self.model}{weights}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types, for `plan.json`."""
        return dataclasses.asdict(self)


def is_loopback(address: str) -> bool:
    """Whether an address (or `localhost`) can be reached from this host only."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise UsageError(f"{address!r} is not an IP address", hint="give --bind an address of this host") from None


def image_name(flavour: str, model: str, weights: str | Path) -> str:
    """What an image is called that nobody named."""
    return f"bringup:{flavour}-{model}" if weights == BAKED else f"bringup:{flavour}"


def baked_model(weights: object, model: str) -> str:
    """What is to be baked into an image that gets its weights from there."""
    return model if weights == BAKED else NO_MODEL


def model_path(settings: Settings) -> str:
    """Where the container has the model's files; a directory is named as the container sees it."""
    if settings.weights == BAKED:
        return f"{MODELS_DIR}/{settings.model}"
    return f"{WEIGHTS_DIR}/{settings.model}" if settings.weights == VOLUME else str(settings.weights)


def server_argv(
    settings: Settings, flavour: str, tools: str = "", port: int = SERVER_PORT, host: str = EVERYWHERE
) -> tuple[str, ...]:
    """Arguments for vLLM's OpenAI server; the same function runs on the host (plan) and in the image (start).

    `tools`: the parser of the model's tool calls, empty where it makes none; `port`, `host`: where it listens.
    """
    argv = [
        "--model", model_path(settings),
        "--served-model-name", settings.served_model_name or settings.model,
        "--host", host,
        "--port", str(port),
    ]  # fmt: skip
    if settings.max_model_len is not None:
        argv += ["--max-model-len", str(settings.max_model_len)]
    if settings.gpu_memory_utilization is not None:
        argv += ["--gpu-memory-utilization", f"{settings.gpu_memory_utilization:g}"]
    if tools:  # without these, tool_choice "auto", which is every client's default, is refused
        argv += ["--enable-auto-tool-choice", "--tool-call-parser", tools]
    argv += profile.arguments(profile.chosen(settings.profile, flavour), flavour, settings.vllm_args)
    return (*argv, *settings.vllm_args)


def make_plan(
    settings: Settings, model: Model, flavour: tuple[str, str], sources: dict[str, str], *, cdi: bool = False
) -> Plan:
    """The plan of `up`: `flavour` is the name and the reason it was chosen; `cdi`: the GPU is reserved by CDI name.

    Raises:
        UsageError: the settings contradict each other.
    """
    name, reason = flavour
    if not is_loopback(settings.bind) and settings.api_key_file is None:
        raise UsageError(
            f"--bind {settings.bind} is not loopback and no API key is set: a public endpoint needs one",
            hint="give --api-key-file FILE, or publish on 127.0.0.1 and use an SSH tunnel; `bringup up` makes a key",
        )
    if settings.gpus and name != "gpu":
        raise UsageError(
            f"--gpus {settings.gpus} asks for GPUs, and the {name} flavour uses none ({reason})",
            hint="give --flavour gpu, or leave --gpus out",
        )
    inside, timeout, local = settings, settings.timeout, settings.target == LOCAL
    if isinstance(settings.weights, Path):
        settings = dataclasses.replace(settings, weights=settings.weights.absolute())
        inside = settings if local else dataclasses.replace(settings, weights=Path(WEIGHTS_DIR, model.name))
    elif settings.weights == VOLUME:  # the first start fetches before it serves
        timeout += settings.fetch_timeout
    host = "127.0.0.1" if settings.bind in (EVERYWHERE, "localhost") else settings.bind
    bind = "127.0.0.1" if settings.bind == "localhost" else settings.bind  # compose takes addresses only
    listens = (settings.port, bind) if local else (SERVER_PORT, EVERYWHERE)
    return Plan(
        project=settings.project,
        model=model.name,
        flavour=name,
        flavour_reason=reason,
        image="" if local else settings.image or image_name(name, model.name, settings.weights),
        weights=str(settings.weights),
        argv=server_argv(inside, name, model.tools, *listens),
        environment=server_environment(settings),
        compose_files=() if local else compose_files(name, settings.weights, cdi=cdi),
        base_url=f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}",
        bind=bind,
        port=settings.port,
        timeout=timeout,
        request_timeout=settings.request_timeout,
        expect=Expect(
            model=settings.served_model_name or model.name,
            vllm_version=VLLM_VERSION,
            canaries=model.canaries,
            weights_bytes=model.lock.size if model.lock else 0,
            container=True,
            gpu=name == "gpu",
            parameters=model.parameters,
            fingerprint=model.fingerprint,
        ),
        sources=sources,
        shape=model.shape,
        gpus=settings.gpus,
        target=settings.target,
    )


def require_fetchable(settings: Settings, model: Model) -> None:
    """With --weights volume, the container's first start can fetch the model.

    Raises:
        UsageError: it could not.
    """
    if settings.weights != VOLUME:
        return
    if model.lock and model.lock.source != "hub":
        raise UsageError(
            f"--weights volume: {model.name} is part of this repository and cannot be fetched from the Hub",
            hint="leave --weights baked, or serve a model of the Hub: `bringup models` lists them",
        )
    if model.gated and settings.hf_token and settings.hf_token_file is None:
        raise UsageError(
            f"--weights volume: {model.name} is gated, and the Hub token is in the environment only",
            hint="put it into a file that only you can read and give --hf-token-file FILE: the container is given the "
            "file, because everyone who may ask the engine can read a container's environment",
        )


def compose_files(flavour: str, weights: str | Path = BAKED, *, cdi: bool) -> tuple[str, ...]:
    """The compose files of a flavour and of where its weights are, base first."""
    files = ["compose.yaml"]
    if flavour == "cpu":
        files += ["compose.cpu.yaml"]
    elif cdi:
        files += [CDI_FILE]
    if weights != BAKED:
        files += ["compose.weights-volume.yaml" if weights == VOLUME else "compose.weights-dir.yaml"]
    return tuple(files)


def expect_remote(models: dict[str, Model], served: str | None) -> Expect:
    """What may be expected of a server somewhere else: its answers, and nothing behind them."""
    # By its name here, or by its repository's, which is what vLLM calls a model that was given no other name.
    known = models.get(served or "") or next((m for m in models.values() if m.source == served), None)
    return Expect(
        model=served,
        vllm_version=None,
        canaries=known.canaries if known else (),
        weights_bytes=0,
        container=False,
        gpu=False,
        parameters=known.parameters if known else None,
        fingerprint=known.fingerprint if known else None,
    )
