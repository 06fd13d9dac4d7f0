"""Every setting of bringup, declared once.

The command line, the `BRINGUP_*` variables, `bringup.toml`, the image's entry point and the README's table are all
derived from the fields of `Settings`; nothing else reads a setting from the environment.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bringup.errors import UsageError

PREFIX = "BRINGUP_"
BAKED, VOLUME = "baked", "volume"
COMPOSE, LOCAL = "compose", "local"  # targets
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known about one setting beside its default and type.

    `server` settings travel into the container as `BRINGUP_*` variables; `env` lists further variables that are
    read when the `BRINGUP_*` one is unset; a `hidden` setting has no flag (secrets never stand in argv).
    """

    help: str
    parse: Callable[[str], Any]
    metavar: str
    server: bool
    env: tuple[str, ...]
    hidden: bool


def _option(
    default: Any,
    help: str,  # noqa: A002 - click's own word
    parse: Callable[[str], Any] = str,
    metavar: str = "TEXT",
    *,
    server: bool = False,
    env: tuple[str, ...] = (),
    hidden: bool = False,
) -> Any:
    meta = Option(help=help, parse=parse, metavar=metavar, server=server, env=env, hidden=hidden)
    return dataclasses.field(default=default, metadata={"option": meta}, repr=not hidden)


def boolean(text: str) -> bool:
    """1/true/yes/on or 0/false/no/off, in any case."""
    value = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return value[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is not one of 1, 0, true, false, yes, no, on, off") from None


def seconds(text: str) -> float:
    """A duration: `90`, `90s`, `15m`, `1h30m`; the result is in seconds."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration like 90, 90s, 15m or 1h30m")
    hours, minutes, rest = (float(g or 0) for g in match.groups())
    return hours * 3600 + minutes * 60 + rest


def deadline(text: str) -> float:
    """A duration that leaves time for something to happen."""
    value = seconds(text)
    if value <= 0:
        raise ValueError(f"{text} leaves no time")
    return value


def web_address(text: str) -> str:
    """An http or https address without credentials; the result has no slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is not an address like https://huggingface.co")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with credentials in it would be written into logs and images")
    return text.rstrip("/")


def project_name(text: str) -> str:
    """A name that compose takes for a project."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", text):
        raise ValueError(f"{text!r} is not lower-case letters, digits, - and _, beginning with a letter or digit")
    return text


def weights_place(text: str) -> str | Path:
    """`baked`, `volume`, or a directory."""
    return text if text in (BAKED, VOLUME) else Path(text)


def gpu_request(text: str) -> str:
    """`all`, a number of GPUs, or `device=` with indices, UUIDs or MIG devices; CDI's prefix may stand before an id.

    Quotes around it, which Docker needs where there is a comma, are dropped.
    """
    value = text.strip().strip('"')
    if value == "all" or re.fullmatch(r"[1-9][0-9]{0,2}", value):
        return value
    kind, _, names = value.partition("=")
    ids = [name.strip().removeprefix("nvidia.com/gpu=") for name in names.split(",")]
    known = r"(0|[1-9][0-9]{0,2})(:[0-9]{1,2})?|(GPU|MIG)-[0-9A-Za-z/-]+"  # 1:0 is a MIG device by its place
    if kind != "device" or not all(re.fullmatch(known, name) for name in ids):
        raise ValueError(f"{text!r} is not all, a number of GPUs, or device= with indices or UUIDs, like device=0,2")
    if len(set(ids)) < len(ids):
        raise ValueError(f"{text!r} names a GPU twice")
    return "device=" + ",".join(ids)


def one_of(*names: str) -> Callable[[str], str]:
    """A parser that takes one of some words."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return parse


def between(low: float, high: float, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of numbers in a closed range."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise ValueError(f"{text} is not between {low:g} and {high:g}")
        return value

    return parse


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings, frozen; the defaults are the ones that the documentation shows."""

    model: str = _option(
        AUTO, "Catalogue name of the model to serve; auto: what the project serves, else the flavour's default, "
        "else (no hub) tiny-qwen2.", metavar="NAME", server=True,
    )  # fmt: skip
    served_model_name: str | None = _option(
        None, "Name that the API answers to; the model's own by default.", metavar="NAME", server=True
    )
    max_model_len: int | None = _option(
        None, "Longest context in tokens, prompt and answer.", between(1, 10**7, int), "TOKENS", server=True
    )
    gpu_memory_utilization: float | None = _option(
        None, "Share of GPU memory that vLLM may claim.", between(0.01, 1, float), "SHARE", server=True
    )
    profile: str = _option(
        AUTO, "What a start may cost later: `default` keeps vLLM's graphs; `fast` captures fewer CUDA graphs; `eager` "
        "neither compiles nor captures, and decodes slower. auto: default on a GPU, eager on a CPU.",
        one_of(AUTO, "fast", "default", "eager"), "NAME", server=True,
    )  # fmt: skip
    vllm_args: tuple[str, ...] = _option(
        (), "More arguments for vLLM, as a shell would split them; on the command line after `--`.",
        lambda text: tuple(shlex.split(text)), "ARGS", server=True,
    )  # fmt: skip
    weights: str | Path = _option(
        BAKED, "Where the weights are: `baked` into the image, on a `volume` that the first start fills from the Hub, "
        "or in a directory of this host.", weights_place, "WHERE", server=True,
    )  # fmt: skip
    bind: str = _option(
        "127.0.0.1", "Host address the port is published on; anything but loopback needs an API key, which `up` makes "
        "if there is none.",
        metavar="ADDRESS", server=True,
    )  # fmt: skip
    api_key_file: Path | None = _option(
        None,
        "File with the API keys that the server takes, one a line; the probes send the first.",
        Path,
        "FILE",
        server=True,
    )
    max_body: int = _option(
        64, "Largest body of a request to the server, in MiB.", between(1, 4096, int), "MIB", server=True
    )
    api_key: str | None = _option(None, "The API key itself, for `verify URL`.", hidden=True)
    port: int = _option(8000, "Host port.", between(1, 65535, int), "PORT")
    target: str = _option(
        COMPOSE, "Where the server runs: `compose`, a container of a Docker Engine; `local`, a process of this "
        "machine, in a pod or on a bare box.", one_of(COMPOSE, LOCAL), "TARGET",
    )  # fmt: skip
    flavour: str = _option(
        "auto", "Image flavour: gpu, cpu, or auto by what the host has.", one_of("auto", "gpu", "cpu"), "FLAVOUR"
    )
    gpus: str | None = _option(
        None, "GPUs that the server is given, in Docker's words: `all`, a number, or `device=0,2` with indices or "
        "UUIDs; the first one by default.", gpu_request, "GPUS",
    )  # fmt: skip
    image: str | None = _option(None, "Image to start instead of bringup:FLAVOUR-MODEL.", metavar="IMAGE")
    project: str = _option("bringup", "Compose project: names the containers and volumes.", project_name, "NAME")
    timeout: float = _option(900.0, "Deadline from start to the first token.", deadline, "DURATION")
    request_timeout: float = _option(60.0, "Deadline of one probe.", deadline, "DURATION")
    suite: str = _option(
        "standard", "Probes to ask: `smoke` whether it answers rightly; `standard` all that is quick; `full` load too.",
        one_of("smoke", "standard", "full"), "SUITE",
    )  # fmt: skip
    artifacts: Path = _option(Path("artifacts"), "Directory that bundles are written to.", Path, "DIR")
    sign_key: Path | None = _option(
        None, "SSH key that signs the bundle; one with a passphrase must be in ssh-agent.", Path, "FILE"
    )
    keep: bool = _option(False, "Leave a server that failed running, to look into it.", boolean, "BOOL")
    base: str | None = _option(None, "Base image to build on instead of the locked one.", metavar="IMAGE")
    find_links: Path | None = _option(
        None, "Directory of wheels to prefer at build (torch for the CPU flavour).", Path, "DIR",
        env=("UV_FIND_LINKS", "PIP_FIND_LINKS"),
    )  # fmt: skip
    ca_file: Path | None = _option(
        None, "CA bundle that the build trusts; never left in the image.", Path, "FILE", env=("SSL_CERT_FILE",)
    )
    hf_endpoint: str = _option(
        "https://huggingface.co", "The model hub, or a mirror of it; a token is sent there.", web_address, "URL",
        server=True, env=("HF_ENDPOINT",),
    )  # fmt: skip
    hf_token_file: Path | None = _option(None, "File with a Hub token, for gated weights.", Path, "FILE", server=True)
    hf_token: str | None = _option(None, "The Hub token itself.", hidden=True, env=("HF_TOKEN",))
    transfer: str = _option(
        "hf_transfer", "What carries large files: hf_transfer or nothing, plain http, or auto: http where hf_transfer "
        "fails.", one_of("hf_transfer", "http", "auto"), "HOW", server=True,
    )  # fmt: skip
    stall_timeout: float = _option(
        60.0, "A transfer is tried again when nothing came for so long.", deadline, "DURATION", server=True
    )
    fetch_timeout: float = _option(7200.0, "Deadline of fetching one model's files.", deadline, "DURATION", server=True)


def fields() -> dict[str, tuple[dataclasses.Field[Any], Option]]:
    """The settings by name, in the order of their declaration."""
    return {f.name: (f, f.metadata["option"]) for f in dataclasses.fields(Settings)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def render(value: Any) -> str:
    """A setting's value as its variable would hold it; `Option.parse` reads it back."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return shlex.join(value)
    return str(value)


def server_environment(settings: Settings) -> dict[str, str]:
    """The `BRINGUP_*` variables that carry the server's settings; unset ones are left out."""
    values = {name: getattr(settings, name) for name, (_, option) in fields().items() if option.server}
    return {variable(name): render(v) for name, v in values.items() if v not in (None, ())}


def from_environment(environ: Mapping[str, str]) -> Settings:
    """The server's settings as the container's environment gives them; empty variables count as unset.

    Raises:
        UsageError: a variable cannot be used; it is named, with what was found.
    """
    given: dict[str, Any] = {}
    for name, (_, option) in fields().items():
        text = environ.get(variable(name), "")
        if option.server and text:
            try:
                given[name] = option.parse(text)
            except ValueError as e:
                raise UsageError(f"{variable(name)}: {e}", hint="correct or unset the variable") from e
    return Settings(**given)
