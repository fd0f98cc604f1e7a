"""Rounding profiles: emulate where another implementation rounds, to compare bits instead of errors.

`hf-eager-bfloat16` is transformers' eager BLOOM on a CPU. A linear layer sums in float32 and rounds once, with its
bias. Scores and bias come from one fused product, rounded once; ALiBi is rounded before. Softmax and layer norm are
float32, then rounded. GELU rounds after every operation. Slopes are powers of a float32 number. Sums are float64 here,
so a bit differs where the float32 sum of transformers lies on the other side of a rounding boundary.
"""

import math
from collections.abc import Mapping

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import GELU_CONSTANT, GELU_CUBIC, Arithmetic, InstrumentedModel
from bloomref.conformance.oracle.intermediates import observable
from bloomref.dtypes import DType, cast, floating_dtype
from bloomref.errors import invalid, represented
from bloomref.params import Params
from bloomref.shapes import Array, Bool, Float


class Rounding(Arithmetic):
    """`stored` rounds to a 16-bit dtype, through float32 as hardware does; operations compute in wider dtypes."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def stored(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return cast(x.astype(np.float32), self.dtype).astype(np.float64)

    score = stored


class HuggingFaceEager(InstrumentedModel):
    """transformers' `BloomForCausalLM` in a 16-bit dtype, which a subclass names."""

    storage: DType

    def __init__(self, config: BloomConfig, params: Params, inputs: Mapping[str, Array] | None = None) -> None:
        super().__init__(config, params.astype(self.storage), Rounding(self.storage))
        self.inputs = inputs or {}
        self.emulated: dict[str, Array] = {}

    def record(self, name: str, value: Array) -> Array:
        """Store the emulated value, and continue with that of the implementation if there is one: each operation is
        emulated alone."""
        full = self.prefix + name
        self.emulated[full] = value
        return super().record(name, np.asarray(self.inputs[full], np.float64) if full in self.inputs else value)

    def slopes(self) -> Float[Array, " H"]:
        """Powers of a float32 base, in float32."""
        heads = self.config.num_heads
        n = 2 ** math.floor(math.log2(heads))
        regular = _powers(2.0 ** (-8.0 / n), np.arange(1, n + 1))
        return np.concatenate([regular, _powers(2.0 ** (-4.0 / n), np.arange(1, 2 * (heads - n), 2))])

    def positions(self, is_real: Bool[Array, "B S"]) -> Float[Array, "B S"]:
        """Number of real positions before each position."""
        return (np.cumsum(is_real, axis=1) - 1) * is_real

    def bias(self, is_real: Bool[Array, "B S"], start: int) -> Float[Array, "B H T S"]:
        """Bias counted from the first real position, in float32, then rounded: (B, H, 1, S), the same for every
        query."""
        del start
        slopes, positions = self.slopes().astype(np.float32), self.positions(is_real).astype(np.float32)
        return self.arithmetic.stored(slopes[:, None, None] * positions[:, None, None, :])

    def scores(self, query: Array, keys: Array, bias: Array) -> Float[Array, "B H T S"]:
        product = (query @ keys.swapaxes(-1, -2)).astype(np.float32) * np.float32(self.scale())
        return self.arithmetic.stored(product + bias.astype(np.float32))

    def gelu(self, x: Array) -> Array:
        stored = self.arithmetic.stored
        cubic = stored(stored(stored(x * np.float32(GELU_CUBIC)) * x) + 1.0)
        tanh = stored(np.tanh(stored(stored(x * np.float32(GELU_CONSTANT)) * cubic)))
        return stored(stored(x * 0.5) * stored(tanh + 1.0))

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        return self.arithmetic.stored(x @ weight.T + bias)

    def head(self, hidden: Array) -> Float[Array, "B T V"]:
        return self.arithmetic.stored(super().head(hidden))


class HuggingFaceEagerBfloat16(HuggingFaceEager):
    """`hf-eager-bfloat16`."""

    storage = floating_dtype("bfloat16")


class HuggingFaceEagerFloat16(HuggingFaceEager):
    """`hf-eager-float16`."""

    storage = floating_dtype("float16")


PROFILES: dict[str, type[HuggingFaceEager]] = {
    "hf-eager-bfloat16": HuggingFaceEagerBfloat16,
    "hf-eager-float16": HuggingFaceEagerFloat16,
}


def emulate(case: Case, profile: str, inputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Return every intermediate as the profile's implementation rounds it: float64 arrays of 16-bit numbers.

    Args:
        profile: a name in `PROFILES`.
        inputs: intermediates of the implementation itself; operations that read one of them use it.

    Raises:
        InvalidInput: for an unknown profile.
    """
    if profile not in PROFILES:
        raise invalid("profile", f"one of {', '.join(PROFILES)}", represented(profile))
    emulation = PROFILES[profile](case.config, case.params, inputs)
    emulation.run(case.token_ids, case.is_real)
    return emulation.emulated


def agreement(case: Case, profile: str, outputs: Mapping[str, Array]) -> dict[str, float]:
    """Return the share of identical numbers in each output, at real positions. Each is emulated from the outputs before
    it.

    For a whole trace this is the agreement of each operation alone; for the logits alone, that of the whole model.
    """
    emulated = emulate(case, profile, outputs)
    return {name: _same(name, output, emulated[name], case.is_real) for name, output in outputs.items()}


def _same(name: str, output: Array, emulated: Array, is_real: Bool[Array, "B T"]) -> float:
    compared = observable(name, emulated, is_real)
    return float(np.mean(np.asarray(output, np.float64)[compared] == emulated[compared])) if compared.any() else 1.0


def _powers(base: float, exponents: Array) -> Float[Array, " H"]:
    return np.power(np.float32(base), exponents.astype(np.float32)).astype(np.float64)
