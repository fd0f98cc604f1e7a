"""The truth of a case: the float64 reference, and how true that is.

What the estimate here leaves out, the tests enclose: on small models ball arithmetic proves the reference's error (NUM-7).
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

REMEMBERED = 16
"""How many of the last cases keep what was computed for them; equal cases share it."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What the reference says in float64, in one piece.

    Args:
        case: the question.
        values: every named intermediate (clause MOD-8), in the order of computation; read-only.
    """

    case: Case
    values: dict[str, Array] = field(repr=False)

    @cached_property
    def largest(self) -> float:
        """The largest magnitude of all: beyond 65504, float16 cannot hold the case."""
        return max(self.reach.values(), default=0.0)

    @cached_property
    def reach(self) -> dict[str, float]:
        """The largest magnitude of each intermediate, padded positions and invisible keys included: those are computed, too."""
        return {name: float(np.abs(value).max(initial=0.0)) for name, value in self.values.items()}

    @cached_property
    def magnitudes(self) -> dict[str, float]:
        """The same of the numbers that mean something."""
        return {name: _largest(name, value, self.case) for name, value in self.values.items()}

    @cached_property
    def self_error(self) -> dict[str, float]:
        """The reference's own largest error by name, relative to the largest magnitude; from the same model in `np.longdouble`.

        Zero says nothing where longdouble is float64 (Windows, macOS on ARM).
        """
        wide = _Extended.of(self.case).run(self.case.token_ids, self.case.is_real)
        return {name: self._relative_error(name, wide[name]) for name in self.values}

    def _relative_error(self, name: str, wide: Array) -> float:
        error = _largest(name, wide - self.values[name], self.case)
        return error / self.magnitudes[name] if error else 0.0


class _Extended(InstrumentedModel):
    """In `np.longdouble`, on float64 weights: what enters is widened, and what it meets follows."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.dtype = np.dtype(np.longdouble)

    def embedding_lookup(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return super().embedding_lookup(token_ids).astype(self.dtype)

    def slopes(self) -> Float[Array, " H"]:
        return alibi.slopes(self.config.num_heads, np.dtype(np.float64)).astype(self.dtype)


@lru_cache(REMEMBERED)
def truth(case: Case) -> Truth:
    """The truth of a case, remembered for the last few."""
    params = case.params.astype(np.dtype(np.float64))
    if case.adapter is not None:
        params = lora.attach(params, case.adapter.parts)
    model = BloomBackbone.from_params(case.config, params, "float64")
    values = model.trace({"token_ids": case.token_ids, "padding_mask": case.is_real})
    for value in values.values():
        value.flags.writeable = False
    return Truth(case, values)


def _largest(name: str, value: Array, case: Case) -> float:
    seen = np.abs(value[observable(name, value, case.is_real)])
    return float(seen.max(initial=0.0))
