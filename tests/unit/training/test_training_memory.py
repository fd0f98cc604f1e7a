"""The memory of a training before its start: a lower bound of what is allocated, and refused beyond the machine."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.dtypes import dtype_policy
from bloomref.errors import Unsupported
from bloomref.training import memory_need
from bloomref.training.packing import Batch
from bloomref.training.settings import Settings


def model(**sizes: int) -> BloomCausalLM:
    return BloomCausalLM(BloomBackbone(**{"num_layers": 2, "num_heads": 2, "intermediate_dim": 64, **sizes}))


def batch(shape: tuple[int, int]) -> Batch:
    return Batch.of_windows(np.random.default_rng(0).integers(0, 50, shape))


def need(lm: BloomCausalLM, shape: tuple[int, int], **settings: Any) -> memory_need.MemoryNeed:
    backbone = lm.backbone
    variables = backbone.trainable_variables()
    return memory_need.of_training(backbone.config, backbone.policy, variables, Settings(**settings), batch(shape))


@pytest.mark.clause("TRN-23")
@pytest.mark.parametrize(
    ("sizes", "shape", "adapted"),
    [
        ({"vocabulary_size": 100, "hidden_dim": 128, "intermediate_dim": 512}, (2, 16), False),
        ({"vocabulary_size": 100, "hidden_dim": 16, "num_heads": 8}, (1, 128), True),
        ({"vocabulary_size": 5000, "hidden_dim": 8}, (4, 16), False),
        ({"vocabulary_size": 100, "hidden_dim": 64, "num_layers": 3}, (4, 32), True),
    ],
    ids=["weights", "attention", "logits", "inputs"],
)
def test_a_training_allocates_what_was_said_or_more(sizes: Any, shape: Any, adapted: bool) -> None:
    lm = model(**sizes)
    if adapted:
        lm.add_adapter({"r": 2, "target_modules": "all-linear"})
    said = need(lm, shape)
    tracemalloc.start()
    lm.fit([batch(shape)], steps=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own = said.total - (said.weights if adapted else 0)  # the weights of the base are there before
    assert own <= peak <= 5 * own + 500_000


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What the first training imports is no memory of the next."""
    model(vocabulary_size=50, hidden_dim=4).fit([batch((1, 2))], steps=1)


@pytest.mark.clause("TRN-23")
def test_parts_follow_the_settings() -> None:
    lm = model(vocabulary_size=100, hidden_dim=16)
    plain, more = need(lm, (2, 8)), need(lm, (2, 8), accumulate=2, keep_best=True)
    weights = lm.backbone.count_params() * 4
    assert (plain.weights, plain.gradients, plain.optimizer) == (weights, weights, 2 * weights)
    assert (more.weights, more.gradients, more.optimizer) == (weights, 2 * weights, 3 * weights)
    assert need(lm, (4, 8)).activations == 2 * plain.activations
    backbone = lm.backbone
    variables = backbone.trainable_variables()
    mixed = memory_need.of_training(
        backbone.config, dtype_policy("mixed_bfloat16"), variables, Settings(), batch((2, 8))
    )
    assert mixed.weights == weights + weights // 2


def test_sizes_are_readable() -> None:
    assert [memory_need.shown(size) for size in (0, 999_900_000, 10**9, 1_234_567_890_123)] == [
        "0.0 MB",
        "999.9 MB",
        "1.0 GB",
        "1,234.6 GB",
    ]


@pytest.mark.clause("TRN-23")
def test_more_than_the_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lm = model(vocabulary_size=100, hidden_dim=16)
    total = need(lm, (2, 8)).total
    monkeypatch.setattr("bloomref.machine_memory.machine_bytes", lambda: total)
    lm.fit([batch((2, 8))], steps=1, progress=True)
    assert f"memory: at least {memory_need.shown(total)} (weights " in capsys.readouterr().err
    monkeypatch.setattr("bloomref.machine_memory.machine_bytes", lambda: total - 1)
    before = {name: array.copy() for name, array in lm.trainable_variables().items()}
    with pytest.raises(Unsupported, match=r"training: expected at most .* got .* GB; weights .* MB, .*a smaller batch"):
        lm.fit([batch((2, 8))], steps=1)
    assert all(np.array_equal(before[name], array) for name, array in lm.trainable_variables().items())
