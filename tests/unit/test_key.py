"""API keys and Hub token: from the file before the variable, each one word, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from bringup.errors import Exit, UsageError
from bringup.key import api_key, hub_token, make_key, own_file, secrets
from bringup.settings import Settings


def test_the_token_comes_from_the_file_before_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" hf_abc\n")
    assert hub_token(Settings(hf_token_file=file, hf_token="other")) == "hf_abc"
    assert hub_token(Settings(hf_token="other")) == "other"
    assert hub_token(Settings()) is None


@pytest.mark.parametrize("content", [b"", b" \n", b"first\nsecond", b"first second", "schlüssel".encode(), b"\xff\xfe"])
def test_a_token_that_cannot_be_sent_is_usage_and_is_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(UsageError) as e:
        hub_token(Settings(hf_token_file=file))
    assert e.value.exit_code is Exit.USAGE
    assert "Hub token" in e.value.message
    shown = (e.value.message + e.value.hint).replace("on its first line", "").encode()
    assert not [word for word in content.split() if len(word) > 2 and word in shown]


def test_a_variable_that_cannot_be_sent_is_usage_and_is_not_shown() -> None:
    with pytest.raises(UsageError, match="HF_TOKEN") as e:
        hub_token(Settings(hf_token="s3cret s3cret"))
    assert "s3cret" not in e.value.message + e.value.hint


def test_a_token_file_that_is_not_there_is_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        hub_token(Settings(hf_token_file=tmp_path / "none", hf_token="other"))


def test_of_several_keys_the_first_is_sent_and_none_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\nkey-one \nkey-two\n")
    settings = Settings(api_key_file=file, hf_token="hf_abc")
    assert api_key(settings) == "key-one"
    assert secrets(settings) == ["key-one", "key-two", "hf_abc"]
    file.write_text("key-one\nkey two\n")
    with pytest.raises(UsageError, match="one word"):
        api_key(settings)


def test_a_key_is_made_once_and_for_its_user_alone(tmp_path: Path) -> None:
    file = own_file("p-1", {"XDG_STATE_HOME": str(tmp_path)})
    assert file == tmp_path / "bringup" / "p-1.key"
    assert make_key(file)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    key = api_key(Settings(api_key_file=file))
    assert key is not None
    assert len(key) >= 40
    assert not make_key(file)
    assert api_key(Settings(api_key_file=file)) == key
    assert list(file.parent.iterdir()) == [file]
    other = own_file("p-2", {"XDG_STATE_HOME": str(tmp_path)})
    assert make_key(other)
    assert api_key(Settings(api_key_file=other)) != key


def test_state_is_in_the_home_directory_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    for environ in ({}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}):
        assert own_file("p", environ) == Path("/home/u/.local/state/bringup/p.key")


def test_a_key_that_cannot_be_made_is_usage(tmp_path: Path) -> None:
    (tmp_path / "bringup").write_text("a file")
    with pytest.raises(UsageError, match="cannot be made"):
        make_key(own_file("p", {"XDG_STATE_HOME": str(tmp_path)}))
