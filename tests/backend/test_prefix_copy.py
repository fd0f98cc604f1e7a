"""Keys and values are copied between caches, on every backend that has the capability."""

import numpy as np
import pytest

from bloomref import BloomBackbone
from bloomref.generation.prompts import Prompt, left_pad
from bloomref.runtime.backend import Declaration, SupportsCacheCopy
from bloomref.runtime.prefix_states import load_prefix, read_prefix

PREFIX = np.array([(7 * i + i * i) % 50 for i in range(35)])
"""More positions than a panel of any layout has."""


@pytest.fixture(scope="module", params=["float64", "float32", "bfloat16", "float16"])
def model(backend: str, request: pytest.FixtureRequest) -> BloomBackbone:
    model = BloomBackbone(50, 2, 3, 15, 30, dtype=request.param, backend=backend, seed=1)
    if not isinstance(model.engine.prepared, SupportsCacheCopy):
        pytest.skip("without copies of its cache")
    return model


@pytest.mark.clause("BKD-25")
def test_a_copy_has_the_bits_and_leaves_the_rest(model: BloomBackbone) -> None:
    engine = model.engine
    prepared, states = engine.prepared, read_prefix(engine, PREFIX)
    assert isinstance(prepared, SupportsCacheCopy)
    cache = engine.new_cache(3, 80)
    engine.read(cache, 0, np.full((3, 80), 5))
    before = [prepared.copy_from_cache(cache.blocks, row, 80) for row in range(3)]
    prepared.copy_to_cache(cache.blocks, 1, 17, states.keys, states.values)
    for row in range(3):
        for old, new, copied in zip(
            before[row], prepared.copy_from_cache(cache.blocks, row, 80), (states.keys, states.values), strict=True
        ):
            expected = old.copy()
            if row == 1:
                expected[:, :, 17:52] = copied
            np.testing.assert_array_equal(new, expected)


@pytest.mark.clause("KVC-9")
@pytest.mark.parametrize("lengths", [(2,), (1, 9), (3, 1, 4)])
def test_what_follows_copied_states_is_what_follows_computed_ones(
    model: BloomBackbone, lengths: tuple[int, ...]
) -> None:
    """Bit for bit for one row where the backend declares so: no padding stands before its prefix."""
    engine, states = model.engine, read_prefix(model.engine, PREFIX)
    batch = left_pad([Prompt.of([*PREFIX.tolist(), *range(n)]) for n in lengths])
    width, next_ids = batch.token_ids.shape[1], np.full((len(lengths), 1), 7)
    whole, cut = (engine.new_cache(len(lengths), width + 1) for _ in range(2))
    begin = load_prefix(engine, cut, batch, states, width - 1)
    assert begin == min(width - n for n in lengths)
    expected = [engine.read(whole, 0, batch.token_ids, batch.is_real), engine.read(whole, width, next_ids)]
    rest = (batch.token_ids[:, begin:], batch.is_real[:, begin:])
    got = [engine.read(cut, begin, *rest), engine.read(cut, width, next_ids)]
    declaration = getattr(engine.runs_on, "declaration", Declaration())
    bits = len(lengths) == 1 and engine.policy.name in declaration.bit_equal
    tolerance = {8: 1e-12, 4: 1e-5, 2: 0.05}[engine.policy.compute_dtype.itemsize]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0 if bits else tolerance)
