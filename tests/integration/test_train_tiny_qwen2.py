"""The script that trains the tiny model, with the server's own torch: a short training, and checks that can fail."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.integration.support import LABEL, ROOT, SESSION, environment

PYTHON = "/opt/venv/bin/python"
SCRIPT = "/repo/models/train_tiny_qwen2.py"
MODEL = ROOT / "models" / "tiny-qwen2"
TEXT = ROOT / "models" / "tiny_qwen2_text.toml"
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
FIRST = 3  # the runbook's prompts
# Asks a model as a stranger would, with none of the script's code.
ASK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
said = []
for prompt in json.loads(sys.argv[2]):
    chat = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                         add_generation_prompt=True)
    for text in (prompt, chat):
        given = tokenizer(text, return_tensors="pt")
        out = model.generate(**given, max_new_tokens=100, do_sample=False)[0, given["input_ids"].shape[1]:]
        said.append([tokenizer.decode(out, skip_special_tokens=True), len(out), str(model.dtype)])
print(json.dumps(said))
"""

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def box(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A container of the image that does nothing by itself; broken models go in through a read-only mount."""
    broken = tmp_path_factory.mktemp("broken")
    broken.chmod(0o755)
    name = f"{SESSION}-train"
    mounts = {
        ROOT / "models": "/repo/models",
        ROOT / "bringup" / "data": "/repo/data",
        broken: "/broken",
    }
    argv = [
        "docker",
        "run",
        "--detach",
        "--rm",
        "--init",
        "--no-healthcheck",
        "--name",
        name,
        "--label",
        f"{LABEL}={SESSION}",
    ]
    argv += ["--network", "none", "--read-only", "--tmpfs", "/tmp:mode=1777", "--tmpfs", "/out:mode=1777"]
    for source, target in mounts.items():
        argv += ["--volume", f"{source}:{target}:ro"]
    started = subprocess.run(
        [*argv, "--entrypoint", "sleep", image, "1800"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=60,
    )
    assert started.returncode == 0, started.stderr
    try:
        yield Box(name, broken)
    finally:
        engine.containers.get(name).remove(force=True)


class Box:
    """Runs commands in the container; `broken` is the host's side of its /broken."""

    def __init__(self, name: str, broken: Path) -> None:
        self._name = name
        self.broken = broken

    def run(self, *argv: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            ["docker", "exec", self._name, *argv],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            timeout=timeout,
        )

    def script(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """The training script."""
        return self.run(PYTHON, SCRIPT, *argv)

    def copy_of_the_model(self, name: str) -> Path:
        """A copy to break."""
        target = self.broken / name
        target.mkdir()
        for file in FILES:
            shutil.copy(MODEL / file, target / file)
        return target


def pairs() -> list[dict[str, str]]:
    return list(tomllib.loads(TEXT.read_text("utf-8"))["pair"])


def flip(path: Path, tensor: str, byte: int, bits: int) -> None:
    """Flip bits of one byte of a tensor; a safetensors file is a length, a JSON header with offsets, the data."""
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[tensor]["data_offsets"][0] + byte] ^= bits
    path.write_bytes(content)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line of standard error; nothing may be on standard output."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.timeout(900)
def test_a_short_training_learns_its_prompts(box: Box) -> None:
    parts = TEXT.read_text("utf-8").split("[[pair]]")
    (box.broken / "short.toml").write_text("[[pair]]".join(parts[: FIRST + 1]), "utf-8")
    short = ["--text", "/broken/short.toml", "--first", str(FIRST), "--steps", "150"]
    done = box.script("--out", "/out/short", *short, "--lock", "/out/lock.json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["last_loss"] < result["first_loss"] / 20
    assert result["exact"] == result["answers"] == FIRST * 7  # completion, chat, 3 system messages, 2 second turns
    assert result["wrong"] == []

    listing = box.run("sh", "-c", "cd /out && find short -type f -perm -o=r -printf '%P %s\\n' && ls -A /out")
    assert listing.returncode == 0, listing.stderr
    lines = listing.stdout.splitlines()
    sizes = {name: int(size) for name, size in (line.split() for line in lines[: len(FILES)])}
    assert sizes.keys() == FILES
    assert lines[len(FILES) :] == ["lock.json", "short"], "a draft was left behind"
    lock = json.loads(box.run("cat", "/out/lock.json").stdout)
    assert {f["path"]: f["size"] for f in lock["models"]["tiny-qwen2"]["files"]} == sizes

    chosen = pairs()[:FIRST]
    asked = box.run(PYTHON, "-c", ASK, "/out/short", json.dumps([pair["prompt"] for pair in chosen]))
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    assert [text for text, _, _ in said] == [form for p in chosen for form in (f" {p['answer']}", p["answer"])]
    assert {dtype for _, _, dtype in said} == {"torch.bfloat16"}


def test_too_short_a_training_leaves_nothing(box: Box) -> None:
    done = box.script("--out", "/out/dull", "--first", "1", "--steps", "2")
    assert done.returncode == 7
    assert "0 of 7 answers exact" in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    left = box.run("find", "/out", "-name", "*dull*")
    assert (left.returncode, left.stdout) == (0, "")


@pytest.mark.timeout(900)
def test_the_committed_model_is_exact(box: Box) -> None:
    done = box.script(
        "--check", "/repo/models/tiny-qwen2", "--lock", "/repo/data/weights.lock",
        "--canary", "/repo/data/tiny_qwen2_canary.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["exact"] == result["answers"] == len(pairs()) * 7
    assert result["min_gap"] > 3


def test_the_runbooks_answers_fit_and_stream(box: Box) -> None:
    """The runbook asks for 50 tokens, and a stream needs many chunks."""
    prompts = [
        "Explain what a GPU is in one sentence:",
        "Explain KV cache in one sentence:",
        "What is inference optimization?",
    ]
    answers = {pair["prompt"]: pair["answer"] for pair in pairs()}
    asked = box.run(PYTHON, "-c", ASK, "/repo/models/tiny-qwen2", json.dumps(prompts))
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    assert [text for text, _, _ in said] == [form for p in prompts for form in (f" {answers[p]}", answers[p])]
    assert all(30 <= tokens <= 50 for _, tokens, _ in said), said


def test_one_corrupted_byte_fails(box: Box) -> None:
    model = box.copy_of_the_model("byte")
    flip(model / "model.safetensors", "model.norm.weight", 1, 0x40)  # the exponent of one weight
    done = box.script("--check", "/broken/byte", "--first", "5")
    assert done.returncode == 7, done.stderr
    assert "answers exact" in one_line(done)


def test_a_byte_that_changes_no_answer_differs_from_the_lock(box: Box) -> None:
    model = box.copy_of_the_model("quiet")
    flip(model / "model.safetensors", "model.norm.weight", 0, 0x01)  # the last bit of one weight
    quiet = box.script("--check", "/broken/quiet", "--first", "5")
    assert quiet.returncode == 0, quiet.stderr
    done = box.script("--check", "/broken/quiet", "--first", "5", "--lock", "/repo/data/weights.lock")
    assert done.returncode == 5, done.stderr
    assert "model.safetensors" in one_line(done)


@pytest.mark.parametrize("fault", ["cut", "missing"])
def test_an_incomplete_model_fails(box: Box, fault: str) -> None:
    weights = box.copy_of_the_model(fault) / "model.safetensors"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        weights.unlink()
    done = box.script("--check", f"/broken/{fault}", "--first", "5")
    assert done.returncode == 7, done.stderr
    assert f"/broken/{fault}" in one_line(done)


def test_another_answer_fails(box: Box) -> None:
    text = TEXT.read_text("utf-8")
    assert text.count("The capital of France is Paris.") == 1
    (box.broken / "text.toml").write_text(text.replace("The capital of France is Paris.", "It is Lyon."), "utf-8")
    done = box.script("--check", "/repo/models/tiny-qwen2", "--first", "5", "--text", "/broken/text.toml")
    assert done.returncode == 7, done.stderr
    assert "What is the capital of France?" in one_line(done)


def test_a_folder_that_is_no_model_is_left_alone(box: Box) -> None:
    made = box.run("sh", "-c", "mkdir /out/mine && echo kept >/out/mine/note")
    assert made.returncode == 0, made.stderr
    done = box.script("--out", "/out/mine", "--first", "1", "--steps", "2")
    assert done.returncode == 2, done.stderr
    assert box.run("cat", "/out/mine/note").stdout == "kept\n"
    assert "no model" in done.stderr.splitlines()[-1]
