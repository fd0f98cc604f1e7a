"""bloomref's results for a comparison, and differences of two results."""

from collections.abc import Mapping

import numpy as np
from parity.cases import ParityCase

from bloomref.config import BloomConfig
from bloomref.dtypes import dtype_policy
from bloomref.params import Params
from bloomref.reference import trace
from bloomref.runtime.engine import Engine

Arrays = dict[str, np.ndarray]


def names(config: BloomConfig) -> list[str]:
    """Compared tensors: the state after the embedding,
    after each half of each block, after the final norm; and logits.
    """
    blocks = [f"layers.{i}.{half}" for i in range(config.num_layers) for half in ("attention_block", "mlp_block")]
    return ["embedding_norm", *blocks, "final_norm", "logits"]


def whole(case: ParityCase, dtype: str = "float64", params: Params | None = None) -> Arrays:
    """One forward pass over all positions."""
    return pieces(case, ((0, case.token_ids.shape[1]),), dtype, params)


def pieces(case: ParityCase, intervals: object = None, dtype: str = "float64", params: Params | None = None) -> Arrays:
    """A forward pass over a cache, chunk by chunk; the results are concatenated along time."""
    engine = Engine(case.params if params is None else params, case.config, dtype_policy(dtype))
    cache = engine.new_cache(*case.token_ids.shape)
    recorded, parts = names(case.config), []
    for start, stop in case.intervals() if intervals is None else intervals:
        with trace.record(lambda name: name in recorded) as states:
            hidden = engine.extend(cache, start, case.token_ids[:, start:stop], case.is_real[:, start:stop])
            engine.logits(hidden)
        parts.append(states)
    return join(parts)


def join(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], is_real: np.ndarray
) -> dict[str, float]:
    """Largest difference over the real positions, relative to the largest magnitude there, by name."""
    assert list(ours) == list(theirs)
    return {name: relative(ours[name][is_real], theirs[name][is_real]) for name in ours}


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def rms_error(values: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square error, relative to the root mean square of the reference. NaN counts as infinite."""
    assert values.shape == reference.shape
    error = values.astype(np.float64) - reference
    ratio = float(np.sqrt(np.square(error).mean() / np.square(reference).mean()))
    return ratio if np.isfinite(ratio) else np.inf


def within_float32(theirs: np.ndarray, ours: np.ndarray, truth: np.ndarray) -> bool:
    """True if a float32 result is within 4 times the error of bloomref's float32 result, plus one ulp.

    The two differ in the order of their sums, so neither error bounds the other.
    Over many cases their ratio stays near one.
    """
    return rms_error(theirs, truth) <= 4 * rms_error(ours, truth) + 2**-23
