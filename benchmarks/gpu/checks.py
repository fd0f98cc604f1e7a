"""Checks of a backend in addition to the parity suite. The emulated backend can run them, too.

    greedy    greedy tokens are those of the reference, in float32, at bloom-560m's dimensions
    tokens    greedy tokens chosen on the device are those that the host chooses; sampled tokens repeat
    repeat    repeated runs have the same bits, in this process and in another
    digest    print the hashes that `repeat` compares

Example: python -m benchmarks.gpu.checks greedy --backend cupy
"""

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gpu.weights import pool_of, pooled_params
from benchmarks.model import model_config
from bloomref import BloomBackbone, BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.dtypes import dtype_policy
from bloomref.runtime.backend import Choice, Step
from bloomref.runtime.engine import Engine

DTYPES = ("float32", "bfloat16", "float16", "float64")
PRESET = "bloom_560m_multi"
SMALL = "small"
"""Name of a tiny config that can be used instead of a preset, for an emulated device."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("greedy", "tokens", "repeat", "digest"))
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--preset", default=PRESET, help=f"preset whose dimensions are used, or {SMALL}")
    arguments = parser.parse_args()
    checks = {"greedy": greedy, "tokens": tokens, "repeat": repeat, "digest": digest}
    print(checks[arguments.check](arguments.backend, arguments.preset))


def config_of(preset: str) -> Any:
    """Return a preset's config, or a tiny one.

    The tiny one still uses `attention_flash`, and its blocks contribute to the residual.
    """
    if preset != SMALL:
        return model_config(preset)
    return BloomConfig(
        vocabulary_size=300, num_layers=2, num_heads=2, hidden_dim=64, intermediate_dim=256, initializer_range=0.12
    )  # fmt: skip


def random_params(config: Any, dtype: str) -> Any:
    return pooled_params(config, pool_of(config, dtype_policy(dtype).variable_dtype))


def random_engine(backend: str, config: Any, dtype: str) -> Engine:
    return Engine(random_params(config, dtype), config, dtype_policy(dtype), backend)


# --- the reference's tokens --------------------------------------------------------------------------------------


def greedy(backend: str, preset: str, tokens: int = 48) -> str:
    """Compare greedy tokens with the reference, for three prompts of different lengths, as a batch and alone.

    Raises:
        AssertionError: A token differs; the message names the first.
    """
    config = config_of(preset)
    params = random_params(config, "float32")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, config.vocabulary_size, n).tolist() for n in (1, 20, 33)]
    actual, expected = (_continue(name, params, config, prompts, tokens) for name in (backend, "numpy"))
    for i, (ours, reference) in enumerate(zip(actual, expected, strict=True)):
        wrong = [t for t, pair in enumerate(zip(ours, reference, strict=True)) if pair[0] != pair[1]]
        assert not wrong, f"prompt {i % 3}: token {wrong[0]} is {ours[wrong[0]]}, the reference's {reference[wrong[0]]}"
    return f"{tokens} tokens after each of {len(prompts)} prompts, together and alone"


def _continue(backend: str, params: Any, config: Any, prompts: list[list[int]], tokens: int) -> list[Any]:
    model = BloomCausalLM(BloomBackbone.from_params(config, params, dtype_policy("float32"), backend=backend))
    options: dict[str, Any] = {"max_new_tokens": tokens, "stop_token_ids": None}
    return [*model.generate(prompts, **options), *(model.generate(prompt, **options) for prompt in prompts)]


# --- tokens chosen on the device ---------------------------------------------------------------------------------

CHOICES = (Choice(), Choice(0.8, 40), Choice(0.8, 40, 0.9), Choice(0.8), Choice(0.8, None, 0.9))


def tokens(backend: str, preset: str, count: int = 24) -> str:
    """Compare greedy tokens of the device with the argmax of `step`, and sampled tokens of two runs.

    Raises:
        AssertionError: Tokens differ; the message names the dtype and the choice.
    """
    config = config_of(preset)
    for dtype in DTYPES[:3]:
        engine = random_engine(backend, config, dtype)
        best = by_host(engine, count)
        for choice in CHOICES:
            one, two = (chosen(engine, choice, count) for _ in range(2))
            assert np.array_equal(one, two), f"{dtype}: {choice} gave other tokens the second time"
            assert choice.temperature is not None or np.array_equal(one, best), f"{dtype}: the host chooses others"
    return f"{count} tokens of 3 rows, {len(CHOICES)} choices, {', '.join(DTYPES[:3])}"


def chosen(engine: Any, choice: Choice, count: int, rows: int = 3) -> Any:
    """Return tokens (rows, count) that the device chooses after one token per row, in two calls.

    Raises:
        Unsupported: The backend does not support this choice or this number of rows.
    """
    cache, ids, parts = engine.new_cache(rows, count), np.arange(rows), []
    for start, length in ((0, count // 2), (count // 2, count - count // 2)):
        step = Step.at(start, np.ones((rows, start + 1), bool))
        here = replace(choice, seeds=np.arange(rows), drawn=start)
        parts.append(engine.prepared.tokens(ids, cache.blocks, step, here, length))
        ids = parts[-1][:, -1]
    return np.concatenate(parts, axis=1)


def by_host(engine: Any, count: int, rows: int = 3) -> Any:
    """Return greedy tokens (rows, count) that the host chooses from the logits, to compare with `chosen`."""
    cache, ids, tokens = engine.new_cache(rows, count), np.arange(rows), []
    for t in range(count):
        ids = engine.read(cache, t, ids[:, None]).argmax(axis=1)
        tokens.append(ids)
    return np.stack(tokens, axis=1)


# --- repeated runs -----------------------------------------------------------------------------------------------


def repeat(backend: str, preset: str) -> str:
    """Compare the bits of four runs.

    Two are in this process, one is without programmatic dependent launch, one in another process.

    Raises:
        AssertionError: The bits differ; the message names the dtype.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.checks", "digest", "--backend", backend, "--preset", preset]
    runs = [digest(backend, preset), digest(backend, preset), digest(backend, preset, early=False)]
    runs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    for dtype, *digests in zip(DTYPES, *(run.split() for run in runs), strict=True):
        assert len(set(digests)) == 1, f"{dtype}: four runs gave {len(set(digests))} results"
    return f"{len(DTYPES)} dtypes, four runs, one without early starts, the same bits"


def digest(backend: str, preset: str, early: bool = True) -> str:
    """Return one hash per dtype of the logits of a prompt and 8 decoding steps.

    `early` allows programmatic dependent launch.
    """
    config, words = config_of(preset), []
    for dtype in DTYPES:
        engine = random_engine(backend, config, dtype)
        with starting(engine.prepared.device, early):
            words.append(_hash(some_logits(engine, 3, 40, 8)))
    return " ".join(words)


@contextmanager
def starting(device: Any, early: bool) -> Iterator[bool]:
    """Allow programmatic dependent launch inside the context only if `early`. Yields True if the device supports it."""
    can = device.starts_early
    device.starts_early = can and early
    try:
        yield can
    finally:
        device.starts_early = can


def _hash(arrays: list[Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def some_logits(engine: Engine, rows: int, prompt: int, steps: int) -> list[Any]:
    """Return the logits of a padded batch and of single-token steps after it, for the ids 0, 1, 2 ..."""
    cache = engine.new_cache(rows, prompt + steps)
    ids = np.arange(rows * (prompt + steps)).reshape(rows, -1) % engine.config.vocabulary_size
    is_real = np.arange(prompt) >= min(5, prompt - 1) * np.arange(rows)[:, None]  # left padding of different lengths
    is_real[:, -1] = True
    first = engine.read(cache, 0, ids[:, :prompt], is_real)
    return [first] + [engine.read(cache, t, ids[:, t : t + 1]) for t in range(prompt, prompt + steps)]


if __name__ == "__main__":
    main()
