"""The model that everybody runs: a preset's dimensions, random weights, random prompts; and the reference's logits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = 32
CHECKED = (4, PROMPT)  # rows and tokens of the prompts whose logits are compared
MOST_ROWS = 16


@dataclass(frozen=True)
class Sizes:
    """What the arithmetic of a figure needs to know."""

    layers: int
    hidden: int
    parameters: int
    head: int
    """Parameters of the embedding, which is the head."""

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * itemsize(dtype)

    def step_bytes(self, dtype: str, rows: int, context: int) -> int:
        """What one step of decoding must read: the weights once, and each row's keys and values."""
        return self.weight_bytes(dtype) + 2 * self.layers * self.hidden * rows * context * itemsize(dtype)

    def prompt_flops(self, tokens: int) -> int:
        """Additions and multiplications of a prompt's matrix products, with the logits of its last position."""
        linear = 2 * tokens * 12 * self.hidden**2
        attention = 2 * tokens * (tokens + 1) * self.hidden  # scores and weighted sums of the positions before
        return self.layers * (linear + attention) + 2 * self.head


def itemsize(dtype: str) -> int:
    return 2 if dtype in ("bfloat16", "float16") else 4


def model_config(preset: str, layers: int | None = None) -> Any:
    """A built-in preset's configuration, cut to so many layers."""
    from bloomref.presets.preset_registry import PRESETS

    config = PRESETS[preset].config
    return config if layers is None else replace(config, num_layers=layers)


def sizes(config: Any) -> Sizes:
    from bloomref.params import count_params

    head = config.vocabulary_size * config.hidden_dim
    return Sizes(config.num_layers, config.hidden_dim, count_params(config), head)


def write_model(config: Any, dtype: str, folder: Path, longest: int) -> Any:
    """Write `model` (Hugging Face layout) and `ids.npy`; returns the reference's float32 logits (CHECKED rows, V)."""
    from bloomref.backbone import BloomBackbone
    from bloomref.dtypes import floating_dtype
    from bloomref.formats import hf
    from bloomref.params import init_params

    params = init_params(config, seed=0).astype(floating_dtype(dtype))
    hf.save(folder / "model", config, params)
    ids = np.random.default_rng(1).integers(4, config.vocabulary_size, (MOST_ROWS, max(longest, PROMPT)))
    np.save(folder / "ids.npy", ids)
    model = BloomBackbone.from_params(config, params, "float32")
    rows, tokens = CHECKED
    return model.engine.logits(model({"token_ids": ids[:rows, :tokens]})[:, -1:])[:, 0]


def relative_error(got: Any, expected: Any) -> float:
    """Root mean square of the errors over that of what was expected."""
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
