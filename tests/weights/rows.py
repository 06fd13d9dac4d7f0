"""The fault matrix: what goes wrong, and how `bringup weights` must end."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from tests.weights.acts import (
    BIG,
    GATED,
    MB,
    PRIVATE,
    SIZES,
    Act,
    Also,
    another_repo,
    as_date,
    asked_again,
    both,
    busy,
    carrier,
    extra,
    fault,
    fell_back,
    file_of_no_commit,
    fills_up,
    flip,
    forbidden,
    interrupted,
    linked,
    no_token_at_cdn,
    nobody_listens,
    nothing_asked,
    once_each,
    one_digit,
    paused,
    present,
    read_only,
    replaced,
    resumed,
    small_disk,
    two,
    verifies,
    with_token,
)
from tests.weights.scene import Scene


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


def by(*transfers: str, **row: Any) -> list[Row]:
    """The same row for several transports."""
    return [Row(transfer=t, **row) for t in transfers]


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
    Row(name="429 with a date, once", arrange=as_date, also=paused(0)),
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
    *(Row(name="a byte differs, once", transfer=t, arrange=fault("corrupt", times=1, at=1000), also=carrier(t, 2))
      for t in ("hf_transfer", "http")),
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
