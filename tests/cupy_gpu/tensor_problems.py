"""Problems for the tensor-core kernels of 5 to 64 rows. Their inputs have dtype T, so products round nothing."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice
from problem import Numbers, Problem, Rounding, linear, padded, stored
from row_problems import Projection

from accel.cupy_gpu import launches
from bloomref.reference import ops


@dataclass(frozen=True)
class Product(Problem):
    """A call of gelu_tensor, residual_tensor or head_tensor."""

    kind: str = "gelu"
    rows: int = 17
    width: int = 72
    outputs: int = 50
    sms: int = 4

    @property
    def returned(self) -> str:
        return "float32" if self.kind == "head" else self.dtype

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw = self.draws
        return (
            draw.hidden(self.rows, self.width), draw.matrix(self.outputs, self.width), draw.vector(self.outputs),
            draw.hidden(self.rows, self.outputs),
        )  # fmt: skip

    def run(self, device: EmulatedDevice) -> Numbers:
        x, bias, residual = (device.upload(self.inputs[i]) for i in (0, 2, 3))
        weight, broken = device.upload(padded(self.inputs[1])), device.zeros((1,), np.int32)
        out = device.empty((self.rows, self.outputs), stored(self.returned))
        launch_of = {"gelu": launches.gelu_tensor, "residual": launches.residual_tensor, "head": launches.head_tensor}
        launch = launch_of[self.kind](self.dtype, self.rows, self.width, self.outputs, self.sms)
        between = {"gelu": (bias, out), "residual": (bias, residual, out), "head": (out, broken)}[self.kind]
        sizes = self.rows, self.width, self.outputs, launch.splits
        following = () if self.kind == "head" else (weight, weight.nbytes // 16)
        device.launch(launch, x, weight, weight.shape[1], *between, *sizes, *following)
        assert broken.tolist() == [0]
        return out

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        x, weight, bias, residual = (array.astype(a) for array in self.inputs)
        if self.kind == "head":
            return x @ weight.T
        y = linear(x, weight, bias)
        return residual + y if self.kind == "residual" else ops.gelu(y[None])[0]


@dataclass(frozen=True)
class TensorProjection(Projection):
    """A call of qkv_tensor. The result is that of `Projection`."""

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, rows, width = self.draws, self.batch * self.time, self.width
        return draw.vector(3 * width), draw.hidden(rows, width), draw.matrix(3 * width, width)

    def launch(self, device: EmulatedDevice, bias: Any, left: tuple[Any, ...], shapes: tuple[int, ...]) -> None:
        x, weight = device.upload(self.inputs[1]), device.upload(padded(self.inputs[2]))
        launch = launches.qkv_tensor(self.dtype, len(x), self.width, 3 * self.width, self.sms)
        device.launch(
            launch, x, weight, weight.shape[1], bias, *left, len(x), self.width, *shapes, launch.splits,
            weight, weight.nbytes // 16,
        )  # fmt: skip

    def projected(self, a: Any) -> Numbers:
        bias, x, weight = (array.astype(a) for array in self.inputs)
        return linear(x, weight, bias)
