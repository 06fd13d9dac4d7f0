"""From the container's environment to vLLM's command line and environment, or a reason not to start.

Nothing here starts anything: `supervise` does, with the result.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bringup import catalog, profile
from bringup.errors import UsageError
from bringup.inside import events, gate, guard, marks, pod
from bringup.inside.parts import parts
from bringup.inside.supervise import drain_arguments
from bringup.inside.weights import (
    TOKENS,
    Baked,
    locked_model,
    model_name,
    place_of,
    provide,
    read_text,
    read_token,
    require_word,
)
from bringup.plan import EVERYWHERE, is_loopback, server_argv
from bringup.settings import Settings, from_environment

SERVER = "bringup.inside.serve"
INSECURE = "BRINGUP_INSECURE"  # of the image alone; `bringup up` always has a key on a public address
MAX_KEYS = 64 * 2**10  # bytes of the file
# A CPU server claims a share of the whole machine's memory unless it is told how much its KV cache may take.
CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Launch:
    """What the entry point starts. The API key is in `environment`, never in `argv`.

    `weights` sees to it that the weights are there as locked, and raises what `provide` raises; `beside` says that the
    server may be started meanwhile: it waits for the result before it reads any of them.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    weights: Callable[[], None] = field(default=lambda: None, repr=False)  # it holds the Hub token
    beside: bool = False


def prepare(environ: Mapping[str, str], extra: Sequence[str], baked: Baked, log: logging.Logger) -> Launch:
    """Check everything that can be checked before vLLM runs, but for the weights' content.

    Raises:
        UsageError: a setting cannot be used, or the endpoint would be public without a key.
    """
    settings, flavour = _settings(environ, baked)
    ports = pod.ports(environ)
    settings = dataclasses.replace(settings, vllm_args=(*settings.vllm_args, *extra))
    known = catalog.load().get(settings.model)
    argv = server_argv(settings, flavour, known.tools if known else "", ports.server)
    refuse_key_in_argv(argv)
    cors = "--allowed-origins" in _flags(argv)
    argv = (*argv, *drain_arguments(argv), *gate_arguments(cors=cors))
    keys = read_keys(settings.api_key_file, environ.get("VLLM_API_KEY", ""))
    if not keys and not is_loopback(settings.bind):
        refuse_public(settings.bind, environ, log)
    model = locked_model(settings, baked)
    token = read_token(settings.hf_token_file, environ)
    chosen = profile.chosen(settings.profile, flavour)
    environment = {**profile.environment(chosen, flavour), **_environment(environ, flavour, argv, keys)}
    if cors:
        environment[gate.PREFLIGHT] = "1"
    if ports.health:
        environment[gate.ASKER] = secrets.token_hex(16)
    elif ports.path:
        environment[gate.HEALTH_PATH] = ports.path
    log.info("model %s, flavour %s, profile %s, published on %s, API key: %s", settings.model, flavour, chosen,
             settings.bind, f"needed ({len(keys)} set)" if keys else "none")  # fmt: skip
    log.info("vLLM variables: %s", _shown(environment))
    finding = guard.judge(environ.get(guard.VARIABLE), *guard.look())
    if finding.unset:
        environment.pop(guard.VARIABLE, None)
    log.info("hf_transfer: %s", finding.reason)
    return Launch(
        (sys.executable, "-m", SERVER, *argv), environment,
        weights=partial(provide, model, settings, baked, token, log),
        # A volume that is to be filled first may take an hour: no server waits for that with the GPU in its hand.
        beside="gate" in parts(environ) and place_of(model, settings, baked).is_dir(),
    )  # fmt: skip


def _settings(environ: Mapping[str, str], baked: Baked) -> tuple[Settings, str]:
    flavour = environ.get("BRINGUP_FLAVOUR", "")
    if flavour not in ("cpu", "gpu"):
        raise UsageError(
            f"BRINGUP_FLAVOUR is {flavour!r}, needed is cpu or gpu", hint="do not set it: the image brings it"
        )
    given = dict(environ)
    # Nobody in here sees where the port is published, and `docker run -p 8000:8000` publishes it everywhere.
    given["BRINGUP_BIND"] = given.get("BRINGUP_BIND") or EVERYWHERE
    # Compose removes the image's own value of a variable that it passes through and that is not set outside.
    given["BRINGUP_MODEL"] = model_name(given, baked)
    return from_environment(given), flavour


def refuse_key_in_argv(argv: Sequence[str]) -> None:
    """An API key on the command line would stand in `ps`, `docker inspect` and vLLM's log.

    Raises:
        UsageError: `--api-key` is among the arguments.
    """
    if "--api-key" in _flags(argv):
        raise UsageError(
            "--api-key is among the vLLM arguments, where everyone can read it",
            hint="put the key into a file and set BRINGUP_API_KEY_FILE",
        )


def refuse_public(bind: str, environ: Mapping[str, str], log: logging.Logger) -> None:
    """No key, and everybody could reach the port.

    Raises:
        UsageError: unless BRINGUP_INSECURE=1 says that this is meant.
    """
    if environ.get(INSECURE) == "1":
        log.warning("%s=1: there is no API key, everyone who reaches this port may use the server", INSECURE)
        return
    raise UsageError(
        f"the port is published on {bind} as far as BRINGUP_BIND tells (unset means {EVERYWHERE}), "
        "which is not loopback, and no API key is set",
        hint="set BRINGUP_API_KEY_FILE to a file with a key, or publish on loopback and say so: "
        f"docker run -p 127.0.0.1:8000:8000 -e BRINGUP_BIND=127.0.0.1; {INSECURE}=1 starts without a key all the same",
    )


def _flags(argv: Sequence[str]) -> set[str]:
    """The options among vLLM's arguments, in vLLM's own spelling."""
    return {a.partition("=")[0].replace("_", "-") for a in argv}


def gate_arguments(*, cors: bool) -> tuple[str, ...]:
    """vLLM's arguments that put the gate in front of it: after the user's, for the last middleware is the outermost.

    `cors`: the user's own arguments say which web pages may use the server; else none may, where vLLM lets all.
    """
    return (*(() if cors else ("--allowed-origins", "[]")), "--middleware", gate.MIDDLEWARE)


def read_keys(file: Path | None, variable: str) -> tuple[str, ...]:
    """The API keys, of the file before the variable, one a line; none when there is none (compose's is /dev/null).

    Raises:
        UsageError: the file cannot be read, or a line of it cannot be sent in an HTTP header.
    """
    text = (read_text(file, "API key", MAX_KEYS) if file else "") or variable
    lines = [word for line in text.splitlines() if (word := line.strip())]
    hint = "one a line; make one: openssl rand -hex 32 > FILE"
    return tuple(require_word(word, "API key", hint) for word in lines)


def _environment(
    environ: Mapping[str, str], flavour: str, argv: Sequence[str], keys: tuple[str, ...]
) -> dict[str, str]:
    environment = dict(environ)
    for name in ("VLLM_API_KEY", pod.API_KEY, *gate.OURS, *TOKENS):
        environment.pop(name, None)
    if keys:
        environment["VLLM_API_KEY"] = keys[0]
    if keys[1:]:
        environment[gate.MORE_KEYS] = " ".join(keys[1:])
    # A uid without an entry in /etc/passwd has no name, and torch asks for one.
    environment.setdefault("USER", "bringup")
    if flavour == "cpu" and "--kv-cache-memory-bytes" not in _flags(argv):  # the variable would beat the argument
        environment = {**CPU_DEFAULTS, **environment}
    return environment


def _shown(environment: Mapping[str, str]) -> str:
    """The VLLM_* variables, for people; of a secret only that it is set."""
    names = sorted(n for n in environment if n.startswith("VLLM_"))
    shown = (f"{n}={'(set)' if any(w in n for w in _SECRET_WORDS) else environment[n]}" for n in names)
    return " ".join(shown) or "none"


def configure_logging(launch: Launch, log_file: Path, log: logging.Logger) -> Launch:
    """Point vLLM's loggers at server.jsonl as well, unless the user brought a logging set-up."""
    own = [n for n in ("VLLM_LOGGING_CONFIG_PATH",) if launch.environment.get(n)]
    own += ["VLLM_CONFIGURE_LOGGING=0"] if launch.environment.get("VLLM_CONFIGURE_LOGGING") == "0" else []
    own += [a for a in launch.argv if a.startswith(("--log-config-file", "--logging-config"))]
    if own:
        log.warning("%s is yours: vLLM's records do not go to %s", own[0], log_file)
        return launch
    config = log_file.with_name("logging.json")
    config.write_text(json.dumps(events.logging_config(log_file, launch.environment), indent=1), "utf-8")
    log.info("log records: %s", log_file)
    ours = {"VLLM_LOGGING_CONFIG_PATH": str(config), marks.VARIABLE: str(log_file)}
    return dataclasses.replace(launch, environment={**launch.environment, **ours})
