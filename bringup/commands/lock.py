"""`bringup lock`: pin a model's files, or look whether the pins still hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bringup.commands import lock_option, standard
from bringup.errors import BringupError, Exit, UsageError, WeightsDiffer
from bringup.lock import COMMIT, NAME, REPO, LockedModel, changing, read_lock
from bringup.options import takes
from bringup.settings import Settings

if TYPE_CHECKING:
    from bringup.weights.remote import About, Repository


@click.command
@standard
@takes("hf_endpoint", "hf_token_file", "stall_timeout")
@click.argument("models", nargs=-1, metavar="[MODEL[@COMMIT]]...")
@click.option("--check", is_flag=True, help="Change nothing: do the entries match the Hub, at their commits?")
@click.option("--name", metavar="NAME", help="Name of the entry, for a model that the catalogue does not have.")
@lock_option
def lock(
    watch: Any,
    settings: Settings,
    sources: dict[str, str],  # noqa: ARG001
    models: tuple[str, ...],
    check: bool,
    name: str | None,
    path: Path,
) -> int:
    """Pin a model: its commit, and the size and sha256 of each file that a server needs.

    MODEL is a name of the catalogue, or a repository of the Hub (org/name). Without a commit, the catalogue's is
    pinned, or else the one that the default branch is at today. A token comes from --hf-token-file or the variable
    HF_TOKEN.
    """
    if check:
        if name:
            raise click.UsageError("--name is for pinning; --check takes the names of the lock")
        return _check(watch, settings, models, path)
    if len(models) != 1:
        raise click.UsageError("name one MODEL to pin, or --check")
    target = find(models[0], name)
    repository = _repository(settings, target.repo)
    with watch.step(f"asking {settings.hf_endpoint} for {target.repo}"):
        about = _about(repository, target)
        pinned = _pin(repository, about, target)
    with changing(path) as entries:
        old = entries.get(target.name)
        if old is not None and old.repo != target.repo:
            raise _taken(target.name, old.repo or old.source, f"in {path}")
        from bringup.weights.pin import changes, with_known_hashes

        model = entries[target.name] = with_known_hashes(pinned.model, old)
    found = changes(old, model)
    for line in found or ["nothing new"]:
        watch.say(f"{model.name}: {line}")
    if pinned.left_out:
        watch.say(f"left out: {', '.join(pinned.left_out)}")
    gated = f", gated ({about.gated})" if about.gated else ""
    watch.say(f"{model.name}: {len(model.files)} files, {model.size} bytes, licence {model.license}{gated}, in {path}")
    watch.result(
        dataclasses.asdict(model)
        | {"gated": about.gated, "left_out": pinned.left_out, "changes": found, "lock": str(path)},
        f"{model.repo}@{model.revision}",
    )
    return Exit.PASS


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be pinned: the entry's name, and a repository at a revision ("" is the default branch)."""

    name: str
    repo: str
    revision: str
    license: str


def find(text: str, name: str | None) -> Target:
    """What the user means, by the catalogue.

    Raises:
        UsageError: neither in the catalogue nor a repository, or not to be pinned.
    """
    from bringup import catalog

    what, _, revision = text.partition("@")
    models = catalog.load()
    by_source = {m.source.lower(): m for m in models.values()}
    known = models.get(what) or by_source.get(what.lower())
    if known and known.source.startswith("models/"):
        raise UsageError(f"{known.name} lies in this repository: its files are not on the Hub", id="model-is-local",
                         hint="`bringup lock --check` compares them with the lock")  # fmt: skip
    repo = known.source if known else what
    if not REPO.fullmatch(repo):
        raise UsageError(f"{what!r} is neither in the catalogue nor a repository of the Hub", id="no-such-model",
                         hint=f"name one like org/name, or one of: {', '.join(models)}")  # fmt: skip
    chosen = name or (known.name if known else repo.partition("/")[2].lower())
    if not NAME.fullmatch(chosen):
        raise UsageError(f"{chosen!r} is no usable model name", id="no-such-name",
                         hint="--name NAME: lower-case letters, digits, and . _ - inside")  # fmt: skip
    if chosen in models and models[chosen].source != repo:
        raise _taken(chosen, models[chosen].source, "in the catalogue")
    return Target(chosen, repo, revision or getattr(known, "revision", ""), known.license if known else "")


def _taken(name: str, owner: str, where: str) -> UsageError:
    return UsageError(f"{name} is the name of {owner} {where}", id="name-taken", hint="choose another: --name NAME")


def _repository(settings: Settings, repo: str) -> Repository:
    from bringup.key import hub_token
    from bringup.weights.hub import Hub
    from bringup.weights.remote import Repository

    return Repository(Hub(settings.hf_endpoint, hub_token(settings)), repo, settings.stall_timeout)


def _about(repository: Repository, target: Target) -> About:
    """The commit to pin; a branch or a tag is none, as it may be another commit tomorrow."""
    if target.revision and not COMMIT.fullmatch(target.revision):
        try:
            today = f"today it is: bringup lock {target.repo}@{repository.about(target.revision).commit}"
        except BringupError as e:
            today = f"name a commit of 40 hex digits ({e.message})"
        raise UsageError(f"{target.revision!r} is no commit, and may be other files tomorrow", id="revision-not-pinned",
                         hint=today)  # fmt: skip
    # The card is asked for at the commit: the default branch may move on between two questions.
    return repository.about(target.revision or repository.about().commit)


def _pin(repository: Repository, about: About, target: Target) -> Any:
    from bringup.weights.pin import pin

    same = about.license.lower() == target.license.lower()  # spelt as the catalogue does
    return pin(repository, about.commit, target.name, (target.license if same else about.license or target.license)
               or "unknown")  # fmt: skip


def _check(watch: Any, settings: Settings, names: tuple[str, ...], path: Path) -> int:
    """A line for each entry; the exit code of the worst: differs before cannot be told."""
    models = read_lock(path)
    by_repo = {m.repo: name for name, m in models.items() if m.repo}
    chosen = [by_repo.get(name, name) for name in names] or list(models)
    if unknown := [name for name in chosen if name not in models]:
        raise UsageError(f"{path} has no entry for {unknown[0]!r}", id="not-pinned",
                         hint=f"pin it: bringup lock {unknown[0]}; there are: {', '.join(models)}")  # fmt: skip
    worst, rows = Exit.PASS, []
    for name in dict.fromkeys(chosen):
        row, code = _check_one(watch, settings, models[name])
        rows.append(row)
        worst = max(worst, code, key=(Exit.PASS, Exit.TARGET_UNAVAILABLE, Exit.USAGE, Exit.WEIGHTS_DIFFER).index)
    watch.result({"entries": rows, "exit_code": int(worst)})
    return worst


def _check_one(watch: Any, settings: Settings, model: LockedModel) -> tuple[dict[str, Any], Exit]:
    moved = ""
    try:
        found, moved = _differences(settings, model)
        if found:
            again = f"pin it again: bringup lock {model.repo}@{model.revision}"
            raise WeightsDiffer(
                f"the lock differs: {found[0]}" + (f" (and {len(found) - 1} more)" if found[1:] else ""),
                hint=again if model.repo else "restore the directory or the lock from git",
                detail="\n".join(found), id="lock-differs",
            )  # fmt: skip
    except BringupError as e:
        for line in e.detail.splitlines():
            watch.say(f"  | {line}")
        watch.say(f"{model.name}: {e.line}")
        if e.hint:
            watch.say(f"  -> {e.hint}")
        row = {"name": model.name, "status": "differs" if e.exit_code is Exit.WEIGHTS_DIFFER else "unknown",
               "id": e.id, "error": e.message, "differences": e.detail.splitlines()}  # fmt: skip
        return row, e.exit_code
    where = f"{model.repo}@{model.revision}" if model.repo else model.source
    watch.say(f"{model.name}: matches {where} ({len(model.files)} files, {model.size} bytes)")
    if moved:
        watch.say(f"  the default branch is at {moved} by now: bringup lock {model.repo}@{moved}")
    return {"name": model.name, "status": "matches", "default_branch": moved or model.revision}, Exit.PASS


def _differences(settings: Settings, model: LockedModel) -> tuple[list[str], str]:
    """How the entry differs, and the commit of the default branch if it is another one."""
    from bringup.targets.compose import project_root
    from bringup.weights.pin import compare, compare_here

    if model.source != "hub":
        return compare_here(model, project_root() / model.source.removeprefix("local:")), ""
    repository = _repository(settings, model.repo)
    head = repository.about().commit
    repository.about(model.revision)
    return compare(model, repository), head if head != model.revision else ""
