"""`bloomref finetune` on the embedded preset."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from bloomref import BloomCausalLM
from bloomref.training import training_state
from bloomref.training.history import History

TINY = ("--context", "24", "--batch", "2", "--lr", "0.01")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"Rule {n}: nobody shall be woken before {n}.\n" for n in range(8)), "utf-8")
    return path


@pytest.mark.clause("TRN-18")
def test_an_adapter(lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    options = ("--steps", "6", "--separator", r"\n", "--lora-rank", "4", "--target-modules", "all-linear")
    done = run("finetune", str(lines), "--out", str(out), *options, *TINY, "--held-out", "0.25", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kind"], report["steps"]) == ("adapter", 6)
    assert report["losses"][-1] < report["losses"][0]
    saved = History.from_dict(json.loads((out / "training/history.json").read_text("utf-8")))
    assert saved.losses == report["losses"]
    assert [e.loss for e in saved.evaluations] == [e["loss"] for e in report["evaluations"]]
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    text = "Rule 3: nobody shall be woken before 3."
    before = lm.score(text).log_likelihood
    lm.load_adapter(out)
    assert lm.score(text).log_likelihood > before


def test_a_model(lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = run("finetune", str(lines), "-o", str(out), "--full", "--steps", "4", "--separator", r"\n", *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: model after 4 steps, loss ")
    assert "tokens/s" in done.stderr
    lm, base = BloomCausalLM.from_preset(out), BloomCausalLM.from_preset("bloom_tiny_udhr")
    text = "Rule 3: nobody shall be woken before 3."
    assert lm.score(text).log_likelihood > base.score(text).log_likelihood


@pytest.mark.clause("TRN-4")
def test_completions_only(tmp_path: Path) -> None:
    data, out = tmp_path / "pairs.jsonl", tmp_path / "adapter"
    pairs = [{"prompt": f"Rule {n}:", "completion": f" sleep until {n}."} for n in range(4)]
    data.write_text("\n".join(map(json.dumps, pairs)), "utf-8")
    done = run("finetune", str(data), "--out", str(out), "--steps", "1", "--batch", "9", "--completion-only", "--json")
    assert done.returncode == 0, done.stderr
    tokenizer = BloomCausalLM.from_preset("bloom_tiny_udhr").tokenizer
    learned = sum(len(tokenizer.tokenize(pair["completion"])) + 1 for pair in pairs)
    history = json.loads((out / "training/history.json").read_text("utf-8"))
    rows = history["steps"][0]["tokens"] / learned
    assert rows == pytest.approx(9, abs=0.01), "four pairs fill one row of 256, which comes nine times"


@pytest.mark.slow
@pytest.mark.clause("TRN-16")
def test_ctrl_c_saves_and_resume_continues(lines: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    options = ("--steps", "60", "--separator", r"\n", "--lora-dropout", "0.1", *TINY)

    def started(folder: Path, *more: str) -> "subprocess.Popen[str]":
        """A process of its own: bits are compared, and other tests may have changed the threads of this one's BLAS."""
        command = [sys.executable, "-m", "bloomref", "finetune", str(lines), "--out", str(folder), *options, *more]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    first = started(whole)
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 0, stderr
    process = started(out, "--save-every", "1")
    while training_state.latest(out / "training") is None and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "--resume continues" in stderr
    assert run("finetune", str(lines), "--out", str(out), *options).returncode == 2, "without --resume"
    assert run("finetune", str(lines), "--out", str(out), *options, "--seed", "1", "--resume").returncode == 2
    done = started(out, "--resume")
    _, stderr = done.communicate(timeout=120)
    assert done.returncode == 0, stderr
    for name in ("adapter_model.safetensors", "training/history.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("missing.txt",), "missing.txt: No such file"),
        (("{lines}", "--steps", "0"), "steps: expected an integer >= 1"),
        (("{lines}", "--full", "--lora-rank", "2"), "--full: expected no setting of an adapter"),
        (("{lines}", "--target-modules", "nothing"), "target_modules"),
        (("{lines}", "--held-out", "none.txt"), "none.txt: No such file"),
        (("{lines}", "--held-out", "0.5"), "held_out: expected a share"),
        (("{lines}", "--model", "bloom_tiny_udh"), "bloom_tiny_udhr"),
    ],
)
def test_mistakes_are_named(lines: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str) -> None:
    given = [argument.format(lines=lines) for argument in arguments]
    done = run("finetune", *given, "--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(lines: Path, tmp_path: Path) -> None:
    for out in (lines, tmp_path):
        done = run("finetune", str(lines), "--out", str(out), "--steps", "1")
        assert done.returncode == 2
        assert "--out: expected a" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [lines.name]


@pytest.mark.slow
def test_bytes_of_an_adapter_do_not_depend_on_when_it_was_trained(lines: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("finetune", str(lines), "--out", str(tmp_path / name), "--steps", "2", *TINY).returncode == 0
    a, b = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert np.frombuffer(a[-400:], np.float32).any()
