"""What `--profile` means: which of vLLM's levers trade the time of a start against something else. Pure.

`default` changes nothing that a request could notice. `fast` captures fewer CUDA graphs: batches in between are padded
up to the next size, up to the same largest size, for above it decoding would be as slow as without graphs. `eager`
leaves compilation and graphs out. An argument of the user's own beats the profile's.
"""

from __future__ import annotations

from collections.abc import Sequence

FAST, DEFAULT, EAGER = "fast", "default", "eager"
LARGEST = 512  # vLLM's largest graph (0.26 to 0.32): min(2 x max_num_seqs, 512)
SPARSE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GRAPH_OPTIONS = (
    "--cudagraph-capture-sizes", "--max-cudagraph-capture-size", "--compilation-config", "--enforce-eager",
    "--cudagraph-mode", "--optimization-level", "-O", "-cc", "-O0", "-O1", "-O2", "-O3",
)  # fmt: skip


def chosen(asked: str, flavour: str) -> str:
    """The profile that `auto` stands for: a small server on a CPU never earns back minutes of compiling."""
    if asked != "auto":
        return asked
    return EAGER if flavour == "cpu" else DEFAULT


def given(arguments: Sequence[str], *names: str) -> str | None:
    """The last value that vLLM's arguments give one of these options; empty for one without a value, None if absent."""
    found = None
    for index, word in enumerate(arguments):
        name, sign, value = word.partition("=")
        if name.replace("_", "-") in names or (name.startswith(("-O.", "-cc.")) and name.split(".")[0] in names):
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            found = value if sign else "" if following.startswith("-") else following
    return found


def sizes(max_num_seqs: int | None) -> tuple[int, ...]:
    """Sparse graph sizes with the same maximum that vLLM would choose; None: its own default, at least 256."""
    largest = LARGEST if max_num_seqs is None else min(2 * max_num_seqs, LARGEST)
    return (*(n for n in SPARSE if n < largest), largest)


def arguments(profile: str, flavour: str, own: Sequence[str]) -> tuple[str, ...]:
    """vLLM's arguments for a profile; `own` are the user's, which come after and win."""
    if profile == EAGER:
        return ("--enforce-eager",)
    if profile == FAST and flavour == "gpu" and given(own, *GRAPH_OPTIONS) is None:
        text = given(own, "--max-num-seqs")
        if text is None or text.isdigit():  # otherwise (1k) vLLM keeps its own list
            return ("--cudagraph-capture-sizes", *map(str, sizes(int(text) if text else None)))
    return ()


def environment(profile: str, flavour: str) -> dict[str, str]:
    """Variables of vLLM for a profile; one that is set already wins.

    VLLM_ENABLE_STARTUP_PLAN (0.26 and newer) lets a start take the size of its KV cache from the start before it; vLLM
    uses it only if the same key fits and at least as much GPU memory is free. VLLM_USE_AOT_COMPILE: on a CPU 0.32 saves
    a compiled model that it then refuses to load ("'function' object has no attribute 'finalize_loading'"), under a key
    that keeps torch's own cache from being hit; without it that cache is hit.
    """
    if profile == EAGER:
        return {}
    return {"VLLM_ENABLE_STARTUP_PLAN": "1"} if flavour == "gpu" else {"VLLM_USE_AOT_COMPILE": "0"}
