"""Mistakes in the MLP."""

import math

import numpy as np

from bloomref.conformance.mistakes.low_precision import rounded
from bloomref.conformance.mistakes.mistake import mistake
from bloomref.conformance.model.instrumented import GELU_CONSTANT, GELU_CUBIC, InstrumentedModel
from bloomref.params import LayerParams
from bloomref.shapes import Array

_erf = np.vectorize(math.erf, otypes=[np.float64])


def tanh_gelu(x: Array, constant: float = GELU_CONSTANT, cubic: float = GELU_CUBIC) -> Array:
    return x * 0.5 * (1.0 + np.tanh(constant * x * (1.0 + cubic * x * x)))


@mistake("gelu-erf", "computes the exact GELU with erf instead of the tanh form", "MLP-2", first="mlp.gelu")
class GeluErf(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return (0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))).astype(x.dtype)


@mistake("gelu-quick", "computes the quick GELU, x sigmoid(1.702 x)", "MLP-2", first="mlp.gelu")
class GeluQuick(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return 0.5 * x * (1.0 + np.tanh(0.851 * x))


@mistake("silu", "computes SiLU, x sigmoid(x), instead of GELU", "MLP-2", first="mlp.gelu")
class Silu(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return 0.5 * x * (1.0 + np.tanh(0.5 * x))


@mistake("relu", "computes ReLU instead of GELU", "MLP-2", first="mlp.gelu")
class Relu(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return np.maximum(x, 0.0)


@mistake("gelu-without-cubic", "omits the cubic term of GELU", "MLP-2", first="mlp.gelu")
class GeluWithoutCubic(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, cubic=0.0)


@mistake("gelu-cubic-0.04715", "uses 0.04715 instead of 0.044715 in GELU", "MLP-2", first="mlp.gelu")
class GeluCubicTypo(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, cubic=0.04715)


@mistake("gelu-cubic-0.0447", "uses 0.0447 instead of 0.044715 in GELU", "MLP-2", first="mlp.gelu")
class GeluCubicShort(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, cubic=0.0447)


@mistake("gelu-constant-0.7978", "uses 0.7978 instead of 0.79788456 in GELU", "MLP-2", first="mlp.gelu")
class GeluConstantShort(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, constant=0.7978)


@mistake("gelu-constant-0.79788", "uses 0.79788 instead of 0.79788456 in GELU", "MLP-2", first="mlp.gelu")
class GeluConstantRounded(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return tanh_gelu(x, constant=0.79788)


@mistake("gelu-table-in-float16", "looks GELU up in a float16 table", "MLP-2", "NUM-2", first="mlp.gelu")
class GeluTableInFloat16(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return rounded(super().gelu(rounded(x, "float16")), "float16")


@mistake("no-gelu", "applies no activation between the two linear layers of the MLP", "MLP-3", first="mlp.gelu")
class NoGelu(InstrumentedModel):
    def gelu(self, x: Array) -> Array:
        return x


@mistake("up-bias-dropped", "omits the bias of the first linear layer of the MLP", "MLP-3", first="mlp.up")
class UpBiasDropped(InstrumentedModel):
    def mlp_up(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x, layer.mlp_up_weight, np.zeros_like(layer.mlp_up_bias))


@mistake("down-bias-dropped", "omits the bias of the second linear layer of the MLP", "MLP-3", first="mlp.output")
class DownBiasDropped(InstrumentedModel):
    def mlp_down(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x, layer.mlp_down_weight, np.zeros_like(layer.mlp_down_bias))


@mistake(
    "last-channel-lost",
    "drops the last inner channel of the MLP, as by rounding its width down",
    "MLP-3",
    first="mlp.output",
)
class LastChannelLost(InstrumentedModel):
    def mlp_down(self, layer: LayerParams, x: Array) -> Array:
        return self.linear(x[..., :-1], layer.mlp_down_weight[:, :-1], layer.mlp_down_bias)
