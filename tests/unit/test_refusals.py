"""What the engine says when it does not start a container: each text is recognised, explained, and has a remedy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import Exit, NeverReady, TargetUnavailable
from bringup.targets import refusals
from bringup.targets.compose import refused

TEXTS: list[dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[1] / "data" / "refusals" / "texts.toml").read_text("utf-8")
)["text"]
KNOWN = [t for t in TEXTS if t["id"]]


@pytest.mark.parametrize("text", KNOWN, ids=lambda t: f"{t['id']}-{t['seen'][:20]}")
def test_a_text_is_explained(text: dict[str, Any]) -> None:
    error = refused(text["text"])
    assert isinstance(error, TargetUnavailable)
    assert (error.exit_code, error.id) == (Exit.TARGET_UNAVAILABLE, text["id"])
    assert text["found"] in error.message
    assert "needed: " in error.message
    assert "\n" not in error.message + error.hint
    assert not re.search(r"[{}]\d|\{\{", error.message + error.hint), "a placeholder is left"


@pytest.mark.parametrize("text", [t for t in TEXTS if not t["id"]], ids=lambda t: t["seen"])
def test_other_words_are_shown_as_they_are(text: dict[str, Any]) -> None:
    error = refused(text["text"])
    assert isinstance(error, NeverReady)
    assert text["text"] in error.message


def test_every_refusal_has_a_text_and_every_text_a_refusal() -> None:
    ids = [r.id for r in refusals.REFUSALS]
    assert len(ids) == len(set(ids))
    assert set(ids) == {t["id"] for t in KNOWN}


@pytest.mark.parametrize("refusal", refusals.REFUSALS, ids=lambda r: r.id)
def test_its_own_words_lead_to_it_and_to_no_earlier_one(refusal: refusals.Refusal) -> None:
    found = refusals.find(refusal.words)
    assert found is not None
    assert found.id == refusal.id
    assert found.found
    assert refusal.remedy


def test_the_engines_own_line_is_kept() -> None:
    error = refused(TEXTS[0]["text"])
    assert error.detail.startswith("Error response from daemon: could not select device driver")
