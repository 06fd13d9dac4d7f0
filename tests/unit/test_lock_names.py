"""What `bringup lock MODEL` means: a name of the catalogue, or a repository of the Hub."""

from __future__ import annotations

import re

import pytest

from bringup import catalog
from bringup.commands.lock import Target, find
from bringup.errors import Exit, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "name", "repo", "entry"),
    [
        ("qwen2.5-1.5b-instruct", None, "Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b-instruct"),
        ("Qwen/Qwen2.5-1.5B-Instruct", None, "Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b-instruct"),
        ("qwen/qwen2.5-1.5b-instruct", None, "Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b-instruct"),
        ("some/Model_7B.v2", None, "some/Model_7B.v2", "model_7b.v2"),
        ("some/Model", "mine", "some/Model", "mine"),
    ],
)
def test_what_is_meant(text: str, name: str | None, repo: str, entry: str) -> None:
    for revision in (COMMIT, "main", "refs/pr/1"):
        found = find(f"{text}@{revision}", name)
        assert (found.name, found.repo, found.revision) == (entry, repo, revision)


def test_the_commit_of_the_catalogue_unless_told_otherwise() -> None:
    model = catalog.load()["qwen2.5-1.5b-instruct"]
    assert re.fullmatch("[0-9a-f]{40}", model.revision)
    assert find(model.name, None).revision == model.revision
    assert find(model.source, None).revision == model.revision
    assert find("some/model", None).revision == ""


def test_the_licence_of_the_catalogue_is_known() -> None:
    assert find("qwen2.5-0.5b-instruct", None).license == "Apache-2.0"
    assert find("some/model", None) == Target("model", "some/model", "", "")


@pytest.mark.parametrize(
    ("text", "name", "id_"),
    [
        ("nothing", None, "no-such-model"), ("", None, "no-such-model"), ("@main", None, "no-such-model"),
        ("a/b/c", None, "no-such-model"), ("../b", None, "no-such-model"), ("a/..", None, "no-such-model"),
        ("a/b?x=1", None, "no-such-model"), ("https://huggingface.co/a/b", None, "no-such-model"),
        ("tiny-qwen2", None, "model-is-local"), ("models/tiny-qwen2", None, "model-is-local"),
        ("evil/tiny-qwen2", None, "name-taken"), ("evil/x", "qwen2.5-1.5b-instruct", "name-taken"),
        ("org/m", "Upper", "no-such-name"), ("org/m", "../x", "no-such-name"), ("org/m", "-x", "no-such-name"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(text: str, name: str | None, id_: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(text, name)
    assert (caught.value.id, caught.value.exit_code) == (id_, Exit.USAGE)
    assert caught.value.hint
