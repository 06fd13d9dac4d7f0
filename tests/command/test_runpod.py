"""The life of a pod against an API like RunPod's, with each fault: the pod is proven, gone, or known. No engine."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bringup import bundle
from bringup.edge import ssh
from tests.integration.support import Result, bringup, free_port
from tests.runpod import GPUS, KEY, FakeRunPod
from tests.runpod.interruptions import interruptions
from tests.runpod.sshd import LOG

POD, PODS = r"/v2/pods/[^/]+", "/v2/pods"
FROM_OUTSIDE = {"pod.json", "sample_response.json", "record.json"}
FROM_INSIDE = {
    "server.jsonl", "server.log", "vllm_process.txt", "nvidia_smi_serving.txt", "weights.receipt.json", "weights.lock",
    "caches-before.json", "caches-now.json", "timeline.json", "ledger.json", "caches.json", "direct.json",
}  # fmt: skip
SAMPLE = range(4)  # seeds of the interruptions; `python -m tests.runpod.interruptions` takes 200


@pytest.fixture(scope="module")
def server() -> Iterator[FakeRunPod]:
    with FakeRunPod() as fake:
        yield fake


class Desk:
    """A user at a machine of their own."""

    def __init__(self, fake: FakeRunPod, place: Path) -> None:
        self.fake, self.place, self.state = fake, place, place / "state"

    def run(self, *args: str, **env: str) -> Result:
        done = bringup("runpod", *args, env=self.fake.environment(self.state) | env, timeout=60)
        assert KEY not in done.out + done.err
        return done

    def up(self, *more: str, ssh: bool = False) -> Result:
        return self.run(
            "up", "--image", "registry.example/bringup:gpu", "--suite", "smoke", "--poll", "0.1s", "--patience", "1s",
            *(word for gpu in GPUS[:2] for word in ("--gpu-type", gpu)), "--artifacts", str(self.place / "a"),
            *(() if ssh else ("--no-ssh",)), *more,
        )  # fmt: skip

    @property
    def entries(self) -> dict[str, Any]:
        file = self.state / "pods.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    @property
    def bundles(self) -> list[bundle.Bundle]:
        return [bundle.read(p.parent) for p in sorted(self.place.glob("a/*/*/record.json"))]

    def nothing_is_left(self) -> None:
        assert self.fake.pods() == []
        assert self.entries == {}
        assert {p.name for p in self.state.glob("*")} <= {"pods.json", "lock"}


@pytest.fixture
def desk(server: FakeRunPod, tmp_path: Path) -> Desk:
    server.clear()
    return Desk(server, tmp_path)


def probe(kept: bundle.Bundle, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in kept.record["probes"] if p["name"] == name)
    return found


def asked(desk: Desk, method: str, path: str = "") -> int:
    return sum(line.startswith(f"{method} {path}") for line in desk.fake.requests())


def test_from_nothing_to_a_proven_pod_and_back(desk: Desk) -> None:
    done = desk.up("--json", ssh=True)
    assert done.code == 0, done.err
    made = done.json()
    assert made["verdict"] == "pass"
    (pod,), (entry,) = desk.fake.pods(), desk.entries.values()
    assert (entry["id"], made["left"]) == (pod["id"], True)
    ssh_key = Path(entry["ssh_key"])
    assert (stat.S_IMODE(ssh_key.stat().st_mode), ssh_key.parent) == (0o600, desk.state)
    assert pod["env"]["PUBLIC_KEY"].split()[:2] == ssh.public_half(ssh_key).split()
    assert (entry["ssh_user"], entry["host_key"].split()[0]) == ("bringup", "ssh-ed25519")
    key_file = Path(made["key_file"])
    key = key_file.read_text().strip()
    assert (len(key), stat.S_IMODE(key_file.stat().st_mode)) == (64, 0o600)
    assert pod["env"]["VLLM_API_KEY"] == key
    (kept,) = desk.bundles
    assert kept.faults == ()
    assert kept.files.keys() >= FROM_OUTSIDE | FROM_INSIDE
    seen = kept.json("pod.json")
    assert (seen["pod"]["id"], seen["ssh"]["host_key"]) == (pod["id"], entry["host_key"])
    assert all(copied["checked"] for copied in seen["ssh"]["files"].values())
    assert abs(seen["ssh"]["clock"]["offset_seconds"]) < 60
    assert kept.files["server.jsonl"] == LOG
    assert kept.record["timeline"]["stages"]
    assert probe(kept, "direct")["found"] == "passes directly, as through the proxy"
    assert kept.json("direct.json")["verdict"] == "pass"
    for secret in (key, KEY, ssh_key.read_text().splitlines()[1]):
        assert not any(secret.encode() in data for data in kept.files.values())
        assert secret not in done.out + done.err
        assert secret not in (desk.state / "pods.json").read_text()
    again = desk.run("collect", "--suite", "smoke", "--artifacts", str(desk.place / "b"), "--json")
    assert (again.code, again.json()["verdict"]) == (0, "pass"), again.err
    assert bundle.read(Path(again.json()["bundle"])).files.keys() == kept.files.keys()
    listed = desk.run("ls", "--json").json()
    assert [(r["id"], r["status"], r["cost"], r["overdue"]) for r in listed] == [(pod["id"], "RUNNING", 0.43, False)]
    assert desk.run("down").code == 0
    desk.nothing_is_left()


def test_a_given_key_is_used_and_stays_and_the_pod_goes_if_wanted(desk: Desk) -> None:
    key_file = desk.place / "mine"
    key_file.write_text("a-key-of-mine\n")
    done = desk.up("--remove", "--api-key-file", str(key_file))
    assert done.code == 0, done.err
    assert key_file.exists()
    assert "endpoint:" not in done.err
    desk.nothing_is_left()


def test_without_ssh_the_bundle_says_that_it_was_not_asked(desk: Desk) -> None:
    done = desk.up("--remove")
    assert done.code == 0, done.err
    (kept,) = desk.bundles
    assert [(probe(kept, n)["status"], probe(kept, n)["found"]) for n in ("direct", "inside")] == [
        ("skip", "not asked: --no-ssh"), ("skip", "none: see direct"),
    ]  # fmt: skip
    assert not kept.files.keys() & FROM_INSIDE
    desk.nothing_is_left()


def test_what_differs_between_the_two_ways_is_told_apart(desk: Desk) -> None:
    desk.fake.manner(unrouted=True)
    done = desk.up("--timeout", "1s", ssh=True)
    assert done.code == 6, done.err
    assert "no token within 1 s" in done.err
    assert "it passes directly: the server is good, the way through RunPod's proxy is not" in " ".join(done.err.split())
    desk.fake.manner(direct_lie="degenerate")
    done = desk.up(ssh=True)
    assert done.code == 7, done.err
    through_proxy, directly = desk.bundles
    assert probe(through_proxy, "direct")["status"] == "pass"
    assert probe(directly, "direct")["found"].startswith("passes through the proxy, and not directly (completion: ")
    assert all(p["status"] != "fail" for p in directly.record["probes"] if p["name"] != "direct")
    desk.nothing_is_left()


@pytest.mark.parametrize(
    ("fault", "code", "direct", "said"),
    [
        ("silent", 9, "unknown", "the pod's log has no line of its sshd"),
        ("stranger", 7, "fail", "nothing was sent [ssh-host-key]"),
        ("refuses", 9, "unknown", "does not take the key of bringup"),
        ("no-forward", 9, "unknown", "forbids port forwarding"),
    ],
)
def test_a_pod_that_cannot_be_looked_into_is_not_passed(
    desk: Desk, fault: str, code: int, direct: str, said: str
) -> None:
    desk.fake.manner(ssh=fault)
    done = desk.up(ssh=True)
    assert done.code == code, done.err
    (kept,) = desk.bundles
    assert (kept.faults, probe(kept, "direct")["status"], probe(kept, "inside")["status"]) == ((), direct, "unknown")
    assert said in probe(kept, "direct")["found"]
    assert not kept.files.keys() & FROM_INSIDE
    desk.nothing_is_left()


def test_a_connection_that_breaks_leaves_a_whole_bundle_that_says_what_is_missing(desk: Desk) -> None:
    desk.fake.manner(ssh="cut")
    done = desk.up(ssh=True)
    assert done.code == 9, done.err
    (kept,) = desk.bundles
    assert (kept.faults, kept.record["verdict"]) == ((), "unknown")
    assert probe(kept, "direct")["status"] == "pass"
    missing = probe(kept, "inside")["found"]
    assert all(f"{name} (" in missing for name in ("server.jsonl", "vllm_process.txt", "weights.lock"))
    assert not kept.files.keys() & {"server.jsonl", "vllm_process.txt", "weights.lock"}
    assert not list(desk.place.glob("a/**/*.part"))
    desk.nothing_is_left()


def test_another_host_key_is_only_believed_by_hand(desk: Desk) -> None:
    desk.fake.manner(ssh="changed")
    done = desk.up("--keep", ssh=True)
    assert done.code == 7, done.err
    assert "ssh-host-key-changed" in done.err
    (pod,) = desk.fake.pods()
    place = ("--suite", "smoke", "--artifacts", str(desk.place / "b"))
    assert desk.run("collect", *place).code == 7
    first = next(word for word in done.err.split() if word.startswith("SHA256:") and word.endswith(","))
    second = done.err.split("and SHA256:")[1].split()[0]
    wrong = desk.run("collect", *place, "--host-key", first.rstrip(","))
    assert (wrong.code, "nothing was sent [ssh-host-key]" in wrong.err) == (7, True)
    good = desk.run("collect", *place, "--host-key", f"SHA256:{second}", pod["id"])
    assert good.code == 0, good.err
    assert desk.run("collect", *place, "--host-key", "nonsense").code == 2
    assert desk.run("collect", "--ssh-key", str(desk.place / "none")).code == 2
    assert desk.run("down").code == 0
    assert desk.run("collect").code == 2
    desk.nothing_is_left()


def test_a_key_of_ones_own_lets_in_and_stays(desk: Desk) -> None:
    own = desk.place / "own"
    own.write_text(ssh.make_key("")[0])
    own.chmod(0o600)
    done = desk.up("--remove", "--ssh-key", str(own), ssh=True)
    assert done.code == 0, done.err
    assert own.exists()
    own.chmod(0o644)
    assert desk.up("--ssh-key", str(own), ssh=True).code == 2
    assert desk.up("--ssh-key", str(own)).code == 2
    desk.nothing_is_left()


def test_the_next_gpu_type_is_asked_for_where_one_is_full(desk: Desk) -> None:
    desk.fake.manner(full=GPUS[:1])
    done = desk.up("--remove", "--json")
    assert done.code == 0, done.err
    assert done.json()["pod"]["gpu_type"] == GPUS[1]
    assert "no instances available" in done.err
    desk.nothing_is_left()


def test_no_capacity_at_all(desk: Desk) -> None:
    desk.fake.manner(full=GPUS)
    done = desk.up()
    assert done.code == 8
    assert "want of capacity or a broken rule" in done.err
    assert asked(desk, "POST") == 2
    desk.nothing_is_left()


@pytest.mark.parametrize(
    ("manner", "needle"),
    [
        ({"running": 1e9}, "the pod is STARTING"),
        ({"serving": 1e9}, "the pod is RUNNING"),
        ({"dies": 0.3, "serving": 1e9}, "it is EXITED"),
        ({"lost": 0.4, "serving": 1e9}, "the pod was lost"),
    ],
)
def test_a_pod_that_never_serves_is_removed_and_leaves_a_bundle(desk: Desk, manner: Any, needle: str) -> None:
    desk.fake.manner(**manner)
    done = desk.up("--timeout", "2s")
    assert done.code == 6, done.err
    assert needle in done.err
    (kept,) = desk.bundles
    assert (kept.faults, kept.record["verdict"]) == ((), "fail")
    if "lost" not in manner:
        assert kept.text("pod.log") == "loading, with [redacted]\n"
    desk.nothing_is_left()


def test_running_is_not_ready(desk: Desk) -> None:
    desk.fake.manner(serving=2.0)
    done = desk.up("--remove", "--json")
    assert done.code == 0, done.err
    assert done.json()["pod"]["ready_seconds"] > 1.0


def test_a_server_that_lies_is_removed_unless_kept(desk: Desk) -> None:
    desk.fake.manner(lie="degenerate")
    assert desk.up().code == 7
    desk.nothing_is_left()
    done = desk.up("--keep")
    assert done.code == 7
    (pod,) = desk.fake.pods()
    assert f"the pod is kept and costs money: `bringup runpod down {pod['id']}`" in done.err
    assert desk.run("down", pod["id"]).code == 0
    desk.nothing_is_left()


def test_the_api_is_down_when_the_pod_should_go(desk: Desk) -> None:
    desk.fake.fault("status", "DELETE", POD, code=503)
    done = desk.up("--remove")
    assert done.code == 8
    (pod,) = desk.fake.pods()
    assert f"`bringup runpod down {pod['id']}`" in done.err
    assert [e["id"] for e in desk.entries.values()] == [pod["id"]]
    assert desk.run("down", "--patience", "1s").code == 8
    desk.fake.mend()
    assert desk.run("down").code == 0
    desk.nothing_is_left()


@pytest.mark.parametrize(
    ("code", "exit_code", "needle"),
    [(401, 2, "RUNPOD_API_KEY"), (402, 8, "add credit"), (422, 2, "--dry-run"), (500, 8, "status page")],
)  # fmt: skip
def test_a_refused_create(desk: Desk, code: int, exit_code: int, needle: str) -> None:
    desk.fake.fault("status", "POST", PODS, code=code)
    done = desk.up()
    assert done.code == exit_code, done.err
    assert needle in done.err
    assert asked(desk, "POST") == 1
    assert desk.fake.pods() == []
    assert bool(desk.entries) == (code == 500)  # nobody knows whether that one made a pod


def test_trouble_on_the_way_is_lived_through(desk: Desk) -> None:
    desk.fake.fault("status", "POST", PODS, 1, code=429, retry_after=0.1)
    desk.fake.fault("status", "GET", POD, 1, code=503)
    desk.fake.fault("garbage", "DELETE", POD, 1)
    desk.fake.fault("drop", "GET", PODS, 1)
    done = desk.up("--remove")
    assert done.code == 0, done.err
    desk.nothing_is_left()


@pytest.mark.parametrize(("kind", "given"), [("done-but-drop", {}), ("done-late", {"seconds": 0.3})])
def test_a_create_without_a_clear_answer_makes_one_pod(desk: Desk, kind: str, given: dict[str, float]) -> None:
    desk.fake.fault(kind, "POST", PODS, 1, **given)
    done = desk.up("--remove")
    assert done.code == 0, done.err
    assert asked(desk, "POST") == 1
    desk.nothing_is_left()


def test_garbage_for_ever_ends_it_and_the_pod(desk: Desk) -> None:
    desk.fake.fault("garbage", "GET", POD)
    done = desk.up()
    assert done.code == 8
    assert "no usable answer" in done.err
    desk.nothing_is_left()


def test_nobody_there(desk: Desk) -> None:
    done = desk.run("ls", "--patience", "1s", BRINGUP_RUNPOD_API=f"http://127.0.0.1:{free_port()}")
    assert done.code == 8
    assert "no usable answer" in done.err


def test_a_wrong_key(desk: Desk) -> None:
    done = desk.run("ls", RUNPOD_API_KEY="rpa_WRONGWRONGWRONG")
    assert done.code == 2
    assert "rpa_WRONG" not in done.out + done.err


def test_a_pod_dearer_than_the_cap_is_given_back(desk: Desk) -> None:
    desk.fake.manner(cost=9.0)
    done = desk.up("--max-price", "1")
    assert done.code == 8
    assert "costs 9.00 USD an hour, the cap is 1.00" in done.err
    desk.nothing_is_left()


def test_a_cap_that_no_list_price_meets_makes_no_pod(desk: Desk) -> None:
    done = desk.up("--max-price", "0.1")
    assert done.code == 8
    assert asked(desk, "POST") == 0
    desk.nothing_is_left()


def test_what_is_due_is_reaped_from_any_machine(desk: Desk) -> None:
    assert desk.up("--live", "0.1s").code == 0
    assert desk.up("--forever").code == 0
    elsewhere = Desk(desk.fake, desk.place / "elsewhere")
    assert [r["overdue"] for r in elsewhere.run("ls", "--json").json()] == [True, False]
    due = elsewhere.run("reap", "--dry-run", "--json").json()["due"]
    assert len(desk.fake.pods()) == 2
    done = elsewhere.run("reap")
    assert done.code == 0, done.err
    (pod,) = desk.fake.pods()
    assert pod["id"] not in due


def test_templates(desk: Desk) -> None:
    shown = ("--image", "registry.example/bringup:gpu", "--name", "t")
    body = desk.run("template", "create", *shown, "--dry-run").json()
    assert asked(desk, "POST") == 0
    assert desk.run("template", "show", "--name", "t").code == 2
    made = desk.run("template", "create", *shown, "--json").json()
    assert desk.run("template", "create", *shown).code == 2
    assert desk.run("template", "update", "--image", "registry.example/bringup:new", "--name", "t").code == 0
    assert desk.run("template", "show", "--name", "t").json() == body | {
        "id": made["id"], "image": "registry.example/bringup:new",
    }  # fmt: skip


def test_the_body_of_an_endpoint_is_printed(desk: Desk) -> None:
    done = desk.run("endpoint", "--image", "x/y:z", "--gpu-pool", "ADA_24")
    assert done.code == 0, done.err
    assert (done.json()["type"], done.json()["gpu"]["pools"]) == ("LOAD_BALANCER", ["ADA_24"])
    assert desk.fake.requests() == []


def test_a_dry_run_asks_nobody_and_shows_no_secret(desk: Desk) -> None:
    done = desk.run("up", "--image", "x/y:z", "--dry-run", RUNPOD_API_KEY="")
    assert done.code == 0, done.err
    assert {b["env"]["VLLM_API_KEY"] for b in done.json()} == {"[redacted]"}
    assert {b["env"]["PUBLIC_KEY"] for b in done.json()} == {"ssh-ed25519 (made for each pod)"}
    assert desk.fake.requests() == []
    assert not desk.state.exists()


def test_interrupted_at_any_moment_no_pod_is_lost() -> None:
    seen = interruptions(SAMPLE)
    assert len(seen) == len(SAMPLE)
    assert [s for s in seen if s.leaked] == []
