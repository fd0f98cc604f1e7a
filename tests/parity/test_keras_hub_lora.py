"""Adapters compared with KerasHub: outputs, and `.lora.h5` files in both directions.

KerasHub is float32 (`keras_hub_peer`).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if not find_spec("keras_hub"):
    pytest.skip("needs keras-hub and jax: pip install 'bloomref[peers-keras]'", allow_module_level=True)

from parity import compare
from parity.keras_hub_peer import Peer
from strategies import draw_params

from bloomref import BloomBackbone, BloomConfig
from bloomref.lora.adapter import DENSE_LAYERS

# Warnings of the imports of Keras, JAX and TensorFlow say nothing about the results.
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = BloomConfig(vocabulary_size=23, num_layers=3, num_heads=3, hidden_dim=12, intermediate_dim=20)
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
TARGETS = {
    "default": None,
    "query": ["query_dense"],
    "value and key": ["value_dense", "key_dense"],
    "all": list(DENSE_LAYERS),
}


def params(seed: int):
    return draw_params(CONFIG, np.random.default_rng(seed)).astype(np.dtype(np.float32))


def peer(seed: int, rank: int, targets: list[str] | None, factors: int | None = None) -> Peer:
    """KerasHub's model with LoRA; with random factors, if `factors` is their seed."""
    theirs = Peer(CONFIG, params(seed))
    theirs.backbone.enable_lora(rank, targets)
    rng = np.random.default_rng(factors)
    for variable in theirs.backbone.trainable_variables if factors is not None else ():
        if "lora_kernel" in variable.path:
            variable.assign(0.3 * rng.standard_normal(variable.shape))
    return theirs


def hidden(theirs: Peer) -> np.ndarray:
    return np.asarray(theirs.backbone({"token_ids": TOKENS.astype(np.int32), "padding_mask": np.ones_like(TOKENS)}))


def ours(seed: int, dtype: str = "float64") -> BloomBackbone:
    return BloomBackbone.from_params(CONFIG, params(seed), dtype)


def outside(exact: BloomBackbone, result: np.ndarray) -> list[str]:
    """What float32 hidden states have outside the kit's budget of the adapted model."""
    return compare.outside(compare.case_of_adapted(exact, TOKENS), {"final_norm": result}, "float32")


@pytest.mark.clause("LRA-11", "LRA-13")
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_there_and_back(targets: list[str] | None, tmp_path: Path):
    theirs = peer(1, 4, targets, 2)
    theirs.backbone.save_lora_weights(tmp_path / "theirs.lora.h5")
    exact, single = ours(1), ours(1, "float32")
    for model in (exact, single):
        model.load_adapter(tmp_path / "theirs.lora.h5")
    expected = hidden(theirs)
    assert outside(ours(1), expected), "the adapter changes nothing"
    assert outside(exact, expected) == []
    assert outside(exact, single({"token_ids": TOKENS})) == []

    single.save_adapter(tmp_path / "ours.lora.h5")
    again = peer(1, 4, targets)
    again.backbone.load_lora_weights(tmp_path / "ours.lora.h5")
    np.testing.assert_array_equal(hidden(again), expected)


@pytest.mark.clause("LRA-13")
def test_the_same_variables():
    """Layer names, shapes, zeros and the bound of initial values are the same.

    Only KerasHub leaves biases of adapted layers trainable.
    """
    theirs = peer(3, 4, list(DENSE_LAYERS)).backbone
    model = ours(3)
    model.enable_lora(4, list(DENSE_LAYERS))
    factors = [v for v in theirs.trainable_variables if "lora_kernel" in v.path]
    assert sum(int(np.prod(v.shape)) for v in factors) == model.count_trainable_params()
    assert all("/bias" in v.path for v in theirs.trainable_variables if "lora_kernel" not in v.path)
    kernels = {v.path: np.asarray(v) for v in factors}
    first = "transformer_layer_0/self_attention/query_dense/lora_kernel_"
    mine = {n: x for n, x in model.trainable_variables().items() if ".query.lora_kernel" in n and n.startswith("h.0.")}
    for (_, own), kernel in zip(mine.items(), ("a", "b"), strict=True):
        assert own.shape == kernels[first + kernel].shape
        assert bool(own.any()) == bool(kernels[first + kernel].any())
    bound = np.sqrt(6.0 / (12 * 3))
    assert all(0.8 < np.abs(x).max() / bound <= 1.0 for x in (next(iter(mine.values())), kernels[first + "a"]))


@pytest.mark.clause("LRA-14")
def test_an_expanded_adapter_of_peft(tmp_path: Path):
    """A whole matrix at any rank is KerasHub's form at rank K = 4."""
    model = ours(4)
    model.add_adapter({"target_modules": "all-linear", "r": 5, "use_rslora": True, "lora_alpha": 3})
    rng = np.random.default_rng(5)
    model.assign_variables({n: 0.3 * rng.standard_normal(x.shape) for n, x in model.trainable_variables().items()})
    model.save_adapter(tmp_path / "expanded.lora.h5", expand=True)
    theirs = peer(4, 5, list(DENSE_LAYERS))  # the larger of 4 and 5
    theirs.backbone.load_lora_weights(tmp_path / "expanded.lora.h5")
    assert outside(ours(4), hidden(theirs)), "the adapter changes nothing"
    assert outside(model, hidden(theirs)) == []
