"""Training of adapters: only their factors change, and an interrupted run continues bit for bit."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_tokenizer, text_lm

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.errors import InvalidInput
from bloomref.training.history import History

TEXTS = [f"the {word} is a the" for word in ("a", "is", "the", "意", "x", "y", "z", ".", ",", "(a", "the the", "is is")]
SETTINGS: dict[str, Any] = {"steps": 4, "batch": 3, "context": 8, "learning_rate": 1e-2, "hidden_dropout": 0.1}


def make(dtype: str = "float32", form: str = "peft", seed: int = 0) -> BloomCausalLM:
    drawn = text_lm(seed)
    backbone = BloomBackbone.from_params(drawn.backbone.config, drawn.backbone.params, dtype)
    lm = BloomCausalLM(backbone, small_tokenizer())
    if form in ("peft", "two"):
        lm.add_adapter({"r": 2, "target_modules": ["query_key_value", "dense"], "lora_dropout": 0.2}, seed=1)
    if form in ("keras", "two"):
        lm.enable_lora(2, name="keras")
    if form == "two":
        lm.set_adapter({"default": 0.5, "keras": 2.0})
    return lm


def factors(lm: BloomCausalLM) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in lm.trainable_variables().items()}


def weights(lm: BloomCausalLM) -> dict[str, bytes]:
    return {name: array.tobytes() for name, _, array in lm.backbone.params.named()}


@pytest.mark.clause("TRN-18")
@pytest.mark.parametrize("form", ["peft", "keras", "two"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "mixed_bfloat16"])
def test_factors_alone_change(dtype: str, form: str) -> None:
    lm = make(dtype, form)
    base, before = weights(lm), factors(lm)
    history = lm.fit(["the is a the"] * 6, steps=25, batch=3, context=16, learning_rate=3e-2)
    assert np.mean(history.losses[-5:]) < 0.95 * history.losses[0]
    assert weights(lm) == base
    assert factors(lm).keys() == before.keys()
    assert all(factors(lm)[name] != data for name, data in before.items())


def test_the_trained_adapter_is_what_runs_and_what_is_saved(tmp_path: Path) -> None:
    lm, other = make("float64"), make("float64", form="none")
    lm.fit(TEXTS, **SETTINGS)
    lm.save_adapter(tmp_path / "adapter")
    other.load_adapter(tmp_path / "adapter")
    inputs = {"token_ids": [[5, 6, 7, 8]]}
    assert np.array_equal(lm.logits(inputs), other.logits(inputs))
    lm.set_adapter(None)
    assert not np.allclose(lm.logits(inputs), other.logits(inputs))


@pytest.mark.clause("TRN-13", "TRN-16")
@pytest.mark.parametrize("form", ["peft", "keras"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_run_ends_with_the_same_bits(at: int, form: str, tmp_path: Path) -> None:
    def measure(stop: int) -> Any:
        calls: list[int] = []

        def evaluate(_: BloomCausalLM) -> float:
            calls.append(1)
            if len(calls) == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return 0.0

        return evaluate

    whole = make(form=form)
    history = whole.fit(TEXTS, evaluate=measure(0), eval_every=1, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        make(form=form).fit(TEXTS, evaluate=measure(at), eval_every=1, checkpoints=tmp_path, **SETTINGS)
    lm = make(form=form)
    continued = lm.fit(TEXTS, evaluate=measure(0), eval_every=1, checkpoints=tmp_path, resume=True, **SETTINGS)
    assert isinstance(continued, History)
    assert continued == history
    assert factors(lm) == factors(whole)


@pytest.mark.clause("TRN-15")
def test_another_base_is_refused(tmp_path: Path) -> None:
    make().fit(TEXTS, checkpoints=tmp_path, **SETTINGS)
    with pytest.raises(InvalidInput, match=r"^model: expected .* as in the checkpoint"):
        make(seed=5).fit(TEXTS, checkpoints=tmp_path, resume=True, **SETTINGS)


@pytest.mark.parametrize("change", [lambda lm: lm.set_adapter(None), lambda lm: lm.merge_adapter()])
def test_a_frozen_model_is_refused(change: Any) -> None:
    lm = make()
    change(lm)
    with pytest.raises(InvalidInput, match="model: expected something to train, got frozen weights"):
        lm.fit(TEXTS, **SETTINGS)


def test_all_weights_trained_are_the_base_of_the_next_adapter(tmp_path: Path) -> None:
    """The base weights of an adapter must not be older than the training."""
    lm = make(form="none")
    assert lm.count_trainable_params() > 0
    lm.fit(TEXTS, **SETTINGS)
    lm.save_to_preset(tmp_path / "saved")
    trained = weights(lm)
    assert weights(BloomCausalLM.from_preset(tmp_path / "saved")) == trained
    lm.add_adapter(seed=1)
    assert weights(lm) == trained
