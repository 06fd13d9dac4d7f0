from __future__ import annotations

import pytest

from bringup import profile
from bringup.plan import server_argv
from bringup.settings import Settings


@pytest.mark.parametrize(
    ("asked", "flavour", "found"),
    [("auto", "gpu", "default"), ("auto", "cpu", "eager"), ("fast", "cpu", "fast"), ("eager", "gpu", "eager")],
)
def test_auto_is_by_flavour(asked: str, flavour: str, found: str) -> None:
    assert profile.chosen(asked, flavour) == found


@pytest.mark.parametrize(
    ("requests", "found"),
    [
        (None, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
        (1024, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
        (256, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
        (100, (1, 2, 4, 8, 16, 32, 64, 128, 200)),
        (1, (1, 2)),
    ],
)
def test_sparse_sizes_end_where_vllms_do(requests: int | None, found: tuple[int, ...]) -> None:
    assert profile.sizes(requests) == found


@pytest.mark.parametrize(
    "own",
    [
        ("--cudagraph-capture-sizes", "1", "8"),
        ("--cudagraph_capture_sizes=8",),
        ("--max-cudagraph-capture-size", "32"),
        ("--compilation-config", "{}"),
        ("-O.mode=0",),
        ("-cc.mode=0",),
        ("-O1",),
        ("--enforce-eager",),
        ("--max-num-seqs", "1k"),
    ],
)
def test_an_own_argument_beats_the_profile(own: tuple[str, ...]) -> None:
    assert profile.arguments("fast", "gpu", own) == ()


def test_what_the_profiles_add() -> None:
    def added(name: str, flavour: str, *own: str) -> tuple[str, ...]:
        with_profile = server_argv(Settings(model="m", profile=name, vllm_args=own), flavour)
        without = server_argv(Settings(model="m", profile="default", vllm_args=own), flavour)
        assert with_profile[-len(own) :] == own or not own
        return tuple(w for w in with_profile if w not in without)

    assert added("default", "gpu") == ()
    assert added("eager", "gpu") == ("--enforce-eager",)
    assert added("fast", "gpu")[0] == "--cudagraph-capture-sizes"
    assert added("fast", "gpu", "--max-num-seqs", "100")[-1] == "200"
    assert added("fast", "cpu") == ()  # there are no graphs on a CPU


def test_the_startup_plan_is_for_what_profiles_memory() -> None:
    plan = {"VLLM_ENABLE_STARTUP_PLAN": "1"}
    assert [profile.environment(p, "gpu") for p in ("default", "fast", "eager")] == [plan, plan, {}]


def test_on_a_cpu_no_compiled_model_is_saved_that_nobody_can_load() -> None:
    without = {"VLLM_USE_AOT_COMPILE": "0"}
    assert [profile.environment(p, "cpu") for p in ("default", "fast", "eager")] == [without, without, {}]
