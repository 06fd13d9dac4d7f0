"""What is sent to RunPod: held against its schema and against golden files, and what no pod can have."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bringup import catalog
from bringup.errors import UsageError
from bringup.plan import Plan, make_plan
from bringup.runpod import bodies
from bringup.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "runpod"
SCHEMA = json.loads((DATA / "schema.json").read_text("utf-8"))
KEY = "the-endpoints-key"
DIES = 1_800_000_000.0
WISH = bodies.Wish(name="bringup-0101-000000-cafe", expires=DIES)
IMAGE = "registry.example/bringup:gpu"
OWNERS = "ghcr.io/OWNER/bringup:gpu-qwen2.5-1.5b-instruct"
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBvn+0000000000000000000000000000000000000000000 bringup-a"
MODELS = catalog.load()


def plan(model: str = "qwen2.5-1.5b-instruct", **given: Any) -> Plan:
    settings = Settings(model=model, image=IMAGE, **given)
    return bodies.for_pods(make_plan(settings, MODELS[model], ("gpu", "a pod"), {}))


def check(kind: str, body: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCHEMA | {"$ref": f"#/$defs/{kind}"}).validate(body)


CASES = {
    "pod-baked": lambda: bodies.pod(plan(), replace(WISH, public_key=PUBLIC), "NVIDIA L4", KEY),
    "pod-volume": lambda: bodies.pod(
        plan(weights="volume", max_model_len=4096, vllm_args=("--max-num-seqs", "64")),
        replace(WISH, count=2, cloud="COMMUNITY", data_centers=("EU-RO-1",), registry="reg1", expires=None),
        "NVIDIA L40S", KEY,
    ),
    "pod-of-template": lambda: bodies.pod(plan(), replace(WISH, template="tpl1"), "NVIDIA L4", KEY),
    "endpoint": lambda: bodies.endpoint(plan(), replace(WISH, name="bringup")),
    "template-baked": lambda: bodies.template(plan(), replace(WISH, name="bringup")),
    "template-volume": lambda: bodies.template(plan(weights="volume"), replace(WISH, name="bringup-volume")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bodies_are_as_agreed_and_as_the_api_takes_them(name: str) -> None:
    made = CASES[name]()
    check(f"create{name.partition('-')[0].title()}", made)
    assert made == json.loads((DATA / f"{name}.json").read_text("utf-8"))


def test_the_schema_refuses_what_the_api_refuses() -> None:
    good = CASES["pod-baked"]()
    gpu = good["gpu"]
    for wrong in (
        good | {"bogus": 1},
        good | {"cpu": {}},
        {k: v for k, v in good.items() if k != "image"},
        good | {"ports": ["8000/udp"]},
        good | {"gpu": gpu | {"allowedCudaVersions": ["13.0"]}},
        good | {"gpu": gpu | {"minCudaVersion": "13"}},
        good | {"mounts": {"persistent": {"size": 9, "path": "/weights"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check("createPod", wrong)


@pytest.mark.parametrize(("file", "case"), [("template", "template-baked"), ("endpoint", "endpoint")])
def test_what_is_there_to_import_is_what_is_made(file: str, case: str) -> None:
    kept = json.loads((ROOT / "deploy" / "runpod" / f"{file}.json").read_text("utf-8"))
    assert kept == CASES[case]() | {"image": OWNERS}


def test_a_pod_has_a_way_in_only_where_somebody_may_come_in() -> None:
    pods = [bodies.pod(plan(), replace(WISH, public_key=key), "NVIDIA L4", KEY) for key in (PUBLIC, None)]
    assert [p["ports"] for p in pods] == [["8000/http", "22/tcp"], ["8000/http"]]
    for name in ("PUBLIC_KEY", "SSH_PUBLIC_KEY"):
        assert [p["env"].get(name) for p in pods] == [PUBLIC, None]
    assert [p["startSsh"] for p in pods] == [False, False]


def test_an_endpoint_is_asked_for_health_where_the_image_tells_it() -> None:
    made = CASES["endpoint"]()
    assert {k: made["env"][k] for k in ("PORT", "PORT_HEALTH", "HEALTH_CHECK_PATH")} == {
        "PORT": "8000", "PORT_HEALTH": "8001", "HEALTH_CHECK_PATH": "/ping",
    }  # fmt: skip
    assert made["ports"] == ["8000/http", "8001/http"]
    assert made["env"][bodies.KEY] == bodies.KEY_SECRET
    with pytest.raises(UsageError, match="no volume"):
        bodies.endpoint(plan(weights="volume"), WISH)
    for wrong in (
        made | {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}},
        made | {"workers": {"min": 0, "max": 1, "idleTimeout": 0}},
        made | {"gpu": {"count": 1}},
        made | {"type": "LB"},
        made | {"startSsh": False},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check("createEndpoint", wrong)


HUB = json.loads((DATA / "hub.schema.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["hub", "tests"])
def test_the_hubs_files_are_as_its_guide_wants_them(name: str) -> None:
    kept = json.loads((ROOT / ".runpod" / f"{name}.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(HUB | {"$ref": f"#/$defs/{name}"})
    validator.validate(kept)
    for lacking in kept:
        assert not validator.is_valid({k: v for k, v in kept.items() if k != lacking}), lacking


def test_the_hub_starts_what_the_endpoint_starts() -> None:
    endpoint = json.loads((ROOT / "deploy" / "runpod" / "endpoint.json").read_text("utf-8"))
    hub, tests = (json.loads((ROOT / ".runpod" / f"{name}.json").read_text("utf-8")) for name in ("hub", "tests"))
    config = hub["config"]
    assert (config["endpointType"], config["containerDiskInGb"]) == ("LB", endpoint["disk"])
    assert config["gpuIds"].split(",") == endpoint["gpu"]["pools"]
    assert config["allowedCudaVersions"] == tests["config"]["allowedCudaVersions"] == list(bodies.CUDA_TEMPLATE)
    static = {e["key"]: e["value"] for e in config["env"] if "value" in e}
    assert static.items() <= endpoint["env"].items()
    assert {"PORT", "PORT_HEALTH", "HEALTH_CHECK_PATH", "BRINGUP_BIND"} <= static.keys()
    assert {e["key"] for e in config["env"]} == static.keys() | {bodies.KEY}
    assert tests["config"]["gpuTypeId"] in bodies.GPU_TYPES
    dockerfile = (ROOT / ".runpod" / "Dockerfile").read_text("utf-8")
    assert f"FROM {OWNERS}\n" in dockerfile
    for file in ("handler.py", "README.md"):
        assert (ROOT / ".runpod" / file).is_file()


def test_a_pod_is_keyed_and_says_when_it_is_due() -> None:
    made = CASES["pod-baked"]()
    assert made["env"][bodies.KEY] == KEY
    assert made["env"]["BRINGUP_BIND"] == "0.0.0.0"  # noqa: S104
    assert bodies.expiry(made) == DIES
    assert KEY not in json.dumps(CASES["template-baked"]())


@pytest.mark.parametrize(
    ("name", "env", "found"),
    [
        ("bringup-x", {bodies.EXPIRES: "never"}, math.inf),
        ("bringup-x", {bodies.EXPIRES: "2027-01-15T08:00:00+00:00"}, DIES),
        ("bringup-x", {bodies.EXPIRES: "soon"}, None),
        ("bringup-x", {}, None),
        ("bringup-x", None, None),
        ("somebody-elses", {bodies.EXPIRES: "never"}, None),
    ],
)
def test_only_a_name_and_a_mark_make_a_pod_ours(name: str, env: Any, found: float | None) -> None:
    assert bodies.expiry({"name": name, "env": env}) == found


def test_disks_hold_the_image_and_the_weights() -> None:
    baked, fetched = plan(), plan(weights="volume")
    weights = baked.expect.weights_bytes
    assert weights > 3 * bodies.GB
    assert bodies.disk(baked, 8 * bodies.GB) == math.ceil((8 * bodies.GB + weights) / bodies.GB) + bodies.WRITABLE
    assert bodies.disk(fetched, 8 * bodies.GB) == 8 + bodies.WRITABLE
    assert bodies.volume(baked) is None
    assert bodies.volume(fetched) == bodies.LEAST_VOLUME
    big = replace(fetched, expect=replace(fetched.expect, weights_bytes=100 * bodies.GB))
    assert bodies.volume(big) == 122


def test_what_a_pod_cannot_have_is_refused() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"weights": Path("/weights")}, "directory of this host"),
        ({"hf_token_file": Path("/token")}, "--hf-token-file"),
    )
    for given, needle in cases:
        with pytest.raises(UsageError, match=needle):
            bodies.pod(plan(**given), WISH, "NVIDIA L4", KEY)
    with pytest.raises(UsageError, match="GPU only"):
        bodies.pod(replace(plan(), flavour="cpu"), WISH, "NVIDIA L4", KEY)


def entry(memory: int = 24, secure: float = 0.4, **more: Any) -> dict[str, Any]:
    return {"memory": memory, "secure": True, "community": True, "price": {"secure": secure, "community": 0.2}} | more


def test_the_wished_order_the_cap_and_the_memory_decide() -> None:
    listed = {
        "dear": entry(secure=2.0), "small": entry(memory=4), "a": entry(), "b": entry(secure=0.45),
        "elsewhere": entry() | {"secure": False}, "free": entry(price={}),
    }  # fmt: skip
    wish = replace(WISH, gpu_types=("dear", "small", "nobody", "elsewhere", "free", "b", "a"), price=1.0, count=2)
    good, out = bodies.choices(plan(), wish, listed)
    assert good == [bodies.Choice("b", 0.9), bodies.Choice("a", 0.8)]
    why = dict(line.split(": ", 1) for line in out)
    assert why["dear"] == "4.00 USD an hour, the cap is 1.00"
    assert "does not fit" in why["small"]
    assert why["nobody"] == "not in RunPod's list"
    assert why["elsewhere"] == "not on the SECURE cloud"
    assert "not known" in why["free"]


def test_without_a_cap_an_unknown_price_is_no_reason() -> None:
    good, out = bodies.choices(plan(), replace(WISH, gpu_types=("x",)), {"x": entry(price={})})
    assert (good, out) == ([bodies.Choice("x", None)], [])


@pytest.mark.parametrize("given", [("--max-model-len", "auto"), ("--tensor-parallel-size", "2")])
def test_who_cannot_tell_what_fits_leaves_it_to_vllm(given: tuple[str, ...]) -> None:
    wish = replace(WISH, gpu_types=("small",))
    listed = {"small": entry(memory=4)}
    assert bodies.choices(plan(), wish, listed)[0] == []
    assert bodies.choices(plan(vllm_args=given), wish, listed)[0] == [bodies.Choice("small", 0.4)]


def test_what_is_kept_of_a_pod_has_no_variables() -> None:
    made = bodies.public(CASES["pod-baked"]() | {"id": "p", "ssh": {}, "args": "--api-key x"})
    assert made["id"] == "p"
    assert not made.keys() & {"env", "ssh", "args"}


def test_when_a_pod_was_created() -> None:
    assert bodies.created({"createdAt": "2027-01-15T08:00:00Z"}) == DIES
    assert bodies.created({}) is None
