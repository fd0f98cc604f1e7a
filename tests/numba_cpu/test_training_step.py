"""Gradients of the Numba backend against the reference's in float64: all weights, adapters, dropout, documents, tight memory."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Float32Case, configs

from accel.numba_cpu.training import step as training
from bloomref.dtypes import floating_dtype
from bloomref.errors import Unsupported
from bloomref.params import Params
from bloomref.reference import lora, loss, vjp
from bloomref.runtime import registry

FLOAT32, FLOAT64 = floating_dtype("float32"), floating_dtype("float64")


@dataclass(frozen=True)
class Batch:
    case: Float32Case
    rate: float
    documents: bool
    adapted: bool

    @cached_property
    def config(self) -> Any:
        return self.case.config.replace(attention_dropout=self.rate, hidden_dropout=self.rate)

    @cached_property
    def params(self) -> Params:
        """Exact in float32."""
        params = self.case.params.astype(FLOAT32).astype(FLOAT64)
        return adapted(params, self.case.seed, self.rate) if self.adapted else params

    @cached_property
    def document(self) -> Any:
        rows = np.arange(self.case.time) // 4 * np.ones((self.case.batch, 1), int)
        return rows if self.documents else None

    def rng(self) -> np.random.Generator | None:
        return np.random.default_rng(self.case.seed) if self.rate else None

    def reference(self, dtype: Any) -> vjp.LossGradients:
        return vjp.loss_and_gradients(
            in_dtype(self.params, dtype), self.config, self.case.token_ids, self.case.is_real,
            rng=self.rng(), document=self.document,
        )  # fmt: skip

    def numba(self, trainable: Any = lambda _: True, dtype: Any = FLOAT32) -> tuple[float, dict[str, Any]]:
        targets = loss.targets(self.case.token_ids, self.case.is_real, None, self.document)
        document = np.where(self.case.is_real, 0 if self.document is None else self.document, -1)
        backend = registry.load("numba")
        params = in_dtype(self.params, dtype)
        return backend.loss_and_gradients(
            params, self.config, self.case.token_ids, targets, document, trainable, self.rng()
        )  # type: ignore[attr-defined]


def in_dtype(params: Params, dtype: Any) -> Params:
    return lora.with_factors(params.astype(dtype), {k: v.astype(FLOAT32) for k, v in lora.factors(params).items()})


def adapted(params: Params, seed: int, rate: float) -> Params:
    """An adapter of rank 2 on every matrix of every block."""
    rng = np.random.default_rng(seed)
    found = {}
    for key, weight, array in params.named():
        if key.startswith("h.") and array.ndim > 1:
            rows = array.shape[0] if weight.axes != "H C K D" else array.size // array.shape[-1]
            a = rng.standard_normal((2, array.size // rows)).astype(FLOAT32)
            b = rng.standard_normal((rows, 2)).astype(FLOAT32)
            found[key] = (lora.LinearAdapter("default", 0.5, rate, a, b, array.shape),)
    return lora.attach(params, found)


def batches() -> st.SearchStrategy[Batch]:
    cases = st.builds(
        Float32Case, configs(max_layers=2), st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40),
        st.sampled_from(("real", "left", "right", "padding row")),
    )  # fmt: skip
    return st.builds(Batch, cases, st.sampled_from((0.0, 0.3)), st.booleans(), st.booleans())


def distance(found: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    return {key: float(np.abs(found[key] - value).max(initial=0.0)) for key, value in truth.items()}


@pytest.mark.clause("BKD-19")
@settings(max_examples=40)
@given(batches())
def test_gradients_are_the_references(batch):
    """As near to float64 as the reference in float32, within a factor of 8 and a rounding of the largest gradient.

    The reference may be exact by luck in one gradient: its mean relative error counts as well.
    """
    truth, single = batch.reference(FLOAT64), batch.reference(FLOAT32)
    value, found = batch.numba()
    assert found.keys() == truth.gradients.keys()
    unit = 2.0**-20 * max([1e-30, *(np.abs(g).max(initial=0.0) for g in truth.gradients.values())])
    allowed = distance(single.gradients, truth.gradients)
    largest = {key: float(np.abs(g).max(initial=0.0)) for key, g in truth.gradients.items()}
    spread = np.linalg.norm([*allowed.values()]) / max(1e-30, np.linalg.norm([*largest.values()]))
    for key, error in distance(found, truth.gradients).items():
        assert error <= 8 * (allowed[key] + spread * largest[key]) + unit, key
        assert found[key].shape == truth.gradients[key].shape
        assert found[key].dtype == FLOAT32
    assert abs(value - truth.loss) <= 8 * abs(single.loss - truth.loss) + 2.0**-20 * max(1.0, truth.loss)


@settings(max_examples=10)
@given(batches())
def test_little_memory_gives_the_same_bits(batch):
    value, found = batch.numba()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Step, "_is_tight", lambda _: True)
        again, tight = batch.numba()
    assert value == again
    assert {key: array.tobytes() for key, array in found.items()} == {
        key: array.tobytes() for key, array in tight.items()
    }


@settings(max_examples=10)
@given(batches())
def test_what_is_frozen_is_left_out_and_changes_nothing(batch):
    _, whole = batch.numba()
    wanted = {key for i, key in enumerate(sorted(whole)) if i % 3 == 0}
    _, part = batch.numba(wanted.__contains__)
    assert part.keys() == wanted
    assert all(np.array_equal(part[key], whole[key]) for key in wanted)


@settings(max_examples=5)
@given(batches())
def test_sixteen_bit_weights_are_widened(batch):
    narrow = batch.params.astype(floating_dtype("bfloat16"))
    wide = Batch(batch.case, batch.rate, batch.documents, batch.adapted)
    wide.__dict__["params"] = narrow.astype(FLOAT64)
    _, expected = wide.numba()
    _, found = wide.numba(dtype=floating_dtype("bfloat16"))
    assert all(np.array_equal(found[key], value) for key, value in expected.items())


def test_float64_is_refused():
    batch = Batch(Float32Case(configs_example()), 0.0, False, False)
    with pytest.raises(Unsupported, match="backend 'numpy'"):
        batch.numba(dtype=FLOAT64)


def configs_example() -> Any:
    from bloomref.config import BloomConfig

    return BloomConfig(vocabulary_size=7, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4)
