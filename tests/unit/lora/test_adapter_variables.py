"""Gradients by what adapters have besides factors: slopes, training, and what stays frozen. Clause: LRA-26."""

from pathlib import Path

import numpy as np
import pytest
from peft_adapters import CONFIG, KINDS, lm, trained

from bloomref import BloomCausalLM, Unsupported
from bloomref.training.packing import Batch

TOKENS = {"token_ids": [[3, 1, 4, 1, 5, 9, 2, 6]]}


FAST = ("all biases", "saved modules", "rows", "rows of the head", "dora", "a bias of B", "an adapted head")


def loss(model: BloomCausalLM) -> float:
    return model.loss_and_gradients(TOKENS)[0]


@pytest.mark.clause("LRA-26", "LRA-15")
@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        pytest.param(kind, tied, marks=() if tied and kind in FAST else pytest.mark.slow)
        for kind in KINDS
        for tied in (True, False)
    ],
)
def test_gradients_are_slopes(kind: str, tied: bool, tmp_path: Path):
    """Central differences along a random direction. The factors of DoRA are left out: as its norm is held fixed,
    their gradients are no slopes of the loss; they are compared with peft's.
    """
    config = CONFIG.replace(tie_word_embeddings=tied)
    model = lm(config)
    model.load_adapter(trained(tmp_path, KINDS[kind], config))
    before, gradients = model.trainable_variables(), model.loss_and_gradients(TOKENS)[1]
    assert gradients.keys() == before.keys()
    rng = np.random.default_rng(2)
    is_dora = KINDS[kind].get("use_dora")
    names = [n for n in before if not is_dora or "magnitude" in n]
    steps = {n: rng.standard_normal(before[n].shape) for n in names}
    values = []
    for h in (1e-5, -1e-5):
        model.assign_variables({n: before[n] + h * steps[n] for n in names})
        values.append(loss(model))
    slope = (values[0] - values[1]) / 2e-5
    expected = sum(float((gradients[n] * steps[n]).sum()) for n in names)
    assert expected == pytest.approx(slope, rel=1e-5)


@pytest.mark.clause("LRA-26", "TRN-18")
@pytest.mark.parametrize(
    "kind",
    ["rows", "dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("all biases", "an adapted head"))],
)
def test_training_changes_the_variables_alone(kind: str, tmp_path: Path):
    model = lm(dtype="float32")
    model.add_adapter(KINDS[kind])
    base, start, first = model.adapter_set.base, model.trainable_variables(), loss(model)
    batch = Batch.of_windows(np.array(TOKENS["token_ids"]))
    model.fit(lambda _: batch, steps=4, batch=1, learning_rate=3e-3)
    assert loss(model) < first
    assert model.adapter_set.base is base
    changed = {n for n, array in model.trainable_variables().items() if not np.array_equal(array, start[n])}
    assert changed >= {n for n in start if "lora_A" not in n and "embedding_B" not in n and "query" not in n}
    model.save_adapter(tmp_path / "adapter")
    again = lm(dtype="float32")
    again.load_adapter(tmp_path / "adapter")
    assert loss(again) == pytest.approx(loss(model), rel=1e-6)


@pytest.mark.clause("LRA-26")
def test_a_stored_base_is_not_trained(tmp_path: Path):
    """An embedding that PEFT stores beside the factors, without having trained it, is frozen."""
    folder = trained(tmp_path, {"bias": "all"})
    config = folder / "adapter_config.json"
    config.write_text(config.read_text("utf-8").replace('"all"', '"none"'), "utf-8")
    model = lm()
    model.load_adapter(folder)
    assert all("lora_" in name for name in model.trainable_variables())
    assert "ln_f.bias" in model.adapters["default"]["replaced"]


@pytest.mark.clause("LRA-26")
def test_dropout_inside_a_weight_is_refused():
    model = lm()
    model.add_adapter({"use_dora": True, "lora_dropout": 0.1})
    with pytest.raises(Unsupported, match="lora_dropout 0"):
        model.loss_and_gradients(TOKENS)
