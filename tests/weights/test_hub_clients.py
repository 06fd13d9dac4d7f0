"""The official client downloads from the test hub: it speaks the protocol, and says what the real one says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.hub import HubServer, make_repo, noise

Pythons = Callable[[str, bool], Path]
CLIENTS = ("0.36.2", "2.4.0")
REPO = "org/model"
TOKEN = "hf_of_this_test"
BIG = noise(60 * 2**20)  # hub 0.36 hands files above 50 MiB to hf_transfer
FILES = {
    "config.json": b'{"model_type": "none"}',
    "README.md": b"# A model\n",
    "empty.txt": b"",
    "sub dir/ünïcode.json": b"[]",
    "model-00001-of-00002.safetensors": BIG,
    "model-00002-of-00002.safetensors": BIG[: 3 * 2**20],
}

PROGRAM = """
import json, sys
import huggingface_hub as hub

action, given = sys.argv[1], json.loads(sys.argv[2])
try:
    if action == "verify":
        found = hub.HfApi().verify_repo_checksums(**given)
        answer = {
            "checked": found.checked_count, "mismatches": [m["path"] for m in found.mismatches],
            "missing": sorted(found.missing_paths), "extra": sorted(found.extra_paths),
        }
    else:
        answer = getattr(hub, action)(**given)
except Exception as e:
    answer = {"error": type(e).__name__}
print(json.dumps({"answer": answer, "version": hub.__version__}))
"""


def ask(
    python: Path, endpoint: str, home: Path, action: str, env: Mapping[str, str] | None = None, **given: Any
) -> Any:
    """Call one function of huggingface_hub in an environment of its own."""
    own = {k: v for k, v in os.environ.items() if not re.match(r"(HF|HUGGING_FACE)_", k)}
    own |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost"}
    done = subprocess.run(
        [str(python), "-c", PROGRAM, action, json.dumps(given)],
        capture_output=True, text=True, check=False, timeout=120, env=own | dict(env or {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["answer"]


def tree(directory: Path) -> dict[str, str]:
    """What lies in a directory, but for the client's own notes."""
    files = (p for p in directory.rglob("*") if p.is_file() and ".cache" not in p.relative_to(directory).parts)
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


WANTED = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}


@pytest.mark.parametrize("hf_transfer", [False, True], ids=["plain", "wheel"])
@pytest.mark.parametrize("version", CLIENTS)
def test_snapshot_at_a_pinned_commit(
    hub: HubServer, hub_python: Pythons, tmp_path: Path, version: str, hf_transfer: bool
) -> None:
    commit = make_repo(hub.root, REPO, FILES)
    hub.page(2)  # the tree comes in pages
    out = tmp_path / "out"
    env = {"HF_HUB_ENABLE_HF_TRANSFER": "1"} if hf_transfer else {}
    python = hub_python(version, hf_transfer)
    ask(python, hub.endpoint, tmp_path / "home", "snapshot_download", env, repo_id=REPO, revision=commit,
        local_dir=str(out))  # fmt: skip
    assert tree(out) == WANTED
    ranges = [r for r in hub.requests() if r["method"] == "GET" and r["range"] and r["status"] == 206]
    by_hf_transfer = version == "0.36.2" and hf_transfer  # hub 1.0 removed it
    assert (len(ranges) >= 6) == by_hf_transfer, ranges


@pytest.mark.parametrize("version", CLIENTS)
def test_a_branch_is_resolved_and_one_file_comes(
    hub: HubServer, hub_python: Pythons, tmp_path: Path, version: str
) -> None:
    make_repo(hub.root, REPO, {"config.json": b"old"}, refs=("main", "v1"))
    commit = make_repo(hub.root, REPO, FILES, refs=("main", "refs/pr/1"))
    python = hub_python(version, False)
    for revision, wanted in (("main", FILES["config.json"]), ("v1", b"old"), ("refs/pr/1", FILES["config.json"])):
        path = ask(python, hub.endpoint, tmp_path / "home", "hf_hub_download", repo_id=REPO, filename="config.json",
                   revision=revision)  # fmt: skip
        assert Path(path).read_bytes() == wanted
        assert (commit in path) == (revision != "v1")


@pytest.mark.parametrize("hf_transfer", [False, True], ids=["plain", "wheel"])
@pytest.mark.parametrize("version", CLIENTS)
def test_the_cdn_never_sees_the_token(
    hub: HubServer, hub_python: Pythons, tmp_path: Path, version: str, hf_transfer: bool
) -> None:
    commit = make_repo(hub.root, REPO, FILES, token=TOKEN, gated=True)
    hub.fault("cdn", "*.safetensors")
    env = {"HF_TOKEN": TOKEN} | ({"HF_HUB_ENABLE_HF_TRANSFER": "1"} if hf_transfer else {})
    out = tmp_path / "out"
    ask(hub_python(version, hf_transfer), hub.endpoint, tmp_path / "home", "snapshot_download", env, repo_id=REPO,
        revision=commit, local_dir=str(out))  # fmt: skip
    assert tree(out) == WANTED
    asked = hub.requests()
    cdn = [r for r in asked if r["host"] == "cdn"]
    assert {r["path"].rpartition("/")[2] for r in cdn} == {p for p in FILES if p.endswith(".safetensors")}
    assert not any("authorization" in r["headers"] for r in cdn)
    assert all("authorization" in r["headers"] for r in asked if r["host"] == "hub" and "/resolve/" in r["path"])


@pytest.mark.parametrize("version", CLIENTS)
def test_refusals_are_the_hubs_own(hub: HubServer, hub_python: Pythons, tmp_path: Path, version: str) -> None:
    commit = make_repo(hub.root, REPO, {"config.json": b"{}"})
    make_repo(hub.root, "org/gated", {"config.json": b"{}"}, token=TOKEN, gated=True)
    make_repo(hub.root, "org/private", {"config.json": b"{}"}, token=TOKEN)
    python = hub_python(version, False)
    rows = [
        (REPO, "nowhere.json", commit, "", "EntryNotFoundError"),
        (REPO, "config.json", "f" * 40, "", "RevisionNotFoundError"),
        # without a token the Hub says 401 to both, which the client knows by an address that begins with https
        ("org/nothing", "config.json", "main", "hf_other", "RepositoryNotFoundError"),
        ("org/private", "config.json", "main", "hf_other", "RepositoryNotFoundError"),
        ("org/gated", "config.json", "main", "", "GatedRepoError"),
        ("org/gated", "config.json", "main", "hf_other", "GatedRepoError"),
    ]
    found = [
        ask(python, hub.endpoint, tmp_path / "home", "hf_hub_download", {"HF_TOKEN": token} if token else None,
            repo_id=repo, filename=file, revision=revision)
        for repo, file, revision, token, _ in rows
    ]  # fmt: skip
    said = [f["error"].removeprefix("Remote") for f in found]
    assert said == [error for *_, error in rows]


@pytest.mark.parametrize("version", CLIENTS)
def test_the_client_takes_a_wrong_byte_that_we_do_not(
    hub: HubServer, hub_python: Pythons, tmp_path: Path, version: str
) -> None:
    """Why a lock with hashes is needed: the size is all that the client compares."""
    commit = make_repo(hub.root, REPO, FILES)
    wrong = "model-00002-of-00002.safetensors"
    hub.fault("corrupt", wrong, at=1234567)
    out = tmp_path / "out"
    ask(hub_python(version, False), hub.endpoint, tmp_path / "home", "snapshot_download", repo_id=REPO,
        revision=commit, local_dir=str(out))  # fmt: skip
    found = tree(out)
    assert {path for path in WANTED if found[path] != WANTED[path]} == {wrong}
    assert (out / wrong).stat().st_size == len(FILES[wrong])


def test_hub_2_verifies_checksums_against_the_test_hub(hub: HubServer, hub_python: Pythons, tmp_path: Path) -> None:
    commit = make_repo(hub.root, REPO, FILES)
    python, home, out = hub_python("2.4.0", False), tmp_path / "home", tmp_path / "out"
    ask(python, hub.endpoint, home, "snapshot_download", repo_id=REPO, revision=commit, local_dir=str(out))
    given: dict[str, Any] = {"repo_id": REPO, "revision": commit, "local_dir": str(out)}
    assert ask(python, hub.endpoint, home, "verify", **given) == {
        "checked": len(FILES), "mismatches": [], "missing": [], "extra": [],
    }  # fmt: skip
    with (out / "model-00002-of-00002.safetensors").open("r+b") as f:
        f.seek(1000)
        f.write(bytes([BIG[1000] ^ 1]))
    (out / "config.json").write_bytes(b'{"model_type": "some"}')  # a git blob, of the same size
    (out / "README.md").unlink()
    (out / "extra.json").write_text("{}")
    found = ask(python, hub.endpoint, home, "verify", **given)
    assert sorted(found["mismatches"]) == ["config.json", "model-00002-of-00002.safetensors"]
    assert (found["missing"], found["extra"]) == (["README.md"], ["extra.json"])
