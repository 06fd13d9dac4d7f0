"""What the Dockerfile's weights stage runs: `python -m bringup.weights stage|verify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bringup.errors import BringupError, UsageError
from bringup.lock import LOCK, read_lock
from bringup.weights.fetch import stage
from bringup.weights.verify import verify_dir


def main(argv: list[str] | None = None) -> int:
    """The weights stage of the Dockerfile."""
    parser = argparse.ArgumentParser(prog="python -m bringup.weights")
    parser.add_argument("action", choices=["stage", "verify"])
    parser.add_argument("--model", required=True, help="name of the model in the lock")
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--source", type=Path, default=Path("models"), help="directory of the models shipped here")
    parser.add_argument("--out", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--token-file", type=Path, help="file with a Hub token, for gated models")
    args = parser.parse_args(argv)
    try:
        models = read_lock(args.lock)
        if args.model not in models:
            raise UsageError(
                f"the model {args.model!r} is not pinned in the weights lock (pinned: {', '.join(models)})",
                hint="build a pinned model, or add its repo, commit, sizes and sha256 to bringup/data/weights.lock",
            )
        model = models[args.model]
        if args.action == "verify":
            verify_dir(model, args.out)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            token = args.token_file.read_text().strip() if args.token_file and args.token_file.is_file() else None
            stage(model, args.source, args.out, token)
    except BringupError as e:
        sys.stderr.write(f"{e.message}\n" + (f"  {e.hint}\n" if e.hint else ""))
        return int(e.exit_code)
    sys.stderr.write(f"{model.name}: {len(model.files)} files, {model.size} bytes, all as locked ({model.digest})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
