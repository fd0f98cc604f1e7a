"""Logits that are finite, or an error that says where to look. Generation, scoring and classification ask here."""

from collections.abc import Callable

import numpy as np

from bloomref.errors import BadWeights
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Float
from bloomref.wider_dtypes import overflow_hint


def finite_logits(engine: Engine, compute: Callable[[], Array]) -> Float[Array, "*B V"]:
    """The logits that `compute` returns, in the accumulation dtype.

    Raises:
        BadWeights: when a logit is NaN or infinite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return check_finite_logits(compute(), engine.policy.name)


def check_finite_logits(logits: Array, policy: str) -> Array:
    """The logits, which may be those of a head.

    Args:
        policy: name of the dtype policy in which they were computed.

    Raises:
        BadWeights: when a logit is NaN or infinite.
    """
    # the extremes are NaN if any logit is; and no temporary has the size of the logits
    if logits.size and not np.isfinite([logits.max(), logits.min()]).all():
        raise BadWeights(
            f"logits: expected finite numbers, got {logits[~np.isfinite(logits)][0]}; the weights hold NaN or overflow "
            f"in {policy}{overflow_hint(policy)}"
        )
    return logits
