"""What machines read of a bundle: JUnit's XML and GitHub's lines, whatever the words in it; and the pictures."""

from __future__ import annotations

import io
import json
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from PIL import Image

from bringup.bundle import RECORD
from bringup.report import charts, ci
from bringup.report.picture import COLOURS, png
from bringup.report.scene import Level, Line, Plot, Rect, Series, Text, fitted, legend, tick_text, ticks
from bringup.report.view import report
from tests.unit import bundles
from tests.unit.test_report import HOSTILE, poisoned

RECORDED: dict[str, Any] = {
    "verdict": "fail",
    "checks": [
        {"name": "memory", "status": "warn", "found": "1 GiB", "needed": "4 GiB", "remedy": "end others"},
        {"name": "gpu", "status": "skip", "found": "the server uses the CPU", "needed": "nothing"},
    ],
    "probes": [
        {"name": "ready", "status": "pass", "expected": "one token", "found": "after 0.02 s", "seconds": 0.02},
        {"name": "chat", "status": "fail", "expected": "an answer", "found": "HTTP 500, 100%\nof them", "seconds": 1.5},
        {"name": "auth", "status": "unknown", "expected": "HTTP 401", "found": "not asked: chat failed"},
    ],
}


def suites(record: dict[str, Any], faults: tuple[str, ...] = ()) -> dict[str, Xml.Element]:
    root = Xml.fromstring(ci.junit(record, faults))  # noqa: S314 - our own
    return {suite.attrib["name"]: suite for suite in root}


def test_each_check_and_probe_is_a_test_case() -> None:
    made = suites(RECORDED)
    probes = made["bringup.probes"]
    assert {k: probes.attrib[k] for k in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "3", "failures": "1", "errors": "1", "skipped": "0", "time": "1.520",
    }  # fmt: skip
    found = {case.attrib["name"]: [child.tag for child in case] for case in probes}
    assert found == {"ready": [], "chat": ["failure"], "auth": ["error"]}
    failure = probes.find("testcase[@name='chat']/failure")
    assert failure is not None
    assert failure.text == "found HTTP 500, 100% of them; expected an answer"
    checks = {case.attrib["name"]: [child.tag for child in case] for case in made["bringup.checks"]}
    assert checks == {"memory": ["system-out"], "gpu": ["skipped"]}
    assert made["bringup.run"].attrib["failures"] == "0"


def test_an_error_of_the_run_and_broken_sums_fail() -> None:
    run = suites(RECORDED | {"error": "the server died"}, ("a.txt differs from its sum",))["bringup.run"]
    said = [failure.text for failure in run.iter("failure")]
    assert said == ["the server died", "the bundle is not as it was written: a.txt differs from its sum"]


def test_junit_is_xml_whatever_was_said() -> None:
    record = json.loads(poisoned(bundles.on_a_gpu())[RECORD])
    record["probes"] = [
        {"name": HOSTILE, "status": "fail", "found": HOSTILE * 100, "expected": HOSTILE, "seconds": "x"}
    ]
    made = suites(record)
    assert "<script>alert(1)</script>" in made["bringup.probes"][0].attrib["name"]
    assert set(suites({})) == {"bringup.run", "bringup.checks", "bringup.probes"}


def test_github_marks_what_is_not_fine() -> None:
    assert ci.github(RECORDED | {"error": "died"}, ("a: differs",)) == [
        "::error title=bringup%3A run::died",
        "::error title=bringup%3A bundle::a: differs",
        "::warning title=bringup%3A check memory::found 1 GiB; expected 4 GiB; to do: end others",
        "::error title=bringup%3A probe chat::found HTTP 500, 100%25 of them; expected an answer",
        "::warning title=bringup%3A probe auth::found not asked: chat failed; expected HTTP 401",
    ]
    assert ci.github({"verdict": "pass"}, ()) == ["::notice title=bringup%3A run::verdict: pass"]


def test_no_word_of_a_server_is_a_workflow_command() -> None:
    hostile = "x\n::add-mask::y\r\n::error::z%0A::stop-commands::t,file=a:b"
    record = {"probes": [{"name": hostile, "status": "fail", "found": hostile, "expected": "x"}]}
    (only,) = ci.github(record, ())
    assert len(only.splitlines()) == 1
    assert "%250A" in only
    title = only.removeprefix("::error title=").split("::")[0]
    assert not set(title) & {",", ":"}


# ---- plots


@pytest.mark.parametrize(
    ("high", "most", "found"),
    [
        (9.7, 4, [0, 2.5, 5, 7.5]),
        (92, 4, [0, 25, 50, 75]),
        (0, 4, [0]),
        (1e-3, 2, [0, 5e-4, 1e-3]),
        (43.1, 7, [0, 10, 20, 30, 40]),
    ],
)
def test_ticks_are_round(high: float, most: int, found: list[float]) -> None:
    assert ticks(high, most) == pytest.approx(found)


def test_ticks_of_no_number() -> None:
    assert ticks(float("nan"), 4) == [0.0]
    assert (tick_text(2.5), tick_text(20.0), tick_text(0.1 + 0.2)) == ("2.5", "20", "0.3")


def test_labels_are_cut_and_legends_wrap() -> None:
    assert fitted("engine process", 1000) == "engine process"
    assert fitted("engine process", 60) == "engine p…"
    entries: list[Series | Level] = [
        Level("a level with a long name", 1.0, "ink"),
        Series("another with a long one", (), "accent"),
    ]
    wide, narrow = legend(entries, 0, 800)[1], legend(entries, 0, 300)[1]
    assert narrow > wide


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_a_scene_stays_in_its_bounds(width: int) -> None:
    drawn = [
        *report(bundles.loaded(bundles.on_a_gpu())).plots(),
        charts.tokens([0.0], [Level("median", 0.0, "other")], "one gap, of nothing"),
        charts.memory([Series("s", ((0.0, 0.0), (0.0, 0.0)), "accent", soft=True)], [], "nothing"),
        charts.waterfall([charts.Bar("a" * 300, 0.0, 0.0, 9, "soft", finished=False)], 1e-9, "a moment"),
    ]
    for plot in drawn:
        scene = plot.wide if width == charts.WIDE else plot.narrow
        assert scene.width == width
        for shape in scene.shapes:
            for x, y in places(shape):
                assert -1 <= x <= scene.width + 1, (plot.name, shape)
                assert -1 <= y <= scene.height + 1, (plot.name, shape)


def places(shape: Rect | Line | Text) -> list[tuple[float, float]]:
    if isinstance(shape, Line):
        return list(shape.points)
    end = (shape.x + shape.width, shape.y + shape.height) if isinstance(shape, Rect) else (shape.x, shape.y)
    return [(shape.x, shape.y), end]


def test_a_picture_shows_the_plot_and_is_the_same_each_time() -> None:
    plot: Plot = charts.tokens([5.0] * 40, [Level("median 5.0 ms", 5.0, "other")], "forty gaps")
    made = png(plot)
    assert made == png(plot)
    image = Image.open(io.BytesIO(made)).convert("RGB")
    assert image.size == (2 * (plot.wide.width + 32), 2 * (plot.wide.height + 66))
    shown = {colour for _, colour in image.getcolors(2**20) or []}
    for tone in ("page", "accent", "other", "rule"):
        wanted = tuple(int(COLOURS[tone][n : n + 2], 16) for n in (1, 3, 5))
        assert wanted in shown, tone
