"""The truth of a case: the results of the float64 reference, with an estimate of their error.

The tests prove a bound of the error on small models, by ball arithmetic (NUM-7).
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from bloomref import alibi
from bloomref.backbone import BloomBackbone
from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.intermediates import observable
from bloomref.reference import lora
from bloomref.shapes import Array, Float, Int

CACHED_CASES = 16
"""Number of cases whose results are cached; equal cases share an entry."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Results of the float64 reference, from one call without a cache.

    Args:
        values: every named intermediate (clause MOD-8), in the order of computation; read-only.
    """

    case: Case
    values: dict[str, Array] = field(repr=False)

    @cached_property
    def largest(self) -> float:
        """Largest magnitude of all; above 65504, float16 cannot represent the case."""
        return max(self.reach.values(), default=0.0)

    @cached_property
    def reach(self) -> dict[str, float]:
        """Largest magnitude of each intermediate, including padded positions and invisible keys, which are computed,
        too."""
        return {name: float(np.abs(value).max(initial=0.0)) for name, value in self.values.items()}

    @cached_property
    def magnitudes(self) -> dict[str, float]:
        """Largest magnitude of each intermediate over the numbers that are compared."""
        return {name: _largest(name, value, self.case) for name, value in self.values.items()}

    @cached_property
    def self_error(self) -> dict[str, float]:
        """Estimated largest error of the reference by name, relative to the largest magnitude: the difference to
        `np.longdouble`.

        It is zero, and means nothing, where longdouble is float64 (Windows, macOS on ARM).
        """
        wide = _Extended.of(self.case).run(self.case.token_ids, self.case.is_real)
        return {name: self._relative_error(name, wide[name]) for name in self.values}

    def _relative_error(self, name: str, wide: Array) -> float:
        error = _largest(name, wide - self.values[name], self.case)
        return error / self.magnitudes[name] if error else 0.0


class _Extended(InstrumentedModel):
    """The model in `np.longdouble`, with float64 weights: inputs are widened, and NumPy promotes the rest."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.dtype = np.dtype(np.longdouble)

    def embedding_lookup(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return super().embedding_lookup(token_ids).astype(self.dtype)

    def slopes(self) -> Float[Array, " H"]:
        return alibi.slopes(self.config.num_heads, np.dtype(np.float64)).astype(self.dtype)


@lru_cache(CACHED_CASES)
def truth(case: Case) -> Truth:
    """Compute the truth of a case. The results of the last `CACHED_CASES` cases are cached."""
    params = case.params.astype(np.dtype(np.float64))
    if case.adapter is not None:
        params = lora.attach(params, case.adapter.parts)
    model = BloomBackbone.from_params(case.config, params, "float64")
    values = model.trace({"token_ids": case.token_ids, "padding_mask": case.is_real})
    for value in values.values():
        value.flags.writeable = False
    return Truth(case, values)


def _largest(name: str, value: Array, case: Case) -> float:
    magnitudes = np.abs(value[observable(name, value, case.is_real)])
    return float(magnitudes.max(initial=0.0))
