"""Other inputs on which a property runs the model of its case: the input itself may be right where these are wrong."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Arrays, Case
from bloomref.shapes import Array


def variants(name: str, case: Case) -> Iterator[tuple[str, Case]]:
    """Yield the other inputs of a property, each with a description, in the order of the property.

    Args:
        name: of the property.
    """
    ids, real = case.token_ids, case.is_real
    other = (ids + 1) % case.config.vocabulary_size
    if name == "causality":
        t = 1 + case.seed % (case.time - 1)
        yield f"of the first {t} positions alone", _with(case, ids[:, :t], real[:, :t])
        yield (
            f"with other tokens from position {t} on",
            _with(case, np.where(np.arange(case.time) < t, ids, other), real),
        )
    elif name == "padding":
        yield "with other ids at padded positions", _with(case, np.where(real, ids, other), real)
    elif name == "rows":
        yield "of the rows in reverse order", _with(case, ids[::-1], real[::-1])
        yield from ((f"of row {i} alone", _with(case, ids[i : i + 1], real[i : i + 1])) for i in range(case.batch))
    elif name in ("shift", "hole"):
        for i in range(case.batch):
            text = ids[i : i + 1, real[i]]
            yield f"of row {i} without its padding", _with(case, text, np.ones(text.shape, bool))


def _with(case: Case, token_ids: Array, is_real: Array) -> Case:
    """Return the case with another input."""
    batch, time = token_ids.shape
    arrays = Arrays(token_ids=np.ascontiguousarray(token_ids), is_real=np.ascontiguousarray(is_real))
    return replace(case, batch=batch, time=time, cuts=(), arrays=arrays)
