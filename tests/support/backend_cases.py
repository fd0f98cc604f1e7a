"""Models and batches on which backends are compared with the reference, and the budget of their errors.

The budget. On the same rounded weights and the same input, the float64 reference is the oracle. The root mean square of
a token's error may be at most

    4 x (the largest such error, over the tokens of the batch, of the reference run in the same policy)
      + (unit roundoff of the result) x (root mean square of the token's true values).

The first term is the error of this policy's arithmetic on these numbers, at any scale. The factor leaves room for
another order of the same operations. The second term allows one rounding where the reference happens to be exact.

float64 has no wider reference: its error is that of the float32 reference times 2**-29, the ratio of the two units (the
weights of every case are float32 numbers).

A backend may also round the inputs of products to the compute dtype,
where the processor multiplies nothing else. ROUNDED
lists them: the inputs of products with weights;
    on tensor cores also those of attention. The budget then uses the error of
the reference with these roundings, inserted through the taps, if that is the larger one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import MASKS, Float32Case

from bloomref.config import BloomConfig
from bloomref.dtypes import accumulation_dtype, cast, dtype_policy
from bloomref.params import Params
from bloomref.reference import trace
from bloomref.runtime import registry
from bloomref.runtime.backend import Prepared, Step
from bloomref.runtime.numpy_backend import NumpyPrepared

Numbers = np.ndarray[Any, Any]

CUPY = ("cupy", "cupy-emulated")
POLICIES = ("float64", "float32", "bfloat16", "float16")
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
PRODUCT_INPUTS = ("attention.norm", "attention.context", "mlp.norm", "mlp.gelu")
ATTENTION_INPUTS = ("attention.query", "attention.probabilities")
ROUNDED = {
    ("numba", "bfloat16"): PRODUCT_INPUTS,
    **{(name, policy): PRODUCT_INPUTS + ATTENTION_INPUTS for name in CUPY for policy in ("bfloat16", "float16")},
}
"""The named intermediates that a backend may round to the compute dtype of a policy."""
BIT_EQUAL = {("numba", policy) for policy in POLICIES[1:]}
"""(backend, policy) where the bits of a position depend only on the positions before it,
not on chunks, other rows or capacity.
"""


def config(heads: int, width: int, inner: int, vocabulary: int = 45, layers: int = 2, **changes: Any) -> BloomConfig:
    return BloomConfig(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=heads * width,
        intermediate_dim=inner,
        **changes,
    )


POST_NORM = {"apply_residual_connection_post_layernorm": True}
UNTIED = {"tie_word_embeddings": False}
SMALL = Float32Case(config(3, 5, 11, 40), seed=1, time=7, kind="left")
CASES = {
    "small": SMALL,
    "small, other residual": Float32Case(config(3, 4, 9, 33, **POST_NORM, **UNTIED), seed=2, time=5, kind="holes"),
    "1 head of 1": Float32Case(config(1, 1, 3), seed=3, time=20),
    "1 head of 96": Float32Case(config(1, 96, 401, 70, 1), seed=4, time=40, kind="left", embedding_std=2e-3),
    "3 heads of 80": Float32Case(config(3, 80, 333, 101, 1, **UNTIED), seed=5, time=33, kind="holes"),
    "9 heads of 33": Float32Case(config(9, 33, 260, 64, 1), seed=6, time=27, kind="right"),
    "12 heads of 64": Float32Case(config(12, 64, 515, 65, 1), seed=7, batch=3, time=13, kind="padding row"),
    "16 heads of 16": Float32Case(config(16, 16, 77, 50, **POST_NORM), seed=8, time=129, kind="holes"),
    "16 heads of 7": Float32Case(config(16, 7, 450, 31), seed=9, batch=1, time=300, gain=0.3),
    "3 heads of 33, long": Float32Case(config(3, 33, 100, 41, **UNTIED), seed=10, batch=2, time=300, kind="holes"),
    "9 heads of 1": Float32Case(config(9, 1, 5), seed=11, batch=4, time=12, kind="left"),
}


@st.composite
def cases(draw: st.DrawFn, max_time: int = 24, kinds: tuple[str, ...] = MASKS) -> Float32Case:
    heads = draw(st.sampled_from((1, 2, 3, 5, 8, 9, 12, 16)), label="heads")
    width = draw(st.sampled_from([w for w in (3, 7, 16, 33, 80) if heads * w <= 256]), label="head width")
    drawn = config(
        heads,
        width,
        draw(st.integers(2, 150), label="intermediate"),
        draw(st.integers(3, 70), label="vocabulary"),
        draw(st.integers(0, 2), label="layers"),
        layer_norm_epsilon=draw(st.sampled_from((1e-5, 1e-3))),
        apply_residual_connection_post_layernorm=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )
    return Float32Case(
        drawn,
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, 3)),
        time=draw(st.one_of(st.integers(2, max_time), st.sampled_from((31, 32, 33, 127, 129, 140)))),
        kind=draw(st.sampled_from(kinds)),
        gain=draw(st.sampled_from((0.3, 1.0))),
        embedding_std=draw(st.sampled_from((1.0, 2e-3))),
    )


@dataclass(frozen=True, eq=False)
class Trial:
    """One case in one policy: on a backend, on the reference in that policy, and on the float64 reference."""

    case: Float32Case
    policy: str
    backend: str

    @cached_property
    def params(self) -> Params:
        """Weights in the compute dtype; in float64 they are float32 numbers."""
        return self.case.params.astype(np.dtype(np.float32)).astype(dtype_policy(self.policy).compute_dtype)

    @property
    def exact(self) -> bool:
        return self._kind in BIT_EQUAL

    @property
    def _kind(self) -> tuple[str, str]:
        return self.backend.partition(registry.SEPARATOR)[0], self.policy

    @cached_property
    def tested(self) -> Prepared:
        policy = dtype_policy(self.policy)
        return registry.choose(self.backend, self.case.config, policy).prepare(self.params, self.case.config, policy)

    @cached_property
    def truth(self) -> NumpyPrepared:
        return NumpyPrepared(self.params.astype(np.dtype(np.float64)), self.case.config)

    @cached_property
    def _reference(self) -> NumpyPrepared:
        dtype = np.dtype(np.float32) if self.policy == "float64" else dtype_policy(self.policy).compute_dtype
        return NumpyPrepared(self.params.astype(dtype), self.case.config)

    def hidden(self, seed: int = 0) -> Numbers:
        """Random hidden states of the case's batch, numbers of the compute dtype (and float32)."""
        shape = (self.case.batch, self.case.time, self.case.config.hidden_dim)
        values = np.random.default_rng((self.case.seed, seed)).standard_normal(shape).astype(np.float32)
        return values.astype(dtype_policy(self.policy).compute_dtype)

    def check(
        self, run: Callable[[Prepared], Numbers], returned: str | None = None, real: Any = None, noise: float = 0.0
    ) -> Numbers:
        """Compare `run(prepared)` with the budget on the real positions, and return the result of the backend.

        `noise`: an error of the policy that the reference may lack by luck, such as another order of a sum.
        """
        got, exact = run(self.tested), run(self.truth)
        real = self.case.is_real[:, : got.shape[1]] if real is None else real
        assert got.shape == exact.shape
        assert np.isfinite(got.astype(np.float64)).all()
        budget = self.budget(run, exact, returned or self.policy, real) + 4.0 * noise
        error = rms(got.astype(np.float64) - exact)
        worst = np.max(np.where(real, error / np.maximum(budget, 1e-300), 0.0), initial=0.0)
        assert worst <= 1.0, f"{self.backend}, {self.policy}: {worst:.2f} times the budget"
        return got

    def budget(self, run: Callable[[Prepared], Numbers], exact: Numbers, returned: str, real: Numbers) -> Numbers:
        errors = [self._reference_error(run, exact, real, ())]
        if self._kind in ROUNDED:
            errors.append(self._reference_error(run, exact, real, ROUNDED[self._kind]))
        # where there are few numbers, the reference's own error may be next to nothing by luck: a sum in another order
        order = 0.5 * self.case.config.hidden_dim**0.5 * UNIT[result_dtype(self.policy).name]
        return 4.0 * max(errors) + (UNIT[returned] + order) * rms(exact)

    def _reference_error(
        self, run: Callable[[Prepared], Numbers], exact: Numbers, real: Numbers, rounded: tuple[str, ...]
    ) -> float:
        dtype = dtype_policy(self.policy).compute_dtype

        def round_some(name: str, value: Numbers) -> Numbers:
            return cast(value, dtype).astype(value.dtype) if name.endswith(rounded) else value

        with trace.observe(round_some) if rounded else nullcontext():
            values = run(self._reference).astype(np.float64)
        error = np.max(np.where(real, rms(values - exact), 0.0), initial=0.0)
        return float(error) * (2.0**-29 if self.policy == "float64" else 1.0)


def rms(x: Numbers) -> Numbers:
    """Root mean square over the last axis."""
    return np.sqrt(np.mean(np.square(x), axis=-1))


def sum_noise(x: Numbers, weight: Numbers, unit: float) -> float:
    """The standard deviation of the error of x W^T when every sum runs in order, the least exact of the usual ways; its
    largest value of a token. Terms: the partial sums, a random walk, and their drift towards the result."""
    x, weight, terms = x.astype(np.float64), weight.astype(np.float64), x.shape[-1]
    variance = terms / 2 * (x**2 @ (weight**2).T) + terms / 3 * (x @ weight.T) ** 2
    return float(unit * np.sqrt(variance.mean(axis=-1).max() / 3))


def put(prepared: Prepared, x: Numbers) -> Any:
    """Hidden states on the device.

    The reference computes in the dtype of its input, so it gets the dtype of its weights.
    """
    if isinstance(prepared, NumpyPrepared):
        x = x.astype(prepared.params.word_embedding.dtype)
    return prepared.from_host(x)


def extend(prepared: Prepared, layers: int, cache: Any, start: int, token_ids: Numbers, is_real: Numbers) -> Any:
    """Final hidden states of the positions from `start` on; `is_real` covers the positions before them as well."""
    facts = Step.at(start, is_real)
    x = prepared.embed(token_ids)
    for layer in range(layers):
        x = prepared.attention_block(layer, x, cache, facts)
        x = prepared.mlp_block(layer, x)
    return prepared.final_norm(x)


def whole(prepared: Prepared, layers: int, token_ids: Numbers, is_real: Numbers) -> Any:
    """Final hidden states of whole sequences."""
    return extend(prepared, layers, prepared.new_cache(*token_ids.shape), 0, token_ids, is_real)


def result_dtype(policy: str) -> Any:
    return accumulation_dtype(dtype_policy(policy).compute_dtype)
