"""The exact loss and gradients of a case, and the error of each that rounding explains.

The budget is Monte-Carlo arithmetic, as in `montecarlo`, on the backward pass of the instrumented model. Its samples
are rows of one batch.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.gradient_names import named
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, Judgement
from bloomref.conformance.oracle.montecarlo import ELEMENTS, Noise, NoisyModel, numbers
from bloomref.conformance.oracle.precision import TIERS
from bloomref.conformance.oracle.truth import CACHED_CASES
from bloomref.reference import lora, vjp
from bloomref.shapes import Array, Bool, Float, Int

SIMULATED = TIERS["float32"].accumulation
"""Unit roundoff of the simulation: that of float32, whose errors float64 can represent. Errors are proportional to the
unit."""
UNITS = dict.fromkeys(("float32", "bfloat16", "float16"), SIMULATED) | {"float64": 2.0**-53 * np.sqrt(2.0)}
"""Unit roundoff by dtype: that of the accumulation dtype (GRD-5). In float64 the oracle's own error is as large as that
of the implementation, hence sqrt(2)."""
LOOKUP = "transformer.word_embeddings.weight"
SAMPLES = 16
"""Samples for each anchor. More than for intermediates, since a gradient may be a single number."""
SPREADS = 4096
"""Number of cases whose spreads are cached: a few numbers each, which serve every dtype."""


class NoisyGradients(NoisyModel):
    """The instrumented model and its backward pass, with a random error in every operation.

    In the forward pass of half of the samples, all positions have the same errors, as in `montecarlo.errors`.
    """

    def run(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], *more: Any) -> dict[str, Array]:
        self.arithmetic.alike = self.anchors > 0
        intermediates = super().run(token_ids, is_real, *more)
        self.arithmetic.alike = None  # gradients differ from position to position
        return intermediates

    def mean(self, x: Array) -> Array:
        return self.arithmetic.wide(self.arithmetic.total(x) / x.shape[-1])

    def total(self, powers: Array) -> Array:
        return self.arithmetic.total(powers)

    def added_rows(self, token_ids: Int[Array, "B T"], dx: Float[Array, "B T D"], tokens: int) -> Float[Array, "S V D"]:
        """Sums over the positions of each token, with the error of adding as many terms as there are."""
        hot = (np.arange(tokens)[:, None] == token_ids.reshape(self.samples, 1, -1)).astype(np.float64)  # (S, V, BT)
        terms, count = dx.reshape(self.samples, -1, dx.shape[-1]), hot.sum(axis=-1, keepdims=True)
        return self.arithmetic.sums(hot @ terms, hot @ np.square(terms), count)


@lru_cache(CACHED_CASES)
def exact(case: Case) -> dict[str, Array]:
    """The loss, and the gradients by name, in float64 and in the order of the backward pass: of the weights, or of the
    factors of the case's adapter (LRA-15)."""
    params, trainable = case.params, None
    if case.adapter is not None:
        params = lora.attach(params, case.adapter.parts)
        trainable = lora.factors(params).__contains__
    result = vjp.loss_and_gradients(
        params, case.config, case.token_ids, case.is_real, case.labels, trainable=trainable, checkpoint=False
    )
    gradients = named(case.config, result.gradients, case.lora.form if case.lora else "")
    if LOOKUP in gradients:  # the head adds to it first, the lookup last
        gradients[LOOKUP] = gradients.pop(LOOKUP)
    return {"loss": np.asarray(result.loss)} | gradients


def spread(case: Case) -> dict[str, float]:
    """Root mean square error by name, at the unit `SIMULATED`: over samples and elements, the larger of both anchors of
    ALiBi."""
    return _spread(replace(case))  # a copy, so that the cache does not keep the arrays that a case computes


@lru_cache(SPREADS)
def _spread(case: Case) -> dict[str, float]:
    expected, squares = exact(case), np.zeros((2, len(exact(case))))
    for anchors, runs in _runs(case):
        for column, (name, value) in enumerate(expected.items()):
            axes = tuple(range(1, value.ndim + 1))
            np.add.at(squares[:, column], anchors, np.square(runs[name] - value).mean(axis=axes))
    sampled = np.sqrt(squares.max(axis=0) / SAMPLES)
    rounded = [rms(value) * SIMULATED / np.sqrt(3.0) for value in expected.values()]
    return dict(zip(expected, np.maximum(sampled, rounded).tolist(), strict=True))


def _runs(case: Case) -> Iterator[tuple[Int[Array, " S"], dict[str, Array]]]:
    """Yield the anchors of some samples, and their losses and gradients, with the samples as the first axis."""
    model = NoisyGradients.of(case, Noise(TIERS["float32"], np.random.Generator(np.random.SFC64(case.seed))))
    order = np.tile([0, 1], SAMPLES)
    for anchors in np.array_split(order, min(len(order), -(-len(order) * numbers(case) // ELEMENTS))):
        model.samples, model.anchors = len(anchors), np.repeat(anchors * (case.time - 1), case.batch)
        inputs = [np.tile(array, (len(anchors), 1)) for array in (case.token_ids, case.is_real, case.labels)]
        losses, gradients = model.backward(*inputs)
        yield anchors, {"loss": losses} | _named_samples(case, gradients)


def _named_samples(case: Case, gradients: dict[str, Array]) -> dict[str, Array]:
    """Gradients with the samples as the first axis, under the names and in the shapes of files."""
    form, by_sample = case.lora.form if case.lora else "", range(len(next(iter(gradients.values()))))
    runs = [named(case.config, {key: array[i] for key, array in gradients.items()}, form) for i in by_sample]
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def judge(dtype: str, name: str, result: Array, expected: Array, spread: float) -> Judgement:
    """Judge the root mean square error of a whole tensor: the loss, or a gradient."""
    allowed = spread * UNITS[dtype] / SIMULATED
    if result.shape != expected.shape:
        explanation = f"{name}: expected shape {expected.shape}, got {result.shape}"
        return Judgement(name, "fail", np.inf, None, explanation)
    error, signal = rms(result - expected), rms(expected)
    if np.isfinite(error) and allowed > MAX_NOISE * signal:
        explanation = f"{name}: rounding alone may change it by {allowed:.2g} of {signal:.2g}"
        return Judgement(name, "inconclusive", 0.0, None, explanation)
    z = (error / allowed if allowed else np.inf) if error else 0.0
    what = name if name == "loss" else f"gradient of {name}"
    text = f"{what}: rms error {error:.2g}, {z:.2g} times the {allowed:.2g} that rounding explains"
    return Judgement(name, "pass" if z <= LIMIT else "fail", float(z) if np.isfinite(z) else np.inf, None, text)


def rms(x: Float[Array, "*N"]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0
