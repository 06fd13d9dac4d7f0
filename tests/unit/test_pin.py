"""What is taken from a repository and what is refused, against a hub that is made up; nothing of it is believed."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from bringup.errors import BringupError, Exit, TargetUnavailable, UsageError, WeightsDiffer
from bringup.lock import LockedFile, LockedModel, read_lock, write_lock
from bringup.weights import remote
from bringup.weights.pin import INDEX, changes, compare, compare_here, pin, sizes, with_known_hashes
from bringup.weights.remote import Entry, Repository, git_sha1, is_link, within

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "torch_dtype": "bfloat16",
    "rope_theta": 1e6, "sliding_window": None,
}  # fmt: skip
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": bytes(range(256)) * 8,
    "tokenizer.json": b'{"a": 1}',
    "merges.txt": b"a b\nc d\n",
    "README.md": b"# a model\n",
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def row(path: str, data: bytes, *, lfs: bool | None = None) -> dict[str, Any]:
    """An entry of the tree, as the Hub's API gives it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    if path.endswith(".safetensors") if lfs is None else lfs:
        entry |= {"oid": git_sha1(b"pointer"), "lfs": {"oid": sha(data), "size": len(data), "pointerSize": 134}}
    return entry


class FakeHub:
    """A hub of one repository; `answers` replaces what is under a URL, `pages` the tree."""

    endpoint = "https://hub.example"

    def __init__(self, files: Mapping[str, bytes], **about: Any) -> None:
        self.files = files
        self.about: dict[str, Any] = {"id": "org/m", "sha": COMMIT, "gated": False} | about
        self.pages: list[Any] = [[row(path, data) for path, data in files.items()]]
        self.headers: dict[str, str] = {"X-Repo-Commit": COMMIT}
        self.tree_headers: dict[str, str] = {}
        self.next = "/api/models/org/m/tree/x?page={}"
        self.asked: list[str] = []

    def get(self, url: str, *, stream: bool) -> requests.Response:
        assert stream, "an answer without end must not be read whole"
        self.asked.append(url)
        path = url.removeprefix(self.endpoint)
        if "/resolve/" in path:
            return answer(self.files[path.partition(f"/resolve/{COMMIT}/")[2]], self.headers)
        if "/tree/" in path:
            number = int(path.partition("page=")[2] or 0)
            more = {"Link": f'<{self.next.format(number + 1)}>; rel="next"'} if number + 1 < len(self.pages) else {}
            page = self.pages[number]
            return answer(page if isinstance(page, bytes) else json.dumps(page).encode(), self.tree_headers | more)
        return answer(json.dumps(self.about).encode(), {})


def answer(body: bytes, headers: Mapping[str, str]) -> requests.Response:
    made = requests.Response()
    made.status_code, made.raw = 200, io.BytesIO(body)
    made.headers.update(headers)
    return made


def repository(hub: FakeHub, patience: float = 20.0) -> Repository:
    return Repository(hub, "org/m", patience)  # type: ignore[arg-type]


def pinned(files: Mapping[str, bytes], **about: Any) -> LockedModel:
    return pin(repository(FakeHub(files, **about)), COMMIT, "m", "MIT").model


def refused(hub: FakeHub | Mapping[str, bytes]) -> BringupError:
    with pytest.raises(BringupError) as caught:
        pin(repository(hub if isinstance(hub, FakeHub) else FakeHub(hub)), COMMIT, "m", "MIT")
    assert caught.value.hint, "a refusal says what to do"
    return caught.value


# ---- what is taken


def test_the_files_of_a_model_with_sizes_and_hashes(tmp_path: Path) -> None:
    hub = FakeHub(FILES)
    found = pin(repository(hub), COMMIT, "m", "MIT")
    assert {f.path: (f.size, f.sha256) for f in found.model.files} == {
        path: (len(data), sha(data)) for path, data in FILES.items() if path != "README.md"
    }
    assert found.left_out == ("README.md",)
    assert not [url for url in hub.asked if url.endswith(".safetensors")], "large files are not fetched"
    assert (found.model.repo, found.model.revision, found.model.source) == ("org/m", COMMIT, "hub")
    write_lock({"m": found.model}, tmp_path / "weights.lock")
    assert read_lock(tmp_path / "weights.lock")["m"].digest == found.model.digest
    assert read_lock(tmp_path / "weights.lock")["m"].config == found.model.config


def test_the_config_is_what_memory_is_computed_from() -> None:
    assert pinned(FILES).config == {
        "architecture": "Qwen2ForCausalLM", "dtype": "bfloat16", "hidden_size": 64, "num_hidden_layers": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"dtype": "float16", "tie_word_embeddings": True}, {"dtype": "float16", "tie_word_embeddings": True}),
        ({"text_config": {"hidden_size": 5, "dtype": "float32"}}, {"dtype": "float32", "hidden_size": 5}),
        ({"text_config": {"hidden_size": 5}, "hidden_size": 7}, {"hidden_size": 7}),
        ({"architectures": [], "hidden_size": None, "head_dim": [1], "vocab_size": {}}, {}),
        ({"architectures": "x", "vocab_size": float("nan"), "text_config": 3}, {}),
    ],
)
def test_odd_configs(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sizes(config) == expected


def test_the_index_names_the_shards() -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 50 for i in (1, 2)}
    index = {"metadata": {}, "weight_map": {f"layer.{i}": name for i, name in enumerate(shards)}}
    files = FILES | shards | {INDEX: json.dumps(index).encode(), "model.fp32.safetensors": b"x"}
    found = pin(repository(FakeHub(files)), COMMIT, "m", "MIT")
    assert {f.path for f in found.model.files} == {"config.json", "merges.txt", "tokenizer.json", INDEX, *shards}
    assert found.left_out == ("README.md", "model.fp32.safetensors", "model.safetensors")


def test_all_safetensors_where_nothing_names_them() -> None:
    files = {k: v for k, v in FILES.items() if k != "model.safetensors"} | {
        "a.safetensors": b"a",
        "b.safetensors": b"b",
    }
    assert {"a.safetensors", "b.safetensors"} <= {f.path for f in pinned(files).files}


def test_what_is_left_out() -> None:
    more = (
        "LICENSE.txt", "Notice.txt", "requirements.txt", "logo.png", "m.gguf", "onnx/model.onnx", "sub/config.json",
        "pytorch_model.bin", "pytorch_model.bin.index.json", "modeling.py", ".gitattributes", "x.safetensors",
    )  # fmt: skip
    found = pin(repository(FakeHub(FILES | dict.fromkeys(more, b"{}"))), COMMIT, "m", "MIT")
    assert set(found.left_out) == {"README.md", *more}


def test_a_small_file_in_lfs_is_pinned_by_its_sha256_and_config_is_checked_by_it() -> None:
    hub = FakeHub(FILES)
    hub.pages = [[row(path, data, lfs=True) for path, data in FILES.items()]]
    model = pin(repository(hub), COMMIT, "m", "MIT").model
    assert {f.sha256 for f in model.files} == {sha(d) for p, d in FILES.items() if p != "README.md"}
    assert model.config["hidden_size"] == 64
    hub.files = FILES | {"config.json": FILES["config.json"].replace(b"64", b"65")}
    assert refused(hub).id == "weights-hash"


def test_pages_are_followed() -> None:
    hub = FakeHub(FILES)
    hub.pages = [[row(path, data)] for path, data in FILES.items()]
    assert pin(repository(hub), COMMIT, "m", "MIT").model == pinned(FILES)
    assert len([u for u in hub.asked if "/tree/" in u]) == len(FILES)


# ---- what is refused


def without(*paths: str) -> dict[str, bytes]:
    return {path: data for path, data in FILES.items() if path not in paths}


@pytest.mark.parametrize(
    ("files", "id_", "said"),
    [
        pytest.param(without("model.safetensors") | {"pytorch_model.bin": b"x"}, "no-safetensors", "pickles", id="bin"),
        pytest.param(without("model.safetensors") | {"sub/m.ckpt": b"x"}, "no-safetensors", "sub/m.ckpt", id="ckpt"),
        pytest.param(without("model.safetensors") | {"m.gguf": b"x"}, "no-safetensors", "no weights", id="gguf"),
        pytest.param(without("model.safetensors") | {"s/model.safetensors": b""}, "no-safetensors", "root", id="below"),
        pytest.param(without("config.json"), "no-config", "config.json", id="no config"),
        pytest.param({}, "no-config", "config.json", id="empty"),
        pytest.param(FILES | {"config.json": b'{"auto_map": {"AutoModel": "modeling.M"}}'}, "needs-remote-code",
                     "trust_remote_code", id="remote code"),
        pytest.param(FILES | {"config.json": b"[1]"}, "not-json", "config.json", id="list"),
        pytest.param(FILES | {"config.json": b"x"}, "not-json", "config.json", id="no json"),
        pytest.param(FILES | {"config.json": b"[" * 100_000}, "not-json", "config.json", id="deep json"),
        pytest.param(FILES | {INDEX: b'{"weight_map": {"a": "gone.safetensors"}}'}, "shard-missing", "gone", id="gone"),
        pytest.param(FILES | {INDEX: b'{"weight_map": {"a": "../x.safetensors"}}'}, "shard-missing", "..", id="above"),
        pytest.param(FILES | {INDEX: b'{"weight_map": {"a": 5}}'}, "shard-missing", "5", id="shard is a number"),
        pytest.param(FILES | {INDEX: b'{"weight_map": {}}'}, "shard-missing", "no shards", id="empty index"),
        pytest.param(FILES | {"tokenizer.json": b"merges.txt"}, "not-a-file", "symbolic link", id="link"),
        pytest.param(FILES | {"tokenizer.json": b"../../etc/passwd"}, "not-a-file", "symbolic link", id="link out"),
        pytest.param(FILES | {"config.json": b"/etc/passwd"}, "not-a-file", "symbolic link", id="absolute link"),
        pytest.param(FILES | {"Tokenizer.json": b"{}"}, "unsafe-path", "case", id="case"),
    ],
)  # fmt: skip
def test_a_repository_that_cannot_be_served(files: dict[str, bytes], id_: str, said: str) -> None:
    e = refused(files)
    assert (type(e), e.id, e.exit_code) == (UsageError, id_, Exit.USAGE)
    assert said in e.message


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x.json", "a/../../x.json", "a\\b.json", "..", ".", "", "a//b.json", "./a.json", "a/",
     "a\nb.json", "a\x1b[2Jb.json", "a\0.json"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "directory", "other"])
def test_a_path_that_is_none(path: str, kind: str) -> None:
    hub = FakeHub(FILES)
    hub.pages[0].append(row(path, b"{}") | {"type": kind})
    e = refused(hub)
    assert (e.id, e.exit_code) == ("unsafe-path", Exit.USAGE)
    assert e.message.isprintable()


@pytest.mark.parametrize("change", [{"type": "symlink"}, {"type": "submodule"}, {"mode": "120000"}], ids=str)
def test_what_is_no_file(change: dict[str, str]) -> None:
    hub = FakeHub(FILES)
    hub.pages[0].append(row("x.json", b"{}") | change)
    e = refused(hub)
    assert (e.id, e.exit_code) == ("not-a-file", Exit.USAGE)


def test_one_path_twice() -> None:
    hub = FakeHub(FILES)
    hub.pages = [[row(p, d) for p, d in FILES.items()], [row("sub/x.json", b"1")], [row("sub/x.json", b"2")]]
    assert refused(hub).id == "unsafe-path"


def test_case_matters_below_the_root() -> None:
    assert pinned(FILES | {"docs/A.png": b"", "docs/a.png": b""}) == pinned(FILES)


@pytest.mark.parametrize(
    "entry",
    [5, None, [], {}, {"path": 5, "type": "file"}, {"path": "x.json"}, row("x.json", b"") | {"size": -1},
     row("x.json", b"") | {"size": True}, row("x.json", b"") | {"size": "3"}, row("x.json", b"") | {"oid": "abc"},
     row("x.json", b"") | {"oid": None}, row("x.json", b"") | {"lfs": {}}, row("x.json", b"") | {"lfs": {"size": 1}},
     row("x.json", b"", lfs=True) | {"lfs": {"size": 1, "oid": "z" * 64}}],
    ids=str,
)  # fmt: skip
def test_an_entry_that_a_hub_would_not_give(entry: Any) -> None:
    hub = FakeHub(FILES)
    hub.pages[0].append(entry)
    e = refused(hub)
    assert (type(e), e.id) == (TargetUnavailable, "hub-wrong-answer")


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"{}", b'"x"', b"[" * 100_000, b"\xff\xfe[", b"[1" + b"1" * 5000 + b"]"]
)
def test_a_tree_that_is_none(page: bytes) -> None:
    hub = FakeHub(FILES)
    hub.pages = [page]
    e = refused(hub)
    assert (e.id, e.exit_code) == ("hub-wrong-answer", Exit.TARGET_UNAVAILABLE)


@pytest.mark.parametrize("following", ["https://evil.example/x", "//evil.example/x", "http://hub.example/x"])
def test_a_next_page_elsewhere(following: str) -> None:
    hub = FakeHub(FILES)
    hub.pages *= 2
    hub.next = following
    assert refused(hub).id == "hub-wrong-answer"
    assert len(hub.asked) == 1


def test_pages_without_end() -> None:
    hub = FakeHub({})
    hub.pages = [[]] * (remote.PAGES + 1)
    assert refused(hub).id == "tree-too-large"
    assert len(hub.asked) == remote.PAGES


def test_files_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ENTRIES", 3)
    assert refused(FILES).id == "tree-too-large"


def test_an_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGEST", 1000)
    hub = FakeHub(FILES)
    hub.pages = [b"[" + b" " * 1000 + b"]"]
    e = refused(hub)
    assert e.id == "hub-wrong-answer"
    assert "more than 1000 bytes" in e.message


def test_no_more_is_read_than_is_wanted() -> None:
    read: list[int] = []

    class Endless(FakeHub):
        def get(self, url: str, *, stream: bool) -> requests.Response:
            made = super().get(url, stream=stream)
            if url.endswith("tokenizer.json"):
                made.iter_content = lambda size: (read.append(size) or b" " * size for _ in range(100))  # type: ignore
            return made

    assert refused(Endless(FILES)).id == "weights-size"
    assert len(read) == 1


# ---- small files that are not what the list says


def test_a_large_file_outside_lfs_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(FILES)
    hub.pages[0][2]["size"] = 10**12
    e = refused(hub)
    assert (e.id, e.exit_code) == ("file-too-large", Exit.USAGE)
    assert not [u for u in hub.asked if "tokenizer.json" in u]


@pytest.mark.parametrize(
    ("data", "id_"),
    [(b'{"a": 2}', "weights-hash"), (b'{"a": 1', "weights-size"), (b"", "weights-size"),
     (b'{"a": 1}' * 10**5, "weights-size")],
    ids=["other", "shorter", "empty", "longer"],
)  # fmt: skip
def test_a_small_file_that_is_another(data: bytes, id_: str) -> None:
    hub = FakeHub(FILES)
    hub.files = FILES | {"tokenizer.json": data}
    e = refused(hub)
    assert (type(e), e.id, e.exit_code) == (WeightsDiffer, id_, Exit.WEIGHTS_DIFFER)
    assert "tokenizer.json" in e.message


@pytest.mark.parametrize("headers", [{}, {"X-Repo-Commit": OTHER}, {"X-Repo-Commit": "main"}], ids=str)
def test_a_small_file_of_another_commit(headers: dict[str, str]) -> None:
    hub = FakeHub(FILES)
    hub.headers = headers
    e = refused(hub)
    assert (e.id, e.exit_code) == ("hub-wrong-commit", Exit.WEIGHTS_DIFFER)


# ---- commits and cards


def test_the_default_branch_and_its_card() -> None:
    about = repository(FakeHub({}, cardData={"license": "mit"}, gated="manual")).about()
    assert (about.commit, about.license, about.gated) == (COMMIT, "mit", "manual")


@pytest.mark.parametrize("said", [[], "text", 5, None])
def test_an_answer_about_nothing(said: Any) -> None:
    hub = FakeHub({})
    hub.about = said
    with pytest.raises(TargetUnavailable) as caught:
        repository(hub).about()
    assert caught.value.id == "hub-wrong-answer"


def test_a_tree_of_another_commit() -> None:
    hub = FakeHub(FILES)
    hub.tree_headers = {"X-Repo-Commit": OTHER}
    assert refused(hub).id == "hub-wrong-commit"


def test_a_branch_is_quoted() -> None:
    hub = FakeHub({})
    repository(hub).about("refs/pr/1 ?")
    assert hub.asked == ["https://hub.example/api/models/org/m/revision/refs%2Fpr%2F1%20%3F"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ""), ({"cardData": None, "tags": None}, ""), ({"cardData": {"license": 5}, "tags": [5, "x"]}, ""),
        ({"tags": ["pytorch", "license:gemma"]}, "gemma"), ({"cardData": {"license": ["mit", "x"]}}, "mit"),
        ({"cardData": {"license": "other", "license_name": "tongyi"}}, "tongyi"),
        ({"cardData": {"license": "other"}}, "other"), ({"cardData": {"license": "a\x1b[2J"}}, ""),
        ({"cardData": {"license": "x" * 10**6}, "tags": ["license:mit"]}, "mit"),
    ],
)  # fmt: skip
def test_the_licence(said: dict[str, Any], expected: str) -> None:
    assert repository(FakeHub({}, **said)).about().license == expected


@pytest.mark.parametrize("said", [{"sha": "main"}, {"sha": None}, {"sha": 5}, {"id": None}], ids=str)
def test_an_answer_without_a_commit(said: dict[str, Any]) -> None:
    with pytest.raises(TargetUnavailable) as caught:
        repository(FakeHub({}, **said)).about()
    assert caught.value.id == "hub-wrong-answer"


def test_another_commit_than_was_asked_for() -> None:
    with pytest.raises(WeightsDiffer) as caught:
        repository(FakeHub({})).about(OTHER)
    assert caught.value.id == "hub-wrong-commit"


def test_a_repository_with_a_new_name_is_not_pinned_under_the_old_one() -> None:
    with pytest.raises(UsageError, match="new/m") as caught:
        repository(FakeHub({}, id="new/m")).about()
    assert caught.value.id == "repo-renamed"


def test_an_answer_that_never_ends_is_given_up() -> None:
    release = threading.Event()

    def forever() -> None:
        release.wait(20)

    with pytest.raises(TargetUnavailable, match=r"0\.05 s") as caught:
        within(0.05, "https://hub.example/x", forever)
    release.set()
    assert caught.value.id == "hub-unavailable"


def test_what_went_wrong_in_time_comes_through() -> None:
    def fail() -> None:
        raise UsageError("of the task")

    with pytest.raises(UsageError, match="of the task"):
        within(20, "x", fail)


def test_a_broken_answer_is_unavailable() -> None:
    class Broken(FakeHub):
        def get(self, url: str, *, stream: bool) -> requests.Response:  # noqa: ARG002
            made = answer(b"", {})

            def pieces(size: int) -> Any:
                raise requests.exceptions.ChunkedEncodingError("broke off")

            made.iter_content = pieces  # type: ignore[method-assign, assignment]
            return made

    with pytest.raises(TargetUnavailable, match="broke off") as caught:
        repository(Broken({})).about()
    assert caught.value.id == "hub-unavailable"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"b.json", True), (b"./b.json", True), (b"../x", True), (b"/x", True), (b"c.json", False), (b"b.json\n", False),
     (b"", False), (b"{}", False), (b"\xff", False), (b"b" * 5000, False)],
)  # fmt: skip
def test_is_link(content: bytes, expected: bool) -> None:
    assert is_link(content, "a.json", frozenset({"a.json", "b.json"})) is expected


def test_git_sha1_is_gits_own() -> None:
    assert git_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git hash-object /dev/null
    assert Entry("x", 0, sha1=git_sha1(b"")).sha256 == ""


# ---- what changed


def test_a_new_entry_and_the_same_again() -> None:
    model = pinned(FILES)
    assert changes(None, model) == [f"new: 4 files, {model.size} bytes"]
    assert changes(model, pinned(FILES)) == []


def test_every_change_is_named() -> None:
    old = pinned(FILES)
    config = FILES["config.json"].replace(b"64", b"128")
    new = pin(repository(FakeHub(without("merges.txt") | {"config.json": config, "new.json": b"{}"})), COMMIT, "m", "X")
    assert changes(old, new.model) == [
        "license MIT -> X",
        "config: architecture=Qwen2ForCausalLM, dtype=bfloat16, hidden_size=128, num_hidden_layers=2",
        "added: new.json (2 bytes)", "removed: merges.txt",
        f"changed: config.json ({len(FILES['config.json'])} -> {len(config)} bytes)",
    ]  # fmt: skip


def test_a_known_blake3_stays_with_its_bytes() -> None:
    model = pinned(FILES)
    files = tuple(LockedFile(f.path, f.size, f.sha256, "b" * 64) for f in model.files)
    old = LockedModel("m", "hub", "MIT", files, "org/m", OTHER)
    assert with_known_hashes(model, None) == model
    assert {f.blake3 for f in with_known_hashes(model, old).files} == {"b" * 64}
    other = pinned(FILES | {"tokenizer.json": b'{"a": 2}'})
    assert {f.path: f.blake3 for f in with_known_hashes(other, old).files if not f.blake3} == {"tokenizer.json": ""}


# ---- does the lock still match?


def edited(model: LockedModel, path: str, **changed: Any) -> LockedModel:
    files = tuple(LockedFile(**(vars(f) | (changed if f.path == path else {}))) for f in model.files)
    return LockedModel(**(vars(model) | {"files": files}))


def test_a_lock_that_matches() -> None:
    assert compare(pinned(FILES), repository(FakeHub(FILES))) == []


@pytest.mark.parametrize("path", [p for p in FILES if p != "README.md"])
def test_a_lock_edited_by_hand(path: str) -> None:
    model = pinned(FILES)
    [hashed] = compare(edited(model, path, sha256="0" * 64), repository(FakeHub(FILES)))
    assert hashed.startswith(f"{path}: sha256 {'0' * 64} in the lock, {sha(FILES[path])} on the Hub")
    [sized] = compare(edited(model, path, size=3), repository(FakeHub(FILES)))
    assert sized == f"{path}: 3 bytes in the lock, {len(FILES[path])} on the Hub"


def test_a_lock_with_more_or_less_than_the_commit() -> None:
    model = pinned(FILES | {"more.json": b"{}"})
    assert compare(model, repository(FakeHub(FILES))) == ["more.json: the commit has no such file"]
    less = LockedModel(**(vars(model) | {"files": model.files[1:]}))
    assert compare(less, repository(FakeHub(FILES | {"more.json": b"{}"}))) == [
        f"{model.files[0].path}: the model needs it, the lock has not"
    ]


def test_a_lock_whose_config_was_edited() -> None:
    model = LockedModel(**(vars(pinned(FILES)) | {"config": {"hidden_size": 1}}))
    [line] = compare(model, repository(FakeHub(FILES)))
    assert line.startswith("config: hidden_size=1 in the lock, architecture=Qwen2ForCausalLM")


def test_a_hub_that_contradicts_itself() -> None:
    hub = FakeHub(FILES)
    hub.files = FILES | {"merges.txt": b"a b\nc e\n"}
    with pytest.raises(WeightsDiffer) as caught:
        compare(pinned(FILES), repository(hub))
    assert caught.value.id == "weights-hash"


def test_a_model_of_this_repository(tmp_path: Path) -> None:
    model = pinned(FILES)
    for path, data in FILES.items():
        (tmp_path / path).write_bytes(data)
    assert compare_here(model, tmp_path) == []
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer.json").write_bytes(b'{"a": 2}')
    (tmp_path / "merges.txt").write_bytes(b"")
    (tmp_path / "model.safetensors").rename(tmp_path / "real")
    (tmp_path / "model.safetensors").symlink_to("real")
    assert sorted(line.partition(":")[0] for line in compare_here(model, tmp_path)) == [
        "config.json", "merges.txt", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
