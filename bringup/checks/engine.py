"""Checks of the Docker Engine, its plugins and the plan's image. Pure."""

from __future__ import annotations

import re

from bringup.checks.facts import HostFacts
from bringup.edge.docker import remedy
from bringup.plan import Plan
from bringup.records import CheckRecord, Status

MIN_ENGINE = (27,)  # the oldest whose compose files, CDI devices and BuildKit this project is tested for
MIN_COMPOSE = (2,)  # v1 (docker-compose) knows neither the GPU reservation nor our health conditions
ARCHITECTURES = {"amd64": "amd64", "x86_64": "amd64", "arm64": "arm64", "aarch64": "arm64"}
ARCHITECTURE = "amd64"  # both locks pin wheels of this one

LABEL_FLAVOUR = "dev.bringup.flavour"
LABEL_MODEL = "dev.bringup.model"
LABEL_VLLM = "dev.bringup.vllm"

_INSTALL = "run `./scripts/engine up`, or install Docker Engine 27 or newer with its compose and buildx plugins"


def version(text: str | None) -> tuple[int, ...] | None:
    """The leading numbers of a version text: 28.5.2+dfsg4 and v28.5.2 are (28, 5, 2); None when there is none."""
    match = re.search(r"(?<![\w.])v?(\d+(?:\.\d+)*)", text or "")
    return tuple(int(part) for part in match[1].split(".")) if match else None


def dotted(numbers: tuple[int, ...]) -> str:
    """A version as text."""
    return ".".join(str(n) for n in numbers)


def engine(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001 - every check has these two arguments
    """The engine answers and is new enough."""
    needed = f"Docker Engine >= {dotted(MIN_ENGINE)} that answers"
    if not facts.engine.reachable:
        found = facts.engine.error or "the Docker Engine does not answer"
        return CheckRecord(name="engine", status=Status.FAIL, found=found, needed=needed, remedy=remedy(found))
    numbers = version(facts.engine.version)
    if numbers is None:
        found = f"an engine that gives its version as {facts.engine.version!r}"
        return CheckRecord(
            name="engine", status=Status.UNKNOWN, found=found, needed=needed, remedy="look at `docker version`"
        )
    if numbers < MIN_ENGINE:
        found = f"Docker Engine {facts.engine.version}"
        return CheckRecord(name="engine", status=Status.FAIL, found=found, needed=needed, remedy=_INSTALL)
    return CheckRecord(name="engine", status=Status.PASS, found=f"Docker Engine {facts.engine.version}", needed=needed)


def compose(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001
    """The compose plugin is there and is v2 or newer."""
    needed = f"docker compose >= {dotted(MIN_COMPOSE)}"
    found = facts.engine.compose
    if not found and not facts.engine.reachable:
        return _not_asked("compose", needed)
    if not found:
        return CheckRecord(
            name="compose", status=Status.FAIL, found="no compose plugin", needed=needed, remedy=_INSTALL
        )
    numbers = version(found)
    if numbers is None:
        status, remedy = Status.UNKNOWN, "look at `docker compose version`"
    elif numbers < MIN_COMPOSE:
        status, remedy = Status.FAIL, _INSTALL
    else:
        status, remedy = Status.PASS, ""
    return CheckRecord(name="compose", status=status, found=f"docker compose {found}", needed=needed, remedy=remedy)


def buildx(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001
    """The buildx plugin is there, if the image must be built."""
    needed = "docker buildx, to build the image"
    if facts.engine.buildx:
        words = facts.engine.buildx.split()  # "github.com/docker/buildx v0.29.1 COMMIT"
        found = " ".join([words[0].rpartition("/")[2], *words[1:2]])
        return CheckRecord(name="buildx", status=Status.PASS, found=found, needed=needed)
    if not facts.engine.reachable:
        return _not_asked("buildx", needed)
    if facts.image.present:
        return CheckRecord(
            name="buildx",
            status=Status.WARN,
            found="no buildx plugin; the image is there already",
            needed=needed,
            remedy=_INSTALL + " before the next build",
        )
    return CheckRecord(name="buildx", status=Status.FAIL, found="no buildx plugin", needed=needed, remedy=_INSTALL)


def architecture(facts: HostFacts, plan: Plan) -> CheckRecord:  # noqa: ARG001
    """The engine runs containers of the one architecture that the locks pin."""
    raw = facts.engine.architecture
    if not raw:
        return _not_asked("architecture", ARCHITECTURE)
    found = ARCHITECTURES.get(raw, raw)
    if found == ARCHITECTURE:
        return CheckRecord(name="architecture", status=Status.PASS, found=found, needed=ARCHITECTURE)
    return CheckRecord(
        name="architecture",
        status=Status.FAIL,
        found=found,
        needed=ARCHITECTURE,
        remedy="use a host with an x86-64 CPU, or point DOCKER_HOST at an engine on one",
    )


def image(facts: HostFacts, plan: Plan) -> CheckRecord:
    """The plan's image, if it is there, is what the plan says it is."""
    labels = {LABEL_FLAVOUR: plan.flavour, LABEL_MODEL: plan.baked_model}
    if plan.expect.vllm_version is not None:
        labels[LABEL_VLLM] = plan.expect.vllm_version
    needed = f"{plan.image}: {ARCHITECTURE}, {plan.flavour}, {plan.baked_model}" + (
        f", vLLM {plan.expect.vllm_version}" if plan.expect.vllm_version else ""
    )
    if facts.image.present is None:
        return _not_asked("image", needed)
    if not facts.image.present:
        return CheckRecord(
            name="image",
            status=Status.WARN,
            found=f"{plan.image} is not there: it will be built",
            needed=needed,
            remedy=f"`{plan.build_command}` builds it beforehand",
        )
    wanted = {"architecture": ARCHITECTURE, **labels}
    seen = {"architecture": facts.image.architecture, **{name: facts.image.labels.get(name) for name in labels}}
    wrong = [f"{k} is {v}, not {wanted[k]}" for k, v in seen.items() if v and v != wanted[k]]
    missing = [k for k, v in seen.items() if not v]
    rebuild = f"`{plan.build_command}` replaces it"
    if wrong:
        status, found, remedy = Status.FAIL, ", ".join(wrong), rebuild
    elif missing:
        status, found = Status.UNKNOWN, f"{plan.image} does not say its {', '.join(missing)}"
        remedy = f"it was not built by bringup: {rebuild}, or name another image"
    else:
        size = f", {facts.image.size / 10**9:.2f} GB" if facts.image.size else ""
        status, found, remedy = Status.PASS, f"{plan.image} ({facts.image.id[7:19]}{size})", ""
    return CheckRecord(name="image", status=status, found=found, needed=needed, remedy=remedy)


def _not_asked(name: str, needed: str) -> CheckRecord:
    return CheckRecord(
        name=name,
        status=Status.UNKNOWN,
        found="the Docker Engine did not say",
        needed=needed,
        remedy="make the check `engine` pass first",
    )
