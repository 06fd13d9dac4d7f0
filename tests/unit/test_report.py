"""What a report says of a bundle: whole, old, failed, spoiled; and that nothing a server said is more than text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bringup.bundle import RECORD
from bringup.report import PAGE, SUMMARY, pages
from bringup.report.page import html
from bringup.report.parts import Note, Report, Table
from bringup.report.reading import NONE
from bringup.report.scene import Plot
from bringup.report.summary import escaped, markdown
from bringup.report.view import INSIDE, command, report
from tests.unit import bundles

HOSTILE = (
    "<script>alert(1)</script></style></title><img src=x onerror=alert(1)>\"'&{{7*7}}{% x %}-->]]>"
    "\x00\x07\x1b[31m\u202egnp.exe\u2066\ud800\ufffe|`*_[x](http://evil.example)@team\n# head\n- item"
)


@pytest.fixture(scope="module")
def gpu() -> dict[str, str]:
    return bundles.on_a_gpu()


def of(made: dict[str, str], **more: Any) -> Report:
    return report(bundles.loaded(made), **more)


def section(made: Report, id_: str) -> list[Any]:
    return next(list(s.parts) for s in made.sections if s.id == id_)


def tables(made: Report, id_: str) -> dict[str, Table]:
    return {p.caption: p for p in section(made, id_) if isinstance(p, Table)}


def notes(made: Report, id_: str) -> str:
    return " ".join(p.text for p in section(made, id_) if isinstance(p, Note))


class Outline(HTMLParser):
    """Elements with their attributes, and the text in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# ---- what it says


def test_a_run_on_a_gpu(gpu: dict[str, str]) -> None:
    made = of(gpu)
    assert (made.verdict, made.headline, made.intact) == ("pass", "tiny-qwen2 on a GPU", True)
    told = "2 of 3 probes passed; 1 do not apply here; the first token came 36.55 s after the container's start"
    assert made.why[0] == ("pass", "run", told)
    assert made.why[1] == ("warn", "check check-warn", "13 GiB free")
    page = Outline(html(made))
    text = " ".join(page.text)
    for told in ("NVIDIA H200", "580.159.04", "0.32.0", "8ee4856faf46", "Ubuntu 24.04.3 LTS", "http://127.0.0.1:8000"):
        assert told in text
    assert [p.name for p in made.plots()] == ["waterfall", "memory", "tokens"]
    assert "at most 85.91 GiB; predicted total 84.75 GiB; stated total 84.38 GiB" in notes(made, "memory")
    assert "36.55 s until the server was up" in notes(made, "startup")
    assert "96 chunks, the first after 21.0 ms" in notes(made, "tokens")
    assert tables(made, "memory")["Predicted, stated, measured"].rows[0][1:4] == ("2.98 GiB", "2.98 GiB", "3.68 GiB")
    assert "not in this bundle" not in notes(made, "startup").lower()


def test_the_waterfall_shows_the_path_and_what_is_inside(gpu: dict[str, str]) -> None:
    plot = next(p for p in of(gpu).plots() if p.name == "waterfall")
    for scene in (plot.wide, plot.narrow):
        said = [s.text for s in scene.shapes if hasattr(s, "text")]
        assert {"API process: start and imports", "model load", "weights read", "graph capture"} <= set(said)
        assert "9.08 s" in said
        for shape in scene.shapes:
            for x in [x for x, _ in shape.points] if hasattr(shape, "points") else [shape.x]:
                assert 0 <= x <= scene.width
    assert "tokenizer, engine process: start and imports 37%" in plot.label


def test_probes_checks_and_what_decided(gpu: dict[str, str]) -> None:
    probes = [
        {"name": "chat", "status": "unknown", "expected": "an answer", "found": "not asked: ready failed"},
        {"name": "ready", "status": "fail", "expected": "one token", "found": "HTTP 500", "seconds": 1.5},
        {"name": "odd", "status": "splendid", "expected": "x", "found": "y"},
    ]
    checks = [{"name": "disk", "status": "unknown", "found": "nobody looked", "needed": "1 GiB", "remedy": "look"}]
    made = of(bundles.changed(gpu, probes=probes, checks=checks, verdict="fail", error="the server died"))
    assert made.why == (
        ("fail", "run", "the server died"), ("fail", "probe ready", "HTTP 500"),
        ("unknown", "probe chat", "not asked: ready failed"), ("unknown", "probe odd", "y"),
    )  # fmt: skip
    (table,) = tables(made, "probes").values()
    assert table.rows[1] == ("ready", "fail", "one token", "HTTP 500", "1.50 s")
    assert tables(made, "checks")["Looks at the host before the start"].rows[0][-1] == "look"
    assert [p.caption for p in section(made, "log")] == ["server.log, its last 40 lines"]


@pytest.mark.parametrize("verdict", [None, "splendid", [], "unknown"])
def test_a_verdict_that_is_none_of_ours_is_unknown(gpu: dict[str, str], verdict: Any) -> None:
    assert of(bundles.changed(gpu, verdict=verdict)).verdict == "unknown"


DOUBT = ("unknown", "run", "the record says pass, but not all that it holds did pass")
CHANGED = ("unknown", "run", "the record says pass, but the bundle is not as it was written")


@pytest.mark.parametrize(
    "keys",
    [{"probes": []}, {"probes": None}, {"probes": [{"name": "auth", "status": "skip"}]}, {"error": "it died"},
     {"probes": [{"name": "a", "status": "pass"}, {"name": "b", "status": "fail"}]},
     {"probes": [{"name": "a", "status": "pass"}, {"name": "b", "status": "splendid"}]}],
)  # fmt: skip
def test_a_pass_that_the_record_does_not_bear_out_is_none(gpu: dict[str, str], keys: dict[str, Any]) -> None:
    made = of(bundles.changed(gpu, **keys))
    assert (made.verdict, made.why[0]) == ("unknown", DOUBT)


def test_a_pass_in_a_bundle_that_was_changed_is_none(gpu: dict[str, str]) -> None:
    made = report(bundles.loaded(gpu, faults=("server.log differs from its sum",)))
    assert (made.verdict, made.why[0]) == ("unknown", CHANGED)
    failed = report(bundles.loaded(bundles.changed(gpu, verdict="fail"), faults=("server.log differs from its sum",)))
    assert failed.verdict == "fail"


def test_the_sums_are_always_told(gpu: dict[str, str]) -> None:
    assert of(gpu).sums == "Every file is as SHA256SUMS says."
    assert of(gpu, verified="3 files are as SHA256SUMS says").sums == "3 files are as SHA256SUMS says"
    broken = report(bundles.loaded(gpu, faults=("server.log differs from its sum", "x is missing")))
    assert (broken.intact, broken.sums) == (
        False, "Not as it was written: server.log differs from its sum; x is missing.",
    )  # fmt: skip
    assert "Not as it was written" in html(broken)
    assert "**Not as it was written" in markdown(broken)
    rows = {row[0]: row for row in tables(broken, "files")["Files"].rows}
    assert rows["server.log"][-1] == "differs from its sum"
    inside = of(gpu, inside=True)
    assert (inside.intact, inside.sums) == (None, INSIDE)


def test_the_command_that_asks_for_the_same_again(gpu: dict[str, str]) -> None:
    record = json.loads(gpu[RECORD])
    assert command(record) == "bringup up --model tiny-qwen2 --gpu-memory-utilization 0.6 -- --max-num-seqs 64"
    made = of(gpu)
    assert tables(made, "reproduce")["Settings and where each came from"].rows == (
        ("model", "tiny-qwen2", "flag"), ("gpu_memory_utilization", "0.6", "environment"),
        ("vllm_args", "--max-num-seqs 64", "flag"), ("suite", "not in this bundle", "flag"),
    )  # fmt: skip
    assert "another id it is another image" in notes(made, "reproduce")
    record["settings"] = {"suite": "smoke"}
    assert "--suite smoke" in command(record)
    record |= {"command": "bench serve", "settings": {"keep": "0"}}
    record["plan"]["sources"] = {"keep": "environment"}
    assert command(record) == "bringup bench serve --no-keep"
    record["plan"]["sources"] = {"vllm_args": "flag"}
    record["plan"]["environment"]["BRINGUP_VLLM_ARGS"] = "--a 'b"
    assert command(record).endswith("""-- '--a '"'"'b'""")


@pytest.mark.parametrize("name", ["v1-up", "v1-failed"])
def test_records_of_old_versions_have_a_report(name: str) -> None:
    made = of({RECORD: (bundles.DATA / "records" / f"{name}.json").read_text("utf-8")})
    assert made.verdict == {"v1-up": "pass", "v1-failed": "fail"}[name]
    assert made.headline == "tiny-qwen2 on a CPU"
    assert [p.name for p in made.plots()] == {"v1-up": ["waterfall", "tokens"], "v1-failed": ["waterfall"]}[name]
    assert "memory samples of the start" in notes(made, "memory")
    if name == "v1-failed":
        assert made.why[0] == ("fail", "run", "the server died while starting: the container is exited, exit code 6")


# ---- what is missing


@pytest.mark.parametrize(
    ("part", "at"),
    [("timeline", "startup"), ("ledger", "memory"), ("caches", "caches"), ("probes", "probes"), ("probes", "tokens"),
     ("checks", "checks"), ("ledger", "weights"), ("plan", "reproduce")],
)  # fmt: skip
def test_what_is_missing_is_said_where_a_reader_looks(gpu: dict[str, str], part: str, at: str) -> None:
    made = of(bundles.changed(gpu, **{part: None}))
    assert "Not in this bundle:" in notes(made, at)
    assert "Not in this bundle:" in html(made)


def test_a_record_alone_is_enough_for_all_but_the_answer(gpu: dict[str, str]) -> None:
    made = of({RECORD: gpu[RECORD]})
    assert len(made.plots()) == 3
    assert "sample_response.json" in notes(made, "answer")


def test_an_empty_record_has_a_report() -> None:
    made = of({RECORD: "{}"})
    assert (made.verdict, made.plots()) == ("unknown", ())
    assert made.headline == "a model that the record does not name"
    assert "not in this bundle" in markdown(made)
    assert "server.log" in notes(made, "log")


def test_a_ledger_without_samples_of_before_they_were_kept(gpu: dict[str, str]) -> None:
    ledger = json.loads(gpu[RECORD])["ledger"]
    old = {k: v for k, v in ledger.items() if k != "samples"}
    made = of(bundles.changed(gpu, ledger=old))
    assert "memory samples of the start" in notes(made, "memory")
    assert "Predicted, stated, measured" in tables(made, "memory")
    unseen = [s | {"server": None} for s in ledger["samples"]]
    assert "not seen from this host" in notes(of(bundles.changed(gpu, ledger=ledger | {"samples": unseen})), "memory")


def test_on_a_cpu_the_curve_is_the_processes_memory(gpu: dict[str, str]) -> None:
    samples = [{"t": 10.0 + n, "card": None, "server": None, "rss": n * 2**30} for n in range(4)]
    made = of(bundles.changed(gpu, ledger={"flavour": "cpu", "samples": samples}, timeline=None))
    assert "processes in host memory (RSS): at most 3.00 GiB." in notes(made, "memory")


def test_a_log_without_times_is_told_and_listed(gpu: dict[str, str]) -> None:
    timeline = json.loads(gpu[RECORD])["timeline"] | {"begin": None, "whole_seconds": None}
    made = of(bundles.changed(gpu, timeline=timeline))
    assert "no times" in notes(made, "startup")
    assert "waterfall" not in [p.name for p in made.plots()]
    assert tables(made, "startup")["Every stage that was seen"].rows[0][1] == NONE


def test_a_start_that_did_not_come_up(gpu: dict[str, str]) -> None:
    timeline = json.loads(gpu[RECORD])["timeline"]
    timeline["finished"] = timeline["stages"][0]["finished"] = False
    timeline["gaps"] = [{"begin": timeline["begin"], "end": timeline["begin"] + 2, "seconds": 2.0}]
    made = of(bundles.changed(gpu, timeline=timeline))
    assert "not seen to come up" in notes(made, "startup")
    said = [s.text for s in made.plots()[0].wide.shapes if hasattr(s, "text")]
    assert "(in no stage)" in said
    assert any(s.endswith(" s, not finished") for s in said)


@pytest.mark.parametrize("seed", range(12))
def test_values_of_the_wrong_shape_end_no_report(gpu: dict[str, str], seed: int) -> None:
    bundle = bundles.loaded(bundles.spoiled(gpu, seed))
    made = report(bundle)
    page = html(made)
    assert f'<p class="word">{made.verdict}</p>' in page
    assert "nan" not in re.findall(r'(?:x|y|width|height|points)="([^"]*)"', page)
    assert markdown(made).startswith("## ")


# ---- what a server says is text


def poisoned(gpu: dict[str, str]) -> dict[str, str]:
    """Hostile words wherever the record has a text."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if k in ("status", "id", "parent", "verdict") else poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return HOSTILE + value if isinstance(value, str) else value

    made = bundles.files(poison(json.loads(gpu[RECORD])) | {"verdict": "fail", "error": HOSTILE})
    answer = json.dumps({"choices": [{"text": HOSTILE + "x" * 100_000}]})
    return made | {"sample_response.json": answer, "server.log": HOSTILE * 50, f"{HOSTILE}.txt": HOSTILE}


def test_hostile_words_are_shown_and_do_nothing(gpu: dict[str, str]) -> None:
    page = html(of(poisoned(gpu)))
    outline = Outline(page)
    names = {tag for tag, _ in outline.tags}
    assert not names & {"script", "img", "iframe", "link", "object", "form", "input"}
    assert len([1 for tag, _ in outline.tags if tag == "style"]) == 1
    for tag, attributes in outline.tags:
        assert not [a for a in attributes if a.startswith("on") or a == "style"], tag
        assert (attributes.get("href") or "#").startswith("#")
        assert not attributes.get("src")
    assert "<script>alert(1)</script>" in " ".join(outline.text), "shown as it is"
    assert "\\u202egnp.exe" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\ud800-\udfff]", page)
    assert "{{7*7}}" in page
    assert len(page.encode()) < 1_500_000


def test_hostile_words_start_nothing_in_markdown(gpu: dict[str, str]) -> None:
    made = markdown(of(poisoned(gpu)))
    outside = re.sub(r"^(`{3,})$.*?^\1$", "", made, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside), "no link of theirs"
    assert "@team" not in outside
    assert not re.search(r"^# head", outside, re.MULTILINE)
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 6, 7, 8), line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("<b> & @me", "&lt;b&gt; &amp; &#64;me"),
        ("one\ntwo", "one two"),
        ("\\", r"\\"),
    ],
)
def test_markdown_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_fence_is_longer_than_any_in_the_text(gpu: dict[str, str]) -> None:
    record = json.loads(gpu[RECORD])
    record["plan"]["argv"] = ["--a", "````\n# x"]
    made = markdown(of(bundles.files(record)))
    assert "\n`````\n--a '````\n" in made


# ---- the page itself


def test_the_page_loads_nothing_and_may_run_nothing(gpu: dict[str, str]) -> None:
    page = html(of(gpu))
    (policy,) = [a["content"] for tag, a in Outline(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]{44}'; base-uri 'none'; form-action 'none'", policy or ""
    )
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in re.sub(r"<(code|pre|dd|td|th)\b.*?</\1>|http-equiv", "", page, flags=re.DOTALL)


def test_headings_are_in_order_and_tables_have_captions(gpu: dict[str, str]) -> None:
    tags = Outline(html(of(gpu))).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    count = {
        name: sum(tag == name for tag, _ in tags) for name in ("table", "caption", "main", "nav", "header", "footer")
    }
    assert count["table"] == count["caption"] > 5
    assert (count["main"], count["nav"], count["header"], count["footer"]) == (1, 1, 1, 1)
    assert all(a.get("scope") in ("col", "row") for tag, a in tags if tag == "th")
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"] in ids


def test_the_same_bundle_has_the_same_page(gpu: dict[str, str]) -> None:
    assert html(of(gpu)) == html(of(gpu))


# ---- in the bundle


def test_the_pages_of_a_bundle_are_made_from_its_files(gpu: dict[str, str]) -> None:
    said: list[str] = []
    contents = bundles.loaded(gpu).files
    made = pages(said.append)(Path("x/20261123T160040Z-m"), contents)
    assert list(made) == [PAGE, SUMMARY]
    assert INSIDE in Outline(made[PAGE]).text
    assert "Bundle 20261123T160040Z-m" in made[SUMMARY]
    assert said == []


def test_a_fault_of_the_page_costs_no_evidence() -> None:
    said: list[str] = []
    assert pages(said.append)(Path("b"), {RECORD: b"["}) == {}
    assert said[0].startswith("the bundle has no report.html: JSONDecodeError")


def test_plots_have_a_text_alternative(gpu: dict[str, str]) -> None:
    assert all(isinstance(p, Plot) and len(p.label) > 40 for p in of(gpu).plots())
