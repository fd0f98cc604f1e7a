"""Training of ``bloom_tiny_udhr``: settings, batches, the held-out measure, and the choice of the checkpoint.

Training needs ``torch``, ``transformers`` and ``rich``, which are imported on use.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bloom_tiny_udhr.udhr_tokenizer import EOS_ID, PAD_ID, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from rich.console import Console

    from tools.bloom_tiny_udhr.udhr_corpus import Declaration


@dataclass(frozen=True)
class Recipe:
    """Sizes and training settings. The defaults are those of the shipped preset."""

    tokenizer_size: int = 4080
    hidden_size: int = 144
    n_head: int = 9
    n_layer: int = 4
    context: int = 256
    batch: int = 8
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    weight_decay: float = 0.2
    dropout: float = 0.15
    clip: float = 1.0
    evaluate_every: int = 100

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding: the tokenizer's size rounded up to a multiple of 64."""
        return -(-self.tokenizer_size // 64) * 64


# -------------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Stream:
    """Training documents as one sequence of tokens.

    Args:
        tokens: (N,) token ids of all documents.
        starts: indices into `tokens` where a section (an article or an opening) starts.
    """

    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def make_stream(tokenizer: Any, declarations: Sequence[Declaration]) -> Stream:
    """Concatenate the training documents. Each ends with ``</s>``."""
    tokens: list[int] = []
    starts: list[int] = []
    for declaration in declarations:
        for section in declaration.training_sections():
            starts.append(len(tokens))
            tokens.extend(encode(tokenizer, section))
        tokens.append(EOS_ID)
    return Stream(np.array(tokens, dtype=np.int64), np.array(starts, dtype=np.int64))


def window(stream: Stream, length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw one training window of `length` tokens.

    Half of the windows start at any token, and a quarter at the start of a section. The last quarter has a ``</s>``
    before the start of a section, which is the context in which held-out articles are scored.
    """
    kind = rng.random()
    last = len(stream.tokens) - length
    if kind < 0.5:
        start = int(rng.integers(last + 1))
        return stream.tokens[start : start + length]
    start = min(int(rng.choice(stream.starts)), last)
    if kind < 0.75:
        return stream.tokens[start : start + length]
    return np.concatenate([[EOS_ID], stream.tokens[start : start + length - 1]])


def batches(stream: Stream, settings: Recipe, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield training batches (batch, context + 1) without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield np.stack([window(stream, settings.context + 1, rng) for _ in range(settings.batch)])


# ---------------------------------------------------------------------------------------------------------- the measure


def nll_of_texts(model: Any, sequences: Sequence[Sequence[int]], batch: int = 16) -> list[float]:
    """Negative log likelihood, in nats, of each sequence after a ``</s>``."""
    import torch

    results: list[float] = []
    model.eval()
    with torch.no_grad():
        for i in range(0, len(sequences), batch):
            part = [[EOS_ID, *s] for s in sequences[i : i + batch]]
            longest = max(map(len, part))
            inputs = torch.tensor([s + [PAD_ID] * (longest - len(s)) for s in part])
            logits = model(input_ids=inputs[:, :-1], use_cache=False).logits.float()
            logp = logits.log_softmax(-1).gather(-1, inputs[:, 1:, None])[..., 0]
            for row, s in zip(logp, part, strict=True):
                results.append(-float(row[: len(s) - 1].double().sum()))
    return results


def bits_per_byte(
    model: Any,
    tokenizer: Any,
    items: Sequence[dict[str, Any]],
    nll: Callable[[Any, Sequence[Sequence[int]]], list[float]] = nll_of_texts,
) -> dict[str, Any]:
    """Bits per byte of the held-out articles, overall and per language.

    Each article (heading and paragraphs, each line with its newline) is scored separately, after one ``</s>``. The
    result is the sum of all bits divided by the number of UTF-8 bytes, rounded to four decimals.

    Args:
        model: the argument of `nll`.
        tokenizer: encodes the articles.
        items: held-out articles, from ``held_out_items``.
        nll: returns the negative log likelihoods of sequences, in nats.
    """
    losses = nll(model, [encode(tokenizer, item["text"]) for item in items])
    bits: dict[str, float] = {}
    size: dict[str, int] = {}
    for item, nats in zip(items, losses, strict=True):
        code = item["language"]
        bits[code] = bits.get(code, 0.0) + nats / math.log(2)
        size[code] = size.get(code, 0) + len(item["text"].encode())
    return {
        "overall": round(sum(bits.values()) / sum(size.values()), 4),
        "per_language": {code: round(bits[code] / size[code], 4) for code in bits},
    }


# ------------------------------------------------------------------------------------------------------------- training


def make_model(settings: Recipe) -> Any:
    """Create a BLOOM with random weights, and with dropout on the outputs of attention block and MLP."""
    from transformers import BloomConfig, BloomForCausalLM

    make_config: Any = BloomConfig
    config = make_config(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        n_head=settings.n_head,
        n_layer=settings.n_layer,
        layer_norm_epsilon=1e-5,
        hidden_dropout=settings.dropout,
        attention_dropout=0.0,
        tie_word_embeddings=True,
        unk_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return BloomForCausalLM(config)


def learning_rate(step: int, steps: int, settings: Recipe) -> float:
    """Learning rate of a step, from 0: linear warm-up, then cosine decay to a twentieth of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def save_model(model: Any, folder: Path) -> None:
    """Write the weights as float16, and a config without dropout."""
    import torch

    model.config.hidden_dropout = 0.0
    model.to(torch.float16).save_pretrained(folder)


def evaluate_folder(folder: Path, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte of the preset in `folder`, computed in float32 from its float16 weights."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BloomForCausalLM

    model = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return bits_per_byte(model, Tokenizer.from_file(str(folder / "tokenizer.json")), items)


def make_optimizer(model: Any, settings: Recipe) -> Any:
    """Create AdamW with weight decay for matrices only."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def train_step(model: Any, optimizer: Any, batch: npt.NDArray[np.int64], clip: float) -> float:
    """Make one update, with matrix products in bfloat16 and weights in float32. Returns the mean loss in nats/token."""
    import torch

    model.train()
    tokens = torch.from_numpy(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
    loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return float(loss.detach())


def steps_in(minutes: float, stream: Stream, settings: Recipe) -> int:
    """Number of steps that fit into a number of minutes, estimated from eight steps of a temporary model."""
    model = make_model(settings)
    optimizer = make_optimizer(model, settings)
    source = batches(stream, settings, 0)
    train_step(model, optimizer, next(source), settings.clip)
    began = time.perf_counter()
    for _ in range(8):
        train_step(model, optimizer, next(source), settings.clip)
    return max(1, int(minutes * 60 * 8 / (time.perf_counter() - began)))


@dataclass
class Trained:
    """Best checkpoint of a run: the model, its number of parameters, its step, its held-out bits per byte, seconds."""

    model: Any
    parameters: int
    best_step: int
    bits_per_byte: float
    seconds: float


def train(
    stream: Stream,
    tokenizer: Any,
    items: Sequence[dict[str, Any]],
    settings: Recipe,
    steps: int,
    seed: int,
    console: Console,
    checkpoints: Path | None = None,  # noqa: ARG001 (a run with torch has no checkpoints)
    backend: str = "numpy",  # noqa: ARG001 (torch has no backend of bloomref)
) -> Trained:
    """Train for `steps` and return the weights with the lowest held-out bits per byte."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    torch.manual_seed(seed)
    model = make_model(settings)
    optimizer = make_optimizer(model, settings)
    source = batches(stream, settings, seed)
    best, best_step, best_state = math.inf, 0, {}
    recent: list[float] = []
    began = time.perf_counter()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=steps)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, settings)
            recent.append(train_step(model, optimizer, next(source), settings.clip))
            progress.advance(bar)
            done = step + 1
            if done % settings.evaluate_every and done != steps:
                continue
            measured = float(bits_per_byte(model, tokenizer, items)["overall"])
            if measured < best:
                best, best_step = measured, done
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            console.print(
                f"step {done}/{steps}  {time.perf_counter() - began:.0f} s  loss {np.mean(recent):.3f} nats per token"
                f"  held-out {measured:.4f} bits per byte"
            )
            recent.clear()
    model.load_state_dict(best_state)
    parameters = sum(p.numel() for p in model.parameters())
    return Trained(model, parameters, best_step, best, time.perf_counter() - began)
