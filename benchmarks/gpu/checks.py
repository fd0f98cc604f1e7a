"""What a GPU has to show beside the parity suite, each as a function of a backend's name, so that an emulated one can try it.

python -m benchmarks.gpu.checks greedy --backend cupy      the reference's tokens, in float32, at bloom-560m's dimensions
python -m benchmarks.gpu.checks tokens --backend cupy      tokens chosen on the device, those that the host chooses; draws, twice the same
python -m benchmarks.gpu.checks repeat --backend cupy      the same bits, again and in another process
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
"""In the place of a preset: sizes for a processor that only plays a GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("greedy", "tokens", "repeat", "digest"))
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--preset", default=PRESET, help=f"whose dimensions to use, or {SMALL}")
    arguments = parser.parse_args()
    checks = {"greedy": greedy, "tokens": tokens, "repeat": repeat, "digest": digest}
    print(checks[arguments.check](arguments.backend, arguments.preset))


def config_of(preset: str) -> Any:
    """BLOOM's dimensions, or tiny ones whose heads still take the tensor-core kernel and whose blocks add as much to the residual."""
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
    """Three prompts of other lengths, together and alone, on random weights in float32.

    Raises:
        AssertionError: naming the first token that differs.
    """
    config = config_of(preset)
    params = random_params(config, "float32")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, config.vocabulary_size, n).tolist() for n in (1, 20, 33)]
    found, expected = (_continue(name, params, config, prompts, tokens) for name in (backend, "numpy"))
    for i, (ours, reference) in enumerate(zip(found, expected, strict=True)):
        wrong = [t for t, pair in enumerate(zip(ours, reference, strict=True)) if pair[0] != pair[1]]
        assert not wrong, f"prompt {i % 3}: token {wrong[0]} is {ours[wrong[0]]}, the reference's {reference[wrong[0]]}"
    return f"{tokens} tokens behind each of {len(prompts)} prompts, together and alone"


def _continue(backend: str, params: Any, config: Any, prompts: list[list[int]], tokens: int) -> list[Any]:
    model = BloomCausalLM(BloomBackbone.from_params(config, params, dtype_policy("float32"), backend=backend))
    options: dict[str, Any] = {"max_new_tokens": tokens, "stop_token_ids": None}
    return [*model.generate(prompts, **options), *(model.generate(prompt, **options) for prompt in prompts)]


# --- tokens chosen on the device ---------------------------------------------------------------------------------

CHOICES = (Choice(), Choice(0.8, 40), Choice(0.8, 40, 0.9), Choice(0.8), Choice(0.8, None, 0.9))


def tokens(backend: str, preset: str, count: int = 24) -> str:
    """Greedy ones against the arg-max of `step`, in every dtype that has them; all kinds of draws against themselves.

    Raises:
        AssertionError: naming the dtype and the choice.
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
    """(rows, count) tokens behind one of each row, in two calls.

    Raises:
        Unsupported: the backend does not choose so, or not for so many rows.
    """
    cache, ids, found = engine.new_cache(rows, count), np.arange(rows), []
    for start, length in ((0, count // 2), (count // 2, count - count // 2)):
        facts = Step.at(start, np.ones((rows, start + 1), bool))
        here = replace(choice, seeds=np.arange(rows), drawn=start)
        found.append(engine.prepared.tokens(ids, cache.blocks, facts, here, length))
        ids = found[-1][:, -1]
    return np.concatenate(found, axis=1)


def by_host(engine: Any, count: int, rows: int = 3) -> Any:
    """The greedy ones of `chosen`, step by step from the scores."""
    cache, ids, found = engine.new_cache(rows, count), np.arange(rows), []
    for t in range(count):
        ids = engine.read(cache, t, ids[:, None]).argmax(axis=1)
        found.append(ids)
    return np.stack(found, axis=1)


# --- the same bits -----------------------------------------------------------------------------------------------


def repeat(backend: str, preset: str) -> str:
    """Twice in this process, once where no kernel starts beside the one before, once in another process.

    Raises:
        AssertionError: naming the dtype.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.checks", "digest", "--backend", backend, "--preset", preset]
    runs = [digest(backend, preset), digest(backend, preset), digest(backend, preset, early=False)]
    runs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    for dtype, *seen in zip(DTYPES, *(run.split() for run in runs), strict=True):
        assert len(set(seen)) == 1, f"{dtype}: four runs gave {len(set(seen))} results"
    return f"{len(DTYPES)} dtypes, four runs, one without early starts, the same bits"


def digest(backend: str, preset: str, early: bool = True) -> str:
    """Of all bits of a prompt's and 8 decoding steps' logits, one word a dtype. `early`: whether kernels may start early."""
    config, words = config_of(preset), []
    for dtype in DTYPES:
        engine = random_engine(backend, config, dtype)
        with starting(engine.prepared.device, early):
            words.append(_hash(some_logits(engine, 3, 40, 8)))
    return " ".join(words)


@contextmanager
def starting(device: Any, early: bool) -> Iterator[bool]:
    """Kernels start early only if `early`, as long as this is open; it gives whether the device can do it."""
    can = device.starts_early
    device.starts_early = can and early
    try:
        yield can
    finally:
        device.starts_early = can


def _hash(arrays: list[Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def some_logits(engine: Engine, rows: int, prompt: int, steps: int) -> list[Any]:
    """Of a padded batch, then of one token after the other, the ids 0, 1, 2 ..."""
    cache = engine.new_cache(rows, prompt + steps)
    ids = np.arange(rows * (prompt + steps)).reshape(rows, -1) % engine.config.vocabulary_size
    is_real = np.arange(prompt) >= min(5, prompt - 1) * np.arange(rows)[:, None]  # other amounts of padding on the left
    is_real[:, -1] = True
    found = [engine.read(cache, 0, ids[:, :prompt], is_real)]
    return found + [engine.read(cache, t, ids[:, t : t + 1]) for t in range(prompt, prompt + steps)]


if __name__ == "__main__":
    main()
