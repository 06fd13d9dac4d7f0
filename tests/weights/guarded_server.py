"""What stands in for vLLM in the guard's matrix: at its start it does with the Hub what vLLM's start does.

It is copied to vllm/entrypoints/openai/api_server.py on the path of an environment with one version of huggingface_hub,
so that the entry point starts it as it starts the real one. It imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import signal
import sys

VARIABLE = "HF_HUB_ENABLE_HF_TRANSFER"


def main() -> None:
    """Import the hub's client, get two files at a commit, say what this process saw, and serve until SIGTERM."""
    import huggingface_hub
    from huggingface_hub import constants

    repo, commit = os.environ["STAND_IN_REPO"], os.environ["STAND_IN_COMMIT"]
    sizes = {}
    for name in ("config.json", "model.safetensors"):
        sizes[name] = os.stat(huggingface_hub.hf_hub_download(repo, name, revision=commit)).st_size  # noqa: PTH116
    seen = {
        "variable": os.environ.get(VARIABLE),
        "hub": huggingface_hub.__version__,
        "enabled": getattr(constants, VARIABLE, None),  # None where the client no longer knows it
        "sizes": sizes,
        "imported": "hf_transfer" in sys.modules,
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
