"""A bundle as the parts of a report. Pure; whatever is missing or of the wrong shape is said to be missing."""

from __future__ import annotations

import hashlib
import shlex
from typing import Any

from bringup.bundle import RECORD, Bundle
from bringup.report import start
from bringup.report.parts import Column, Fact, Facts, Note, Part, Quote, Report, Section, table
from bringup.report.reading import NONE, at, line, moment, number, rows, seconds, size, text, words
from bringup.report.start import absent, part_of
from bringup.settings import boolean, fields, variable
from bringup.signature import SUMS

STATUSES = ("fail", "unknown", "warn", "pass", "skip")  # the most telling first
VERDICTS = ("pass", "fail", "unknown")
LAST_LINES = 40
ENOUGH = 300  # rows of one table
Reason = tuple[str, str, str]  # a status, who says so, what was found
INSIDE = f"This page is part of the bundle: {SUMS} was made after it. bringup report DIR compares every file."


def report(bundle: Bundle, *, inside: bool = False, verified: str = "") -> Report:
    """The report of a bundle.

    Args:
        bundle: as `bringup.bundle.read` has it.
        inside: it is made to be put into this very bundle, before there are sums.
        verified: what `bringup.bundle.verify` said, where it was asked.
    """
    record = bundle.record
    intact = None if inside else not bundle.faults
    verdict, doubt = _verdict(record, intact)
    sums = INSIDE if inside else verified or (
        f"Every file is as {SUMS} says." if intact else f"Not as it was written: {'; '.join(map(line, bundle.faults))}."
    )  # fmt: skip
    sections = (
        _what(bundle), *_log(bundle), start.startup(bundle), start.memory(bundle), start.tokens(bundle),
        _answer(bundle), _probes(record), _checks(record), _caches(bundle), _weights(bundle), _reproduce(record),
        _files(bundle),
    )  # fmt: skip
    return Report(
        name=line(bundle.directory.name), verdict=verdict, headline=_headline(record), why=(*doubt, *_why(record)),
        sums=sums, intact=intact, sections=sections,
    )  # fmt: skip


def _verdict(record: dict[str, Any], intact: bool | None) -> tuple[str, tuple[Reason, ...]]:
    """The verdict, and why it is not the record's: a pass that the bundle does not bear out is none."""
    said = record.get("verdict") if record.get("verdict") in VERDICTS else "unknown"
    if said != "pass":
        return str(said), ()
    statuses = {status_of(p) for p in rows(record.get("probes"))}
    doubts = ["the bundle is not as it was written"] if intact is False else []
    if record.get("error") or statuses & {"fail", "unknown"} or "pass" not in statuses:
        doubts.append("not all that it holds did pass")
    if doubts:
        return "unknown", (("unknown", "run", f"the record says pass, but {' and '.join(doubts)}"),)
    return "pass", ()


def _findings(record: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every check and probe: its kind, its status, itself; the most telling first."""
    found = [(kind, status_of(r), r) for kind in ("check", "probe") for r in rows(record.get(f"{kind}s"))[:ENOUGH]]
    return sorted(found, key=lambda f: STATUSES.index(f[1]))


def status_of(raw: dict[str, Any]) -> str:
    """A word of ours; anything else says nothing."""
    return str(raw.get("status")) if raw.get("status") in STATUSES else "unknown"


def _headline(record: dict[str, Any]) -> str:
    plan = record.get("plan")
    model, flavour = line(at(plan, "model")) or "a model that the record does not name", line(at(plan, "flavour"))
    return f"{model} on a {flavour.upper()}" if flavour else model


def _why(record: dict[str, Any]) -> tuple[Reason, ...]:
    """What decided the verdict."""
    said = [("fail", "run", line(record["error"]))] if record.get("error") else []
    for kind, status, raw in _findings(record):
        # A check that could not tell stops nobody and decides nothing.
        if status in ("fail", "warn") or (status == "unknown" and kind == "probe"):
            said.append((status, f"{kind} {line(raw.get('name'))}", line(raw.get("found"), 400)))
    probes = rows(record.get("probes"))
    if not probes:
        return (*said, ("unknown", "run", "the record holds no probe"))
    if record.get("verdict") == "pass":
        said.insert(0, ("pass", "run", _passed(record, [status_of(p) for p in probes])))
    return tuple(said)


def _passed(record: dict[str, Any], statuses: list[str]) -> str:
    skipped = statuses.count("skip")
    told = f"{statuses.count('pass')} of {len(statuses)} probes passed"
    told += f"; {skipped} do not apply here" if skipped else ""
    if took := number(record.get("started_to_first_token")):
        told += f"; the first token came {seconds(took)} after the container's start"
    return told


def _what(bundle: Bundle) -> Section:
    """What was run, on what."""
    record = bundle.record
    plan, image, host = record.get("plan"), record.get("image"), record.get("host")
    labels = at(image, "labels")
    vllm = at(labels, "dev.bringup.vllm") or at(part_of(bundle, "timeline"), "facts", "vllm_version")
    built = at(labels, "org.opencontainers.image.revision")
    digest = line(at(record, "model", "digest") or at(labels, "dev.bringup.weights-digest"))
    began, ended = moment(record.get("started")), moment(record.get("finished"))
    known = (
        Fact("Model", line(at(plan, "model")), True),
        Fact("Weights", _joined(", ", at(plan, "weights"), _pin(record), f"digest {digest}" if digest else ""), True),
        Fact("vLLM", line(vllm)),
        Fact("Flavour", _joined(": ", at(plan, "flavour"), at(plan, "flavour_reason"))),
        Fact("GPU", _gpu(host)),
        Fact("Image", _joined(", ", at(plan, "image"), size(at(image, "size")))),
        Fact("Image id", line(at(image, "id")), True),
        Fact("Built from commit", line(built), True),
        Fact("Host", _host(host)),
        Fact("Engine", _engine(host)),
        Fact("Endpoint", line(at(plan, "base_url")), True),
        Fact("Container start to first token", seconds(record.get("started_to_first_token"))),
        Fact("Run", f"{began} to {ended}" if began and ended else began),
        Fact("Command", _joined(", version ", f"bringup {line(record.get('command'))}", record.get("tool_version"))),
    )  # fmt: skip
    told = tuple(f if f.value and f.value != NONE else Fact(f.name, "not in this bundle") for f in known)
    steps = rows(record.get("steps"))
    took = Note("Steps: " + ", ".join(f"{line(s.get('name'))} {seconds(s.get('seconds'))}" for s in steps) + ".")
    return Section("what", "What was run", (Facts(told), *([took] if steps else [])), short=True)


def _joined(between: str, *values: Any) -> str:
    """Those that are there, with something between them."""
    return between.join(t for t in map(line, values) if t not in ("", NONE))


def _pin(record: dict[str, Any]) -> str:
    return _joined("@", at(record, "model", "repo"), at(record, "model", "revision"))


def _gpu(host: Any) -> str:
    gpu = at(host, "gpu")
    cards = [f"{line(g.get('name'))} {size(g.get('memory_total'))}" for g in rows(at(gpu, "gpus"))]
    if not cards:
        return f"none ({line(at(gpu, 'error'))})" if at(gpu, "error") else ""
    return f"{', '.join(cards)}; driver {line(at(gpu, 'driver')) or NONE}, CUDA {line(at(gpu, 'cuda')) or NONE}"


def _host(host: Any) -> str:
    system, memory = at(host, "system"), at(host, "memory", "total")
    cpus = f"{line(at(system, 'cpus'))} CPUs" if at(system, "cpus") else ""
    named = (at(system, key) for key in ("system", "kernel", "architecture"))
    return _joined(", ", *named, cpus, size(memory))


def _engine(host: Any) -> str:
    names = {"Docker Engine ": "version", "compose ": "compose"}
    return ", ".join(name + line(v) for name, key in names.items() if (v := at(host, "engine", key)))


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
        (line(p.get("name")), status_of(p), line(p.get("expected")), line(p.get("found")), seconds(p.get("seconds")))
        for p in rows(record.get("probes"))[:ENOUGH]
    )
    columns = (Column("probe"), Column("says", "status"), Column("expected"), Column("found"), Column("took", "number"))
    parts: tuple[Part, ...] = (table("Questions to the running server", columns, listed),)
    return Section("probes", "Probes", parts if listed else (absent("probes", "none was asked"),), short=True)


def _checks(record: dict[str, Any]) -> Section:
    listed = tuple(
        (line(c.get("name")), status_of(c), line(c.get("found")), line(c.get("needed")), _remedy(c))
        for c in rows(record.get("checks"))[:ENOUGH]
    )
    columns = (Column("check"), Column("says", "status"), Column("found"), Column("needed"), Column("what to do"))
    parts: tuple[Part, ...] = (table("Looks at the host before the start", columns, listed),)
    return Section("checks", "Checks of the host", parts if listed else (absent("checks", "only `up` makes them"),))


def _remedy(check: dict[str, Any]) -> str:
    return line(check.get("remedy")) if status_of(check) not in ("pass", "skip") else ""


def _caches(bundle: Bundle) -> Section:
    made = part_of(bundle, "caches")
    listed = tuple(
        (line(c.get("name")), line(c.get("verdict")), line(c.get("why")), "; ".join(_differs(c)))
        for c in rows(at(made, "caches"))
    )
    columns = (Column("cache"), Column("verdict"), Column("why"), Column("differs"))
    parts: tuple[Part, ...] = (table("What this start was served from", columns, listed),)
    return Section("caches", "Compile caches", parts if listed else (absent("caches.json"),))


def _differs(cache: dict[str, Any]) -> list[str]:
    found = rows(cache.get("differs"))
    return [
        f"{line(d.get('factor'))}: {line(d.get('before')) or 'not set'}, now {line(d.get('now')) or 'not set'}"
        for d in found
    ]


def _weights(bundle: Bundle) -> Section:
    listed = tuple(
        (
            line(f.get("path")),
            size(f.get("size")),
            line(f.get("purpose")),
            _verified(f.get("verified")),
            line(f.get("sha256")),
        )
        for f in rows(at(part_of(bundle, "ledger"), "files"))[:ENOUGH]
    )
    columns = (
        Column("file", "code"),
        Column("size", "number"),
        Column("what for"),
        Column("as locked"),
        Column("sha256", "code"),
    )
    parts: tuple[Part, ...] = (table("Files of the model that was loaded", columns, listed),)
    return Section("weights", "Weights", parts if listed else (absent("the list of the model's files"),))


def _verified(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else "nobody said"


def _reproduce(record: dict[str, Any]) -> Section:
    """The command that asks for the same again, and where each setting came from."""
    plan = record.get("plan")
    if not isinstance(plan, dict):
        return Section("reproduce", "How to reproduce", (absent("the plan"),))
    settings = _settings(record)
    parts: list[Part] = [Quote("The same again", command(record))]
    if image := line(at(record, "image", "id")):
        parts.append(Note(f"The image is {image}: with another id it is another image, whatever its name."))
    if settings:
        columns = (Column("setting"), Column("value", "code"), Column("from"))
        parts.append(table("Settings and where each came from", columns, settings))
    started = words(at(record, "container", "argv"))
    if argv := started or words(plan.get("argv")):
        caption = "What the engine started in the container" if started else "Arguments of vLLM"
        parts.append(Quote(caption, shlex.join(argv)))
    return Section("reproduce", "How to reproduce", tuple(parts), short=True)


def _settings(record: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Name, value and source of every setting that was not left at its default."""
    sources = at(record, "plan", "sources")
    if not isinstance(sources, dict):
        return ()
    given = {k: v for k, v in sources.items() if v != "default" and k in fields()}
    return tuple((name, _value(record, name), line(source)) for name, source in given.items())


def _value(record: dict[str, Any], name: str) -> str:
    """What the setting was; in a record of before there were settings in it, as far as the plan has it."""
    plan = record.get("plan")
    places = (at(record, "settings", name), at(plan, "environment", variable(name)), at(plan, name))
    found = next((value for value in places if value is not None), None)
    return "not in this bundle" if found is None else line(found)


def command(record: dict[str, Any]) -> str:
    """The command line with every setting that was not left at its default, whatever it came from."""
    words_ = ["bringup", *(line(record.get("command")) or "up").split()]
    last: list[str] = []
    for name, value, _ in _settings(record):
        option, flag = fields()[name][1], f"--{name.replace('_', '-')}"
        if option.hidden or value == "not in this bundle":
            continue
        if name == "vllm_args":
            last = ["--", *_split(value)]
        elif option.parse is boolean:
            words_.append(flag if value == "1" else f"--no-{flag[2:]}")
        else:
            words_ += [flag, value]
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
    listed = tuple(
        (
            line(name),
            size(len(data)),
            hashlib.sha256(data).hexdigest(),
            next((line(f.removeprefix(f"{name} ")) for f in bundle.faults if f.startswith(f"{name} ")), ""),
        )
        for name, data in sorted(bundle.files.items())[:ENOUGH]
    )
    columns = (Column("file", "code"), Column("size", "number"), Column("sha256", "code"), Column("fault"))
    note = Note(
        f"All that is shown here is in {RECORD} and the files beside it; sha256sum --check {SUMS} compares them."
    )
    return Section("files", "Files of this bundle", (note, table("Files", columns, listed)))
