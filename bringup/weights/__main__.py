"""What the Dockerfile's weights stage runs: `python -m bringup.weights stage|verify`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bringup.errors import BringupError, UsageError
from bringup.lock import LOCK, LockedModel, read_lock, write_lock
from bringup.weights.fetch import How, completed, copy, fetch
from bringup.weights.progress import now_and_then
from bringup.weights.receipt import Receipt
from bringup.weights.verify import verify_dir


def main(argv: list[str] | None = None) -> int:
    """The weights stage of the Dockerfile."""
    args = _parser().parse_args(argv)
    try:
        models = read_lock(args.lock)
        if args.model not in models:
            raise UsageError(
                f"the model {args.model!r} is not pinned in the weights lock (pinned: {', '.join(models)})",
                hint=f"pin it: bringup lock {args.model}",
            )
        model = models[args.model]
        if args.action == "verify":
            verify_dir(model, args.out)
        else:
            _leave(args, model, _stage(args, model))
    except BringupError as e:
        sys.stderr.write("".join(f"  | {line}\n" for line in e.detail.splitlines()))
        _say(e.line + (f"\n  -> {e.hint}" if e.hint else ""))
        return int(e.exit_code)
    _say(f"{model.name}: {len(model.files)} files, {model.size} bytes, all as locked ({model.digest})")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bringup.weights")
    parser.add_argument("action", choices=["stage", "verify"])
    parser.add_argument("--model", required=True, help="name of the model in the lock")
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--source", type=Path, default=Path("models"), help="directory of the models shipped here")
    parser.add_argument("--out", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--token-file", type=Path, help="file with a Hub token, for gated models")
    parser.add_argument("--transfer", choices=["hf_transfer", "http", "auto"], default=How.transfer)
    parser.add_argument("--stall-timeout", type=float, default=How.stall_timeout, help="seconds")
    parser.add_argument("--timeout", type=float, default=How.timeout, help="seconds for all")
    parser.add_argument("--receipt", type=Path, help="file to write the receipt into")
    parser.add_argument("--lock-out", type=Path, help="file to write this model's lock into, with BLAKE3")
    return parser


def _stage(args: argparse.Namespace, model: LockedModel) -> Receipt:
    if model.source != "hub":
        return copy(model, args.source / model.name, args.out)
    how = How(
        endpoint=(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        token=_token(args.token_file), transfer=args.transfer, stall_timeout=args.stall_timeout, timeout=args.timeout,
    )  # fmt: skip
    return fetch(model, args.out, how, now_and_then(_say))


def _token(path: Path | None) -> str | None:
    """The token of a file; a build without the secret has none, and that is no error."""
    try:
        token = path.read_text("utf-8").strip() if path and path.is_file() else ""
    except (OSError, ValueError) as e:
        raise UsageError(f"the Hub token file {path} cannot be read: {type(e).__name__}") from e
    if not all("!" <= c <= "~" for c in token):
        raise UsageError(f"the Hub token file {path} holds something else than one word of printable ASCII characters")
    return token or None


def _leave(args: argparse.Namespace, model: LockedModel, receipt: Receipt) -> None:
    _say(receipt.summary())
    if args.lock_out:
        write_lock({model.name: completed(model, receipt)}, args.lock_out)
    if args.receipt:
        receipt.write(args.receipt)


if __name__ == "__main__":
    sys.exit(main())
