"""Gradients within the error that rounding explains: of the loss by every weight, in float32 and float64.

The budget is Monte-Carlo arithmetic again, here on the reference's own reverse pass: it runs on arrays that put a random error
into the result of every operation.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np

from bloomref import alibi
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import GRADABLE, LIMIT, Judgement
from bloomref.conformance.oracle.truth import REMEMBERED
from bloomref.conformance.subject import Subject, full_key
from bloomref.dtypes import DType
from bloomref.params import keys
from bloomref.reference import loss, model, vjp
from bloomref.shapes import Array, Bool, Float, Int

UNITS = {"float32": 2.0**-24, "float64": 2.0**-53 * np.sqrt(2.0)}
"""The truth is float64 itself, and has as large an error as what it judges there."""
ONLY = f"gradients are asked in {' and '.join(UNITS)} only"
SIMULATED = 2.0**-24
"""Errors are proportional to the unit: they are sampled at that of float32, where float64 can show them."""
EXACT = (np.maximum, np.minimum, np.negative, np.absolute)
"""Operations that never round."""
SAMPLES = 16
"""For each anchoring; more than for intermediates, since a gradient may be a single number."""


class Noisy(np.ndarray):
    """float64 numbers that lose the digits beyond float32's in every operation, at random."""

    rng = np.random.Generator(np.random.SFC64(0))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """The operation on plain arrays, then the error: that of a product is of adding its terms in turn, as in `montecarlo`."""
        plain = [np.asarray(x) for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        size = _spread(ufunc, method, plain)  # before the result may overwrite its inputs
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc in EXACT or not isinstance(result, np.ndarray | np.floating) or result.dtype.kind != "f":
            return result
        size = np.abs(result) / np.sqrt(3.0) if size is None else size
        size = np.where(np.isfinite(result), size, 0.0)
        noise = (Noisy.rng.random(result.shape) - 0.5) * (2.0 * np.sqrt(3.0) * SIMULATED) * size
        if out is None:
            return (result + noise).view(Noisy) if isinstance(result, np.ndarray) else result + noise
        result += noise
        return out[0]


def _spread(ufunc: np.ufunc, method: str, inputs: list[Array]) -> Array | None:
    """The standard deviation of the error of a matrix product, in units of roundoff; None for anything else."""
    if ufunc is not np.matmul or method != "__call__":
        return None
    a, b = inputs
    terms = a.shape[-1]
    return np.sqrt((np.square(a) @ np.square(b) * (terms / 2) + np.square(a @ b) * (terms / 3)) / 3.0)


def gradients(subject: Subject, case: Case) -> Iterable[Judgement]:
    """The loss and every gradient; of labels that are other tokens than the input's."""
    if subject.dtype not in UNITS or not counted(case).any():
        return
    got_loss, got = subject.ask(case, "loss_and_gradients", case.token_ids, case.is_real, labels(case))
    wanted_by_name, allowed = exact(case), spread(case)
    missing = sorted(set(wanted_by_name) - set(got) - {"loss"})
    yield Judgement(
        "gradients", "fail" if missing else "pass", np.inf if missing else 0.0, (0, 0), f"no gradient of {missing[:3]}"
    )
    for name, wanted in wanted_by_name.items():
        found = np.asarray(got_loss if name == "loss" else got.get(name, wanted), np.float64)
        yield _judge(name, found, wanted, allowed[name] * UNITS[subject.dtype] / SIMULATED)


def _judge(name: str, found: Array, wanted: Array, allowed: float) -> Judgement:
    """By the root mean square over the whole tensor."""
    if found.shape != wanted.shape:
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: expected shape {wanted.shape}, got {found.shape}")
    error, signal = _rms(found - wanted), _rms(wanted)
    if np.isfinite(error) and allowed > GRADABLE * signal:
        return Judgement(
            name, "inconclusive", 0.0, (0, 0), f"{name}: rounding alone may change it by {allowed:.2g} of {signal:.2g}"
        )
    z = error / allowed if error else 0.0
    what = name if name == "loss" else f"gradient of {name}"
    text = f"{what}: rms error {error:.2g}, {z:.2g} times the {allowed:.2g} that rounding explains"
    return Judgement(name, "pass" if z <= LIMIT else "fail", float(z) if np.isfinite(z) else np.inf, (0, 0), text)


def counted(case: Case) -> Bool[Array, "B T"]:
    """The columns whose token is predicted: real ones behind a real one (GRD-1)."""
    real = np.zeros_like(case.is_real)
    real[:, 1:] = case.is_real[:, 1:] & case.is_real[:, :-1]
    return real


def labels(case: Case) -> Int[Array, "B T"]:
    """Those that a case was given, or other tokens than the input's."""
    if "labels" in vars(case):
        return vars(case)["labels"]
    ids = np.random.default_rng(case.seed + 3).integers(0, case.config.vocabulary_size, case.token_ids.shape)
    return np.where(counted(case), ids, loss.IGNORED)


def _run(case: Case, params: Any) -> dict[str, Array]:
    result = vjp.loss_and_gradients(params, case.config, case.token_ids, case.is_real, labels(case))
    shapes = {key: weight.hf_shape(case.config) for key, weight in keys(case.config)}
    found = {full_key(key): np.asarray(array).reshape(shapes[key]) for key, array in result.gradients.items()}
    return {"loss": np.asarray(result.loss)} | found


@lru_cache(REMEMBERED)
def exact(case: Case) -> dict[str, Array]:
    """The loss, and the gradients by Hugging Face key, in float64."""
    return _run(case, case.params)


@lru_cache(REMEMBERED)
def spread(case: Case) -> dict[str, float]:
    """At the unit of float32: root mean square over samples and elements; the larger of both anchorings of ALiBi."""
    largest = dict.fromkeys(exact(case), 0.0)
    for anchor in (0, case.time - 1):
        Noisy.rng = np.random.Generator(np.random.SFC64(case.seed))
        with anchored(anchor):
            runs = [_run(case, case.params.map(lambda x: x.view(Noisy))) for _ in range(SAMPLES)]
        for name, wanted in exact(case).items():
            found = np.sqrt(np.mean([np.square(_rms(run[name] - wanted)) for run in runs]))
            rounded = _rms(wanted) * SIMULATED / np.sqrt(3.0)
            largest[name] = float(max(largest[name], found, rounded))
    return largest


@contextmanager
def anchored(column: int) -> Iterator[None]:
    """Inside, the reference counts ALiBi from this column: the same function, with other roundings (ALI-4)."""
    usual = model.view

    def view(config: BloomConfig, is_real: Bool[Array, "B S"], start: int, dtype: DType) -> model.View:
        distance = np.arange(is_real.shape[1])[None, :] - column
        bias = alibi.slopes(config.num_heads, dtype)[:, None, None] * distance.astype(dtype)
        shape = (config.num_heads, is_real.shape[1] - start, is_real.shape[1])
        return replace(usual(config, is_real, start, dtype), bias=np.broadcast_to(bias, shape).view(Noisy))

    with mock.patch.object(model, "view", view):
        yield


def _rms(x: Float[Array, "*N"]) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0
