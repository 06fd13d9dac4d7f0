"""`bringup report`: a bundle as a page, a summary, pictures, or what test machines read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from bringup.commands import standard
from bringup.errors import Exit, UsageError

FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@click.command("report")
@standard
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--html", type=FILE, metavar="FILE", help="A page that loads nothing, for a browser or a printer.")
@click.option("--markdown", type=FILE, metavar="FILE", help="A summary for a ticket.")
@click.option("--junit", type=FILE, metavar="FILE", help="JUnit XML: a test case a check and a probe.")
@click.option("--png", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="The plots as pictures.")
@click.option("--github", is_flag=True, help="Annotations of a GitHub job, and its summary.")
@click.option("--verify", is_flag=True, help="Refuse a bundle that is not as it was written.")
@click.option(
    "--allowed-signers", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="With --verify: who may have signed it, as ssh-keygen reads it.",
)  # fmt: skip
def report(
    watch: Any, directory: Path, github: bool, verify: bool, allowed_signers: Path | None, **files: Path | None
) -> int:
    """Render a bundle, from the bundle alone: without options the summary, to standard output.

    `-` as FILE is standard output. The exit code is not the verdict of the run.
    """
    from bringup import bundle
    from bringup.report import ci, page, picture, summary, view

    if allowed_signers and not verify:
        raise UsageError("--allowed-signers says whom --verify may believe", hint="give --verify, too")
    verified = bundle.verify(directory, allowed_signers) if verify else ""
    read = bundle.read(directory)
    made = view.report(read, verified=verified)
    contents: list[tuple[Path, str | bytes]] = []
    if file := files["html"]:
        contents.append((file, page.html(made)))
    if file := files["markdown"]:
        contents.append((file, summary.markdown(made)))
    if file := files["junit"]:
        contents.append((file, ci.junit(read.record, read.faults)))
    if place := files["png"]:
        contents += [(place / f"{plot.name}.png", picture.png(plot)) for plot in made.plots()]
    written = [_write(file, content, read.directory) for file, content in contents]
    if github:
        click.echo("\n".join(ci.github(read.record, read.faults)))
        if at := os.environ.get("GITHUB_STEP_SUMMARY"):
            _append(Path(at), summary.markdown(made))
    for said in [verified] if verified else [f"not as it was written: {f}" for f in read.faults]:
        watch.say(said)
    told = {"verdict": made.verdict, "faults": list(read.faults), "verified": verified, "written": written}
    watch.result(told, None if written or github else summary.markdown(made))
    return Exit.PASS


def _write(file: Path, content: str | bytes, bundle: Path) -> str:
    """Write one rendering; not into the bundle, whose sums would not hold any more."""
    data = content if isinstance(content, bytes) else content.encode()
    if file == Path("-"):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return "-"
    if file.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(f"{file} is in the bundle, and SHA256SUMS would not hold any more", hint="write it elsewhere")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    except OSError as e:
        raise UsageError(f"{file} cannot be written: {e.strerror}", hint="give a file that this user may write") from e
    return str(file)


def _append(file: Path, text: str) -> None:
    try:
        with file.open("a", encoding="utf-8") as f:
            f.write(text)
    except OSError as e:
        raise UsageError(f"GITHUB_STEP_SUMMARY: {file} cannot be written: {e.strerror}") from e
