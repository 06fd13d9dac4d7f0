"""A bundle as the parts of a report. Pure; whatever is missing or of the wrong shape is said to be missing."""

from __future__ import annotations

import hashlib
import shlex
from typing import Any

from bringup.artifacts import SUMS
from bringup.bundle import RECORD, Bundle
from bringup.report import start
from bringup.report.parts import Column, Fact, Facts, Note, Part, Quote, Report, Section, Table
from bringup.report.reading import NONE, at, line, moment, number, rows, seconds, size, text, words
from bringup.report.start import absent, part_of
from bringup.settings import fields, render, variable

STATUSES = ("fail", "unknown", "warn", "pass", "skip")  # the most telling first
VERDICTS = ("pass", "fail", "unknown")
LAST_LINES = 40
ENOUGH = 300  # rows of one table
INSIDE = f"This page is part of the bundle: {SUMS} was made after it. `bringup report DIR` compares every file."


def report(bundle: Bundle, *, inside: bool = False, verified: str = "") -> Report:
    """The report of a bundle.

    Args:
        bundle: as `bringup.bundle.read` has it.
        inside: it is made to be put into this very bundle, before there are sums.
        verified: what `bringup.bundle.verify` said, where it was asked.
    """
    record = bundle.record
    verdict = record.get("verdict") if record.get("verdict") in VERDICTS else "unknown"
    intact = None if inside else not bundle.faults
    sums = INSIDE if inside else verified or (
        f"Every file is as {SUMS} says." if intact else f"Not as it was written: {'; '.join(map(line, bundle.faults))}."
    )  # fmt: skip
    sections = (
        _what(bundle), start.startup(bundle), start.memory(bundle), start.tokens(bundle), _answer(bundle),
        _probes(record), _checks(record), _caches(bundle), _weights(bundle), _reproduce(record), *_log(bundle),
        _files(bundle),
    )  # fmt: skip
    return Report(
        name=line(bundle.directory.name), verdict=str(verdict), headline=_headline(record), why=_why(record),
        sums=sums, intact=intact, sections=sections,
    )  # fmt: skip


def _findings(record: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every check and probe: its kind, its status, itself; the most telling first."""
    found = [(kind, _status(r), r) for kind in ("check", "probe") for r in rows(record.get(f"{kind}s"))[:ENOUGH]]
    return sorted(found, key=lambda f: STATUSES.index(f[1]))


def _status(raw: dict[str, Any]) -> str:
    """A word of ours; anything else says nothing."""
    return str(raw.get("status")) if raw.get("status") in STATUSES else "unknown"


def _headline(record: dict[str, Any]) -> str:
    plan = record.get("plan")
    model, flavour = line(at(plan, "model")) or "a model that the record does not name", line(at(plan, "flavour"))
    return f"{model} on a {flavour.upper()}" if flavour else model


def _why(record: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """What decided the verdict: a status, who says so, and what was found."""
    said = [("fail", "run", line(record["error"]))] if record.get("error") else []
    found = [f for f in _findings(record) if f[1] in ("fail", "unknown", "warn")]
    # A check that could not tell stops nobody and decides nothing.
    telling = [(s, f"{kind} {line(r.get('name'))}", line(r.get("found"), 400)) for kind, s, r in found]
    said += [t for t in telling if not (t[1].startswith("check ") and t[0] == "unknown")]
    if said:
        return tuple(said)
    probes = rows(record.get("probes"))
    passed, skipped = (sum(_status(p) == s for p in probes) for s in ("pass", "skip"))
    if not probes:
        return (("unknown", "run", "the record holds no probe"),)
    unasked = f"; {skipped} do not apply here" if skipped else ""
    return (("pass", "run", f"{passed} of {len(probes)} probes passed{unasked}"),)


def _what(bundle: Bundle) -> Section:
    """What was run, on what."""
    record = bundle.record
    plan, image, host = record.get("plan"), record.get("image"), record.get("host")
    labels = at(image, "labels")
    vllm = at(labels, "dev.bringup.vllm") or at(part_of(bundle, "timeline"), "facts", "vllm_version")
    built = at(labels, "org.opencontainers.image.revision")
    began, ended = moment(record.get("started")), moment(record.get("finished"))
    known = (
        Fact("Model", line(at(plan, "model")), True),
        Fact("Weights", " ".join(filter(None, (line(at(plan, "weights")), line(at(labels, "dev.bringup.weights-digest"))))), True),
        Fact("vLLM", line(vllm)),
        Fact("Flavour", ": ".join(filter(None, (line(at(plan, "flavour")), line(at(plan, "flavour_reason")))))),
        Fact("GPU", _gpu(host)),
        Fact("Image", " ".join(filter(None, (line(at(plan, "image")), f"({size(at(image, 'size'))})" if at(image, "size") else "")))),
        Fact("Image id", line(at(image, "id")), True),
        Fact("Built from commit", line(built), True),
        Fact("Host", _host(host)),
        Fact("Engine", _engine(host)),
        Fact("Endpoint", line(at(plan, "base_url")), True),
        Fact("Container start to first token", seconds(record.get("started_to_first_token"))),
        Fact("Run", f"{began} to {ended}" if began and ended else began),
        Fact("Command", f"bringup {line(record.get('command'))} (version {line(record.get('tool_version')) or 'not known'})"),
    )  # fmt: skip
    told = tuple(f if f.value and f.value != NONE else Fact(f.name, "not in this bundle") for f in known)
    steps = rows(record.get("steps"))
    took = Note("Steps: " + ", ".join(f"{line(s.get('name'))} {seconds(s.get('seconds'))}" for s in steps) + ".")
    return Section("what", "What was run", (Facts(told), *([took] if steps else [])), short=True)


def _gpu(host: Any) -> str:
    gpu = at(host, "gpu")
    cards = [f"{line(g.get('name'))} {size(g.get('memory_total'))}" for g in rows(at(gpu, "gpus"))]
    if not cards:
        return f"none ({line(at(gpu, 'error'))})" if at(gpu, "error") else ""
    return f"{', '.join(cards)}; driver {line(at(gpu, 'driver')) or NONE}, CUDA {line(at(gpu, 'cuda')) or NONE}"


def _host(host: Any) -> str:
    system = at(host, "system")
    told = [line(at(system, key)) for key in ("system", "kernel", "architecture")]
    if at(system, "cpus"):
        told.append(f"{line(at(system, 'cpus'))} CPUs")
    if at(host, "memory", "total"):
        told.append(size(at(host, "memory", "total")))
    return ", ".join(t for t in told if t)


def _engine(host: Any) -> str:
    names = {"Docker Engine": "version", "compose": "compose", "buildx": "buildx"}
    versions = {name: line(at(host, "engine", key)) for name, key in names.items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _answer(bundle: Bundle) -> Section:
    """One answer, as it came."""
    body = bundle.json("sample_response.json")
    if said := at(body, "choices", 0, "text"):
        usage = at(body, "usage", "completion_tokens")
        caption = f"What the server wrote, {line(usage) or 'an unknown number of'} tokens"
        return Section("answer", "A sample answer", (Quote(caption, text(said)),))
    return Section("answer", "A sample answer", (absent("sample_response.json"),))


def _probes(record: dict[str, Any]) -> Section:
    listed = tuple(
        (line(p.get("name")), _status(p), line(p.get("expected")), line(p.get("found")), seconds(p.get("seconds")))
        for p in rows(record.get("probes"))[:ENOUGH]
    )
    columns = (Column("probe"), Column("says", "status"), Column("expected"), Column("found"), Column("took", "number"))
    parts: tuple[Part, ...] = (Table("Questions to the running server", columns, listed),)
    return Section("probes", "Probes", parts if listed else (absent("probes", "none was asked"),), short=True)


def _checks(record: dict[str, Any]) -> Section:
    listed = tuple(
        (line(c.get("name")), _status(c), line(c.get("found")), line(c.get("needed")), _remedy(c))
        for c in rows(record.get("checks"))[:ENOUGH]
    )
    columns = (Column("check"), Column("says", "status"), Column("found"), Column("needed"), Column("what to do"))
    parts: tuple[Part, ...] = (Table("Looks at the host before the start", columns, listed),)
    return Section("checks", "Checks of the host", parts if listed else (absent("checks", "only `up` makes them"),))


def _remedy(check: dict[str, Any]) -> str:
    return line(check.get("remedy")) if _status(check) not in ("pass", "skip") else ""


def _caches(bundle: Bundle) -> Section:
    made = part_of(bundle, "caches")
    listed = tuple(
        (line(c.get("name")), line(c.get("verdict")), line(c.get("why")), "; ".join(_differs(c)))
        for c in rows(at(made, "caches"))
    )
    columns = (Column("cache"), Column("verdict"), Column("why"), Column("differs"))
    parts: tuple[Part, ...] = (Table("What this start was served from", columns, listed),)
    return Section("caches", "Compile caches", parts if listed else (absent("caches.json"),))


def _differs(cache: dict[str, Any]) -> list[str]:
    found = rows(cache.get("differs"))
    return [f"{line(d.get('factor'))}: {line(d.get('before')) or 'not set'}, now {line(d.get('now')) or 'not set'}" for d in found]


def _weights(bundle: Bundle) -> Section:
    listed = tuple(
        (line(f.get("path")), size(f.get("size")), line(f.get("purpose")), _verified(f.get("verified")), line(f.get("sha256")))
        for f in rows(at(part_of(bundle, "ledger"), "files"))[:ENOUGH]
    )
    columns = (Column("file", "code"), Column("size", "number"), Column("what for"), Column("as locked"), Column("sha256", "code"))
    parts: tuple[Part, ...] = (Table("Files of the model that was loaded", columns, listed),)
    return Section("weights", "Weights", parts if listed else (absent("the list of the model's files"),))


def _verified(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, "nobody said") if value is None or isinstance(value, bool) else NONE


def _reproduce(record: dict[str, Any]) -> Section:
    """The command that asks for the same again, and where each setting came from."""
    plan = record.get("plan")
    if not isinstance(plan, dict):
        return Section("reproduce", "How to reproduce", (absent("the plan"),))
    settings = _settings(plan)
    parts: list[Part] = [Quote("The same again", command(record))]
    if image := line(at(record, "image", "id")):
        parts.append(Note(f"The image is {image}: with another id it is another image, whatever its name."))
    if settings:
        columns = (Column("setting"), Column("value", "code"), Column("from"))
        parts.append(Table("Settings and where each came from", columns, settings))
    if argv := words(plan.get("argv")):
        parts.append(Quote("Arguments of vLLM", shlex.join(argv)))
    return Section("reproduce", "How to reproduce", tuple(parts), short=True)


def _settings(plan: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Name, value and source of every setting that was not left at its default."""
    sources = plan.get("sources")
    if not isinstance(sources, dict):
        return ()
    given = {k: v for k, v in sources.items() if v != "default" and k in fields()}
    return tuple((name, _value(plan, name), line(source)) for name, source in given.items())


def _value(plan: dict[str, Any], name: str) -> str:
    """What the setting was: the plan has some under their name, the server's as its variables."""
    found = at(plan, "environment", variable(name))
    found = plan.get(name) if found is None else found
    return "not in this bundle" if found is None else line(found)


def command(record: dict[str, Any]) -> str:
    """The command line with every setting that was not left at its default, whatever it came from."""
    plan = record.get("plan")
    words_ = ["bringup", line(record.get("command")) or "up"]
    last: list[str] = []
    for name, value, _ in _settings(plan) if isinstance(plan, dict) else ():
        option = fields()[name][1]
        if option.hidden or value == "not in this bundle":
            continue
        if name == "vllm_args":
            last = ["--", *_split(value)]
        else:
            words_ += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words_ + last)


def _split(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def _log(bundle: Bundle) -> tuple[Section, ...]:
    """The log's end, of a run that did not pass."""
    if bundle.record.get("verdict") == "pass":
        return ()
    log = bundle.text("server.log")
    if log is None:
        return (Section("log", "The log's end", (absent("server.log"),)),)
    last = "\n".join(text(row, 400) for row in log[-100_000:].splitlines()[-LAST_LINES:])
    return (Section("log", "The log's end", (Quote(f"server.log, its last {LAST_LINES} lines", last),)),)


def _files(bundle: Bundle) -> Section:
    """What the bundle holds."""
    faults = {f.split(" ")[0]: f for f in bundle.faults}
    listed = tuple(
        (line(name), size(len(data)), hashlib.sha256(data).hexdigest(), line(faults.get(name, "")).removeprefix(f"{name} "))
        for name, data in sorted(bundle.files.items())[:ENOUGH]
    )
    columns = (Column("file", "code"), Column("size", "number"), Column("sha256", "code"), Column("fault"))
    if not any(row[3] for row in listed):
        columns, listed = columns[:3], tuple(row[:3] for row in listed)  # type: ignore[misc]
    note = Note(f"All that this page shows is in {RECORD} and the files beside it; compare them with `sha256sum --check {SUMS}`.")
    return Section("files", "Files of this bundle", (note, Table("Files", columns, listed)))
