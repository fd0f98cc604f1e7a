"""Training runs: the loss falls, an interrupted run continues bit for bit, and illegal changes are refused by name."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_tokenizer, text_lm

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.errors import BadWeights, InvalidInput, Unsupported
from bloomref.training import training_state
from bloomref.training.history import History
from bloomref.training.packing import Batch
from bloomref.training.plot import save_curve

TEXTS = [f"the {word} is a the" for word in ("a", "is", "the", "意", "x", "y", "z", ".", ",", "(a", "the the", "is is")]
SETTINGS: dict[str, Any] = {
    "steps": 5,
    "batch": 2,
    "context": 8,
    "accumulate": 2,
    "learning_rate": 1e-2,
    "warmup": 2,
    "weight_decay": 0.1,
    "hidden_dropout": 0.15,
    "attention_dropout": 0.1,
    "held_out": 0.2,
    "eval_every": 1,
    "seed": 3,
}


def make(dtype: str = "float32") -> BloomCausalLM:
    drawn = text_lm()
    backbone = BloomBackbone.from_params(drawn.backbone.config, drawn.backbone.params, dtype)
    return BloomCausalLM(backbone, small_tokenizer())


def weights(lm: BloomCausalLM) -> dict[str, bytes]:
    return {name: array.tobytes() for name, _, array in lm.backbone.params.named()}


def interrupting(at: int) -> Callable[[BloomCausalLM], float]:
    """A measure of the weights that presses Ctrl-C in the step of the given number."""
    calls = 0

    def measure(lm: BloomCausalLM) -> float:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGINT)
        return float(np.abs(lm.backbone.params.word_embedding).sum(dtype=np.float64))

    return measure


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[History, dict[str, bytes]]:
    lm = make()
    return lm.fit(TEXTS, evaluate=interrupting(0), **SETTINGS), weights(lm)


# --- a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_bfloat16"])
def test_it_learns(dtype: str) -> None:
    lm = make(dtype)
    before = lm.score("the is a the").log_likelihood
    history = lm.fit(["the is a the"] * 8, steps=30, batch=4, context=16, learning_rate=1e-2)
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert lm.score("the is a the").log_likelihood > 0.5 * before
    assert [record.step for record in history.steps] == list(range(1, 31))


@pytest.mark.clause("TRN-9")
def test_a_run_leaves_the_arrays_that_it_was_given() -> None:
    lm = make()
    given = lm.backbone.params
    before = {name: array.tobytes() for name, _, array in given.named()}
    lm.fit(TEXTS, steps=1, batch=2)
    assert {name: array.tobytes() for name, _, array in given.named()} == before
    assert all(weights(lm)[name] != data for name, data in before.items())


@pytest.mark.clause("TRN-12")
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_is_the_large_batch(accumulate: int) -> None:
    """The parts have different numbers of tokens to predict: a mean of means would differ."""
    results = []
    for settings in ({"batch": 8}, {"batch": 8 // accumulate, "accumulate": accumulate}):
        lm = make("float64")
        history = lm.fit(TEXTS, steps=3, context=8, learning_rate=1e-2, **settings)
        results.append((history, lm.backbone.params))
    (large, ours), (parts, theirs) = results
    assert [record.tokens for record in large.steps] == [record.tokens for record in parts.steps]
    assert large.losses == pytest.approx(parts.losses, rel=1e-12)
    for (name, _, a), (_, _, b) in zip(ours.named(), theirs.named(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.clause("TRN-13")
def test_the_seed_decides(uninterrupted: tuple[History, dict[str, bytes]]) -> None:
    again, other = make(), make()
    assert again.fit(TEXTS, evaluate=interrupting(0), **SETTINGS) == uninterrupted[0]
    assert weights(again) == uninterrupted[1]
    assert other.fit(TEXTS, evaluate=interrupting(0), **SETTINGS | {"seed": 4}) != uninterrupted[0]


@pytest.mark.clause("TRN-8", "TRN-13")
def test_every_step_and_every_part_of_it_drops_anew() -> None:
    batch = Batch.of_windows(np.array([[5, 6, 7, 8, 9]]))
    settings = {"steps": 3, "learning_rate": 0.0}
    assert len(set(make().fit(lambda _: batch, **settings).losses)) == 1
    dropping = make().fit(lambda _: batch, hidden_dropout=0.5, **settings)
    assert len(set(dropping.losses)) == 3
    parts = make().fit(lambda _: batch, hidden_dropout=0.5, accumulate=2, **settings)
    assert parts.losses[0] != pytest.approx(dropping.losses[0], rel=1e-5)


@pytest.mark.clause("TRN-19")
def test_the_best_weights_are_restored() -> None:
    results = iter([3.0, 1.0, 2.0])
    seen = []

    def measure(lm: BloomCausalLM) -> float:
        seen.append(weights(lm))
        return next(results)

    lm = make()
    history = lm.fit(TEXTS, steps=3, batch=2, eval_every=1, evaluate=measure, keep_best=True)
    assert (history.best.step, history.best.loss) == (2, 1.0)
    assert weights(lm) == seen[1] != seen[2]


def test_documents_of_their_own_are_held_out(tmp_path: Path) -> None:
    path = tmp_path / "held out.jsonl"
    path.write_text('{"prompt": "the", "completion": " is"}\n', "utf-8")
    lm = make()
    history = lm.fit(TEXTS, steps=2, held_out=[path], eval_every=1, completion_only=False)
    assert [evaluation.step for evaluation in history.evaluations] == [1, 2]
    expected = -lm.score([*lm.tokenizer.tokenize("the is"), lm.tokenizer.end_token_id]).log_likelihood / 2
    assert history.evaluations[-1].loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.clause("TRN-8")
def test_batches_from_a_function_and_from_an_iterable() -> None:
    rng = np.random.default_rng(0)
    windows = [Batch.of_windows(rng.integers(0, 40, (2, 6))) for _ in range(3)]
    histories = [make().fit(data, steps=3) for data in (windows, lambda index: windows[index])]
    assert histories[0] == histories[1]
    assert [record.tokens for record in histories[0].steps] == [10, 10, 10]


@pytest.mark.clause("TRN-9")
def test_weights_in_16_bits_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"dtype: .*got bfloat16; .*mixed_bfloat16"):
        make("bfloat16").fit(TEXTS, steps=1)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(InvalidInput, match=r"data: .*no tokenizer"):
        BloomCausalLM(make().backbone).fit(TEXTS, steps=1)


def test_weights_that_explode_are_refused() -> None:
    with pytest.raises(BadWeights, match="gradients: expected a finite norm"), np.errstate(all="ignore"):
        make().fit(TEXTS, steps=9, learning_rate=1e38, clip=None)


# --- interrupted and continued -----------------------------------------------------------------------------------


@pytest.mark.clause("TRN-13", "TRN-16")
@pytest.mark.parametrize("at", range(1, SETTINGS["steps"]))
def test_ctrl_c_saves_and_a_resumed_run_ends_with_the_same_bits(at: int, uninterrupted, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make().fit(TEXTS, evaluate=interrupting(at), checkpoints=tmp_path, save_every=0, **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{at:08d}"]
    lm = make()
    history = lm.fit(TEXTS, evaluate=interrupting(0), checkpoints=tmp_path, resume=True, **SETTINGS)
    assert (history, weights(lm)) == uninterrupted


@pytest.mark.clause("TRN-13", "TRN-14")
@pytest.mark.parametrize("at", range(1, SETTINGS["steps"] + 1))
def test_after_an_error_the_last_checkpoint_continues(at: int, uninterrupted, tmp_path: Path) -> None:
    def failing(lm: BloomCausalLM) -> float:
        value = measure(lm)
        calls.append(value)
        if len(calls) == at:
            raise RuntimeError("the power is gone")
        return value

    calls: list[float] = []
    measure = interrupting(0)
    with pytest.raises(RuntimeError):
        make().fit(TEXTS, evaluate=failing, checkpoints=tmp_path, save_every=2, **SETTINGS)
    lm = make()
    history = lm.fit(TEXTS, evaluate=measure, checkpoints=tmp_path, save_every=2, resume=True, **SETTINGS)
    assert (history, weights(lm)) == uninterrupted


@pytest.mark.clause("TRN-13", "TRN-19")
def test_the_best_weights_survive(tmp_path: Path) -> None:
    settings = SETTINGS | {"keep_best": True}
    whole, lm = make(), make()
    history = whole.fit(TEXTS, evaluate=interrupting(0), **settings)
    with pytest.raises(KeyboardInterrupt):
        lm.fit(TEXTS, evaluate=interrupting(3), checkpoints=tmp_path, **settings)
    assert lm.fit(TEXTS, evaluate=interrupting(0), checkpoints=tmp_path, resume=True, **settings) == history
    assert weights(lm) == weights(whole)


@pytest.mark.clause("TRN-13")
def test_a_finished_run_gives_its_result_again(uninterrupted, tmp_path: Path) -> None:
    for _ in range(2):
        lm = make()
        history = lm.fit(TEXTS, evaluate=interrupting(0), checkpoints=tmp_path, resume=True, **SETTINGS)
        assert (history, weights(lm)) == uninterrupted


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    def impatient(_: BloomCausalLM) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        make().fit(TEXTS, evaluate=impatient, checkpoints=tmp_path, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_another_thread_than_the_main_one_trains_too() -> None:
    found: list[History] = []
    thread = threading.Thread(target=lambda: found.append(make().fit(TEXTS, steps=1)))
    thread.start()
    thread.join()
    assert len(found[0].steps) == 1


# --- refused -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(KeyboardInterrupt):
        make().fit(TEXTS, evaluate=interrupting(2), checkpoints=folder, **SETTINGS)
    return folder


@pytest.mark.clause("TRN-15")
@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 6), ("learning_rate", 2e-2), ("batch", 3), ("seed", 4), ("hidden_dropout", 0.1), ("clip", None)],
)
def test_other_settings_are_refused_by_name(begun: Path, name: str, value: object) -> None:
    with pytest.raises(
        InvalidInput, match=rf"^{name}: expected {SETTINGS.get(name, 1.0)!r}, as in the checkpoint, got"
    ):
        make().fit(TEXTS, evaluate=interrupting(0), checkpoints=begun, resume=True, **SETTINGS | {name: value})


@pytest.mark.clause("TRN-15")
def test_other_data_and_another_model_are_refused_by_name(begun: Path) -> None:
    options: dict[str, Any] = {"evaluate": interrupting(0), "checkpoints": begun, "resume": True, **SETTINGS}
    with pytest.raises(InvalidInput, match=r"^data: expected .* as in the checkpoint"):
        make().fit([*TEXTS[1:], "something else"], **options)
    with pytest.raises(InvalidInput, match=r"^model: expected .* as in the checkpoint"):
        make("float64").fit(TEXTS, **options)


@pytest.mark.clause("TRN-15")
def test_a_new_run_does_not_overwrite_an_old_one(begun: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^checkpoint: expected a folder without a checkpoint"):
        make().fit(TEXTS, checkpoints=begun, **SETTINGS)


@pytest.mark.clause("TRN-15")
@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign", "shape", "history"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make().fit(TEXTS, evaluate=interrupting(1), checkpoints=tmp_path, **SETTINGS)
    folder = training_state.latest(tmp_path)
    spoil(folder, damage)
    with pytest.raises(BadWeights):
        make().fit(TEXTS, evaluate=interrupting(0), checkpoints=tmp_path, resume=True, **SETTINGS)


def spoil(folder: Path, damage: str) -> None:
    file, state = folder / "first.safetensors", json.loads((folder / "state.json").read_text("utf-8"))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "foreign":
        state["groups"] = ["../variables"]
    elif damage == "history":
        state["history"] = {"steps": [{}], "evaluations": []}
    else:
        loaded = training_state.load(folder)
        arrays = {name: array[:1] for name, array in loaded.arrays["first"].items()}
        training_state.write_safetensors(file, arrays)
    (folder / "state.json").write_text(json.dumps(state), "utf-8")
    training_state.write_checksums(folder)  # the digests agree: what is refused is refused for its content


# --- checkpoints on disk -----------------------------------------------------------------------------------------


@pytest.mark.clause("TRN-14")
def test_a_checkpoint_that_was_not_finished_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename is the last operation; the next writer removes files of an interrupted one."""
    small = training_state.TrainingState({"a": 1}, {"variables": {"x": np.ones(3)}})
    training_state.save(tmp_path, 1, small)
    with monkeypatch.context() as patch:
        patch.setattr(training_state, "_flush", full_disk)
        with pytest.raises(OSError, match="no space"):
            training_state.save(tmp_path, 2, small)
    assert training_state.latest(tmp_path).name == "checkpoint-00000001"
    (tmp_path / "checkpoint-00000000").mkdir()
    (tmp_path / "kept.txt").write_text("a file of the user's", "utf-8")
    training_state.save(tmp_path, 3, small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000003", "kept.txt"]
    assert training_state.load(tmp_path / "checkpoint-00000003").arrays["variables"]["x"].tolist() == [1, 1, 1]


@pytest.mark.clause("TRN-14")
def test_at_every_call_of_the_system_there_is_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            newest = training_state.latest(tmp_path)
            seen.append(newest.name)
            assert training_state.load(newest).arrays["variables"]["x"].tolist() == [int(newest.name[-1])] * 3
            return call(*arguments, **named)

        return run

    states = [training_state.TrainingState({}, {"variables": {"x": np.full(3, float(step))}}) for step in range(4)]
    training_state.save(tmp_path, 1, states[1])
    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir")):
            patch.setattr(owner, name, watched(getattr(owner, name)))
        training_state.save(tmp_path, 2, states[2])
        training_state.save(tmp_path, 3, states[3])
    assert sorted(set(seen)) == [f"checkpoint-0000000{step}" for step in (1, 2, 3)]


def full_disk(_: Path) -> None:
    raise OSError("no space left")


def test_there_is_no_checkpoint_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert training_state.latest(tmp_path / "none") is None


# --- what is shown -----------------------------------------------------------------------------------------------


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    make().fit(TEXTS, steps=2, held_out=0.2, eval_every=1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 1: loss" in shown.err
    assert "tokens/s" in shown.err


def test_the_history_as_json(tmp_path: Path, uninterrupted) -> None:
    uninterrupted[0].save(tmp_path / "history.json")
    assert History.from_dict(json.loads((tmp_path / "history.json").read_text("utf-8"))) == uninterrupted[0]


def test_the_curve_as_a_picture(tmp_path: Path, uninterrupted) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'bloomref[plot]'")
    save_curve(uninterrupted[0], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unsupported, match=r"matplotlib: .*bloomref\[plot\]"):
        save_curve(History(), tmp_path / "loss.png")
