"""The documents say what the code does, and their links lead somewhere."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path

import pytest

from bringup.inside.parts import PARTS
from bringup.probes import PROBES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_generated_tables_are_up_to_date() -> None:
    loader = importlib.machinery.SourceFileLoader("generated_docs", str(ROOT / "scripts" / "docs"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    for page in module.PARTS:
        text = page.read_text("utf-8")
        assert module.rendered(text, page) == text, "run scripts/docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_repository_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_probe_is_explained() -> None:
    table = README.split("## What `verify` asks")[1].split("## ")[0]
    assert [*PROBES, "evidence"] == re.findall(r"^\| ([a-z]+) \| ", table, re.MULTILINE)[1:]


def test_the_clients_page_and_the_clients_tests_are_the_same_list() -> None:
    page = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "clients.md").read_text("utf-8")))
    tests = (ROOT / "tests" / "integration" / "test_clients.py").read_text("utf-8")
    assert page == set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))


@pytest.mark.parametrize(
    ("page", "before"), [("docs/cold-start.md", "or some of `"), ("benchmarks/gpu/README.md", "\nparts=")]
)
def test_the_parts_of_the_start_are_listed_as_they_are(page: str, before: str) -> None:
    listed = re.search(re.escape(before) + "([a-z,]+)", (ROOT / page).read_text("utf-8"))
    assert listed
    assert sorted(listed[1].split(",")) == sorted(PARTS)


def test_the_levers_of_the_launcher_are_its_parts() -> None:
    page = (ROOT / "docs" / "cold-start.md").read_text("utf-8")
    rows = [row.split(" | ")[0] for row in page.splitlines() if row.endswith("`BRINGUP_LAUNCH` |")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == PARTS
