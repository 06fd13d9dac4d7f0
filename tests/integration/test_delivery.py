"""Weights baked, on a volume and in a directory, on the real engine, from a stand-in for the model hub.

The command line runs from a copy of this checkout whose weights lock names models of that hub. Where serving is not
the point, the entry point's `--check` stands for a start: it does everything up to it.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from bringup.lock import LockedModel, write_lock
from tests.hub import HubServer, lock_of, make_repo
from tests.integration.support import (
    LABEL,
    MODEL,
    ROOT,
    SESSION,
    Result,
    bringup,
    containers,
    execute,
    free_port,
    leftovers,
    statuses,
)

pytestmark = pytest.mark.integration

TOKEN = "hf_t0kenOfTheTestThatMustStandNowhere"
SHARD, SHARDS = 33 * 2**20, 10  # larger than what the Dockerfile calls large, and more than it has slots
NAME = SESSION.lower()


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout with its own weights lock, and the hub that has what the lock says."""

    root: Path
    hub: HubServer
    base: str
    models: dict[str, LockedModel]

    def bringup(self, *args: str, timeout: float = 600, **env: str) -> Result:
        return bringup(*args, cwd=self.root, timeout=timeout, env={"BRINGUP_BASE": self.base, **env})


@pytest.fixture(scope="module")
def checkout(engine: docker.DockerClient, base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    root, store = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("hub")
    for name in ("Dockerfile", ".dockerignore", "docker-bake.hcl", *(p.name for p in ROOT.glob("compose*.yaml"))):
        shutil.copy(ROOT / name, root / name)
    for name in ("bringup", "locks", "models"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    catalogue = root / "bringup/data/models.toml"
    tiny = re.search(rf"^\[{MODEL}\]\n.*?(?=^\[\"|^\[(?!{MODEL})|\Z)", catalogue.read_text(), re.MULTILINE | re.DOTALL)
    assert tiny
    files = {p.name: p for p in (ROOT / "models" / MODEL).iterdir() if p.name != "README.md"}
    seeded = random.Random(3)
    shards: dict[str, Any] = {
        f"model-{n:05}-of-{SHARDS:05}.safetensors": seeded.randbytes(SHARD) for n in range(SHARDS)
    }
    models = {}
    for name, content, given in (
        (MODEL, files, {}),
        ("gated", files, {"token": TOKEN, "gated": True}),
        ("shards", {**shards, "config.json": b"{}", "sub/extra.json": b"[]"}, {"token": TOKEN}),
    ):
        commit = make_repo(store, f"tests/{name}", content, **given)
        models[name] = lock_of(store, f"tests/{name}", commit, name)
        if name != MODEL:
            entry = tiny[0].replace(f"[{MODEL}", f"[{name}")
            entry = re.sub(r"^gated = .*", f"gated = {str(name == 'gated').lower()}", entry, flags=re.MULTILINE)
            catalogue.write_text(catalogue.read_text() + "\n" + entry)
    write_lock(models, root / "bringup/data/weights.lock")
    # The bridge's own address: builds and containers of every network of this engine reach the host there.
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    with HubServer(store, bind="0.0.0.0", name=gateway, cdn=gateway) as hub:  # noqa: S104
        yield Checkout(root, hub, base, models)


@pytest.fixture(autouse=True)
def no_faults(checkout: Checkout) -> None:
    checkout.hub.clear()
    checkout.hub.throttle(0)


def built(engine: docker.DockerClient, checkout: Checkout, tag: str, *args: str, **env: str) -> Any:
    done = checkout.bringup("build", "--flavour", "cpu", "--image", tag, *args, timeout=1800, **env)
    assert done.code == 0, done.err
    return engine.images.get(tag)


def remove(engine: docker.DockerClient, *tags: str) -> None:
    for tag in tags:
        try:
            engine.images.remove(tag, force=True)
        except docker.errors.ImageNotFound:
            continue


@pytest.fixture(scope="module")
def empty(engine: docker.DockerClient, checkout: Checkout) -> Iterator[str]:
    """The image without weights."""
    tag = f"bringup-test:{NAME}-none"
    image = built(engine, checkout, tag, "--weights", "volume")
    assert image.labels["dev.bringup.model"] == "none"
    yield tag
    remove(engine, tag)


def start(image: str, *options: str, **env: str) -> subprocess.Popen[str]:
    """A start that ends before vLLM would begin."""
    given = {"BRINGUP_BIND": "127.0.0.1", "BRINGUP_MODEL": MODEL, **env}
    variables = [part for name, value in given.items() for part in ("--env", f"{name}={value}")]
    return subprocess.Popen(
        [
            "docker", "run", "--rm", "--label", f"{LABEL}={SESSION}", "--read-only", "--tmpfs", "/tmp:exec",
            "--cap-drop", "ALL", *variables, *options, image, "--check",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(child: subprocess.Popen[str], timeout: float = 120) -> Result:
    began = time.monotonic()
    out, err = child.communicate(timeout=timeout)
    assert "Traceback" not in err
    return Result(child.returncode, out, err, time.monotonic() - began)


def volume(name: str) -> tuple[str, str]:
    return "--volume", f"{NAME}-{name}:/weights"


def inside(image: str, name: str) -> list[str]:
    """What lies on a volume, hidden files too; find complains when something goes away meanwhile."""
    done = subprocess.run(
        ["docker", "run", "--rm", *volume(name), "--entrypoint", "find", image, "/weights"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    first, *found = done.stdout.splitlines()
    assert first == "/weights"
    return sorted(line.removeprefix("/weights/") for line in found)


def served(checkout: Checkout) -> int:
    """Bytes of files that the hub has sent."""
    return sum(r["sent"] for r in checkout.hub.requests() if r["method"] == "GET")


# ---- baked


@pytest.fixture(scope="module")
def baked(engine: docker.DockerClient, checkout: Checkout) -> Iterator[list[Any]]:
    """Two builds of the model of many shards: token by variable and by file, each with a fetch of its own."""
    tags = [f"bringup-test:{NAME}-shards-{n}" for n in (1, 2)]
    given = ("--model", "shards", "--hf-endpoint", checkout.hub.endpoint)
    first = built(engine, checkout, tags[0], *given, HF_TOKEN=TOKEN)
    token = checkout.root / "token"
    token.write_text(TOKEN)
    # Another value of a build argument, so that the second build does not take the first one's files.
    second = built(engine, checkout, tags[1], *given, "--hf-token-file", str(token), "--transfer", "auto")
    yield [first, second]
    remove(engine, *tags)


def read(image: Any, path: str) -> str:
    return subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "cat", image.tags[0], path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_each_shard_has_a_layer_as_far_as_there_are_slots(baked: list[Any], figures: list[str]) -> None:
    layers = {
        m[1]: entry["Size"]
        for entry in baked[0].history()
        if (m := re.search(r"COPY (\S+) /opt/bringup/ ", entry["CreatedBy"]))
    }
    figures += [f"layer {name}: {size} bytes" for name, size in sorted(layers.items())]
    assert [layers[f"/slots/{n}/"] for n in range(1, 9)] == [2 * SHARD] * 2 + [SHARD] * 6
    assert 0 < layers["/slots/0/"] < 10**5
    assert 0 < layers["/receipt/"] < 10**5


def test_hf_transfer_carried_every_shard_and_the_receipt_says_so(baked: list[Any], figures: list[str]) -> None:
    receipt = json.loads(read(baked[0], "/opt/bringup/weights.receipt.json"))
    carriers = {f["path"]: f["by"] for f in receipt["files"]}
    assert {by for path, by in carriers.items() if path.endswith(".safetensors")} == {"hf_transfer"}
    assert len(carriers) == SHARDS + 2
    figures += [f"{f['path']}: {f['by']}, {f['size']} bytes in {f['seconds']:.2f} s" for f in receipt["files"]]


def test_the_image_holds_the_lock_of_its_model_with_blake3(baked: list[Any], checkout: Checkout) -> None:
    lock = json.loads(read(baked[0], "/opt/bringup/weights.lock"))["models"]
    assert list(lock) == ["shards"]
    assert {f["path"]: f["blake3"] for f in lock["shards"]["files"]} == {
        f.path: f.blake3 for f in checkout.models["shards"].files
    }
    assert baked[0].labels["dev.bringup.weights-digest"] == checkout.models["shards"].digest


def test_a_second_fetch_gives_the_same_layers(baked: list[Any]) -> None:
    first, second = (image.attrs["RootFS"]["Layers"] for image in baked)
    different = [n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    assert len(different) == 1, "only the receipt"


def test_the_baked_weights_pass_the_start_check(baked: list[Any], figures: list[str]) -> None:
    done = end(start(baked[0].tags[0], BRINGUP_MODEL="shards"))
    assert done.code == 0, done.err
    (line,) = [x for x in done.err.splitlines() if "are as locked" in x]
    assert re.search(rf"12 files, {SHARDS * SHARD + 4} bytes in [\d.]+ s, [\d.]+ GB/s", line)
    figures.append(line)


def test_the_token_is_nowhere_in_the_images(baked: list[Any]) -> None:
    """One was built with the token as a variable, one with the token as a file."""
    tags = [image.tags[0] for image in baked]
    for command in (["history", "--no-trunc", tags[0]], ["history", "--no-trunc", tags[1]], ["inspect", *tags]):
        done = subprocess.run(["docker", "image", *command], capture_output=True, text=True, check=True)
        assert len(done.stdout) > 1000
        assert TOKEN not in done.stdout
    seen, tail = 0, b""
    with subprocess.Popen(["docker", "image", "save", *tags], stdout=subprocess.PIPE) as saved:
        assert saved.stdout
        while piece := saved.stdout.read(2**22):
            assert TOKEN.encode() not in tail + piece
            seen, tail = seen + len(piece), piece[-100:]
    assert saved.returncode == 0
    assert seen > SHARDS * SHARD


def test_a_build_without_the_token_fails_and_says_why(checkout: Checkout) -> None:
    done = checkout.bringup(
        "build", "--flavour", "cpu", "--model", "gated", "--image", f"bringup-test:{NAME}-gated", "--hf-endpoint",
        checkout.hub.endpoint,
    )  # fmt: skip
    assert done.code == 4
    assert "access to this model is restricted" in done.err
    assert "--hf-token-file" in done.err


# ---- a volume


def test_the_first_start_fetches_and_a_later_one_needs_no_hub(empty: str, checkout: Checkout) -> None:
    """In a pod as anywhere: its own volume does not matter."""
    options = (*volume("plain"), "--volume", "/workspace")
    given = {"BRINGUP_WEIGHTS": "volume", "BRINGUP_HF_ENDPOINT": checkout.hub.endpoint, "RUNPOD_POD_ID": "p"}
    done = end(start(empty, *options, **given))
    assert done.code == 0, done.err
    assert f"/weights/{MODEL}" in json.loads(done.out)
    assert "are as locked" in done.err
    assert inside(empty, "plain") == sorted([MODEL, *(f"{MODEL}/{f.path}" for f in checkout.models[MODEL].files)])
    again = end(start(empty, *options, **{**given, "BRINGUP_HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert again.code == 0, again.err
    assert "fetch" not in again.err


def test_two_starts_at_once_fetch_once(empty: str, checkout: Checkout) -> None:
    checkout.hub.throttle(0.35)  # the model is 4.5 MB: long enough for both to be there, and for a line of progress
    given = {"BRINGUP_WEIGHTS": "volume", "BRINGUP_HF_ENDPOINT": checkout.hub.endpoint}
    children = [start(empty, *volume("two"), **given) for _ in range(2)]
    ends = [end(child) for child in children]
    assert [e.code for e in ends] == [0, 0], [e.err for e in ends]
    size = checkout.models[MODEL].size
    assert size <= served(checkout) < 1.2 * size
    assert any(re.search(r"fetching: \d+ of \d+ bytes", e.err) for e in ends)
    assert inside(empty, "two") == sorted([MODEL, *(f"{MODEL}/{f.path}" for f in checkout.models[MODEL].files)])


def test_large_files_come_by_hf_transfer_in_the_container_too(
    empty: str, checkout: Checkout, figures: list[str]
) -> None:
    given = {"BRINGUP_WEIGHTS": "volume", "BRINGUP_HF_ENDPOINT": checkout.hub.endpoint, "BRINGUP_MODEL": "shards"}
    done = end(start(empty, *volume("shards"), **given, HF_TOKEN=TOKEN))
    assert done.code == 0, done.err
    (line,) = [x for x in done.err.splitlines() if x.startswith("bringup: fetched ")]
    assert f"{SHARDS} by hf_transfer" in line
    figures.append(line)


def test_a_start_that_is_stopped_while_it_fetches_harms_nothing(empty: str, checkout: Checkout) -> None:
    checkout.hub.throttle(0.35)
    name = f"{NAME}-stopped"
    given = {"BRINGUP_WEIGHTS": "volume", "BRINGUP_HF_ENDPOINT": checkout.hub.endpoint}
    child = start(empty, *volume("stopped"), "--name", name, **given)
    deadline = time.monotonic() + 60
    # A transfer has begun; the largest file is the first one, and takes twelve seconds.
    while not any(re.search(r"/\.bringup-fetch/\d", path) for path in inside(empty, "stopped")):
        assert time.monotonic() < deadline
    began = time.monotonic()
    subprocess.run(["docker", "stop", "--timeout", "20", name], capture_output=True, check=True)
    assert time.monotonic() - began < 15, "nobody waited for the kill"
    assert end(child).code == 143
    checkout.hub.throttle(0)
    locked = {f"{MODEL}/{f.path}" for f in checkout.models[MODEL].files}
    left = {path for path in inside(empty, "stopped") if "/.bringup-fetch" not in path}
    assert left < locked | {MODEL}, "not complete, and nothing half-written under a final name"
    done = end(start(empty, *volume("stopped"), **given))
    assert done.code == 0, done.err
    assert set(inside(empty, "stopped")) == locked | {MODEL}


def test_a_start_as_another_user_uses_the_same_volume(empty: str, checkout: Checkout) -> None:
    given = {"BRINGUP_WEIGHTS": "volume", "BRINGUP_HF_ENDPOINT": checkout.hub.endpoint}
    assert end(start(empty, *volume("users"), **given)).code == 0
    damage = ["docker", "run", "--rm", *volume("users"), "--entrypoint", "truncate", empty, "--size", "7"]
    subprocess.run([*damage, f"/weights/{MODEL}/model.safetensors"], check=True)
    done = end(start(empty, *volume("users"), "--user", "4711:0", **given))
    assert done.code == 0, done.err
    assert "fetching what is missing" in done.err


def test_a_gated_model_needs_its_token(empty: str, checkout: Checkout) -> None:
    given = {
        "BRINGUP_WEIGHTS": "volume", "BRINGUP_HF_ENDPOINT": checkout.hub.endpoint, "BRINGUP_MODEL": "gated",
        "BRINGUP_FETCH_TIMEOUT": "30",
    }  # fmt: skip
    refused = end(start(empty, *volume("gated"), **given))
    assert refused.code == 2
    assert "access to this model is restricted" in refused.err
    done = end(start(empty, *volume("gated"), **given, HF_TOKEN=TOKEN))
    assert done.code == 0, done.err
    assert TOKEN not in done.err + done.out


def test_an_unreachable_hub_is_told(empty: str) -> None:
    done = end(
        start(
            empty, *volume("dead"), BRINGUP_WEIGHTS="volume", BRINGUP_HF_ENDPOINT="http://127.0.0.1:9",
            BRINGUP_FETCH_TIMEOUT="3",
        )
    )  # fmt: skip
    assert done.code == 8, done.err
    assert "http://127.0.0.1:9" in done.err
    assert [p for p in inside(empty, "dead") if p != MODEL] == []


def test_a_volume_without_space_is_told_before_anything_is_fetched(empty: str, checkout: Checkout) -> None:
    done = end(
        start(
            empty, "--tmpfs", "/weights:size=1m,uid=1000,mode=775", BRINGUP_WEIGHTS="volume",
            BRINGUP_HF_ENDPOINT=checkout.hub.endpoint,
        )
    )  # fmt: skip
    assert done.code == 3, done.err
    assert served(checkout) == 0


def test_nobody_says_where_the_weights_are(empty: str) -> None:
    done = end(start(empty, BRINGUP_MODEL=""))
    assert done.code == 2
    assert "holds no weights" in done.err
    assert MODEL in done.err


def test_up_with_a_volume_serves_a_gated_model(
    engine: docker.DockerClient, empty: str, checkout: Checkout, tmp_path: Path, figures: list[str]
) -> None:
    project = f"{NAME}-volume"
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(token, 1000, 0)
    done = checkout.bringup(
        "up", "--json", "--flavour", "cpu", "--project", project, "--image", empty, "--model", "gated", "--weights",
        "volume", "--hf-endpoint", checkout.hub.endpoint, "--hf-token-file", str(token), "--port", str(free_port()),
        "--artifacts", str(tmp_path / "artifacts"),
    )  # fmt: skip
    try:
        assert done.code == 0, done.err
        record = done.json()
        assert record["plan"]["weights"] == "volume"
        assert statuses(record["probes"])["completion"] == "pass"
        bundle = {p.name: p.read_text() for p in Path(record["bundle"]).iterdir()}
        assert f"fetching tests/gated at {checkout.models['gated'].revision}" in bundle["server.log"]
        assert "--model /weights/gated" in bundle["server.log"]
        figures.append(f"up --weights volume: first token after {record['started_to_first_token']:.1f} s")
        (container,) = containers(engine, project)
        assert TOKEN not in done.err + done.out + json.dumps(container.attrs) + "".join(bundle.values())
        assert execute(container, "touch", "/weights/gated/x").code == 0
        assert checkout.bringup("down", "--project", project).code == 0
        assert [v.name for v in engine.volumes.list(filters={"name": f"{project}_weights"})]
    finally:
        assert checkout.bringup("down", "--project", project, "--volumes").code == 0
    assert not [v.name for v in engine.volumes.list(filters={"name": project})]
    assert leftovers(engine, project) == []


def test_a_token_that_only_this_shell_has_is_not_put_into_a_container(
    engine: docker.DockerClient, checkout: Checkout, tmp_path: Path
) -> None:
    where = ("--flavour", "cpu", "--project", f"{NAME}-token", "--artifacts", str(tmp_path / "artifacts"))
    done = checkout.bringup("up", *where, "--model", "gated", "--weights", "volume", HF_TOKEN=TOKEN)
    assert done.code == 2
    assert "--hf-token-file" in done.err
    assert TOKEN not in done.err
    assert leftovers(engine, f"{NAME}-token") == []


# ---- a directory


@pytest.fixture
def directory(tmp_path: Path, checkout: Checkout) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    made.chmod(0o755)
    for f in checkout.models[MODEL].files:
        shutil.copyfile(ROOT / "models" / MODEL / f.path, made / f.path)
    return made


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_directory_is_checked_and_left_alone(empty: str, directory: Path) -> None:
    place = f"/weights/{MODEL}"
    options = ("--volume", f"{directory}:{place}:ro")
    before = {p: p.stat().st_mtime_ns for p in [directory, *directory.iterdir()]}
    done = end(start(empty, *options, BRINGUP_WEIGHTS=place))
    assert done.code == 0, done.err
    assert place in json.loads(done.out)
    flip(directory / "model.safetensors")
    refused = end(start(empty, *options, BRINGUP_WEIGHTS=place))
    assert refused.code == 5
    assert "model.safetensors" in refused.err
    flip(directory / "model.safetensors")
    assert {p: p.stat().st_mtime_ns for p in before if p.name != "model.safetensors"} == {
        p: t for p, t in before.items() if p.name != "model.safetensors"
    }


def test_up_with_a_directory_that_differs_serves_nothing(
    engine: docker.DockerClient, empty: str, checkout: Checkout, directory: Path, tmp_path: Path
) -> None:
    flip(directory / "model.safetensors")
    project = f"{NAME}-directory"
    done = checkout.bringup(
        "up", "--flavour", "cpu", "--project", project, "--image", empty, "--weights", str(directory), "--port",
        str(free_port()), "--artifacts", str(tmp_path / "artifacts"),
    )  # fmt: skip
    assert done.code == 6, done.err
    assert "exit code 5 (the weights differ from the lock)" in done.err
    assert leftovers(engine, project) == []


@pytest.mark.parametrize("bad", ["missing", "unreadable"])
def test_up_refuses_a_directory_that_cannot_be_mounted(
    checkout: Checkout, directory: Path, tmp_path: Path, bad: str
) -> None:
    if bad == "unreadable":
        (directory / "config.json").chmod(0o000)
    given = str(directory if bad == "unreadable" else tmp_path / "nowhere")
    done = checkout.bringup("up", "--flavour", "cpu", "--weights", given, "--artifacts", str(tmp_path / "artifacts"))
    assert done.code == 2, done.err
    assert ("cannot be read by the container's user" if bad == "unreadable" else "is no directory") in done.err
    assert not (tmp_path / "artifacts").exists()
