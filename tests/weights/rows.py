"""The fault matrix: what goes wrong, and how `bringup weights` must end."""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix. `remedy`: part of the hint; `also`: what else must hold; `theirs`: wrong before."""

    name: str
    arrange: Act
    transfer: str = "hf_transfer"
    id: str = ""
    code: int = 0
    remedy: str = ""
    also: Also | None = None
    theirs: tuple[str, ...] = ()
    stall: float = 4.0
    timeout: float = 150.0

    @property
    def key(self) -> str:
        """Name of the row's test."""
        return f"{self.name}, {self.transfer}"


def fault(kind: str, path: str = BIG, **given: Any) -> Act:
    """The hub has a fault."""
    return lambda s: s.hub.fault(kind, path, **given)


def both(*acts: Act) -> Act:
    """Several things at once."""
    return lambda s: [act(s) for act in acts]


def by(*transfers: str, **row: Any) -> list[Row]:
    """The same row for several transports."""
    return [Row(transfer=t, **row) for t in transfers]


def another_repo(repo: str) -> Act:
    """The lock names another repository, with the same commit."""
    return lambda s: s.relock(repo=repo)


def with_token(token: str = TOKEN) -> Act:
    """A token is given, as a variable."""
    return lambda s: s.variables.update(HF_TOKEN=token)


def as_date(seconds: float) -> Act:
    """A 429 whose Retry-After is a date."""
    return lambda s: s.hub.fault(
        "status", "*", times=1, status=429, retry_after=email.utils.formatdate(time.time() + seconds, usegmt=True)
    )


def asked(scene: Scene, path: str = BIG, **wanted: Any) -> list[dict[str, Any]]:
    """Requests for a file that the hub got."""
    lines = [r for r in scene.hub.requests() if r["path"].endswith(path)]
    return [r for r in lines if all(r[k] == v for k, v in wanted.items())]


def paused(seconds: float) -> Also:
    """The refused request was made again after so long, not before."""

    def check(scene: Scene, outcome: Outcome) -> bool:
        lines = sorted(scene.hub.requests(), key=lambda r: float(r["at"]))
        refused = next(r for r in lines if r["status"] == 429)
        again = [r["at"] for r in lines if r["path"] == refused["path"] and r["at"] > refused["at"]]
        return bool(again) and again[0] - refused["at"] >= seconds

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


ACCESS = [
    Row(name="401: private, no token", arrange=another_repo(PRIVATE), id="hub-unauthorized", code=2,
        remedy="HF_TOKEN"),
    Row(name="404: private, another's token", arrange=both(another_repo(PRIVATE), with_token("hf_other")),
        id="hub-repo-not-found", code=2, remedy="check the name"),
    Row(name="401: gated, no token", arrange=another_repo(GATED), id="hub-gated", code=2, remedy="accept its licence"),
    Row(name="403: gated, not accepted", arrange=both(another_repo(GATED), with_token("hf_other")), id="hub-gated",
        code=2, remedy="accept its licence"),
    Row(name="gated, right token", arrange=both(another_repo(GATED), with_token())),
    Row(name="404: no such repository", arrange=both(another_repo("org/nothing"), with_token()),
        id="hub-repo-not-found", code=2, remedy="check the name"),
    Row(name="404: no such commit", arrange=lambda s: s.relock(revision="f" * 40), id="hub-revision-not-found",
        code=2, remedy="bringup lock"),
    Row(name="404: no such file", arrange=file_of_no_commit, id="hub-file-not-found", code=2, remedy="bringup lock"),
]  # fmt: skip

ANSWERS = [
    Row(name="429 with Retry-After, once", arrange=fault("status", times=1, status=429, retry_after=3),
        also=paused(3)),
    Row(name="429 with a date, once", arrange=as_date(4), also=paused(2)),
    Row(name="429 always", arrange=fault("status", status=429, retry_after=1), id="hub-rate-limited", code=8,
        remedy="give a token"),
    Row(name="429, longer than the deadline", arrange=fault("status", status=429, retry_after=3600),
        id="hub-rate-limited", code=8, remedy="wait", timeout=60),
    Row(name="503 twice", arrange=fault("status", times=2, status=503)),
    Row(name="500 always", arrange=fault("status", status=500), id="hub-unavailable", code=8, remedy="try again later"),
    *by("hf_transfer", "http", name="redirect to a CDN", also=no_token_at_cdn,
        arrange=both(another_repo(GATED), with_token(), fault("cdn"))),
    *by("hf_transfer", "http", name="CDN refuses once",
        arrange=both(fault("cdn"), fault("status", host="cdn", times=1, status=403))),
    Row(name="CDN refuses always", arrange=both(fault("cdn"), fault("status", host="cdn", status=403)),
        id="transfer-incomplete", code=8, remedy="try again"),
    Row(name="CDN refuses always", arrange=both(fault("cdn"), fault("status", host="cdn", status=403)),
        transfer="http", id="hub-unavailable", code=8, remedy="try again"),
    Row(name="no answer", arrange=fault("hang", "config.json"), id="transfer-stalled", code=8,
        remedy="--stall-timeout"),
    Row(name="connection closed, once", arrange=fault("drop", times=1)),
    Row(name="connection closed, always", arrange=fault("drop"), id="hub-unavailable", code=8, remedy="the network"),
    Row(name="nobody listens", arrange=nobody_listens, id="hub-unavailable", code=8, remedy="HF_ENDPOINT"),
    Row(name="a portal's page", arrange=fault("html", "*"), id="hub-wrong-answer", code=8, remedy="a model hub"),
    Row(name="another commit", arrange=fault("commit", commit="a" * 40), id="hub-wrong-commit", code=5,
        remedy="HF_ENDPOINT"),
    Row(name="another size", arrange=fault("size", size=17), id="weights-size", code=5, remedy="bringup lock --check"),
]  # fmt: skip

BODIES = [
    *by("hf_transfer", "http", "auto", name="reset at byte 1,000,000, once", arrange=fault("reset", times=1, after=MB)),
    Row(name="reset, always", arrange=fault("reset", after=MB), id="transfer-incomplete", code=8, remedy="whole files"),
    Row(name="reset, always", arrange=fault("reset", after=MB), transfer="http", id="transfer-incomplete", code=8,
        remedy="whole files", also=resumed),
    *by("hf_transfer", "http", name="truncated, once", arrange=fault("truncate", times=1, after=MB)),
    *by("hf_transfer", "http", name="truncated, always", arrange=fault("truncate", after=1000),
        id="transfer-incomplete", code=8, remedy="whole files"),
    *by("hf_transfer", "http", name="a byte differs, once", arrange=fault("corrupt", times=1, at=1000)),
    *by("hf_transfer", "http", "auto", name="a byte differs, always", arrange=fault("corrupt", at=1000),
        id="weights-hash", code=5, remedy="bringup lock --check"),
    Row(name="other bytes than asked for", arrange=fault("content-range"), id="weights-hash", code=5,
        remedy="bringup lock --check"),
    Row(name="reset, then other bytes than asked for", transfer="http", also=resumed,
        arrange=both(fault("reset", times=1, after=MB), fault("content-range", times=1))),
    Row(name="200 instead of 206", arrange=fault("no-range"), id="transfer-incomplete", code=8,
        remedy="--transfer http"),
    Row(name="200 instead of 206", transfer="auto", arrange=fault("no-range"), also=fell_back),
    Row(name="reset, then 200 instead of 206", transfer="http", also=resumed,
        arrange=both(fault("reset", times=1, after=MB), fault("no-range", times=1))),
    Row(name="half of a chunk as a whole, once", arrange=fault("short", times=1)),
    Row(name="half of a chunk as a whole, always", arrange=fault("short"), id="transfer-incomplete", code=8),
    *by("hf_transfer", "http", "auto", name="stalled, once", arrange=fault("stall", times=1, after=MB)),
    *by("hf_transfer", "http", name="stalled, always", arrange=fault("stall", after=1000), id="transfer-stalled",
        code=8, remedy="--stall-timeout"),
    *by("hf_transfer", "http", name="20 kB/s", arrange=fault("drip", rate=20_000), id="transfer-stalled", code=8,
        remedy="slow link"),
    *by("hf_transfer", "http", name="stalled until the deadline", arrange=fault("stall", after=1000), stall=60,
        timeout=6, id="fetch-deadline", code=8, remedy="--fetch-timeout"),
    *by("hf_transfer", "http", name="replaced after the HEAD", arrange=replaced(method="GET"), id="weights-hash",
        code=5, remedy="bringup lock --check"),
    *by("hf_transfer", "http", name="replaced by a shorter one after the HEAD",
        arrange=replaced(SIZES[BIG] - 1000, method="GET"), id="transfer-incomplete", code=8),
    Row(name="replaced after the first chunk", arrange=replaced(method="GET", skip=2), id="weights-hash", code=5),
    Row(name="replaced by one of another size", arrange=replaced(1000), id="weights-size", code=5,
        remedy="bringup lock --check"),
]  # fmt: skip

HOST = [
    Row(name="no wheel", arrange=Scene.hide_wheel, id="hf-transfer-missing", code=3, remedy="--transfer auto"),
    Row(name="no wheel", transfer="auto", arrange=Scene.hide_wheel, also=fell_back),
    Row(name="too little disk", arrange=small_disk(10), id="disk-space", code=3, remedy="free space"),
    *by("hf_transfer", "http", name="disk full meanwhile", arrange=fills_up, id="disk-full", code=3,
        remedy="free space"),
    Row(name="directory not ours", arrange=forbidden, id="directory-unwritable", code=2, remedy="may write"),
    Row(name="read-only disk", arrange=read_only, id="directory-unwritable", code=2, remedy="may write"),
    *by("hf_transfer", "http", name="two fetchers at once", arrange=two, also=once_each),
    Row(name="another fetcher does not end", arrange=busy, timeout=3, id="fetch-busy", code=8,
        remedy="--fetch-timeout"),
    Row(name="Ctrl-C", arrange=interrupted(signal.SIGINT), code=130),
    Row(name="SIGTERM", arrange=interrupted(signal.SIGTERM), code=143),
]  # fmt: skip

EDITS = [
    *by("hf_transfer", "http", name="lock: one digit of a sha256", arrange=one_digit, id="weights-hash", code=5,
        remedy="bringup lock --check"),
    Row(name="lock: a size", arrange=lambda s: s.locked(BIG, size=SIZES[BIG] + 1), id="weights-size", code=5,
        remedy="bringup lock --check"),
    Row(name="lock: a path with ..", id="lock-unusable", arrange=lambda s: s.edit("tokenizer.json", "../t.json"),
        code=2, remedy="restore it from git"),
    Row(name="lock: revision main", arrange=lambda s: s.edit(s.model.revision, "main"), id="lock-unusable",
        code=2, remedy="bringup lock"),
    Row(name="lock: no JSON", arrange=lambda s: s.edit("{", ""), id="lock-unreadable", code=2,
        remedy="restore it from git"),
    Row(name="fetch: all there and right", arrange=present, also=nothing_asked),
    Row(name="fetch: a file was replaced", arrange=both(present, flip), also=asked_again),
    Row(name="fetch: an extra file", arrange=extra, id="weights-extra", code=5, remedy="remove it",
        theirs=("other.safetensors",), also=nothing_asked),
    Row(name="fetch: a link instead of a file", arrange=both(present, linked), id="weights-not-a-file", code=5,
        theirs=(BIG,)),
    Row(name="verify: all there and right", arrange=verifies(present)),
    Row(name="verify: a file was replaced", arrange=verifies(flip), id="weights-hash", code=5, remedy="fetch",
        theirs=(BIG,)),
    Row(name="verify: an extra file", arrange=verifies(extra), id="weights-extra", code=5,
        theirs=("other.safetensors",)),
    Row(name="verify: a link instead of a file", arrange=verifies(linked), id="weights-not-a-file", code=5,
        theirs=(BIG,)),
]  # fmt: skip

ROWS = [*ACCESS, *ANSWERS, *BODIES, *HOST, *EDITS]
