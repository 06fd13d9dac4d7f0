"""The list of what we own: private, whole at any moment, and what it leads to."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import UsageError
from bringup.key import runpod_key
from bringup.runpod import life
from bringup.runpod.bodies import EXPIRES
from bringup.runpod.state import Owned, State, default_directory

OWNED = Owned(name="bringup-a", created=1000.0, expires=2000.0, key_file="/k", made_key=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_entries_come_back_and_nobody_else_can_read_them(tmp_path: Path) -> None:
    state = State(tmp_path / "new")
    assert state.all() == []
    state.put(OWNED)
    state.put(replace(OWNED, name="bringup-b", created=1.0))
    state.put(replace(OWNED, id="p1", url="u"))
    assert [(o.name, o.id) for o in state.all()] == [("bringup-b", None), ("bringup-a", "p1")]
    assert (mode(state.file), mode(state.directory)) == (0o600, 0o700)
    assert not list(state.directory.glob("*.part"))


def test_a_key_that_was_made_goes_with_its_pod_and_a_given_one_stays(tmp_path: Path) -> None:
    state = State(tmp_path)
    made, given = state.keep_key("bringup-a", "secret"), tmp_path / "mine"
    assert (mode(made), made.read_text()) == (0o600, "secret\n")
    given.write_text("k")
    for owned in (
        replace(OWNED, key_file=str(made), made_key=True),
        replace(OWNED, name="bringup-b", key_file=str(given)),
    ):
        state.put(owned)
        state.drop(owned)
    assert (made.exists(), given.exists(), state.all()) == (False, True, [])
    state.drop(OWNED)  # twice is no error


def test_an_ssh_key_goes_with_its_pod_if_it_was_made_for_it(tmp_path: Path) -> None:
    state = State(tmp_path)
    made, given = state.keep_key("bringup-a", "private\n", "ssh"), tmp_path / "mine"
    assert (mode(made), made.read_text(), made.name) == (0o600, "private\n", "bringup-a.ssh")
    given.write_text("k")
    for owned in (
        replace(OWNED, ssh_key=str(made), made_ssh_key=True, ssh_user="root", host_key="ssh-ed25519 A"),
        replace(OWNED, name="bringup-b", ssh_key=str(given)),
    ):
        state.put(owned)
        assert state.all() == [owned]
        state.drop(owned)
    assert (made.exists(), given.exists()) == (False, True)


def test_a_list_from_before_ssh_can_be_read(tmp_path: Path) -> None:
    state = State(tmp_path)
    old = {
        "name": "bringup-a",
        "created": 1.0,
        "expires": None,
        "key_file": "/k",
        "made_key": True,
        "id": "p",
        "url": "u",
    }
    state.file.write_text(json.dumps({"bringup-a": old}))
    assert [(o.id, o.ssh_key, o.host_key) for o in state.all()] == [("p", None, None)]


@pytest.mark.parametrize("text", ["rubbish", '{"a": {"name": "a"}}', "[]"])
def test_a_list_that_cannot_be_used_is_told(tmp_path: Path, text: str) -> None:
    state = State(tmp_path)
    state.file.write_text(text)
    with pytest.raises(UsageError, match="cannot be used"):
        state.put(OWNED)
    assert state.file.read_text() == text


def test_where_it_lies() -> None:
    assert default_directory({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/bringup/runpod")
    assert default_directory({"HOME": "/h"}) == Path("/h/.local/state/bringup/runpod")


def test_the_command_names_the_id_if_there_is_one() -> None:
    assert OWNED.remove == "bringup runpod down bringup-a"
    assert replace(OWNED, id="p1").remove == "bringup runpod down p1"


class Listed:
    """An account that has these pods."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self._pods = list(pods)

    def pods(self) -> list[dict[str, Any]]:
        return self._pods


def pod(name: str, expires: str | None, **more: Any) -> dict[str, Any]:
    env = {} if expires is None else {EXPIRES: expires}
    return {"id": f"id-{name}", "name": name, "status": "RUNNING", "env": env} | more


def test_ours_are_those_of_the_list_and_those_that_carry_the_mark(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.put(OWNED)
    state.put(replace(OWNED, name="bringup-gone", id="p9"))
    account: Any = Listed(
        pod("bringup-a", "never"), pod("bringup-far", "never"), pod("bringup-old", "2001-01-01T00:00:00+00:00"),
        pod("bringup-unmarked", None), pod("mine", "never"), pod("bringup-dead", "never", status="TERMINATED"),
    )  # fmt: skip
    found = {o.name: (o.id, o.expires, bool(p)) for o, p in life.ours(account, state)}
    assert found == {
        "bringup-a": (None, 2000.0, True),
        "bringup-gone": ("p9", 2000.0, False),
        "bringup-far": ("id-bringup-far", None, True),
        "bringup-old": ("id-bringup-old", 978307200.0, True),
    }


def test_what_is_due_and_what_is_forgotten() -> None:
    there: dict[str, Any] = {"id": "x"}
    named = replace(OWNED, id="p1")
    now = 1500.0
    cases: list[tuple[Owned, dict[str, Any] | None]] = [
        (replace(named, name="alive"), there),
        (replace(named, name="over", expires=now), there),
        (replace(named, name="forever", expires=None), there),
        (replace(OWNED, name="starting", created=now - life.STALE + 1), there),
        (replace(OWNED, name="left behind", created=now - life.STALE - 1), there),
        (replace(OWNED, name="just asked for", created=now), None),
        (replace(OWNED, name="never came", created=now - life.STALE - 1), None),
    ]
    over, forgotten = life.due(cases, now)
    assert [o.name for o in over] == ["over", "left behind"]
    assert [o.name for o in forgotten] == ["never came"]


def test_which_are_meant() -> None:
    a, b = replace(OWNED, id="p1"), replace(OWNED, name="bringup-b")
    assert life.chosen([(a, None)], (), every=False) == [a]
    assert life.chosen([(a, None), (b, None)], ("bringup-b", "p1"), every=False) == [b, a]
    assert life.chosen([(a, None), (b, None)], (), every=True) == [a, b]
    assert life.chosen([], (), every=False) == []
    assert life.chosen([(b, {"id": "p2"})], ("p2",), every=False) == [b]  # an id that `ls` shows and we never learned
    with pytest.raises(UsageError, match="owns 2 pods"):
        life.chosen([(a, None), (b, None)], (), every=False)
    with pytest.raises(UsageError, match="owns no pod p7"):
        life.chosen([(a, None)], ("p7",), every=False)


def test_the_key_comes_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("rpa_file\n")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="others can read"):
        runpod_key(file, {})
    file.chmod(0o600)
    assert runpod_key(file, {"RUNPOD_API_KEY": "rpa_env"}) == "rpa_file"
    assert runpod_key(None, {"RUNPOD_API_KEY": "rpa_env"}) == "rpa_env"
    with pytest.raises(UsageError, match="no key"):
        runpod_key(None, {})
    with pytest.raises(UsageError, match="one word") as e:
        runpod_key(None, {"RUNPOD_API_KEY": "two words"})
    assert "two words" not in e.value.message
