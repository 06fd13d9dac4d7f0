"""What a row of the fault matrix does to its scene, and what else it looks at."""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from bringup.lock import LockedFile
from tests.hub import add_blob, make_repo, noise
from tests.weights.scene import TOKEN, Outcome, Scene
from tests.weights.support import REPO, WORK

BIG = "model-00001-of-00002.safetensors"
SIZES = {"config.json": 700, "tokenizer.json": 300_000, BIG: 18 * 2**20, "model-00002-of-00002.safetensors": 9 * 2**20}
MB = 10**6
GATED, PRIVATE = "org/gated", "org/private"
WRONG = noise(SIZES[BIG], "wrong")

Act = Callable[[Scene], object]
Also = Callable[[Scene, Outcome], bool]


def fault(kind: str, path: str = BIG, **given: Any) -> Act:
    """The hub has a fault."""
    return lambda s: s.hub.fault(kind, path, **given)


def both(*acts: Act) -> Act:
    """Several things at once."""
    return lambda s: [act(s) for act in acts]


def another_repo(repo: str) -> Act:
    """The lock names another repository, with the same commit."""
    return lambda s: s.relock(repo=repo)


def with_token(token: str = TOKEN) -> Act:
    """A token is given, as a variable."""
    return lambda s: s.variables.update(HF_TOKEN=token)


def as_date(scene: Scene) -> None:
    """A 429 whose Retry-After is a date (of whole seconds)."""
    scene.not_before = int(time.time()) + 6
    date = email.utils.formatdate(scene.not_before, usegmt=True)
    scene.hub.fault("status", "*", times=1, status=429, retry_after=date)


def asked(scene: Scene, path: str = BIG, **wanted: Any) -> list[dict[str, Any]]:
    """Requests for a file that the hub got."""
    lines = [r for r in scene.hub.requests() if r["path"].endswith(path)]
    return [r for r in lines if all(r[k] == v for k, v in wanted.items())]


def paused(seconds: float) -> Also:
    """The refused request was made again after so long, and not before the date that was named."""

    def check(scene: Scene, outcome: Outcome) -> bool:
        lines = sorted(scene.hub.requests(), key=lambda r: float(r["at"]))
        refused = next(r for r in lines if r["status"] == 429)
        again = [r["at"] for r in lines if r["path"] == refused["path"] and r["at"] > refused["at"]]
        return bool(again) and again[0] >= max(refused["at"] + seconds, scene.not_before)

    return check


def no_token_at_cdn(scene: Scene, outcome: Outcome) -> bool:
    """The bytes came from the CDN, which never saw a token; the hub did."""
    there = asked(scene, host="cdn", status=206) + asked(scene, host="cdn", status=200)
    return bool(there) and not any("authorization" in r["headers"] for r in asked(scene, host="cdn")) and all(
        "authorization" in r["headers"] for r in asked(scene, host="hub")
    )  # fmt: skip


def carried(scene: Scene, outcome: Outcome) -> dict[str, Any]:
    """The receipt's line of the big file."""
    found: dict[str, Any] = next(f for f in outcome.said["files"] if f["path"] == BIG)
    return found


def carrier(by: str, attempts: int) -> Also:
    """Who carried the big file, at which attempt."""
    return lambda s, o: (carried(s, o)["by"], carried(s, o)["attempts"]) == (by, attempts)


def fell_back(scene: Scene, outcome: Outcome) -> bool:
    """`auto` went on with http, and the receipt says why."""
    line = carried(scene, outcome)
    return line["by"] == "http" and "hf_transfer" in line["note"]


def resumed(scene: Scene, outcome: Outcome) -> bool:
    """What had come was not asked for again."""
    return any((r["range"] or "bytes=0-") != "bytes=0-" for r in asked(scene, method="GET"))


def nobody_listens(scene: Scene) -> None:
    """An address where no hub is."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        scene.endpoint = f"http://127.0.0.1:{s.getsockname()[1]}"


def replaced(size: int = SIZES[BIG], **given: Any) -> Act:
    """The hub has another content under the same name."""

    def arrange(scene: Scene) -> None:
        sha256 = add_blob(scene.hub.root, REPO, WRONG[:size])
        scene.hub.fault("replaced", BIG, sha256=sha256, **given)

    return arrange


def small_disk(megabytes: int) -> Act:
    """Less than the model needs; the next fetch finds it larger."""

    def arrange(scene: Scene) -> None:
        scene.mount(megabytes)
        scene.undo.append(lambda: scene.remount("size=100m"))

    return arrange


def fills_up(scene: Scene) -> None:
    """Somebody else writes onto the disk while we fetch."""
    scene.mount(40)
    scene.hub.throttle(5)

    def fill(process: subprocess.Popen[str]) -> None:
        scene.await_transfer(process)
        ballast = scene.work / "disk" / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as f:
            f.write(bytes(60 * MB))

    scene.meanwhile = fill
    scene.undo.append((scene.work / "disk" / "ballast").unlink)


def forbidden(scene: Scene) -> None:
    """A directory that we may not write into."""
    scene.directory.mkdir(parents=True)
    scene.directory.chmod(0o555)
    scene.powerless = True
    scene.undo.append(lambda: scene.directory.chmod(0o755))


def read_only(scene: Scene) -> None:
    """A filesystem that nobody may write to."""
    scene.mount(100)
    scene.remount("ro")
    scene.undo.append(lambda: scene.remount("rw"))


def busy(scene: Scene) -> None:
    """Another fetch that does not end."""
    (scene.directory / WORK).mkdir(parents=True)
    held = (scene.directory / WORK / "lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    def release() -> None:
        (scene.directory / WORK / "lock").unlink()
        (scene.directory / WORK).rmdir()
        held.close()

    scene.after.append(release)


def two(scene: Scene) -> None:
    """Two fetchers of one directory, while the hub is slow enough for them to meet."""
    scene.at_once = 2
    scene.hub.throttle(15)


def once_each(scene: Scene, outcome: Outcome) -> bool:
    """No byte of the model was sent twice (hf_transfer asks for the first byte of a file to learn its size)."""
    sent: int = sum(r["sent"] for r in scene.hub.requests() if r["method"] == "GET")
    return sum(SIZES.values()) <= sent <= sum(SIZES.values()) + len(SIZES)


def nothing_asked(scene: Scene, outcome: Outcome) -> bool:
    """The hub was not needed."""
    return not scene.hub.requests()


def asked_again(scene: Scene, outcome: Outcome) -> bool:
    """Only the file that was wrong was asked for."""
    return bool(asked(scene)) and len(asked(scene)) == len(scene.hub.requests())


def interrupted(number: int) -> Act:
    """A signal in the middle of the transfer."""

    def arrange(scene: Scene) -> None:
        scene.hub.throttle(5)
        scene.interrupt(number)

    return arrange


def present(scene: Scene) -> None:
    """All is there and right."""
    scene.place({path: noise(size, path) for path, size in SIZES.items()})


def verifies(act: Act) -> Act:
    """Everything is fetched, then something happens, then it is compared."""

    def arrange(scene: Scene) -> None:
        present(scene)
        act(scene)
        scene.action = "verify"

    return arrange


def flip(scene: Scene) -> None:
    """One bit of a file that was right."""
    with (scene.directory / BIG).open("r+b") as f:
        f.seek(12_345_678)
        byte = f.read(1)[0]
        f.seek(12_345_678)
        f.write(bytes([byte ^ 1]))


def extra(scene: Scene) -> None:
    """A file that no lock knows."""
    scene.place({"other.safetensors": b"x"})
    scene.undo.append((scene.directory / "other.safetensors").unlink)


def linked(scene: Scene) -> None:
    """The right bytes, but behind a symbolic link."""
    real = scene.work / "elsewhere"
    (scene.directory / BIG).rename(real)
    (scene.directory / BIG).symlink_to(real)
    scene.undo.append((scene.directory / BIG).unlink)


def file_of_no_commit(scene: Scene) -> None:
    """A lock with a file that the commit does not have."""
    scene.relock(files=(*scene.model.files, LockedFile("nowhere.json", 1, "0" * 64)))


def one_digit(scene: Scene) -> None:
    """One hex digit of one sha256."""
    sha256 = next(f.sha256 for f in scene.model.files if f.path == BIG)
    scene.edit(sha256, ("0" if sha256[0] != "0" else "1") + sha256[1:])


def make_repos(root: Any, files: dict[str, bytes]) -> None:
    """The repositories of the table, of the same commit."""
    make_repo(root, GATED, files, token=TOKEN, gated=True)
    make_repo(root, PRIVATE, files, token=TOKEN)
