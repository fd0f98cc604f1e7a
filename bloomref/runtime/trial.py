"""A trial of a backend: a tiny model, whose results are compared with those of the reference.

It tells a backend that works from one that cannot, in a moment. Whether a backend is right is for the conformance kit.
"""

import traceback

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DTypePolicy
from bloomref.errors import BloomrefError
from bloomref.params import init_params
from bloomref.runtime import engine, interface_checks, registry
from bloomref.runtime.backend import Backend, Choice
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array

_BATCH = TokenBatch(np.array([[3, 1, 4], [0, 5, 9]]), np.array([[True, True, True], [False, True, True]]))
_NEXT = np.array([2, 6])
_NEAR = {2: 1 / 16, 4: 1e-3, 8: 1e-3}
"""Bytes of the compute dtype -> permitted error, of the largest value. The kit has the true budget."""


def failure(backend: Backend, config: BloomConfig, policy: DTypePolicy) -> str | None:
    """Why a model of this config, with random weights, does not run on the backend; None if it does.

    Args:
        config: of ten tokens or more.
    """
    try:
        if (reason := registry.reason_of(backend, config, policy)) is not None:
            return reason
        results, expected = (_results(chosen, config, policy) for chosen in (backend, registry.REFERENCE))
    except BloomrefError as error:
        return _message(error, backend)
    except Exception as error:
        return _message(interface_checks.raised(backend.name, _method(error), error), backend)
    for what, array in results.items():
        limit = _NEAR[policy.compute_dtype.itemsize] * float(np.abs(expected[what]).max())
        largest = float(np.abs(array - expected[what]).max())
        if not largest <= limit:  # NaN is not
            return f"its {what} differ from the reference's by {largest:.2g}; rounding explains less than {limit:.2g}"
    return None


def _results(backend: Backend | str, config: BloomConfig, policy: DTypePolicy) -> dict[str, Array]:
    """The results of a tiny model, by name. Padding is left out."""
    model = Engine(init_params(config, 0, policy.variable_dtype), config, policy, backend)
    ids, is_real = _BATCH.token_ids, _BATCH.is_real
    hidden = model.hidden(_BATCH)
    cache = model.new_cache(len(ids), ids.shape[1] + 2)
    prompt = model.read(cache, 0, ids, is_real)
    stepped = model.read(cache, ids.shape[1], _NEXT[:, None])
    chosen = model.choose(cache, ids.shape[1], _NEXT, Choice(), 1)
    if chosen is None:
        chosen = np.argmax(stepped, axis=-1)[:, None]
    best = np.take_along_axis(stepped, chosen, axis=-1)
    results = {
        "hidden states": hidden[is_real],
        "logits": prompt,
        "logits after a step": stepped,
        "scores of chosen tokens": best,
    }
    return {name: array.astype(np.float64) for name, array in results.items()}


def _message(error: BloomrefError, backend: Backend) -> str:
    return str(error).removeprefix(f"backend {backend.name!r}: ")


def _method(error: Exception) -> str:
    """The method of the backend in which an error was raised: the one that the engine called last."""
    frames = traceback.extract_tb(error.__traceback__)
    last = max(index for index, frame in enumerate(frames) if frame.filename == engine.__file__)
    return frames[min(last + 1, len(frames) - 1)].name
