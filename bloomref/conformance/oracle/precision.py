"""Precisions in which implementations of BLOOM compute: unit roundoffs and range."""

from dataclasses import dataclass, replace

import numpy as np

from bloomref.errors import invalid, represented

FLOAT16_MAX = 65504.0
WORDS = ("float32", "model")
"""Dtypes that a 16-bit implementation may declare for its scores and its products; "model" is the model's own."""
PRODUCTS = "-products"
"""Suffix of the name of a tier whose products are of float32."""


@dataclass(frozen=True)
class Tier:
    """Unit roundoffs and range of one precision.

    Args:
        storage: unit roundoff of results stored in the dtype of the model.
        accumulation: unit roundoff of sums, and inside layer norm and softmax.
        scores: unit roundoff of attention scores and of the ALiBi bias.
        products: unit roundoff of results that enter a product and stay inside a block; None: that of `storage`.
        smallest: smallest normal number; below it the absolute error is constant (0: not modelled).
        largest: largest finite number.
    """

    name: str
    storage: float
    accumulation: float
    scores: float
    smallest: float = 0.0
    largest: float = float(np.finfo(np.float32).max)
    products: float | None = None

    @property
    def stored(self) -> str:
        """Name of the tier whose budgets are stored with the vectors: that of products of the model's dtype."""
        return self.name.removesuffix(PRODUCTS)

    @property
    def where(self) -> str:
        """Description of the precision for messages."""
        if self.products is not None:
            return f"{self.stored}, products of float32"
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


def tier_of(dtype: str, scores: str = "float32", products: str = "model") -> Tier:
    """Return the tier of a dtype.

    Args:
        dtype: name of the dtype.
        scores: dtype of the attention scores: "float32" or "model" (the model's dtype).
        products: dtype to which a 16-bit model rounds what enters a matrix product. "float32" has the smaller budget:
            a block rounds its result, its keys and its values, and nothing else (NUM-2).

    Raises:
        InvalidInput: for any other name.
    """
    for name, word in (("scores", scores), ("products", products)):
        if word not in WORDS:
            raise invalid(name, "'float32' or 'model'", represented(word))
    if dtype not in TIERS:
        raise invalid("dtype", "one of float64, float32, float16, bfloat16", represented(dtype))
    if dtype not in ("float16", "bfloat16"):
        return TIERS[dtype]
    if scores == "model":  # then its products cannot be of float32
        return TIERS[f"{dtype}-scores"]
    tier = TIERS[dtype]
    return tier if products == "model" else replace(tier, name=f"{dtype}{PRODUCTS}", products=tier.accumulation)
