"""Training of ``bloom_tiny_udhr`` with bloomref, with the windows, settings and measure of ``udhr_training``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomref.backbone import BloomBackbone
from bloomref.causal_lm import BloomCausalLM
from bloomref.dtypes import floating_dtype
from bloomref.formats.layouts import hf
from bloomref.training.documents import Document
from bloomref.training.evaluation import token_losses
from bloomref.training.packing import Batch, cut, lay_out
from tools.bloom_tiny_udhr.udhr_tokenizer import EOS_ID, PAD_ID
from tools.bloom_tiny_udhr.udhr_training import Trained, bits_per_byte, window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console

    from tools.bloom_tiny_udhr.udhr_training import Recipe, Stream


def make_model(settings: Recipe, seed: int, backend: str = "numpy") -> BloomCausalLM:
    """Create a BLOOM with random weights. Dropout is a setting of the training, not of the model."""
    backbone = BloomBackbone(
        vocabulary_size=settings.vocab_size,
        num_layers=settings.n_layer,
        num_heads=settings.n_head,
        hidden_dim=settings.hidden_size,
        intermediate_dim=4 * settings.hidden_size,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        seed=seed,
        backend=backend,
    )
    return BloomCausalLM(backbone)


def source(stream: Stream, settings: Recipe, seed: int) -> Callable[[int], Batch]:
    """Source of batches of the windows of ``udhr_training``. Batch i is drawn from the seed and i."""

    def batch(index: int) -> Batch:
        rng = np.random.default_rng([seed, index])
        return Batch.of_windows(np.stack([window(stream, settings.context + 1, rng) for _ in range(settings.batch)]))

    return batch


def nll_of_texts(model: BloomCausalLM, sequences: Sequence[Sequence[int]], batch: int = 16) -> list[float]:
    """Negative log likelihood, in nats, of each sequence after a ``</s>``."""
    rows = [np.array([EOS_ID, *sequence]) for sequence in sequences]
    pieces = cut([Document(row, np.ones(len(row), bool)) for row in rows], max(map(len, rows)))
    results: list[float] = []
    for start in range(0, len(pieces), batch):
        part = pieces[start : start + batch]
        losses = token_losses(model.backbone.engine, lay_out([[piece] for piece in part], PAD_ID))
        ends = np.cumsum([len(piece.token_ids) - 1 for piece in part])
        results += [float(nats.sum(dtype=np.float64)) for nats in np.split(losses, ends[:-1])]
    return results


def save_model(model: BloomCausalLM, folder: Path) -> None:
    """Write the weights as float16, and a config without dropout."""
    backbone = model.backbone
    hf.save(folder, backbone.config, backbone.params.astype(floating_dtype("float16")))


def evaluate_folder(folder: Path, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte of the preset in `folder`, computed in float32 from its float16 weights."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return bits_per_byte(BloomCausalLM.from_preset(folder), tokenizer, items, nll_of_texts)


def train(
    stream: Stream,
    tokenizer: Any,
    items: Sequence[dict[str, Any]],
    settings: Recipe,
    steps: int,
    seed: int,
    console: Console,
    checkpoints: Path | None = None,
    backend: str = "numpy",
) -> Trained:
    """Train for `steps` and return the weights with the lowest held-out bits per byte.

    The run is stored in the folder `checkpoints`. A run that was interrupted is resumed from there.
    """
    model = make_model(settings, seed, backend)
    began = time.perf_counter()
    history = model.fit(
        source(stream, settings, seed),
        evaluate=lambda lm: float(bits_per_byte(lm, tokenizer, items, nll_of_texts)["overall"]),
        checkpoints=checkpoints,
        resume=True,
        progress=True,
        steps=steps,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup_steps,
        final_rate=0.05,
        weight_decay=settings.weight_decay,
        beta2=0.95,
        clip=settings.clip,
        attention_dropout=0.0,
        hidden_dropout=settings.dropout,
        eval_every=settings.evaluate_every,
        keep_best=True,
        seed=seed,
    )
    best = history.best
    assert best is not None
    console.print(f"best: {best.loss:.4f} bits per byte after {best.step} steps")
    return Trained(model, model.backbone.count_params(), best.step, best.loss, time.perf_counter() - began)
