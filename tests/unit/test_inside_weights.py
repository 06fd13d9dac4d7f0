"""The weights of a start: which model, from where, when the Hub is asked, and that the token goes no further."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.errors import TargetUnavailable, UsageError, WeightsDiffer
from bringup.inside import guard, start, weights
from bringup.inside.weights import Baked
from bringup.lock import LockedModel
from bringup.weights.fetch import How
from bringup.weights.progress import FileProgress, Progress
from bringup.weights.receipt import Carried, Receipt

LOG = logging.getLogger("test.inside.weights")
CONTENT = b'{"a": 1}'
TOKEN = "hf_s3cret"


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "look", lambda: ("2.4.0", True))
    monkeypatch.setattr(weights, "SAY_EVERY", 0.0)


@pytest.fixture
def image(tmp_path: Path) -> Baked:
    """An image without weights whose lock pins a model of the Hub and one of the repository."""
    file = {"path": "config.json", "size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    one = {"source": "hub", "repo": "o/m", "revision": "0" * 40, "license": "MIT", "files": [file]}
    lock = {"schema": 1, "models": {"hub-model": one, "own": {**one, "source": "local:models/own"}}}
    (tmp_path / "lock").write_text(json.dumps(lock))
    (tmp_path / "weights").mkdir()
    return Baked(tmp_path / "models", tmp_path / "lock", tmp_path / "weights")


class Fetcher:
    """Stands for `fetch`: keeps how it was asked, writes what it is told to."""

    def __init__(self, content: bytes = CONTENT, error: Exception | None = None) -> None:
        self.content, self.error = content, error
        self.asked: list[How] = []

    def __call__(self, model: LockedModel, directory: Path, how: How, watch: Callable[[Progress], None]) -> Receipt:
        self.asked.append(how)
        watch(Progress(model.name, how.transfer, [FileProgress("config.json", 8, 4)]))
        if self.error:
            raise self.error
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_bytes(self.content)
        file = Carried(path="config.json", size=8, sha256="0" * 64, by="http", seconds=1.0)
        return Receipt(
            model=model.name, repo=model.repo, revision=model.revision, digest=model.digest, endpoint=how.endpoint,
            transfer=how.transfer, started="", seconds=1.0, files=(file,), versions={},
        )  # fmt: skip


@pytest.fixture
def fetcher(monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    made = Fetcher()
    monkeypatch.setattr(weights, "fetch", made)
    return made


def prepare(image: Baked, **environ: str) -> start.Launch:
    given = {"BRINGUP_FLAVOUR": "cpu", "BRINGUP_BIND": "127.0.0.1", "BRINGUP_MODEL": "hub-model", **environ}
    launch = start.prepare(given, (), image, LOG)
    launch.weights()
    return launch


# ---- which model


def test_no_model_is_not_guessed(image: Baked) -> None:
    for nothing in ("", "none", "auto"):
        with pytest.raises(UsageError, match="holds no weights") as e:
            prepare(image, BRINGUP_MODEL=nothing)
        assert "BRINGUP_WEIGHTS" in e.value.hint
        with pytest.raises(UsageError, match="BRINGUP_MODEL is not set") as e:
            prepare(image, BRINGUP_MODEL=nothing, BRINGUP_WEIGHTS="volume")
        assert "hub-model, own" in e.value.hint


def test_the_only_pinned_model_is_the_default(image: Baked, fetcher: Fetcher) -> None:
    lock = json.loads(image.lock.read_text())
    del lock["models"]["own"]
    image.lock.write_text(json.dumps(lock))
    launch = prepare(image, BRINGUP_MODEL="none", BRINGUP_WEIGHTS="volume")
    assert launch.argv[launch.argv.index("--model") + 1] == "/weights/hub-model"


def test_what_is_not_baked_is_not_served_as_baked(image: Baked) -> None:
    with pytest.raises(UsageError, match="does not hold the model 'hub-model'") as e:
        prepare(image)
    assert "BRINGUP_WEIGHTS=volume" in e.value.hint


def test_what_is_not_pinned_is_not_fetched(image: Baked, fetcher: Fetcher) -> None:
    with pytest.raises(UsageError, match="does not pin 'other'; it pins: hub-model, own"):
        prepare(image, BRINGUP_MODEL="other", BRINGUP_WEIGHTS="volume")
    assert fetcher.asked == []


# ---- a volume


def test_the_first_start_fetches_and_later_ones_only_check(
    image: Baked, fetcher: Fetcher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        launch = prepare(
            image, BRINGUP_WEIGHTS="volume", BRINGUP_HF_ENDPOINT="http://mirror", BRINGUP_TRANSFER="auto",
            BRINGUP_STALL_TIMEOUT="5", BRINGUP_FETCH_TIMEOUT="70",
        )  # fmt: skip
    assert launch.argv[launch.argv.index("--model") + 1] == "/weights/hub-model"
    (how,) = fetcher.asked
    assert (how.endpoint, how.token, how.transfer) == ("http://mirror", None, "auto")
    assert (how.stall_timeout, how.timeout) == (5.0, 70.0)
    assert "fetching: 4 of 8 bytes (50 %)" in caplog.text
    assert "1 by http" in caplog.text
    prepare(image, BRINGUP_WEIGHTS="volume")
    assert len(fetcher.asked) == 1


def test_a_volume_that_differs_is_mended(image: Baked, fetcher: Fetcher, caplog: pytest.LogCaptureFixture) -> None:
    (image.volume / "hub-model").mkdir()
    (image.volume / "hub-model" / "config.json").write_bytes(b'{"a": 2}')
    prepare(image, BRINGUP_WEIGHTS="volume")
    assert len(fetcher.asked) == 1
    assert "fetching what is missing" in caplog.text
    assert (image.volume / "hub-model" / "config.json").read_bytes() == CONTENT


def test_what_the_fetcher_left_is_compared_with_the_lock_too(image: Baked, fetcher: Fetcher) -> None:
    fetcher.content = b'{"a": 3}'
    with pytest.raises(WeightsDiffer):
        prepare(image, BRINGUP_WEIGHTS="volume")


def test_another_starts_lock_is_waited_for(image: Baked, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Path] = []

    def verify(_: LockedModel, directory: Path) -> None:
        checks.append(directory)
        if len(checks) < 3:
            raise WeightsDiffer("x", detail="not in the lock: .bringup-fetch/lock", id="weights-extra")

    monkeypatch.setattr(weights, "verify_dir", verify)
    monkeypatch.setattr(weights, "PAUSE", 0.0)
    prepare(image, BRINGUP_WEIGHTS="volume")
    assert len(checks) == 3
    assert len(fetcher.asked) == 1


def test_a_failed_fetch_is_told_as_it_is(image: Baked, fetcher: Fetcher) -> None:
    fetcher.error = TargetUnavailable("no hub", id="hub-unavailable")
    with pytest.raises(TargetUnavailable, match="no hub"):
        prepare(image, BRINGUP_WEIGHTS="volume")


def test_a_model_of_the_repository_is_no_model_of_the_hub(image: Baked, fetcher: Fetcher) -> None:
    with pytest.raises(UsageError, match="own is no model of the Hub"):
        prepare(image, BRINGUP_MODEL="own", BRINGUP_WEIGHTS="volume")
    assert fetcher.asked == []


# ---- a directory


def test_a_directory_is_checked_and_never_written(image: Baked, fetcher: Fetcher, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    with pytest.raises(UsageError, match="not a directory in this container"):
        prepare(image, BRINGUP_WEIGHTS=str(place))
    place.mkdir()
    with pytest.raises(WeightsDiffer, match=r"config\.json"):
        prepare(image, BRINGUP_WEIGHTS=str(place))
    assert list(place.iterdir()) == []
    (place / "config.json").write_bytes(CONTENT)
    launch = prepare(image, BRINGUP_WEIGHTS=str(place))
    assert launch.argv[launch.argv.index("--model") + 1] == str(place)
    (place / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(WeightsDiffer):
        prepare(image, BRINGUP_WEIGHTS=str(place))
    assert fetcher.asked == []


# ---- the token


@pytest.mark.parametrize("name", ["BRINGUP_HF_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_reaches_the_fetcher_and_nobody_else(
    image: Baked, fetcher: Fetcher, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        launch = prepare(image, **{"BRINGUP_WEIGHTS": "volume", name: TOKEN})
    assert fetcher.asked[0].token == TOKEN
    assert TOKEN not in str(launch) + caplog.text


def test_a_token_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f" {TOKEN}\n")
    assert weights.read_token(tmp_path / "token", {"HF_TOKEN": "other"}) == TOKEN
    assert weights.read_token(Path("/dev/null"), {"HF_TOKEN": "other"}) == "other"
    assert weights.read_token(None, {}) == ""


@pytest.mark.parametrize("content", [b"two words", b"\xfc", b"x" * 5000])
def test_a_token_that_cannot_be_sent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UsageError, match=r"Hub token (is not one word|file .* is larger than 4096 bytes)") as e:
        weights.read_token(tmp_path / "token", {})
    assert content.decode("ascii", "replace") not in e.value.message + e.value.hint


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read by uid"):
        weights.read_token(tmp_path / "none", {})
