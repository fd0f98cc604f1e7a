"""Gradients of the Numba backend against the reference's in float64:
all weights, adapters, dropout, documents, tight memory.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Float32Case, configs

from accel.numba_cpu.training import lora_products
from accel.numba_cpu.training import step as training
from bloomref.dtypes import floating_dtype
from bloomref.errors import Unsupported
from bloomref.params import PROJECTIONS, LoraFactors, Params
from bloomref.reference import lora, loss, vjp
from bloomref.reference.lora_ops import low_rank
from bloomref.reference.lora_vjp import low_rank_vjp
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
        return self.call(trainable, dtype)()

    def call(self, trainable: Any = lambda _: True, dtype: Any = FLOAT32) -> Callable[[], tuple[float, dict[str, Any]]]:
        """The backend's call alone, all arguments prepared."""
        targets = loss.targets(self.case.token_ids, self.case.is_real, None, self.document)
        document = np.where(self.case.is_real, 0 if self.document is None else self.document, -1)
        backend = registry.load("numba")
        params = in_dtype(self.params, dtype)
        return lambda: backend.loss_and_gradients(
            params, self.config, self.case.token_ids, targets, document, trainable, self.rng()
        )  # type: ignore[attr-defined]


def in_dtype(params: Params, dtype: Any) -> Params:
    return lora.with_factors(params.astype(dtype), {k: v.astype(FLOAT32) for k, v in lora.factors(params).items()})


def adapted(params: Params, seed: int, rate: float) -> Params:
    """Factors of rank 2 on the embedding and on every matrix of every block;
    on the fused one also those of two projections.

    They add about as much as the weights give.
    """
    rng = np.random.default_rng(seed)

    def factors(kind: Any, a: tuple[int, ...], b: tuple[int, ...], projection: int = 0) -> LoraFactors:
        inputs = {"embedding": 1, "heads": a[0], "matrix": a[1]}[kind]
        drawn_a = (rng.standard_normal(a) / np.sqrt(inputs)).astype(FLOAT32)
        drawn_b = rng.standard_normal(b).astype(FLOAT32)
        return LoraFactors(kind, "default", 0.5, 0.0 if kind == "embedding" else rate, drawn_a, drawn_b, projection)

    adapters: dict[str, tuple[LoraFactors, ...]] = {}
    for key, weight, array in params.named():
        if weight.attribute == "word_embedding":
            adapters[key] = (factors("embedding", (2, array.shape[0]), (array.shape[1], 2)),)
        elif weight.axes == "H C K D":
            heads, _, width, columns = array.shape
            adapters[key] = (
                factors("matrix", (2, columns), (array.size // columns, 2)),
                *(factors("heads", (columns, heads, 2), (2, width), projection) for projection in (0, 2)),
            )
        elif array.ndim > 1 and key.startswith("h."):
            adapters[key] = (factors("matrix", (2, array.size // len(array)), (len(array), 2)),)
    return lora.attach(params, adapters)


def batches() -> st.SearchStrategy[Batch]:
    cases = st.builds(
        Float32Case, configs(max_layers=2), st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40),
        st.sampled_from(("real", "left", "right", "padding row")),
    )  # fmt: skip
    return st.builds(Batch, cases, st.sampled_from((0.0, 0.3)), st.booleans(), st.booleans())


def distance(gradients: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    return {key: float(np.abs(gradients[key] - value).max(initial=0.0)) for key, value in truth.items()}


@pytest.mark.clause("BKD-19")
@settings(max_examples=40)
@given(batches())
def test_gradients_are_the_references(batch):
    """The error is at most 8 times that of the reference in float32, plus a rounding of the largest gradient.

    The reference may be exact by luck in one gradient: its mean relative error counts as well.
    """
    truth, single = batch.reference(FLOAT64), batch.reference(FLOAT32)
    value, gradients = batch.numba()
    assert gradients.keys() == truth.gradients.keys()
    unit = 2.0**-20 * max([1e-30, *(np.abs(g).max(initial=0.0) for g in truth.gradients.values())])
    allowed = distance(single.gradients, truth.gradients)
    largest = {key: float(np.abs(g).max(initial=0.0)) for key, g in truth.gradients.items()}
    spread = np.linalg.norm([*allowed.values()]) / max(1e-30, np.linalg.norm([*largest.values()]))
    for key, error in distance(gradients, truth.gradients).items():
        assert error <= 8 * (allowed[key] + spread * largest[key]) + unit, key
        assert gradients[key].shape == truth.gradients[key].shape
        assert gradients[key].dtype == FLOAT32
    assert abs(value - truth.loss) <= 8 * abs(single.loss - truth.loss) + 2.0**-20 * max(1.0, truth.loss)


@settings(max_examples=10)
@given(batches())
def test_little_memory_gives_the_same_bits(batch):
    value, gradients = batch.numba()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.TrainingPass, "_is_tight", lambda _: True)
        again, tight = batch.numba()
    assert value == again
    assert {key: array.tobytes() for key, array in gradients.items()} == {
        key: array.tobytes() for key, array in tight.items()
    }


@settings(max_examples=10)
@given(batches())
def test_what_is_frozen_is_left_out_and_changes_nothing(batch):
    _, whole = batch.numba()
    trainable = {key for i, key in enumerate(sorted(whole)) if i % 3 == 0}
    _, part = batch.numba(trainable.__contains__)
    assert part.keys() == trainable
    assert all(np.array_equal(part[key], whole[key]) for key in trainable)


@settings(max_examples=5)
@given(batches())
def test_sixteen_bit_weights_are_widened(batch):
    narrow = batch.params.astype(floating_dtype("bfloat16"))
    wide = Batch(batch.case, batch.rate, batch.documents, batch.adapted)
    wide.__dict__["params"] = narrow.astype(FLOAT64)
    _, expected = wide.numba()
    _, gradients = wide.numba(dtype=floating_dtype("bfloat16"))
    assert all(np.array_equal(gradients[key], value) for key, value in expected.items())


def test_float64_is_refused():
    batch = Batch(Float32Case(configs_example()), 0.0, False, False)
    with pytest.raises(Unsupported, match="backend 'numpy'"):
        batch.numba(dtype=FLOAT64)


def configs_example() -> Any:
    from bloomref.config import BloomConfig

    return BloomConfig(vocabulary_size=7, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4)


# --- adapters ----------------------------------------------------------------------------------------------------

KINDS = ("matrix", "embedding", *PROJECTIONS)


def one(kind: str, rate: float) -> tuple[LoraFactors, Any, Any]:
    """Factors in float32 of a weight (or projection),
    an input (B, T, N) or token ids (B, T), and a gradient (B, T, M).
    """
    rng = np.random.default_rng(5)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(FLOAT32)

    if kind == "matrix":
        return LoraFactors("matrix", "x", 0.7, rate, normal(3, 12), normal(20, 3)), normal(2, 5, 12), normal(2, 5, 20)
    if kind == "embedding":
        ids = np.array([[1, 4, 1, 8, 0], [4, 4, 4, 2, 1]])
        return LoraFactors("embedding", "x", 0.7, 0.0, normal(3, 9), normal(12, 3)), ids, normal(2, 5, 12)
    factors = LoraFactors("heads", "x", 0.7, rate, normal(12, 3, 2), normal(2, 4), PROJECTIONS.index(kind))
    return factors, normal(2, 5, 12), normal(2, 5, 36)


def ours(factors: LoraFactors, x: Any, dy: Any, rng: Any) -> dict[str, Any]:
    """The product, its gradients, and the states of the generator after each, of the backend."""
    rows, gradients = dy.reshape(-1, dy.shape[-1]), {}

    def take(name: str, compute: Any) -> None:
        gradients[name] = compute()

    if factors.kind == "embedding":
        lora_products.lookup_vjp(factors, x.reshape(-1), rows, take)
        return {"y": lora_products.lookup(factors, x.reshape(-1)), **gradients}
    y, x, again = np.zeros_like(rows), x.reshape(-1, x.shape[-1]), np.random.default_rng(1) if rng else None
    lora_products.add_product(y, factors, x, rng)
    dx = lora_products.product_vjp(factors, x, rows, again, take)
    assert rng is None or rng.bit_generator.state == again.bit_generator.state
    return {"y": y, "dx": dx, **gradients}


@pytest.mark.clause("BKD-19", "LRA-1", "LRA-9")
@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_factors_and_their_gradients_are_the_references(kind, rate):
    """Results are within a few roundings of float32, with the draws of the reference."""
    factors, x, dy = one(kind, rate)

    def rng() -> Any:
        return np.random.default_rng(1) if rate else None

    exact = LoraFactors(
        factors.kind, "x", factors.scale, factors.dropout, factors.a.astype(float), factors.b.astype(float),
        factors.projection,
    )  # fmt: skip
    wide = x if kind == "embedding" else x.astype(float)
    dx, da, db = low_rank_vjp(exact, wide, dy.astype(float), rng())
    expected = {"y": low_rank(exact, wide, rng()), "dx": dx, "a": da, "b": db}
    for name, value in ours(factors, x, dy, rng()).items():
        assert value.dtype == FLOAT32
        reference = expected[name].reshape(value.shape)
        assert np.abs(value - reference).max() <= 2.0**-20 * np.abs(reference).max(), name


def reference_frames(call: Callable[[], Any]) -> set[str]:
    """Functions of `bloomref.reference` that run during `call`."""
    names: set[str] = set()

    def profile(frame: Any, event: str, _: Any) -> None:
        module = str(frame.f_globals.get("__name__"))
        if event == "call" and module.startswith("bloomref.reference"):
            names.add(f"{module}.{frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return names


@pytest.mark.clause("BKD-19")
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_training_with_adapters_runs_no_code_of_the_reference(rate):
    """Parity of gradients would prove nothing if the backend called the reference."""
    batch = Batch(Float32Case(configs_example(), time=5), rate, False, True)
    assert reference_frames(batch.call()) == set()


def test_a_call_of_the_reference_is_found(monkeypatch):
    def borrowed(y: Any, factors: LoraFactors, x: Any, rng: Any) -> None:
        y += low_rank(factors, x[None], rng)[0]

    batch = Batch(Float32Case(configs_example(), time=5), 0.0, False, True)
    call = batch.call()
    monkeypatch.setattr(lora_products, "add_product", borrowed)
    assert reference_frames(call) == {"bloomref.reference.lora_ops.low_rank", "bloomref.reference.ops.dropout"}
