"""Precisions in which implementations of BLOOM compute: unit roundoffs and range."""

from dataclasses import dataclass

import numpy as np

from bloomref.errors import invalid

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Tier:
    """Unit roundoffs and range of one precision.

    Args:
        storage: unit roundoff of results stored in the dtype of the model.
        accumulation: unit roundoff of sums, and inside layer norm and softmax.
        scores: unit roundoff of attention scores and of the ALiBi bias.
        smallest: smallest normal number; below it the absolute error is constant (0: not modelled).
        largest: largest finite number.
    """

    name: str
    storage: float
    accumulation: float
    scores: float
    smallest: float = 0.0
    largest: float = float(np.finfo(np.float32).max)

    @property
    def where(self) -> str:
        """Description of the precision for messages."""
        dtype = self.name.removesuffix("-scores")
        return f"{dtype}, attention scores too" if self.name.endswith("-scores") else dtype


def _sixteen(name: str, storage: float, smallest: float = 0.0, largest: float = 3e38) -> tuple[Tier, Tier]:
    """Both tiers of a 16-bit dtype: scores in float32, and scores in the dtype itself."""
    u = 2.0**-24
    return (
        Tier(name, storage, u, u, smallest, largest),
        Tier(f"{name}-scores", storage, u, storage, smallest, largest),
    )


TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier("float64", 2.0**-53, 2.0**-53, 2.0**-53, largest=1e308),
        Tier("float32", 2.0**-24, 2.0**-24, 2.0**-24),
        *_sixteen("float16", 2.0**-11, smallest=2.0**-14, largest=FLOAT16_MAX),
        *_sixteen("bfloat16", 2.0**-8),
    )
}
"""Tiers by name. `float16` and `bfloat16` compute attention scores in float32, as bloomref does. `float16-scores` and
`bfloat16-scores` round them to the dtype of the model, as in the training of BLOOM, transformers and KerasHub; late
positions then lose most digits."""


def tier_of(dtype: str, scores: str = "float32") -> Tier:
    """Return the tier of a dtype.

    Args:
        dtype: name of the dtype.
        scores: dtype of the attention scores: "float32" or "model" (the model's dtype).

    Raises:
        InvalidInput: for any other name.
    """
    if scores not in ("float32", "model"):
        raise invalid("scores", "'float32' or 'model'", repr(scores))
    name = f"{dtype}-scores" if scores == "model" and dtype in ("float16", "bfloat16") else dtype
    if name not in TIERS:
        raise invalid("dtype", "one of float64, float32, float16, bfloat16", repr(dtype))
    return TIERS[name]
