"""A training run for a test to kill: `python tests/support/training_victim.py FOLDER`.

It prints when it begins and ends.
"""

import sys
from pathlib import Path
from typing import Any

from small_models import small_tokenizer, text_lm

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.training.history import History

TEXTS = [f"the {word} is a the" for word in ("a", "is", "the", "意", "x", "y", "z", ".", ",", "(a", "the the", "is is")]
SETTINGS: dict[str, Any] = {
    "steps": 40,
    "batch": 2,
    "context": 8,
    "learning_rate": 1e-2,
    "warmup": 4,
    "weight_decay": 0.1,
    "hidden_dropout": 0.15,
    "held_out": 0.2,
    "eval_every": 5,
}


def run(folder: Path | None) -> tuple[History, dict[str, bytes]]:
    """Begin or continue, with a checkpoint after every step: the loss curve and the weights at the end."""
    drawn = text_lm(heads=6)
    backbone = BloomBackbone.from_params(drawn.backbone.config, drawn.backbone.params, "float32")
    lm = BloomCausalLM(backbone, small_tokenizer())
    history = lm.fit(TEXTS, checkpoints=folder, save_every=1, resume=True, **SETTINGS)
    return history, {name: array.tobytes() for name, _, array in lm.backbone.params.named()}


if __name__ == "__main__":
    print("begins", flush=True)
    run(Path(sys.argv[1]))
    print("ends", flush=True)
