"""The bench as an implementation: what is planted in a `Lab` goes the way of every other one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bloomref import __version__
from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import params_of
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import FORMS, NAME
from bloomref.conformance.model.instrumented import EXACT, Arithmetic, Lab
from bloomref.dtypes import DType, cast, floating_dtype
from bloomref.lora import adapter_files
from bloomref.lora.adapter import Adapter
from bloomref.shapes import Array, Bool, Float, Int


@dataclass(frozen=True)
class Rounding(Arithmetic):
    """Every result that is kept is rounded to a 16-bit type; sums, norms and scores stay in float32."""

    dtype: DType

    def stored(self, x: Array) -> Array:
        return cast(x, self.dtype).astype(x.dtype)


class LabAdapter:
    """A `Lab` class, run in the dtype that is asked for: `LabAdapter(WrongSlopes)`."""

    capabilities = Capabilities(dtypes=("float32", "bfloat16", "float16", "float64"), adapters=FORMS)

    def __init__(self, lab_class: type[Lab] = Lab) -> None:
        self.lab_class = lab_class
        self.name = f"lab {lab_class.__name__}"

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "LabModel":
        kept = floating_dtype(dtype)
        narrow = kept.itemsize < 4
        params = params_of(config, weights).astype(kept)
        arithmetic = Rounding(kept) if narrow else EXACT
        make = partial(self.lab_class, config, params, arithmetic, np.float32 if narrow else kept)
        return LabModel(make(), make)

    def versions(self) -> Mapping[str, str]:
        return {"bloomref": __version__}


class LabModel:
    """A loaded bench."""

    def __init__(self, lab: Lab, make: Callable[[Adapter], Lab]) -> None:
        self.lab = lab
        self.make = make

    def adapted(self, path: Path) -> "LabModel":
        """The same bench, with the adapter added."""
        adapter = adapter_files.load(path, NAME, self.lab.config, np.dtype(np.float64))
        return LabModel(self.make(adapter), self.make)

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.lab.run(token_ids, is_real)["logits"]

    def hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.lab.run(token_ids, is_real)["final_norm"]

    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Mapping[str, Array]:
        return self.lab.run(token_ids, is_real)

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int
    ) -> Float[Array, "B T V"]:
        return self.lab.run(token_ids, is_real, cuts, capacity)["logits"]

    def call(self, token_ids: Any, padding_mask: Any) -> Float[Array, "B T V"]:
        return self.logits(*self.lab.accept(token_ids, padding_mask))
