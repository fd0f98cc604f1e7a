"""The precisions in which implementations of BLOOM compute."""

from dataclasses import dataclass

import numpy as np

from bloomref.errors import invalid

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Tier:
    """Unit roundoffs of one precision, and what it can hold.

    Args:
        storage: of results kept in the dtype of the model.
        accumulation: of sums, and inside layer norm and softmax.
        scores: of attention scores and of the ALiBi bias.
        smallest: below this magnitude the dtype's error no longer shrinks with the number (0: it always does, nearly).
        largest: magnitude that it can hold.
    """

    name: str
    storage: float
    accumulation: float
    scores: float
    smallest: float = 0.0
    largest: float = float(np.finfo(np.float32).max)

    @property
    def where(self) -> str:
        """How a result may have been rounded, in words."""
        dtype = self.name.removesuffix("-scores")
        return f"{dtype}, attention scores too" if self.name.endswith("-scores") else dtype


def _sixteen(name: str, storage: float, smallest: float = 0.0, largest: float = 3e38) -> tuple[Tier, Tier]:
    """Both tiers of a 16-bit type: scores in float32, and scores in the type itself."""
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
"""By name. `float16` and `bfloat16` keep attention scores in float32, as bloomref does; `float16-scores` and `bfloat16-scores` keep
them in the dtype of the model, as BLOOM was trained and as transformers and KerasHub do: late positions then lose most digits."""


def tier_of(dtype: str, scores: str = "float32") -> Tier:
    """The tier of a dtype and of where the implementation rounds its attention scores: "float32" or "model".

    Raises:
        InvalidInput: for another dtype or place.
    """
    if scores not in ("float32", "model"):
        raise invalid("scores", "'float32' or 'model'", repr(scores))
    name = f"{dtype}-scores" if scores == "model" and dtype in ("float16", "bfloat16") else dtype
    if name not in TIERS:
        raise invalid("dtype", "one of float64, float32, float16, bfloat16", repr(dtype))
    return TIERS[name]
