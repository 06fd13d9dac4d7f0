"""Asks the image's torch for its GPU, in a container that is gone afterwards."""

from __future__ import annotations

import json
from typing import Any

from bringup import gpus
from bringup.checks.facts import HostFacts, TorchFacts, needs_cdi
from bringup.edge.docker import Engine
from bringup.errors import BringupError, NeverReady
from bringup.plan import Plan

PYTHON = "/opt/venv/bin/python"
# `cuda.init` says why there is no GPU; the sum proves that there is code for its architecture.
PROGRAM = """
import json
said = {"available": False, "computes": False}
try:
    import torch
    said.update(torch=torch.__version__, cuda=torch.version.cuda, available=torch.cuda.is_available())
    torch.cuda.init()
    said["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    said["computes"] = torch.ones(3, device="cuda").sum().item() == 3.0
except Exception as e:
    said["error"] = (str(e) or type(e).__name__).splitlines()[0]
print(json.dumps(said))
"""


def ask(engine: Engine, plan: Plan, facts: HostFacts) -> TorchFacts:
    """What torch in the plan's image says of the reserved GPUs; that it could not be asked is an answer too."""
    if not facts.engine.reachable:
        return TorchFacts(started=None, error="the Docker Engine does not answer")
    if not facts.image.present:
        return TorchFacts(started=None, error=f"{plan.image} is not there")
    request = gpus.request(plan.gpus, cdi=needs_cdi(facts.engine))
    try:
        code, out = engine.once(plan.image, [PYTHON, "-c", PROGRAM], request)
    except NeverReady as e:
        return TorchFacts(started=False, error=e.message)
    except BringupError as e:
        return TorchFacts(started=None, error=e.message)
    return heard(code, out)


def heard(code: int, out: str) -> TorchFacts:
    """The program's answer. Pure."""
    try:
        said: dict[str, Any] = json.loads(out.splitlines()[-1])
        return TorchFacts(
            started=True, error=str(said.get("error", "")), available=bool(said["available"]),
            computes=bool(said["computes"]), torch=said.get("torch"), cuda=said.get("cuda"),
            devices=tuple(said.get("devices", ())),
        )  # fmt: skip
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return TorchFacts(started=True, error=f"exit code {code}, and no answer")
