"""What machines that run tests read: JUnit's XML, and the lines by which GitHub marks a job."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as Xml

from bringup.report.reading import line, number, rows, text
from bringup.report.view import status_of

LEVELS = {"fail": "error", "unknown": "warning", "warn": "warning"}


def junit(record: dict[str, Any], faults: tuple[str, ...]) -> str:
    """One test case a check, a probe, and the run: its error, and whether the bundle is as it was written.

    fail is a failure, unknown an error, skip is skipped; a warning passes, and is said in its output.
    """
    suites = Xml.Element("testsuites", name="bringup")
    broken = ("fail", f"the bundle is not as it was written: {'; '.join(faults)}") if faults else ("pass", "")
    error = ("fail", line(record.get("error"))) if record.get("error") else ("pass", "")
    _suite(suites, "run", [("error", *error, 0.0), ("sums", *broken, 0.0)])
    for kind in ("checks", "probes"):
        cases = [
            (line(r.get("name")), status_of(r), _said(r), number(r.get("seconds")) or 0.0)
            for r in rows(record.get(kind))
        ]
        _suite(suites, kind, cases)
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(suites, encoding="unicode") + "\n"


def _said(raw: dict[str, Any]) -> str:
    wanted = raw.get("expected", raw.get("needed"))
    remedy = f"; to do: {line(raw.get('remedy'))}" if raw.get("remedy") else ""
    return f"found {line(raw.get('found'))}; expected {line(wanted)}{remedy}"


def _suite(suites: Xml.Element, name: str, cases: list[tuple[str, str, str, float]]) -> None:
    counted = {s: sum(case[1] == s for case in cases) for s in ("fail", "unknown", "skip")}
    suite = Xml.SubElement(
        suites, "testsuite", name=f"bringup.{name}", tests=str(len(cases)), failures=str(counted["fail"]),
        errors=str(counted["unknown"]), skipped=str(counted["skip"]), time=f"{sum(c[3] for c in cases):.3f}",
    )  # fmt: skip
    for title, status, said, took in cases:
        case = Xml.SubElement(suite, "testcase", classname=f"bringup.{name}", name=title, time=f"{took:.3f}")
        if status in ("fail", "unknown"):
            kind = "failure" if status == "fail" else "error"
            Xml.SubElement(case, kind, message=said, type=status).text = said
        elif status == "skip":
            Xml.SubElement(case, "skipped", message=said)
        elif status == "warn":
            Xml.SubElement(case, "system-out").text = said


def github(record: dict[str, Any], faults: tuple[str, ...]) -> list[str]:
    """Workflow commands: an error a failure, a warning where something is unknown or not fine, else one notice."""
    found = [("error", "run", line(record["error"]))] if record.get("error") else []
    found += [("error", "bundle", line(f)) for f in faults]
    for kind in ("checks", "probes"):
        for r in rows(record.get(kind)):
            if level := LEVELS.get(status_of(r)):
                found.append((level, f"{kind[:-1]} {line(r.get('name'))}", _said(r)))
    found = found or [("notice", "run", f"verdict: {line(record.get('verdict'))}")]
    return [f"::{level} title={_property(f'bringup: {who}')}::{_data(said)}" for level, who, said in found]


def _data(value: str) -> str:
    return text(value).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")
