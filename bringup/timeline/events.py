"""Lines of a log become events: our JSON lines, and vLLM's console text of any release from 0.11 to 0.33.

Formats: server.jsonl is written by `bringup.inside.events`. The console's line is `LEVEL MM-DD HH:MM:SS [file:line]
text` (vllm/logger.py), with `(Process pid=N)` before it: put there by vLLM's output wrapper until 0.30, by its
formatter since 0.32, absent where somebody brought a formatter. `docker logs --timestamps` and `docker compose logs`
add theirs.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

LINE_LIMIT = 20_000  # characters of a line that are read; ours are shorter, and a longer one says nothing we look for
MARKS = "bringup.inside"

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COMPOSE = re.compile(r"^[\w.-]+ +\| ")
_DOCKER = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) ?")
_PROCESS = re.compile(r"^\((?:([\w.-]+) )?pid=(\d+)\) ?")
_RECORD = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:(\d\d-\d\d \d\d:\d\d:\d\d) )?\[([^\]]*)\] ?")
_UVICORN = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL): {2,}")
_STANDARD = re.compile(r"%(?:\.\d+)?[sdrfgi]")
_LOCAL_YEAR = 2000  # a leap year, for a 29 February


@dataclass(frozen=True, kw_only=True)
class Event:
    """One record, or one bare line of a console.

    `t`: epoch seconds, None where the line has no time. `local`: `t` is the console's own time, in a year and time zone
    that the line does not tell (taken as 2000, UTC). `text`: the message; `msg`: its template and `args` its values, as
    far as the log has them (`exact`), else the text and nothing. `level` is empty for a bare line. `approximate`: the
    line has no time, `t` is that of the line before (`points.timed` puts it there).
    """

    t: float | None = None
    local: bool = False
    approximate: bool = False
    pid: int | None = None
    proc: str = ""
    level: str = ""
    logger: str = ""
    func: str = ""
    file: str = ""
    line: int = 0
    msg: str = ""
    args: tuple[Any, ...] = ()
    text: str = ""
    exact: bool = False

    @property
    def mark(self) -> str:
        """What one of our processes reached, empty for anything else."""
        ours = self.logger.startswith(MARKS) and self.msg == "reached %s" and len(self.args) == 1
        return str(self.args[0]) if ours else ""

    @property
    def born(self) -> float | None:
        """Epoch seconds at which this process began, if this is its first mark."""
        ours = self.logger.startswith(MARKS) and self.msg == "process started at %.3f" and len(self.args) == 1
        return _number(self.args[0]) if ours else None


def read_events(text: str, reference: datetime | None = None) -> tuple[Event, ...]:
    """All records and console lines of a log, in its order; what cannot be read is left out.

    Args:
        text: JSON lines and vLLM's console text, told apart line by line.
        reference: a moment near the end of the log, with its time zone, for console times, which have neither a year
            nor a zone. Without it they stay local to the log (`Event.local`), and `build` puts them beside its anchors.
    """
    events = []
    for line in text.split("\n"):
        # A bar is drawn over and over with carriage returns; only its last state says something.
        shown = line.rstrip("\r").rpartition("\r")[2][:LINE_LIMIT]
        made = _from_json(shown) if shown.startswith("{") else _from_text(shown)
        if made is not None:
            events.append(made)
    return tuple(_across_new_year(events) if reference is None else [_placed(e, reference) for e in events])


def _number(value: Any) -> float | None:
    """A finite number that can be a time or a figure; booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e12 else None


def _from_json(line: str) -> Event | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    t, msg, given = _number(record.get("t")), record.get("msg"), record.get("args", [])
    if t is None or not isinstance(msg, str):
        return None
    args = tuple(given) if isinstance(given, list) else (given,)
    pid, number = record.get("pid"), record.get("line")
    return Event(
        t=t,
        pid=pid if isinstance(pid, int) else None,
        line=number if isinstance(number, int) else 0,
        proc=str(record.get("proc", "")),
        level=str(record.get("level", "")),
        logger=str(record.get("logger", "")),
        func=str(record.get("func", "")),
        file=str(record.get("file", "")),
        msg=msg,
        args=args,
        text=_formatted(msg, args),
        exact=True,
    )


def _formatted(msg: str, args: tuple[Any, ...]) -> str:
    """The message as a person would have read it; values of the wrong type or number are put in as they are."""
    if not args:
        return msg
    try:
        return msg % args
    except (TypeError, ValueError, KeyError, OverflowError):
        values = iter(args)
        return _STANDARD.sub(lambda found: str(next(values, found[0])), msg)


def _from_text(line: str) -> Event | None:
    rest = _COMPOSE.sub("", _ANSI.sub("", line))
    t, local = None, False
    if docker := _DOCKER.match(rest):
        t, rest = _moment(docker), rest[docker.end() :]
    proc, pid = "", None
    while process := _PROCESS.match(rest):  # twice where both the wrapper and the formatter put it there
        proc, pid, rest = proc or process[1] or "", int(process[2][:18]), rest[process.end() :]
    level, file = "", ""
    if record := _RECORD.match(rest):
        level, file, rest = record[1], record[3], rest[record.end() :]
        if t is None and record[2]:
            t, local = _console_time(record[2]), True
    elif uvicorn := _UVICORN.match(rest):
        level, rest = uvicorn[1], rest[uvicorn.end() :]
    rest = rest.rstrip()
    if not rest and not level:
        return None
    name, _, number = file.rpartition(":")
    return Event(
        t=t, local=local and t is not None, pid=pid, proc=proc, level=level, file=name or file,
        line=int(number) if number.isdecimal() and len(number) < 9 else 0, msg=rest, text=rest,
    )  # fmt: skip


def _moment(found: re.Match[str]) -> float | None:
    """Of Docker's own timestamp, which has nanoseconds."""
    try:
        whole = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
    return whole + float("0" + (found[2] or ""))


def _console_time(text: str) -> float | None:
    try:
        return datetime.strptime(f"{_LOCAL_YEAR}-{text}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _across_new_year(events: list[Event]) -> list[Event]:
    """Console times stay in order when a log runs from December into January."""
    year = timedelta(days=366).total_seconds()  # of 2000
    last, shift, made = None, 0.0, []
    for e in events:
        if not e.local or e.t is None:
            made.append(e)
            continue
        if last is not None and last - (e.t + shift) > 0.9 * year:
            shift += year
        last = e.t + shift
        made.append(_at(e, last))
    return made


def _placed(event: Event, reference: datetime) -> Event:
    """A console time in the year and zone of `reference`, and not after it by more than a day."""
    if not event.local or event.t is None:
        return event
    zone = reference.tzinfo or UTC
    local = datetime.fromtimestamp(event.t, UTC).replace(tzinfo=zone)
    for year in (reference.year, reference.year - 1):
        try:
            placed = local.replace(year=year)
        except ValueError:  # 29 February
            continue
        if (placed - reference.replace(tzinfo=zone)).total_seconds() < 86_400:
            return _at(event, placed.timestamp(), local=False)
    return event


def _at(event: Event, t: float, *, local: bool | None = None) -> Event:
    return replace(event, t=t, local=event.local if local is None else local)
