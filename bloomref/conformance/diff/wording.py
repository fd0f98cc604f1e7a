"""Words for a line of a cause: lists of names, the size of an error, the starts of calls."""

from collections.abc import Sequence

import numpy as np

from bloomref.conformance.oracle.budgets import Judgement

MANY = 4
"""Most names that a line lists."""


def listed(names: Sequence[str]) -> str:
    """Join names to a phrase, the first few of them."""
    shown = names if len(names) <= MANY else [*names[:MANY], f"{len(names) - MANY} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def size(judgement: Judgement) -> str:
    """Say how large the error of a judgement is."""
    if np.isfinite(judgement.z):
        return f"{judgement.z:.3g} times the error that rounding explains"
    return judgement.explanation.removeprefix(f"{judgement.name} at {judgement.where}: ").removeprefix(
        f"{judgement.name}: "
    )


def starts(cuts: tuple[int, ...]) -> str:
    """Join the positions at which calls over a cache begin, without those in the middle of a long list."""
    shown = [str(start) for start in (0, *cuts)]
    return ", ".join(shown if len(shown) <= 2 * MANY else [*shown[:MANY], "...", shown[-1]])
