"""The memory that a backend of this project estimates for a model is the memory that the model takes.

The kit's property `memory` has bounds for every backend; here the arrays can be found and counted.
"""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.dtypes import POLICIES, accumulation_dtype, dtype_policy
from bloomref.params import init_params
from bloomref.runtime import registry
from bloomref.runtime.backend import Memory, Step, SupportsMemoryEstimate

CONFIG = BloomConfig(vocabulary_size=3000, num_layers=2, num_heads=3, hidden_dim=99, intermediate_dim=210)
UNTIED = CONFIG.replace(tie_word_embeddings=False)
BATCH, LENGTH = 3, 200
EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)
EITHER_HEAD = pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])


OURS = ("numpy", "numba", "cupy-emulated")


def estimate(backend: str, config: BloomConfig, policy: str) -> Memory:
    if backend not in OURS:
        pytest.skip("its arrays cannot be counted")
    chosen = registry.load(backend)
    assert isinstance(chosen, SupportsMemoryEstimate)
    return chosen.memory(config, dtype_policy(policy), BATCH, LENGTH)


def prepare(backend: str, config: BloomConfig, policy: str) -> Any:
    names = dtype_policy(policy)
    return registry.load(backend).prepare(init_params(config, 0, names.variable_dtype), config, names)


def allocated(root: Any) -> int:
    """Bytes of all arrays that can be reached from an object, on any device; each buffer counts once."""
    visited, buffers, waiting = set(), {}, [root]
    while waiting:
        value = waiting.pop()
        if id(value) in visited or isinstance(value, type):
            continue
        visited.add(id(value))
        if hasattr(value, "nbytes") and hasattr(value, "shape"):
            while hasattr(value.base, "nbytes"):
                value = value.base
            buffers[id(value)] = value.nbytes
        elif isinstance(value, list | tuple):
            waiting += value
        else:
            waiting += getattr(value, "__dict__", value if isinstance(value, dict) else {}).values()
    return sum(buffers.values())


@pytest.mark.clause("BKD-15")
@EITHER_HEAD
@EVERY_POLICY
def test_weights_and_cache(backend: str, policy: str, config: BloomConfig) -> None:
    """The estimate is within 1 %, without small arrays such as slopes. The emulator adds guard zones to each array."""
    near = 0.03 if backend == "cupy-emulated" else 0.01
    need, prepared = estimate(backend, config, policy), prepare(backend, config, policy)
    assert allocated(prepared) == pytest.approx(need.weights, rel=near)
    assert allocated(prepared.new_cache(BATCH, LENGTH)) == pytest.approx(need.cache, rel=near)


@pytest.mark.clause("BKD-15")
@EVERY_POLICY
def test_working_space(backend: str, policy: str) -> None:
    need, names = estimate(backend, CONFIG, policy), dtype_policy(policy)
    logits = BATCH * CONFIG.vocabulary_size * accumulation_dtype(names.compute_dtype).itemsize
    assert need.working >= logits
    if backend in ("numpy", "numba"):  # elsewhere the temporaries are not where they could be counted
        decode(prepare(backend, CONFIG, policy))  # compiles
        assert 0.7 * need.working < peak_of_a_step(prepare(backend, CONFIG, policy)) < 1.3 * need.working


def decode(prepared: Any) -> Any:
    cache, facts = prepared.new_cache(BATCH, LENGTH), Step.at(0, np.ones((BATCH, 1), bool))
    x = prepared.embed(np.zeros((BATCH, 1), np.int64))
    for layer in range(CONFIG.num_layers):
        x = prepared.mlp_block(layer, prepared.attention_block(layer, x, cache, facts))
    return cache, prepared.logits(prepared.final_norm(x), True)


def peak_of_a_step(prepared: Any) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache, _ = decode(prepared)
        return tracemalloc.get_traced_memory()[1] - before - allocated(cache)
    finally:
        tracemalloc.stop()
