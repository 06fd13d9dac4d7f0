"""The page in a real browser: it loads nothing, runs nothing, fits every screen, and everyone can read it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, sync_playwright

from bringup import bundle
from bringup.bundle import RECORD
from bringup.report import view
from bringup.report.page import html
from tests.unit import bundles
from tests.unit.test_report import poisoned

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SCREENS = [(width, scheme) for width in (400, 1440) for scheme in ("light", "dark")]
KINDS = ("gpu", "cpu", "failed", "hostile", "empty")
# axe's own: rules of WCAG 2.2 A and AA, and what it calls best practice (landmarks, order of headings)
OPTIONS = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}
Open = Callable[..., Page]


def files_of(kind: str) -> dict[str, str]:
    if kind in ("cpu", "failed"):
        name = {"cpu": "v1-up", "failed": "v1-failed"}[kind]
        return {RECORD: (bundles.DATA / "records" / f"{name}.json").read_text("utf-8"), "server.log": "a\nb\n"}
    made = bundles.on_a_gpu()
    return {"gpu": made, "hostile": poisoned(made), "empty": {RECORD: "{}"}}[kind]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    directory = tmp_path_factory.mktemp("pages")
    made = {kind: directory / f"{kind}.html" for kind in KINDS}
    for kind, file in made.items():
        file.write_text(html(view.report(bundles.loaded(files_of(kind)))), "utf-8")
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, of this machine or playwright's; it is never a reason to skip."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(found).is_file():
            pytest.fail("there is no Chromium: run ./scripts/browser")
        running = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield running
        running.close()


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path]) -> Iterator[Open]:
    """Open a page of a kind; at the end nothing was said on the console, and nothing else was asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts: list[BrowserContext] = []

    def dismiss(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    def go(kind: str, width: int = 1440, scheme: str = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", dismiss)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[kind].as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) <= {file.as_uri() for file in pages.values()}


@pytest.mark.parametrize(
    ("kind", "width", "scheme"),
    [(kind, *screen) for kind in KINDS for screen in (SCREENS if kind in ("gpu", "hostile") else SCREENS[1:3])],
)
def test_it_fits_and_everyone_can_read_it(opened: Open, kind: str, width: int, scheme: str) -> None:
    page = opened(kind, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "e => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX)"
    assert (
        page.evaluate(f"[...document.querySelectorAll('main *')].filter({wide}).map(e => e.outerHTML.slice(0, 80))")
        == []
    )
    result = Axe().run(page, options=OPTIONS)
    assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("width", [400, 1440])
def test_plots_are_readable_on_every_screen(opened: Open, width: int) -> None:
    page = opened("gpu", width)
    shown = page.locator("svg:visible")
    assert shown.count() == 3
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length && t.checkVisibility())"
        ".map(t => 12 * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert len(sizes) > 50
    assert min(sizes) >= 11
    outside = (
        "[...document.querySelectorAll('svg text')].filter(t => t.checkVisibility()).filter(t => {"
        "const a = t.getBoundingClientRect(); return a.left < 0 || a.right > innerWidth}).map(t => t.textContent)"
    )
    assert page.evaluate(outside) == []


def test_dark_and_light_differ_and_plots_follow(opened: Open) -> None:
    look = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg rect')).fill]"
    )
    light, dark = (opened("gpu", 1440, scheme).evaluate(look) for scheme in ("light", "dark"))
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_the_verdict_comes_first_and_its_reasons_next(opened: Open) -> None:
    page = opened("failed")
    assert page.locator("body > :first-child .word").inner_text().lower() == "fail"
    assert "the server died while starting" in page.locator("body > :first-child li").first.inner_text()


def test_a_hostile_answer_is_text(opened: Open) -> None:
    page = opened("hostile")
    assert "<script>alert(1)</script>" in page.locator("h1").inner_text()
    assert page.locator("script, img, iframe").count() == 0
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "960px", "the style is whole"


def test_no_style_but_its_own_is_used(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """The policy is in force: of a page into which somebody got a style, it has no effect."""
    file = tmp_path / "changed.html"
    file.write_text(pages["gpu"].read_text("utf-8").replace("<h1>", '<h1 style="color: red">'), "utf-8")
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert "Content Security Policy" in said[0]
    page.close()


def test_a_page_that_not_everyone_can_read_is_seen(opened: Open) -> None:
    """That the audit above finds nothing says something only if it can find something."""
    page = opened("empty")
    page.evaluate("document.querySelector('main').innerHTML += '<img><h5>x</h5>'")
    page.evaluate("document.styleSheets[0].insertRule('dt { color: #ccc !important }', 0)")
    found = {v["id"] for v in Axe().run(page, options=OPTIONS).response["violations"]}
    assert {"image-alt", "heading-order", "color-contrast"} <= found


def test_on_paper_it_is_black_on_white_and_nothing_is_cut(opened: Open) -> None:
    page = opened("gpu", 1440, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.locator("nav").is_hidden()
    assert page.pdf().startswith(b"%PDF")


def test_how_long_a_page_takes(tmp_path: Path, figures: list[str]) -> None:
    written = bundles.written(tmp_path / "b", bundles.on_a_gpu())
    began = time.perf_counter()
    page = html(view.report(bundle.read(written)))
    took = time.perf_counter() - began
    figures.append(f"report.html of a GPU bundle: {took:.2f} s, {len(page.encode()) / 1000:.0f} kB")
    assert len(page.encode()) < 1_500_000
