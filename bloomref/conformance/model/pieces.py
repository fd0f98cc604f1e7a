"""Intermediates of several calls over one cache, joined to the shapes of one call."""

from collections.abc import Mapping, Sequence

import numpy as np

from bloomref.shapes import Array

OVER_HEADS = ("attention.query", "attention.key", "attention.value")
"""Ends of the names of intermediates with the axes (B, H, T, K)."""
OVER_KEYS = ("attention.scores", "attention.probabilities")
"""Ends of the names of intermediates with the axes (B, H, T, S)."""


def join(calls: Sequence[Mapping[str, Array]], time: int) -> dict[str, Array]:
    """Join the intermediates of calls, which follow each other, along the axis of positions.

    Args:
        calls: intermediates by name (MOD-8), of each call.
        time: positions of all calls together, T; scores and probabilities get T columns. A column that a call does not
            have is 0.
    """
    return {name: _joined(name, [call[name] for call in calls], time) for name in calls[0]}


def _joined(name: str, parts: Sequence[Array], time: int) -> Array:
    if name.endswith(OVER_KEYS):
        return np.concatenate([_with_columns(part, time) for part in parts], axis=2)
    return np.concatenate(parts, axis=2 if name.endswith(OVER_HEADS) else 1)


def _with_columns(part: Array, time: int) -> Array:
    """Pad the keys with zeros to `time`; a key after the last position, which a mutant may have, is cut off."""
    return np.pad(part[..., :time], [(0, 0)] * 3 + [(0, max(0, time - part.shape[-1]))])
