"""`bringup lock` as a person runs it, against a hub that speaks the protocol."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bringup import catalog
from bringup.lock import read_lock, render
from tests.hub import HubServer, lock_of, make_repo

ROOT = Path(__file__).resolve().parents[2]
REPO = "org/Some-0.5B"
NAME = "some-0.5b"
TOKEN = "hf_s3cret_of_this_test"
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 24, "torch_dtype": "bfloat16"}
SHARDS = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 100_000 for i in (1, 2)}
INDEX = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
KEPT = SHARDS | {
    "config.json": json.dumps(CONFIG).encode(), "model.safetensors.index.json": INDEX, "tokenizer.json": b'{"a": 1}',
    "merges.txt": b"a b\n", "empty.txt": b"",
}  # fmt: skip
LEFT = {"README.md": b"# model\n", "LICENSE": b"x", "figures/a.png": b"\x89PNG", "pytorch_model.bin": b"\x80\x04"}


TINY = read_lock()["tiny-qwen2"]
BEFORE = render({"tiny-qwen2": TINY})


def argv(hub: HubServer | str, lock: Path, *args: str) -> list[str]:
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    return [sys.executable, "-m", "bringup", "lock", *args, "--hf-endpoint", endpoint, "--lock", str(lock)]


def environment(**more: str) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not re.match(r"HF_|BRINGUP_", k)}
    return own | {"NO_PROXY": "127.0.0.1,localhost"} | more


def run(hub: HubServer | str, lock: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv(hub, lock, *args),
        env=environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert not re.search(r"Traceback|Fatal|a bug in bringup|Warning", done.stderr), done.stderr
    assert [p.name for p in lock.parent.iterdir() if "weights.lock" in p.name] in ([], ["weights.lock"])
    return done


def raw_repo(hub: HubServer, repo: str = REPO) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((hub.root / repo / "repo.json").read_text())
    return raw


def edit(hub: HubServer, path: str, **changes: Any) -> None:
    """Make the hub's list of files say something else, of all commits."""
    raw = raw_repo(hub)
    for entries in raw["commits"].values():
        for entry in entries:
            entry.update(changes if entry["path"] == path else {})
    (hub.root / REPO / "repo.json").write_text(json.dumps(raw))


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock with the one model that needs no hub."""
    (tmp_path / "weights.lock").write_text(BEFORE)
    return tmp_path / "weights.lock"


# ---- pinning


def test_pin_a_model(hub: HubServer, lock: Path) -> None:
    commit = make_repo(hub.root, REPO, KEPT | LEFT)
    hub.page(3)
    done = run(hub, lock, REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{REPO}@{commit}\n"
    assert "left out: LICENSE, README.md, figures/a.png, pytorch_model.bin" in done.stderr
    assert "new: 7 files, " in done.stderr
    models = read_lock(lock)
    model, expected = models.pop(NAME), lock_of(hub.root, REPO, commit, NAME)
    assert {(f.path, f.size, f.sha256) for f in model.files} == {
        (f.path, f.size, f.sha256) for f in expected.files if f.path in KEPT
    }
    assert (model.repo, model.revision, model.source, model.license) == (REPO, commit, "hub", "apache-2.0")
    assert model.config == {"architecture": "Qwen2ForCausalLM", "dtype": "bfloat16", "num_hidden_layers": 24}
    assert models == {"tiny-qwen2": TINY}
    asked = hub.requests()
    assert not [line for line in asked if line["path"].endswith(".safetensors")], "the weights are not fetched"
    assert len([line for line in asked if "/tree/" in line["path"]]) == 4
    first = lock.read_bytes()
    again = run(hub, lock, f"{REPO}@{commit}", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["changes"] == []
    assert "nothing new" in again.stderr
    assert lock.read_bytes() == first


def test_pin_a_model_of_the_catalogue(hub: HubServer, lock: Path) -> None:
    model = catalog.load()["qwen2.5-0.5b-instruct"]
    commit = make_repo(hub.root, model.source, KEPT)
    assert run(hub, lock, f"{model.name}@{commit}").returncode == 0
    entry = read_lock(lock)[model.name]
    assert (entry.repo, entry.revision, entry.license) == (model.source, commit, "Apache-2.0")
    assert re.fullmatch("[0-9a-f]{40}", model.revision)
    done = run(hub, lock, model.name, "--json")  # the catalogue's own commit, which this hub cannot have
    assert (done.returncode, json.loads(done.stdout)["id"]) == (2, "hub-revision-not-found")
    assert model.revision in json.loads(done.stdout)["error"]


def test_pin_a_repository_under_a_name_of_ones_own(hub: HubServer, tmp_path: Path) -> None:
    lock = tmp_path / "weights.lock"  # not there yet
    old = make_repo(hub.root, "org/Some.Model", KEPT)
    make_repo(hub.root, "org/Some.Model", KEPT | {"new.json": b"{}"})
    assert run(hub, lock, "org/Some.Model", "--name", "mine").returncode == 0
    done = run(hub, lock, f"org/Some.Model@{old}", "--json")
    found = json.loads(done.stdout)
    assert (found["name"], found["revision"], found["license"]) == ("some.model", old, "apache-2.0")
    assert read_lock(lock).keys() == {"mine", "some.model"}


def test_a_branch_that_moves(hub: HubServer, lock: Path) -> None:
    old = make_repo(hub.root, REPO, KEPT)
    assert run(hub, lock, REPO).returncode == 0
    changed = {k: v for k, v in KEPT.items() if k != "merges.txt"} | {"tokenizer.json": b'{"a": 22}', "new.json": b"{}"}
    new = make_repo(hub.root, REPO, changed)
    checked = run(hub, lock, "--check", NAME)
    assert checked.returncode == 0
    assert f"matches {REPO}@{old}" in checked.stderr
    assert f"the default branch is at {new} by now" in checked.stderr
    assert read_lock(lock)[NAME].revision == old
    done = run(hub, lock, REPO)
    for line in (f"commit {old} -> {new}", "added: new.json (2 bytes)", "removed: merges.txt",
                 "changed: tokenizer.json (8 -> 9 bytes)"):  # fmt: skip
        assert f"{NAME}: {line}" in done.stderr
    assert read_lock(lock)[NAME].revision == new


def test_a_branch_is_no_pin(hub: HubServer, lock: Path) -> None:
    commit = make_repo(hub.root, REPO, KEPT, refs=("main", "v1", "refs/pr/1"))
    for branch in ("main", "v1", "refs/pr/1", commit[:12]):
        done = run(hub, lock, f"{REPO}@{branch}", "--json")
        error = json.loads(done.stdout)
        assert (done.returncode, error["id"]) == (2, "revision-not-pinned")
        assert (f"bringup lock {REPO}@{commit}" in error["hint"]) is (branch != commit[:12])
    assert lock.read_text() == BEFORE


def test_a_gated_model_with_and_without_its_token(hub: HubServer, lock: Path, tmp_path: Path) -> None:
    make_repo(hub.root, REPO, KEPT, token=TOKEN, gated=True)
    done = run(hub, lock, REPO, "--json")
    assert (done.returncode, json.loads(done.stdout)["id"]) == (2, "hub-gated")
    assert json.loads(run(hub, lock, REPO, "--json", HF_TOKEN=f"{TOKEN}x").stdout)["id"] == "hub-gated"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    done = run(hub, lock, REPO, "--hf-token-file", str(tmp_path / "token"), HF_TOKEN="wrong")
    assert done.returncode == 0, done.stderr
    assert "gated (manual)" in done.stderr
    assert TOKEN not in lock.read_text()
    assert run(hub, lock, "--check", NAME, HF_TOKEN=TOKEN).returncode == 0


# ---- what is refused: nothing of it changes the lock


@pytest.mark.parametrize(
    ("files", "id_"),
    [
        pytest.param({"config.json": b"{}", "pytorch_model.bin": b"x"}, "no-safetensors", id="pickle"),
        pytest.param(KEPT | {"config.json": b'{"auto_map": {"AutoModel": "m.M"}}'}, "needs-remote-code", id="code"),
        pytest.param(SHARDS, "no-config", id="no config"),
        pytest.param(KEPT | {"config.json": b"{"}, "not-json", id="config is no JSON"),
        pytest.param({k: v for k, v in KEPT.items() if "00002.s" not in k}, "shard-missing", id="shard missing"),
        pytest.param(KEPT | {"vocab.json": b"tokenizer.json"}, "not-a-file", id="git symlink"),
        pytest.param(KEPT | {"../../etc/cron.d/x.json": b"{}"}, "unsafe-path", id="dots"),
        pytest.param(KEPT | {"/etc/cron.d/x.json": b"{}"}, "unsafe-path", id="absolute"),
        pytest.param(KEPT | {"a\\b.json": b"{}"}, "unsafe-path", id="backslash"),
        pytest.param(KEPT | {"Config.json": b"{}"}, "unsafe-path", id="case"),
    ],
)
def test_a_repository_that_cannot_be_served(hub: HubServer, lock: Path, files: dict[str, bytes], id_: str) -> None:
    make_repo(hub.root, REPO, files)
    done = run(hub, lock, REPO, "--json")
    error = json.loads(done.stdout)
    assert (done.returncode, error["id"]) == (2, id_)
    assert error["hint"]
    assert lock.read_text() == BEFORE


@pytest.mark.parametrize(
    ("path", "change", "id_", "code"),
    [
        ("tokenizer.json", {"oid": "0" * 40}, "weights-hash", 5),
        ("tokenizer.json", {"size": 7}, "weights-hash", 5),
        ("tokenizer.json", {"size": 10**13}, "file-too-large", 2),
        ("tokenizer.json", {"oid": "xyz"}, "hub-wrong-answer", 8),
    ],
)
def test_a_list_of_files_that_lies(
    hub: HubServer, lock: Path, path: str, change: dict[str, Any], id_: str, code: int
) -> None:
    make_repo(hub.root, REPO, KEPT)
    edit(hub, path, **change)
    done = run(hub, lock, REPO, "--json")
    assert (done.returncode, json.loads(done.stdout)["id"]) == (code, id_)
    assert lock.read_text() == BEFORE


@pytest.mark.parametrize(
    ("kind", "given", "id_", "code"),
    [
        ("status", {"status": 404, "code": "RepoNotFound"}, "hub-repo-not-found", 2),
        ("status", {"status": 401}, "hub-unauthorized", 2),
        ("status", {"status": 429}, "hub-rate-limited", 8),
        ("status", {"status": 503}, "hub-unavailable", 8),
        ("html", {}, "hub-wrong-answer", 8),
        ("drop", {}, "hub-unavailable", 8),
        ("hang", {"seconds": 60}, "hub-unavailable", 8),
    ],
)
@pytest.mark.parametrize("path", ["/api/models/*-0.5B", "/api/models/*/tree/*", "/*/resolve/*"])
def test_a_hub_that_fails(
    hub: HubServer, lock: Path, path: str, kind: str, given: dict[str, Any], id_: str, code: int
) -> None:
    make_repo(hub.root, REPO, KEPT)
    hub.fault(kind, path, **given)
    started = time.monotonic()
    done = run(hub, lock, REPO, "--json", "--stall-timeout", "2")
    if (kind, path) == ("html", "/*/resolve/*"):
        id_, code = "hub-wrong-commit", 5
    assert (done.returncode, json.loads(done.stdout)["id"]) == (code, id_)
    assert time.monotonic() - started < 2 + 2 + 5, "a start of Python beyond the deadline"
    assert lock.read_text() == BEFORE


@pytest.mark.parametrize(
    ("kind", "given", "id_", "code"),
    [
        ("corrupt", {"at": 2}, "weights-hash", 5),
        ("truncate", {"after": 3}, "hub-unavailable", 8),
        ("reset", {"after": 3}, "hub-unavailable", 8),
        ("stall", {"after": 3}, "hub-unavailable", 8),
        ("drip", {"rate": 1}, "hub-unavailable", 8),
        ("commit", {"commit": "f" * 40}, "hub-wrong-commit", 5),
    ],
)
def test_a_small_file_that_does_not_come_right(
    hub: HubServer, lock: Path, kind: str, given: dict[str, Any], id_: str, code: int
) -> None:
    make_repo(hub.root, REPO, KEPT)
    hub.fault(kind, "tokenizer.json", **given)
    done = run(hub, lock, REPO, "--json", "--stall-timeout", "2")
    assert (done.returncode, json.loads(done.stdout)["id"]) == (code, id_), done.stderr
    assert lock.read_text() == BEFORE


def test_small_files_by_way_of_the_cdn(hub: HubServer, lock: Path) -> None:
    make_repo(hub.root, REPO, KEPT, token=TOKEN)
    hub.fault("cdn")
    assert run(hub, lock, REPO, HF_TOKEN=TOKEN).returncode == 0
    from_cdn = [line for line in hub.requests() if line["host"] == "cdn"]
    assert from_cdn
    assert not [line for line in from_cdn if "authorization" in line["headers"]]


def test_there_is_no_hub(lock: Path) -> None:
    done = run("http://127.0.0.1:9", lock, REPO, "--json")
    assert (done.returncode, json.loads(done.stdout)["id"]) == (8, "hub-unavailable")
    assert lock.read_text() == BEFORE


@pytest.mark.parametrize(
    "args", [(), (REPO, REPO), ("nothing",), ("tiny-qwen2",), ("evil/tiny-qwen2",), (REPO, "--name", "A"),
             ("--check", "--name", "a"), ("--check", "nothing")],
)  # fmt: skip
def test_what_cannot_be_meant(lock: Path, args: tuple[str, ...]) -> None:
    assert run("http://127.0.0.1:9", lock, *args).returncode == 2
    assert lock.read_text() == BEFORE


def test_the_name_of_another_repository_is_not_taken_over(hub: HubServer, lock: Path) -> None:
    for repo in ("org/Model", "evil/Model"):
        make_repo(hub.root, repo, KEPT)
    assert run(hub, lock, "org/Model").returncode == 0
    before = lock.read_bytes()
    done = run(hub, lock, "evil/Model", "--json")
    assert (done.returncode, json.loads(done.stdout)["id"]) == (2, "name-taken")
    assert lock.read_bytes() == before


# ---- does the lock still match?


def change(lock: Path, path: str, **changes: Any) -> None:
    raw = json.loads(lock.read_text())
    for file in raw["models"][NAME]["files"]:
        file.update(changes if file["path"] == path else {})
    lock.write_text(json.dumps(raw))


def checked(hub: HubServer, lock: Path, *args: str) -> tuple[int, list[dict[str, Any]]]:
    done = run(hub, lock, "--check", *args, "--json", "--stall-timeout", "2")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.returncode
    return done.returncode, answer["entries"]


def test_every_entry_matches(hub: HubServer, lock: Path) -> None:
    make_repo(hub.root, REPO, KEPT | LEFT)
    assert run(hub, lock, REPO).returncode == 0
    before = lock.read_bytes()
    code, entries = checked(hub, lock)
    assert code == 0
    assert {e["name"]: e["status"] for e in entries} == {NAME: "matches", "tiny-qwen2": "matches"}
    assert [e["name"] for e in checked(hub, lock, REPO)[1]] == [NAME]
    assert lock.read_bytes() == before


@pytest.mark.parametrize("path", sorted(KEPT))
@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"size": 12345}], ids=["sha256", "size"])
def test_a_lock_edited_by_hand(hub: HubServer, lock: Path, path: str, changes: dict[str, Any]) -> None:
    make_repo(hub.root, REPO, KEPT)
    assert run(hub, lock, REPO).returncode == 0
    change(lock, path, **changes)
    code, entries = checked(hub, lock)
    assert code == 5
    [entry] = [e for e in entries if e["name"] == NAME]
    assert (entry["status"], entry["id"]) == ("differs", "lock-differs")
    assert [line.partition(":")[0] for line in entry["differences"]] == [path]


def test_a_local_entry_edited_by_hand(hub: HubServer, lock: Path) -> None:
    raw = json.loads(lock.read_text())
    raw["models"]["tiny-qwen2"]["files"][0]["sha256"] = "0" * 64
    lock.write_text(json.dumps(raw))
    code, [entry] = checked(hub, lock, "tiny-qwen2")
    assert (code, entry["id"]) == (5, "lock-differs")


def test_what_cannot_be_told_is_no_pass(hub: HubServer, lock: Path) -> None:
    make_repo(hub.root, REPO, KEPT)
    assert run(hub, lock, REPO).returncode == 0
    raw = json.loads(lock.read_text())
    raw["models"][NAME]["revision"] = "f" * 40
    lock.write_text(json.dumps(raw))
    code, entries = checked(hub, lock)
    assert code == 2
    assert {e["name"]: e.get("id") for e in entries} == {NAME: "hub-revision-not-found", "tiny-qwen2": None}
    hub.fault("hang", seconds=60)
    code, entries = checked(hub, lock)
    assert code == 8
    assert {e["name"]: e["status"] for e in entries} == {NAME: "unknown", "tiny-qwen2": "matches"}
    # what differs weighs more than what cannot be told
    raw["models"]["tiny-qwen2"]["files"][0]["sha256"] = "0" * 64
    lock.write_text(json.dumps(raw))
    assert checked(hub, lock)[0] == 5


# ---- two at once


def test_pins_at_the_same_time_are_all_there(hub: HubServer, lock: Path) -> None:
    repos = [f"org/model-{i}" for i in range(6)]
    commits = {repo.partition("/")[2]: make_repo(hub.root, repo, KEPT | {"n.json": repo.encode() + b"\n"})
               for repo in repos}  # fmt: skip
    running = [
        subprocess.Popen(argv(hub, lock, repo), env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for repo in repos
    ]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    found = read_lock(lock)
    assert {name: found[name].revision for name in commits} == commits
    assert "tiny-qwen2" in found
    assert [p.name for p in lock.parent.iterdir() if "weights.lock" in p.name] == ["weights.lock"]
