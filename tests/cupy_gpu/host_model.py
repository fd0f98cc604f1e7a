"""The small config of the host tests, and the forward pass that they share."""

from typing import Any

from bloomref.config import BloomConfig
from bloomref.runtime.backend import Step

CONFIG = BloomConfig(vocabulary_size=40, num_layers=2, num_heads=3, hidden_dim=48, intermediate_dim=37)
"""The MLP width is odd, so that weights need padding."""


def run_blocks(prepared: Any, token_ids: Any, cache: Any, step: Step) -> Any:
    """Return the hidden states after the last block."""
    x = prepared.embed(token_ids)
    for layer in range(prepared.config.num_layers):
        x = prepared.mlp_block(layer, prepared.attention_block(layer, x, cache, step))
    return x
