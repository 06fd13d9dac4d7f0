"""What is sent to RunPod: pure functions from the plan and the wishes to the bodies of its API, version 2."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bringup.checks.gpu import CUDA
from bringup.errors import UsageError
from bringup.fit import UTILIZATION, Asked, fit
from bringup.inside import pod as inside
from bringup.inside import session
from bringup.plan import SERVER_PORT, WEIGHTS_DIR, Plan
from bringup.settings import VOLUME

GB = 10**9
CUDA_TEMPLATE = ("13.0", "13.1", "13.2")  # a template knows exact versions only
KEY = "VLLM_API_KEY"
KEY_SECRET = "{{ RUNPOD_SECRET_bringup_api_key }}"  # RunPod puts the account's secret of that name in its place
HTTP_PORT, SSH_PORT = f"{SERVER_PORT}/http", "22/tcp"
EXPIRES = "BRINGUP_POD_EXPIRES"  # marks a pod as ours, and says until when; it travels with the pod
NEVER = "never"
PREFIX = "bringup-"
# Enough for the catalogue's default, small ones first; CUDA 13 knows all of them. Ids of RunPod's table of GPU types.
GPU_TYPES = ("NVIDIA L4", "NVIDIA RTX A5000", "NVIDIA GeForce RTX 4090", "NVIDIA L40S", "NVIDIA A40")
# What they are called where workers are placed: pools, in RunPod's table of them.
POOLS = ("AMPERE_24", "ADA_24", "ADA_48_PRO", "AMPERE_48")
HEALTH_PORT = 8001  # the image answers there while the server loads: 204, then 200, or 503
WORKERS = {"min": 0, "max": 3, "idleTimeout": 60}  # seconds; a start takes longer than RunPod's 10
REQUESTS = 32  # at once in one worker, before RunPod wants another: vLLM answers so many together
IMAGE_BYTES = 8 * GB  # of the gpu flavour without weights, unpacked: docs/image.md
WRITABLE = 10  # GB beside it: compile caches, logs, what the container writes
LEAST_VOLUME = 10  # GB; RunPod's own floor
# These name files of this host, which no pod has.
_HOST_ONLY = ("BRINGUP_API_KEY_FILE", "BRINGUP_HF_TOKEN_FILE")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of RunPod beside the plan.

    `price`: USD an hour for the whole pod, None is no cap. `expires`: epoch seconds, None is never. `image_bytes`:
    the image's size, unpacked. `template`: id of one that is the base; `registry`: id of a registry credential.
    `public_key`: whom the pod's sshd lets in, as one line; None is no SSH.
    """

    name: str
    gpu_types: tuple[str, ...] = GPU_TYPES
    count: int = 1
    cloud: str = "SECURE"
    price: float | None = None
    expires: float | None = None
    image_bytes: int = IMAGE_BYTES
    data_centers: tuple[str, ...] = ()
    template: str | None = None
    registry: str | None = None
    public_key: str | None = None


def disk(plan: Plan, image_bytes: int) -> int:
    """GB of the container's disk. RunPod does not say whether the image counts against it, so that it is included,
    and the weights where they are part of it."""
    baked = 0 if plan.weights == VOLUME else plan.expect.weights_bytes
    return math.ceil((image_bytes + baked) / GB) + WRITABLE


def volume(plan: Plan) -> int | None:
    """GB of the disk that the weights are fetched to, with a fifth and 2 GB to spare; None: they are in the image."""
    if plan.weights != VOLUME:
        return None
    return max(LEAST_VOLUME, math.ceil(1.2 * plan.expect.weights_bytes / GB) + 2)


def pod(plan: Plan, wish: Wish, gpu_type: str, key: str) -> dict[str, Any]:
    """The body of POST /v2/pods for one GPU type; `key`: what the server demands of its clients.

    Raises:
        UsageError: a pod cannot have what the plan wants.
    """
    # Both, because RunPod may put the account's keys into one of them.
    way_in = dict.fromkeys(session.PUBLIC_KEYS, wish.public_key) if wish.public_key else {}
    body = {
        "name": wish.name,
        **_container(plan, wish),
        "ports": [HTTP_PORT, SSH_PORT] if way_in else [HTTP_PORT],
        "env": environment(plan) | {KEY: key, EXPIRES: moment(wish.expires)} | way_in,
        "cloud": wish.cloud,
        "gpu": {"id": gpu_type, "count": wish.count, "minCudaVersion": CUDA},
        "startSsh": False,
        "startJupyter": False,
    }
    if wish.data_centers:
        body["dataCenterIds"] = list(wish.data_centers)
    if wish.template:
        body["templateId"] = wish.template
        del body["image"]
    return body


def template(plan: Plan, wish: Wish) -> dict[str, Any]:
    """The body of POST and PATCH /v2/templates. Its key is a secret of the account, so that it holds none itself."""
    return {
        "name": wish.name,
        **_container(plan, wish),
        "ports": [HTTP_PORT, SSH_PORT],
        "env": environment(plan) | {KEY: KEY_SECRET},
        "category": "NVIDIA",
        "allowedCudaVersions": list(CUDA_TEMPLATE),
        "public": False,
        "serverless": False,
        "startSsh": False,
        "startJupyter": False,
    }


def endpoint(plan: Plan, wish: Wish, pools: Sequence[str] = POOLS) -> dict[str, Any]:
    """The body of POST /v2/serverless for a load-balancing endpoint, whose requests go straight to a worker.

    Its key is the account's secret, too: RunPod asks callers for a key of its own in the same header.

    Raises:
        UsageError: a worker cannot have what the plan wants.
    """
    if plan.weights == VOLUME:
        raise UsageError("a worker has no volume of its own to fetch weights to", hint="give --weights baked")
    health = {inside.PORT: str(SERVER_PORT), inside.PORT_HEALTH: str(HEALTH_PORT), inside.HEALTH_PATH: inside.PING}
    return {
        "name": wish.name,
        "type": "LOAD_BALANCER",
        **_container(plan, wish),
        "ports": [HTTP_PORT, f"{HEALTH_PORT}/http"],
        "env": environment(plan) | {KEY: KEY_SECRET} | health,
        "gpu": {"pools": list(pools), "count": wish.count, "minCudaVersion": CUDA},
        "workers": dict(WORKERS),
        "scaling": {"type": "REQUEST_COUNT", "requestCount": REQUESTS},
    }


def _container(plan: Plan, wish: Wish) -> dict[str, Any]:
    _require(plan)
    made: dict[str, Any] = {
        "image": plan.image,
        "disk": disk(plan, wish.image_bytes),
    }
    if size := volume(plan):
        made["mounts"] = {"persistent": {"size": size, "path": WEIGHTS_DIR}}
    if wish.registry:
        made["registry"] = wish.registry
    return made


def _require(plan: Plan) -> None:
    if plan.weights not in ("baked", VOLUME):
        raise UsageError("a pod cannot see a directory of this host", hint="give --weights baked or volume")
    if plan.flavour != "gpu":
        raise UsageError("pods are started with a GPU only", hint="give --flavour gpu, or leave it out")
    if "BRINGUP_HF_TOKEN_FILE" in plan.environment:
        raise UsageError(
            "a pod cannot read --hf-token-file, and the token is not put into its environment",
            hint="bake the weights into the image: `bringup build`",
        )


def environment(plan: Plan) -> dict[str, str]:
    """The server's settings as the pod's variables; no secret is among them."""
    return {name: value for name, value in plan.environment.items() if name not in _HOST_ONLY}


def moment(epoch: float | None) -> str:
    """A death date as the pod carries it."""
    return NEVER if epoch is None else datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")


def expiry(found: Mapping[str, Any]) -> float | None:
    """The death date that a pod carries, epoch seconds; infinity for never, None for a pod that is not ours."""
    env = found.get("env")
    text = env.get(EXPIRES) if isinstance(env, dict) else None
    if not str(found.get("name", "")).startswith(PREFIX) or not isinstance(text, str):
        return None
    if text == NEVER:
        return math.inf
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


@dataclass(frozen=True)
class Choice:
    """A GPU type that may be asked for, with the list price of the whole pod; None: RunPod names none."""

    gpu_type: str
    price: float | None


def choices(plan: Plan, wish: Wish, listed: Mapping[str, Mapping[str, Any]]) -> tuple[list[Choice], list[str]]:
    """The wished GPU types that RunPod has, that the model fits on and that the cap allows, in the wished order, and
    why each other one is left out."""
    good, out = [], []
    for name in wish.gpu_types:
        entry = listed.get(name)
        if entry is None:
            out.append(f"{name}: not in RunPod's list")
            continue
        why, price = _small(plan, entry), _price(entry, wish)
        if entry.get(wish.cloud.lower()) is False:
            why = f"not on the {wish.cloud} cloud"
        elif wish.price is not None and price is None:
            why = "its price is not known, and there is a cap"
        elif wish.price is not None and price is not None and price > wish.price:
            why = f"{price:.2f} USD an hour, the cap is {wish.price:.2f}"
        if why:
            out.append(f"{name}: {why}")
        else:
            good.append(Choice(name, price))
    return good, out


def _price(entry: Mapping[str, Any], wish: Wish) -> float | None:
    prices = entry.get("price")
    one = prices.get(wish.cloud.lower()) if isinstance(prices, dict) else None
    return float(one) * wish.count if isinstance(one, int | float) and one > 0 else None


def _small(plan: Plan, entry: Mapping[str, Any]) -> str:
    """Why the model does not fit on one card of that type; empty where it does, or where nobody can tell."""
    memory = entry.get("memory")
    if plan.shape is None or not isinstance(memory, int) or "--tensor-parallel-size" in plan.argv:
        return ""
    wanted = dict(zip(plan.argv, plan.argv[1:], strict=False))
    length = wanted.get("--max-model-len")
    try:
        asked = Asked(
            vram=memory * GB,
            utilization=float(wanted.get("--gpu-memory-utilization", UTILIZATION)),
            max_model_len=int(length) if length else None,
        )
    except ValueError:  # vLLM takes words there, too
        return ""
    found = fit(plan.shape, plan.expect.weights_bytes, asked)
    return "" if found.fits else f"{plan.model} does not fit on {memory} GB"


def public(found: Mapping[str, Any]) -> dict[str, Any]:
    """A pod as it may be kept: no variables, which hold the key, and no way in by SSH."""
    return {k: v for k, v in found.items() if k not in ("env", "ssh", "args")}


def for_pods(plan: Plan) -> Plan:
    """The plan of a server that is published to everyone."""
    return dataclasses.replace(plan, environment=plan.environment | {"BRINGUP_BIND": "0.0.0.0"})  # noqa: S104


def created(found: Mapping[str, Any]) -> float | None:
    """When a pod was created, epoch seconds."""
    try:
        return datetime.fromisoformat(str(found.get("createdAt"))).timestamp()
    except ValueError:
        return None
