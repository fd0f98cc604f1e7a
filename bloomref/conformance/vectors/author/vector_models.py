"""Models of the vectors, each small and with one special feature. 16-bit dtypes represent all but two of them."""

from typing import Any

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case


def _model(heads: int, width: int, layers: int = 1, seed: int = 1, config: Any = (), **scales: Any) -> Case:
    hidden = heads * width
    sizes: dict[str, Any] = {"vocabulary_size": 23, "num_layers": layers, "num_heads": heads, "hidden_dim": hidden}
    return Case(BloomConfig(**sizes | {"intermediate_dim": 4 * hidden} | dict(config)), seed=seed, **scales)


MODELS: dict[str, Case] = {
    "plain": _model(2, 4, 2),
    "heads1": _model(1, 5, seed=2),
    "heads3": _model(3, 4, 2, seed=3),
    "heads5": _model(5, 2, seed=4),
    "heads6": _model(6, 3, 2, seed=5),
    "heads12": _model(12, 1, seed=6),
    "heads24": _model(24, 1, seed=7),
    "width80": _model(1, 20, seed=8),
    "distance": _model(10, 1, seed=9, qk_gain=0.1),
    "sharp": _model(4, 3, 2, seed=10, qk_gain=60.0),
    "quiet": _model(3, 4, 1, seed=11, embedding_std=2e-3),
    "epsilon3": _model(3, 4, seed=12, config={"layer_norm_epsilon": 1e-3}, embedding_std=2e-2),
    "epsilon12": _model(3, 4, seed=13, config={"layer_norm_epsilon": 1e-12}, embedding_std=2e-3),
    "big": _model(3, 4, seed=14, gain=4.0),
    "post": _model(3, 4, 2, seed=15, config={"apply_residual_connection_post_layernorm": True}),
    "untied": _model(3, 4, seed=16, config={"tie_word_embeddings": False}),
    "both": _model(
        3, 4, 2, seed=17, config={"tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True}
    ),
    "inner29": _model(3, 4, seed=18, config={"intermediate_dim": 29}),
    "inner1": _model(2, 3, seed=19, config={"intermediate_dim": 1}),
    "layers0": _model(3, 4, 0, seed=20),
    "layers4": _model(3, 2, 4, seed=21),
    "tokens4": _model(2, 3, seed=22, config={"vocabulary_size": 4}),
    "float24": _model(3, 4, seed=23, weights="float32"),
    "mean300": _model(3, 4, 2, seed=26, offset=300.0, weights="float32"),
    "small": _model(3, 2, seed=24, config={"vocabulary_size": 7, "intermediate_dim": 9}),
    "small_both": _model(
        3, 2, seed=25,
        config={"vocabulary_size": 7, "tie_word_embeddings": False, "apply_residual_connection_post_layernorm": True},
    ),
    "tiny": _model(1, 2, seed=26, config={"vocabulary_size": 5, "intermediate_dim": 3}),
}  # fmt: skip
"""Name of the folder -> model."""
