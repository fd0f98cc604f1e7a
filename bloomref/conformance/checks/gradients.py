"""The loss and the gradient of every weight, within the rounding budget; in float32 and float64 only.

The budget is Monte-Carlo arithmetic on the reference's own backward pass: its arrays get a random error in the result
of every operation.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, Judgement
from bloomref.conformance.oracle.truth import CACHED_CASES
from bloomref.conformance.subject import Subject
from bloomref.dtypes import DType
from bloomref.params import Params, full_key, keys
from bloomref.reference import model, vjp
from bloomref.shapes import Array, Bool, Float

UNITS = {"float32": 2.0**-24, "float64": 2.0**-53 * np.sqrt(2.0)}
"""Unit roundoff by dtype. In float64 the oracle's own error is as large as that of the implementation, hence
sqrt(2)."""
DTYPES_ONLY = f"gradients are asked in {' and '.join(UNITS)} only"
SIMULATED = 2.0**-24
"""Unit roundoff of the simulation: that of float32, whose errors float64 can represent. Errors are proportional to the
unit."""
EXACT = (np.maximum, np.minimum, np.negative, np.absolute)
"""Operations that never round."""
SAMPLES = 16
"""Samples for each anchor. More than for intermediates, since a gradient may be a single number."""
View = Callable[[BloomConfig, Bool[Array, "B S"], int, DType], model.View]
_generator: ContextVar[np.random.Generator] = ContextVar("generator of the rounding errors")


@contextmanager
def errors_from(generator: np.random.Generator) -> Iterator[None]:
    """Inside, `Noisy` arrays draw their rounding errors from this generator."""
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)


class Noisy(np.ndarray):
    """float64 array with a random rounding error of `SIMULATED` in the result of every operation; used inside
    `errors_from`."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """Run the operation on plain arrays and add the error; a matrix product gets that of adding its terms in turn,
        as in `montecarlo`."""
        plain = [np.asarray(x) for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        size = _deviation(ufunc, method, plain)  # before the result may overwrite its inputs
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc in EXACT or not isinstance(result, np.ndarray | np.floating) or result.dtype.kind != "f":
            return result
        size = np.abs(result) / np.sqrt(3.0) if size is None else size
        size = np.where(np.isfinite(result), size, 0.0)
        noise = (_generator.get().random(result.shape) - 0.5) * (2.0 * np.sqrt(3.0) * SIMULATED) * size
        if out is None:
            return (result + noise).view(Noisy) if isinstance(result, np.ndarray) else result + noise
        result += noise
        return out[0]

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Let the result of `np.where`, which rounds nothing, keep the class."""
        result = super().__array_function__(function, types, arguments, options)
        return result.view(Noisy) if function is np.where and result.dtype.kind == "f" else result


def _deviation(ufunc: np.ufunc, method: str, inputs: list[Array]) -> Array | None:
    """Standard deviation of the error of a matrix product, in units of roundoff; None for other operations."""
    if ufunc is not np.matmul or method != "__call__":
        return None
    a, b = inputs
    terms = a.shape[-1]
    return np.sqrt((np.square(a) @ np.square(b) * (terms / 2) + np.square(a @ b) * (terms / 3)) / 3.0)


def gradients(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge the loss and every gradient, for labels that differ from the input tokens."""
    if subject.dtype not in UNITS or not case.counted.any():
        return
    value, by_name = subject.ask(case, "loss_and_gradients", case.token_ids, case.is_real, case.labels)
    expected_by_name, allowed = exact(case), spread(case)
    missing = sorted(set(expected_by_name) - set(by_name) - {"loss"})
    yield Judgement(
        "gradients", "fail" if missing else "pass", np.inf if missing else 0.0, (0, 0), f"no gradient of {missing[:3]}"
    )
    for name, expected in expected_by_name.items():
        result = np.asarray(value if name == "loss" else by_name.get(name, expected), np.float64)
        yield _judge(name, result, expected, allowed[name] * UNITS[subject.dtype] / SIMULATED)


def _judge(name: str, result: Array, expected: Array, allowed: float) -> Judgement:
    """Judge the root mean square error of a whole tensor."""
    if result.shape != expected.shape:
        explanation = f"{name}: expected shape {expected.shape}, got {result.shape}"
        return Judgement(name, "fail", np.inf, (0, 0), explanation)
    error, signal = _rms(result - expected), _rms(expected)
    if np.isfinite(error) and allowed > MAX_NOISE * signal:
        explanation = f"{name}: rounding alone may change it by {allowed:.2g} of {signal:.2g}"
        return Judgement(name, "inconclusive", 0.0, (0, 0), explanation)
    z = error / allowed if error else 0.0
    what = name if name == "loss" else f"gradient of {name}"
    text = f"{what}: rms error {error:.2g}, {z:.2g} times the {allowed:.2g} that rounding explains"
    return Judgement(name, "pass" if z <= LIMIT else "fail", float(z) if np.isfinite(z) else np.inf, (0, 0), text)


def _run(case: Case, params: Params, view: View = model.view) -> dict[str, Array]:
    result = vjp.loss_and_gradients(params, case.config, case.token_ids, case.is_real, case.labels, view=view)
    shapes = {key: weight.hf_shape(case.config) for key, weight in keys(case.config)}
    by_name = {full_key(key): np.asarray(array).reshape(shapes[key]) for key, array in result.gradients.items()}
    return {"loss": np.asarray(result.loss)} | by_name


@lru_cache(CACHED_CASES)
def exact(case: Case) -> dict[str, Array]:
    """The loss, and the gradients by Hugging Face key, in float64."""
    return _run(case, case.params)


@lru_cache(CACHED_CASES)
def spread(case: Case) -> dict[str, float]:
    """Root mean square error by name, at the unit `SIMULATED`: over samples and elements, the larger of both anchors of
    ALiBi."""
    largest = dict.fromkeys(exact(case), 0.0)
    noisy = case.params.map(lambda x: x.view(Noisy))
    for anchor in (0, case.time - 1):
        with errors_from(np.random.Generator(np.random.SFC64(case.seed))):
            runs = [_run(case, noisy, anchored(anchor)) for _ in range(SAMPLES)]
        for name, expected in exact(case).items():
            sampled = np.sqrt(np.mean([np.square(_rms(run[name] - expected)) for run in runs]))
            rounded = _rms(expected) * SIMULATED / np.sqrt(3.0)
            largest[name] = float(max(largest[name], sampled, rounded))
    return largest


def anchored(column: int) -> View:
    """A `model.view` that counts ALiBi from this column: the same function with other rounding errors (ALI-4)."""

    def view(config: BloomConfig, is_real: Bool[Array, "B S"], start: int, dtype: DType) -> model.View:
        distance = np.arange(is_real.shape[1])[None, :] - column
        bias = alibi.slopes(config.num_heads, dtype)[:, None, None] * distance.astype(dtype)
        shape = (config.num_heads, is_real.shape[1] - start, is_real.shape[1])
        return replace(model.view(config, is_real, start, dtype), bias=np.broadcast_to(bias, shape).view(Noisy))

    return view


def _rms(x: Float[Array, "*N"]) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0
