"""Bundles signed and checked by the real ssh-keygen; whatever is changed afterwards is found and named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bringup import artifacts, bundle, signature
from bringup.errors import BundleDiffers, EvidenceMissing, UsageError
from tests.integration.support import ROOT, bringup

FILES = {"record.json": '{"schema": 1}\n', "server.log": "hello\n", "ü.txt": "ü\n"}
NAME = "ops@example.org"


def new_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path], check=True)
    return path


def signers(path: Path, *lines: tuple[str, Path]) -> Path:
    path.write_text("".join(f"{who} {key.with_name(key.name + '.pub').read_text()}" for who, key in lines))
    return path


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "key")


@pytest.fixture
def allowed(tmp_path: Path, key: Path) -> Path:
    return signers(tmp_path / "allowed_signers", ("else@example.org", new_key(tmp_path / "else")), (NAME, key))


@pytest.fixture
def signed(tmp_path: Path, key: Path) -> Path:
    return artifacts.write(tmp_path / "out" / "bundle", FILES, [], key)


def test_a_signed_bundle_is_verified(signed: Path, allowed: Path, tmp_path: Path) -> None:
    assert [p.name for p in signed.parent.iterdir()] == ["bundle"], "nothing hidden is left beside it"
    assert {p.name for p in signed.iterdir()} == {*FILES, "SHA256SUMS", "SHA256SUMS.sig"}
    assert "SHA256SUMS" not in (signed / "SHA256SUMS").read_text()
    assert bundle.verify(signed, allowed) == f"3 files are as SHA256SUMS says, signed by {NAME}"
    assert bundle.verify(signed, None) == "3 files are as SHA256SUMS says; its signature was not checked"
    moved = shutil.copytree(signed, tmp_path / "elsewhere")
    assert signature.check(moved, allowed) == NAME


def test_by_hand_as_the_documentation_says(signed: Path, allowed: Path) -> None:
    """The page's commands, with its names for these files."""
    page = (ROOT / "docs" / "record.md").read_text("utf-8")
    block = page.split("```console\n# by hand\n")[1].split("```")[0]
    lines = block.replace("allowed_signers", str(allowed)).strip()
    done = subprocess.run(["sh", "-euc", lines], cwd=signed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'Good "bringup-bundle" signature for {NAME}' in done.stdout
    (signed / "server.log").write_text("hullo\n")
    assert subprocess.run(["sh", "-euc", lines], cwd=signed, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_bit_of_any_file_is_named(signed: Path, allowed: Path, name: str) -> None:
    for at in range(len((signed / name).read_bytes())):
        data = bytearray((signed / name).read_bytes())
        data[at] ^= 1
        (signed / name).write_bytes(data)
        for whom in (None, allowed):
            with pytest.raises(BundleDiffers, match=f"{name} differs from its sum") as e:
                bundle.verify(signed, whom)
            assert e.value.exit_code == 10
        data[at] ^= 1
        (signed / name).write_bytes(data)
    assert bundle.verify(signed, allowed).endswith(NAME)


def test_one_changed_bit_of_the_sums_is_found(signed: Path, allowed: Path) -> None:
    original = (signed / "SHA256SUMS").read_bytes()
    for at in range(0, len(original), 7):
        data = bytearray(original)
        data[at] ^= 1
        (signed / "SHA256SUMS").write_bytes(data)
        with pytest.raises(BundleDiffers):
            bundle.verify(signed, allowed)


def test_one_changed_letter_of_the_signature_is_found(signed: Path, allowed: Path) -> None:
    original = (signed / "SHA256SUMS.sig").read_text()
    head, *body, foot = original.splitlines()
    text = "\n".join(body)
    for at in range(0, len(text), 5):
        if text[at] in "\n=":
            continue
        other = "A" if text[at] != "A" else "B"
        (signed / "SHA256SUMS.sig").write_text("\n".join([head, text[:at] + other + text[at + 1 :], foot, ""]))
        with pytest.raises(BundleDiffers):
            bundle.verify(signed, allowed)
    (signed / "SHA256SUMS.sig").write_text("no signature\n")
    with pytest.raises(BundleDiffers, match="Couldn't parse signature"):
        bundle.verify(signed, allowed)


def forged(signed: Path) -> None:
    """Change a file and write sums that agree with it, as somebody without the key would."""
    files = {p.name: p.read_text() for p in signed.iterdir() if not p.name.startswith("SHA256SUMS")}
    again = artifacts.write(signed.with_name("forged"), files | {"record.json": '{"schema": 1, "verdict": "pass"}'}, [])
    for path in again.iterdir():
        shutil.copy(path, signed / path.name)


def test_sums_that_were_made_anew_pass_without_signers_and_not_with_them(signed: Path, allowed: Path) -> None:
    forged(signed)
    assert bundle.verify(signed, None).endswith("its signature was not checked")
    with pytest.raises(BundleDiffers, match=f"is no signature of this SHA256SUMS by {NAME}: .*incorrect signature"):
        bundle.verify(signed, allowed)


def test_a_signature_by_somebody_else(tmp_path: Path, allowed: Path) -> None:
    theirs = artifacts.write(tmp_path / "theirs", FILES, [], new_key(tmp_path / "stranger"))
    with pytest.raises(BundleDiffers, match=r"is by nobody in .*allowed_signers: No principal matched"):
        bundle.verify(theirs, allowed)


def test_a_signature_of_another_bundle(tmp_path: Path, signed: Path, allowed: Path, key: Path) -> None:
    other = artifacts.write(tmp_path / "other", FILES | {"more": "x"}, [], key)
    shutil.copy(other / "SHA256SUMS.sig", signed)
    with pytest.raises(BundleDiffers, match="incorrect signature"):
        bundle.verify(signed, allowed)


def test_a_signature_for_something_else(signed: Path, allowed: Path, key: Path) -> None:
    (signed / "SHA256SUMS.sig").unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", key, signed / "SHA256SUMS"], check=True)
    with pytest.raises(BundleDiffers, match="namespace does not match"):
        bundle.verify(signed, allowed)


def test_a_signer_for_something_else(signed: Path, tmp_path: Path, key: Path) -> None:
    only_git = signers(tmp_path / "git_signers", (f'{NAME} namespaces="git"', key))
    with pytest.raises(BundleDiffers):
        bundle.verify(signed, only_git)


def test_what_was_added_or_taken_away_is_named(signed: Path, allowed: Path) -> None:
    (signed / "more.txt").write_text("x")
    with pytest.raises(BundleDiffers, match=r"more\.txt is not in SHA256SUMS"):
        bundle.verify(signed, allowed)
    (signed / "more.txt").unlink()
    (signed / "record.json").unlink()
    with pytest.raises(BundleDiffers, match=r"record\.json is missing"):
        bundle.verify(signed, allowed)


def test_no_signature_is_missing_evidence(signed: Path, allowed: Path) -> None:
    (signed / "SHA256SUMS.sig").unlink()
    assert (
        bundle.verify(signed, None)
        == "3 files are as SHA256SUMS says; it has no signature; who wrote it was not checked"
    )
    with pytest.raises(EvidenceMissing, match=r"it has no SHA256SUMS\.sig"):
        bundle.verify(signed, allowed)


def test_no_ssh_keygen_is_missing_evidence_and_no_pass(
    signed: Path, allowed: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvidenceMissing, match="'ssh-keygen' is not on the PATH") as e:
        bundle.verify(signed, allowed)
    assert "OpenSSH" in e.value.hint
    with pytest.raises(UsageError, match="'ssh-keygen' is not on the PATH"):
        signature.require(key)


def test_signers_that_cannot_be_read(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        bundle.verify(signed, tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(BundleDiffers, match="by nobody in"):
        bundle.verify(signed, tmp_path / "empty")


def test_of_several_names_one_that_verifies(signed: Path, tmp_path: Path, key: Path) -> None:
    assert signature.check(signed, signers(tmp_path / "two", (f"{NAME},other@example.org", key))) == NAME


# ---- the key


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """An ssh-agent of this test's own; the function adds a key whose passphrase is `secret`."""
    socket = tmp_path / "agent"
    child = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert "SSH_AUTH_SOCK" in child.stdout.readline()  # it listens from then on
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    ask = tmp_path / "ask"
    ask.write_text("#!/bin/sh\necho secret\n")
    ask.chmod(0o700)

    def add(key: Path) -> None:
        env = {**os.environ, "SSH_ASKPASS_REQUIRE": "force", "SSH_ASKPASS": str(ask)}
        subprocess.run(["ssh-add", "-q", key], check=True, env=env, stdin=subprocess.DEVNULL, timeout=60)

    try:
        yield add
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()


def test_a_key_with_a_passphrase_needs_the_agent(agent: Callable[[Path], None], tmp_path: Path) -> None:
    locked = new_key(tmp_path / "locked", "secret")
    with pytest.raises(UsageError, match="passphrase") as e:
        signature.require(locked)
    assert "ssh-add" in e.value.hint
    agent(locked)
    signature.require(locked)
    made = artifacts.write(tmp_path / "b", FILES, [], locked)
    assert bundle.verify(made, signers(tmp_path / "who", (NAME, locked))).endswith(NAME)


def test_a_key_that_others_can_read(key: Path) -> None:
    key.chmod(0o644)
    with pytest.raises(UsageError, match=r"does not sign: Permissions 0644 for .* are too open"):
        signature.require(key)


def test_a_key_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk\n")
    (tmp_path / "junk").chmod(0o600)
    for path, words in ((tmp_path / "junk", "does not sign"), (tmp_path / "none", "cannot be read: No such file")):
        with pytest.raises(UsageError, match=words):
            signature.require(path)


def test_a_key_that_is_gone_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(EvidenceMissing, match="cannot be read"):
        artifacts.write(tmp_path / "b", FILES, [], tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["up", "collect"])
def test_an_unusable_key_is_found_before_anything_is_started(command: str, tmp_path: Path) -> None:
    """One line and its hint, exit 2; no step was begun."""
    result = bringup(command, "--sign-key", str(tmp_path / "none"), "--artifacts", str(tmp_path / "out"))
    assert result.code == 2, result.err
    assert result.err.splitlines()[-2:] == [
        f"bringup: the key {tmp_path / 'none'} cannot be read: No such file or directory",
        "  -> make one: ssh-keygen -t ed25519 -f FILE",
    ]
    assert "start the container" not in result.err
    assert not (tmp_path / "out").exists()


def test_the_command_says_who_signed_and_refuses_what_was_changed(tmp_path: Path, key: Path, allowed: Path) -> None:
    record = (ROOT / "tests/data/records/v1-up.json").read_text("utf-8")
    made = artifacts.write(tmp_path / "b", {"record.json": record, "server.log": "hello\n"}, [], key)
    asked = ("report", str(made), "--verify", "--allowed-signers", str(allowed))
    done = bringup(*asked)
    assert done.code == 0, done.err
    assert f"signed by {NAME}" in done.out + done.err
    (made / "server.log").write_text("hullo\n")
    done = bringup(*asked)
    assert done.code == 10, done.err
    assert "server.log differs from its sum" in done.err
    (made / "server.log").write_text("hello\n")
    (made / "SHA256SUMS.sig").unlink()
    assert bringup(*asked).code == 9
