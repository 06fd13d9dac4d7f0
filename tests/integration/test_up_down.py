"""The main job on the real engine: up, verify, collect, logs, down, and up again with a key and warm caches.

A start takes a minute and more, so the tests of this module share two servers, in the order of the file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
import requests

from bringup import bundle
from bringup.probes.openai import text_fault
from tests.integration.support import (
    MODEL,
    ROOT,
    SESSION,
    Child,
    Result,
    bringup,
    containers,
    environment,
    free_port,
    leftovers,
    statuses,
)

pytestmark = pytest.mark.integration

PROJECT = f"{SESSION}-updown"
KEY = "k3y-0f-the-te5t-that-stands-nowhere-else"
FILES = {
    "SHA256SUMS", "caches.json", "image.json", "ledger.json", "nvidia_smi_serving.txt", "plan.json", "record.json",
    "report.html", "sample_response.json", "server.jsonl", "server.log", "summary.md", "timeline.json",
    "vllm_process.txt",
}  # fmt: skip
PASSING = [
    "reachable", "ready", "models", "completion", "chat", "streaming", "canary", "logprobs", "determinism",
    "concurrency", "context", "requests", "metrics", "cancel", "version", "process",
]  # fmt: skip
SKIPPED = {"auth": "skip", "vram": "skip"}


@dataclass(frozen=True)
class Served:
    """A server that `bringup up` left running."""

    port: int
    artifacts: Path
    up: Result

    @property
    def where(self) -> tuple[str, ...]:
        return ("--flavour", "cpu", "--project", PROJECT, "--port", str(self.port))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bundle(self) -> Path:
        return Path(self.up.json()["bundle"])


@pytest.fixture(scope="module")
def served(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port, artifacts = free_port(), tmp_path_factory.mktemp("artifacts")
    up = bringup(
        "up", "--json", "--flavour", "cpu", "--project", PROJECT, "--port", str(port), "--artifacts", str(artifacts)
    )
    yield Served(port, artifacts, up)
    bringup("down", "--project", PROJECT, "--volumes")
    assert leftovers(engine, PROJECT) == []


def test_up_ends_with_a_pass_and_every_probe_seen(served: Served) -> None:
    assert served.up.code == 0, served.up.err
    record = served.up.json()
    assert record["verdict"] == "pass"
    assert statuses(record["probes"]) == {**dict.fromkeys(PASSING, "pass"), **SKIPPED, "evidence": "pass"}
    assert 0 < record["started_to_first_token"] < record["plan"]["timeout"]
    assert "flavour cpu: cpu was asked for" in served.up.err


def test_the_bundle_is_complete_and_its_sums_are_right(served: Served) -> None:
    assert {p.name for p in served.bundle.iterdir()} == FILES
    assert [p.name for p in served.artifacts.iterdir()] == [served.bundle.name]  # no .part, no trial
    sums = (served.bundle / "SHA256SUMS").read_text()
    assert {line.split("  ")[1] for line in sums.splitlines()} == FILES - {"SHA256SUMS"}
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=served.bundle, check=False)
    assert done.returncode == 0


def test_the_bundle_says_what_ran(served: Served, engine: docker.DockerClient, image: str) -> None:
    record = bundle.read(served.bundle).record
    assert (record["verdict"], record["error"], record["command"]) == ("pass", "", "up")
    assert record == {k: v for k, v in served.up.json().items() if k != "bundle"}
    (container,) = containers(engine, PROJECT)
    assert record["container"]["id"] == container.id
    assert json.loads((served.bundle / "image.json").read_text())["id"] == engine.images.get(image).id
    assert json.loads((served.bundle / "plan.json").read_text())["port"] == served.port


def test_the_record_says_from_what_and_how_it_was_started(served: Served) -> None:
    record = bundle.read(served.bundle).record
    labels = record["image"]["labels"]
    assert record["model"]["digest"] == labels["dev.bringup.weights-digest"]
    assert {len(record["locks"][name]) for name in ("wheels", "weights")} == {64}
    assert (record["settings"]["port"], record["plan"]["sources"]["port"]) == (str(served.port), "flag")
    started = record["container"]
    assert "bringup.inside" in started["argv"]
    assert (started["environment"]["BRINGUP_FLAVOUR"], started["environment"]["HF_HUB_OFFLINE"]) == ("cpu", "1")


def test_on_one_machine_the_three_clocks_are_one(served: Served, figures: list[str]) -> None:
    clocks = bundle.read(served.bundle).record["clocks"]
    for name in ("engine", "container"):
        seen = clocks[name]
        assert abs(seen["offset_seconds"]) <= seen["uncertainty_seconds"] + 0.001, seen
        figures.append(f"clock of the {name}: {seen['offset_seconds']:+.4f} s ± {seen['uncertainty_seconds']:.4f} s")
    assert clocks["wall_seconds"] > served.up.json()["started_to_first_token"]


def test_the_bundle_holds_what_the_server_said(served: Served) -> None:
    sample = json.loads((served.bundle / "sample_response.json").read_text())
    text = sample["choices"][0]["text"]
    assert text_fault(text) == ""
    assert len(set(text.lower().split())) >= 5
    assert sample["model"] == MODEL
    assert sample["usage"]["completion_tokens"] > 5
    processes = (served.bundle / "vllm_process.txt").read_text()
    assert "bringup.inside.serve" in processes
    assert "VLLM::EngineCore" in processes
    assert "starting vLLM" in (served.bundle / "server.log").read_text()
    records = [json.loads(line) for line in (served.bundle / "server.jsonl").read_text().splitlines()]
    assert {"vllm", "bringup"} <= {r["logger"].split(".")[0] for r in records}
    assert "no GPU" in (served.bundle / "nvidia_smi_serving.txt").read_text()


def test_the_ledger_has_the_processes_memory_through_the_start(served: Served) -> None:
    made = json.loads((served.bundle / "ledger.json").read_text())
    when = {m["name"]: m for m in made["moments"]}
    assert (when["before"]["rss"], when["before"]["note"]) == (None, "no process yet")
    assert when["peak"]["rss"] >= when["serving"]["rss"] > 500 * 2**20, "two processes that have torch"
    assert when["serving"]["rss"] >= (when["serving"]["pss"] or 0)
    assert {(f["path"], f["verified"]) for f in made["files"]} >= {("model.safetensors", True), ("config.json", True)}


def test_a_bundle_is_rendered_from_itself_alone(served: Served, tmp_path: Path) -> None:
    """Somewhere else, with no engine and no configuration; and the page that lies in it already says the same."""
    copy = shutil.copytree(served.bundle, tmp_path / "elsewhere" / "b")
    made = tmp_path / "r.html"
    nowhere = {"DOCKER_HOST": "unix:///nowhere.sock"}
    done = bringup("report", "--verify", "--json", str(copy), "--html", str(made), env=nowhere, cwd=tmp_path)
    assert done.code == 0, done.err
    assert (done.json()["verdict"], done.json()["faults"]) == ("pass", [])
    for page in (made.read_text(), (copy / "report.html").read_text()):
        assert '<p class="word">pass</p>' in page
        assert page.count("<svg ") == 6, "start-up, memory and tokens, each in two sizes"
        assert "processes in host memory (RSS): at most" in page
    assert "✅ pass: tiny-qwen2 on a CPU" in (copy / "summary.md").read_text()


def test_the_timeline_names_where_the_time_of_the_start_went(served: Served) -> None:
    made = json.loads((served.bundle / "timeline.json").read_text())
    whole = made["whole_seconds"]
    path = [s for s in made["stages"] if s["path"]]
    assert made["coverage"] >= 0.95
    assert sum(s["seconds"] for s in path) + sum(g["seconds"] for g in made["gaps"]) == pytest.approx(whole, rel=0.01)
    assert whole >= served.up.json()["started_to_first_token"]
    assert {"container", "api-imports", "config", "model-load", "server-up", "first-token"} <= {s["id"] for s in path}
    shown = bringup("timeline", "--json", str(served.bundle))
    assert shown.code == 0, shown.err
    assert (shown.json()["whole_seconds"], shown.json()["coverage"]) == (whole, made["coverage"])


def test_verify_passes_again(served: Served) -> None:
    done = bringup("verify", "--json", *served.where)
    assert done.code == 0, done.err
    assert statuses(done.json()["probes"]) == {**dict.fromkeys(PASSING, "pass"), **SKIPPED}


def test_verify_of_an_address_says_what_it_did_not_ask(served: Served) -> None:
    done = bringup("verify", "--json", served.url)
    assert done.code == 0, done.err
    seen = statuses(done.json()["probes"])
    assert [name for name, status in seen.items() if status == "skip"] == ["auth", "process", "vram"]
    assert "not asked: auth, process, vram" in done.err


def test_verify_of_an_address_with_a_wrong_model_fails_on_the_model(served: Served) -> None:
    done = bringup("verify", "--json", served.url, "--expect-model", "nope")
    assert done.code == 7
    probes = {p["name"]: p for p in done.json()["probes"]}
    assert (probes["models"]["status"], probes["models"]["found"]) == ("fail", f"it lists {MODEL}")
    assert "pass" not in {probes[n]["status"] for n in ("ready", "completion", "chat", "streaming")}


def test_verify_of_another_port_does_not_take_a_stranger_for_the_server(served: Served) -> None:
    other = str(free_port())
    done = bringup("verify", "--flavour", "cpu", "--project", PROJECT, "--port", other)
    assert done.code == 8
    assert str(served.port) in done.err


def test_collect_writes_another_bundle(served: Served) -> None:
    done = bringup("collect", "--json", *served.where, "--artifacts", str(served.artifacts))
    assert done.code == 0, done.err
    made = Path(done.json()["bundle"])
    assert made != served.bundle
    assert {p.name for p in made.iterdir()} == FILES
    record = bundle.read(made).record
    assert record["verdict"] == "pass"
    assert record["started_to_first_token"] is None, "collect has not seen the start"


def test_logs(served: Served) -> None:
    whole = bringup("logs", *served.where)
    assert whole.code == 0
    assert "starting vLLM" in whole.out
    last = bringup("logs", "--json", *served.where, "--tail", "2")
    assert len(last.json()["log"].splitlines()) == 2


def test_up_on_a_running_server_keeps_it(served: Served, engine: docker.DockerClient) -> None:
    (before,) = containers(engine, PROJECT)
    done = bringup("up", "--json", *served.where, "--artifacts", str(served.artifacts))
    assert done.code == 0, done.err
    (after,) = containers(engine, PROJECT)
    assert after.id == before.id
    assert done.json()["started_to_first_token"] is None, "the start was not observed"


def test_paused_before_verify_is_a_hang(served: Served, engine: docker.DockerClient) -> None:
    (container,) = containers(engine, PROJECT)
    container.pause()
    try:
        done = bringup("verify", "--json", *served.where, "--request-timeout", "5s")
    finally:
        container.unpause()
    assert done.code == 7, done.err
    assert done.seconds <= 7
    seen = statuses(done.json()["probes"])
    assert seen.pop("reachable") == "fail"
    assert set(seen.values()) == {"unknown"}


def test_paused_during_verify_is_a_hang(served: Served, engine: docker.DockerClient, tmp_path: Path) -> None:
    (container,) = containers(engine, PROJECT)
    with Child("verify", "--json", "-v", *served.where, "--request-timeout", "5s", out=tmp_path / "out") as child:
        child.until(r"\| completion$")
        container.pause()
        paused = time.monotonic()
        try:
            done = child.end()
        finally:
            container.unpause()
    assert time.monotonic() - paused <= 5 + 2.5  # the unpausing counts here too
    assert done.code == 7, done.err
    assert done.json()["verdict"] == "fail"


def test_unpaused_it_answers_again(served: Served) -> None:
    done = bringup("verify", served.url)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def again(served: Served, engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Down and up once more on the same volume, with an API key this time."""
    down = bringup("down", "--json", "--project", PROJECT)
    assert down.code == 0, down.err
    assert down.json()["released"]["verdict"] == "released"
    assert leftovers(engine, PROJECT) == []
    assert [v.name for v in engine.volumes.list() if str(v.name).startswith(PROJECT)] != [], "the caches stay"
    home = tmp_path_factory.mktemp("again")
    key = home / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "signer"], check=True)
    (home / "allowed_signers").write_text(f"ops@example.org {(home / 'signer.pub').read_text()}")
    up = bringup(
        "up", "--json", *served.where, "--artifacts", "artifacts", "--api-key-file", "key", "--sign-key", "signer",
        cwd=home,
    )  # fmt: skip # the paths are relative to where the user stands
    return Served(served.port, home / "artifacts", up)


def test_second_start_with_a_key_and_warm_caches_passes(again: Served, served: Served, figures: list[str]) -> None:
    assert again.up.code == 0, again.up.err
    assert again.up.json()["verdict"] == "pass"
    assert {p.name for p in again.bundle.iterdir()} == FILES | {"SHA256SUMS.sig"}
    for start, record in (("cold", served.up.json()), ("warm", again.up.json())):
        figures.append(f"container start to first token, {start}: {record['started_to_first_token']:.1f} s")


def test_the_second_bundle_is_signed(again: Served) -> None:
    signers = again.artifacts.parent / "allowed_signers"
    assert bundle.verify(again.bundle, signers).endswith("signed by ops@example.org")
    assert bundle.read(again.bundle).record["settings"]["sign_key"] == "signer"


def test_without_the_key_verify_fails(again: Served) -> None:
    assert requests.get(f"{again.url}/v1/models", timeout=10).status_code == 401
    done = bringup("verify", "--json", again.url)
    assert done.code == 7
    assert "HTTP 401" in {p["name"]: p["found"] for p in done.json()["probes"]}["models"]


def test_with_the_key_verify_passes(again: Served) -> None:
    done = bringup("verify", "--json", again.url, env={"BRINGUP_API_KEY": KEY})
    assert done.code == 0, done.err
    assert statuses(done.json()["probes"])["auth"] == "pass"
    done = bringup("verify", *again.where, "--api-key-file", str(again.artifacts.parent / "key"))
    assert done.code == 0, done.err


def test_bench_serve_measures_it_by_vllms_own_client_and_with_the_key(again: Served, figures: list[str]) -> None:
    load = ("--max-concurrency", "1,4", "--num-prompts", "8", "--random-input-len", "32", "--random-output-len", "16")
    key = str(again.artifacts.parent / "key")
    done = bringup(
        "bench", "serve", "--json", *again.where, *load, "--artifacts", str(again.artifacts), "--api-key-file", key
    )
    assert done.code == 0, done.err
    made = done.json()
    assert [(r["status"], r["completed"], r["output_tokens"]) for r in made["runs"]] == [("pass", 8, 128)] * 2
    at = Path(made["bundle"])
    assert subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=at, check=False).returncode == 0
    for run in made["runs"]:
        raw = json.loads((at / f"bench-serve-{run['streams']}.json").read_text())
        assert (raw["completed"], raw["num_prompts"], raw["max_concurrency"]) == (8, 8, run["streams"])
        assert all(28 <= n <= 36 for n in raw["input_lens"]), "random tokens, which may be spelt in one more or less"
        assert raw["request_throughput"] == pytest.approx(8 / raw["duration"])
    assert [p.name for p in at.iterdir() if KEY in p.read_text()] == []
    assert KEY not in done.out + done.err
    one, four = made["runs"]
    figures.append(
        f"bench serve, tokens/s at 4 streams / at 1: {four['output_tokens_per_s'] / one['output_tokens_per_s']:.2f}"
    )


def test_bench_start_keeps_away_from_a_server_that_runs(again: Served, engine: docker.DockerClient) -> None:
    (before,) = containers(engine, PROJECT)
    done = bringup("bench", "start", "--json", "-n", "1", *again.where, "--artifacts", str(again.artifacts))
    assert (done.code, done.json()["id"]) == (3, "server-running"), done.err
    (after,) = containers(engine, PROJECT)
    assert (after.id, after.status) == (before.id, "running")


def test_the_key_stands_nowhere(again: Served, engine: docker.DockerClient) -> None:
    (container,) = containers(engine, PROJECT)
    key_file = str(again.artifacts.parent / "key")
    config = subprocess.run(
        ["docker", "compose", "-f", "compose.yaml", "-f", "compose.cpu.yaml", "config"],
        cwd=ROOT, env=environment({"BRINGUP_API_KEY_FILE": key_file}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    places = {
        "inspect": json.dumps(container.attrs),
        "image": json.dumps(engine.images.get(container.attrs["Image"]).history()),
        "logs": container.logs().decode(),
        "top": json.dumps(container.top(ps_args="-eo pid,args")),
        "compose config": config.stdout,
        "up": again.up.out + again.up.err,
        "bringup logs": bringup("logs", *again.where).out,
        **{p.name: p.read_text() for p in again.bundle.iterdir()},
    }
    assert len(places) == 7 + len(FILES | {"SHA256SUMS.sig"})
    assert all(places.values()), "an empty place proves nothing"
    assert [name for name, text in places.items() if KEY in text] == []


def test_down_with_volumes_leaves_nothing(again: Served, engine: docker.DockerClient) -> None:
    assert bringup("down", "--project", PROJECT, "--volumes").code == 0
    assert leftovers(engine, PROJECT) == []
    assert [v.name for v in engine.volumes.list() if str(v.name).startswith(PROJECT)] == []
    gone = bringup("verify", *again.where)
    assert gone.code == 8
    assert "no running server" in gone.err
