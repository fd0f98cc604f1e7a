"""The model of all participants: a preset's dimensions, random weights and prompts, and the reference's logits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = 32
CHECKED = (4, PROMPT)  # rows and tokens of the prompts whose logits are compared
MOST_ROWS = 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model from which bytes and operations of a job follow."""

    layers: int
    hidden: int
    parameters: int
    head: int
    """Parameters of the embedding matrix, which is also the LM head."""

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * itemsize(dtype)

    def step_bytes(self, dtype: str, rows: int, context: int) -> int:
        """Bytes that one decoding step must read: all weights once, and the keys and values of each row."""
        return self.weight_bytes(dtype) + 2 * self.layers * self.hidden * rows * context * itemsize(dtype)

    def prompt_flops(self, tokens: int) -> int:
        """Floating-point operations of the matrix products of a prefill, with the logits of its last position."""
        linear = 2 * tokens * 12 * self.hidden**2
        attention = 2 * tokens * (tokens + 1) * self.hidden  # scores and weighted sums of the positions before
        return self.layers * (linear + attention) + 2 * self.head


def itemsize(dtype: str) -> int:
    return 2 if dtype in ("bfloat16", "float16") else 4


def model_config(preset: str, layers: int | None = None) -> Any:
    """Configuration of a built-in preset, reduced to `layers` layers if given."""
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
    from bloomref.formats.layouts import hf
    from bloomref.params import init_params

    params = init_params(config, seed=0).astype(floating_dtype(dtype))
    hf.save(folder / "model", config, params)
    ids = np.random.default_rng(1).integers(4, config.vocabulary_size, (MOST_ROWS, max(longest, PROMPT)))
    np.save(folder / "ids.npy", ids)
    model = BloomBackbone.from_params(config, params, "float32")
    rows, tokens = CHECKED
    return model.engine.logits(model({"token_ids": ids[:rows, :tokens]})[:, -1:])[:, 0]


def relative_error(got: Any, expected: Any) -> float:
    """Root mean square of the errors, divided by that of the expected values."""
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
