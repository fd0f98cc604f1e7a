"""Problems for the gemv kernels of the MLP and the LM head."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice
from problem import EPSILON, Numbers, Problem, Rounding, linear, norm, padded, stored

from accel.cupy_gpu import launches
from bloomref.reference import ops


@dataclass(frozen=True)
class Up(Problem):
    """A call of gelu_matvec."""

    rows: int = 1
    width: int = 72
    outputs: int = 50
    sms: int = 4

    @property
    def returned(self) -> str:
        return "float32"

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, width = self.draws, self.width
        return (
            draw.hidden(self.rows, width), draw.vector(width, 1.0), draw.vector(width),
            draw.matrix(self.outputs, width), draw.vector(self.outputs),
        )  # fmt: skip

    def run(self, device: EmulatedDevice) -> Numbers:
        x, ln_weight, ln_bias = map(device.upload, self.inputs[:3])
        weight, bias = device.upload(padded(self.inputs[3])), device.upload(self.inputs[4])
        out = device.empty((self.rows, self.outputs), np.float32)
        launch = launches.gelu_matvec(self.dtype, self.rows, self.width, self.outputs, self.sms)
        device.launch(
            launch, x, ln_weight, ln_bias, EPSILON, weight, weight.shape[1], bias, out, self.rows, self.width, self.outputs,
            launch.splits, weight, weight.nbytes // 16,
        )  # fmt: skip
        return out

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        x, ln_weight, ln_bias, weight, bias = (array.astype(a) for array in self.inputs)
        return ops.gelu(linear(norm(x, ln_weight, ln_bias), weight, bias)[None])[0]


@dataclass(frozen=True)
class Down(Problem):
    """A call of residual_matvec, with either residual."""

    rows: int = 1
    width: int = 72
    outputs: int = 50
    sms: int = 4
    post_norm: bool = False

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, outputs = self.draws, self.outputs
        return (
            draw.inner(self.rows, self.width), draw.hidden(self.rows, outputs), draw.vector(outputs, 1.0),
            draw.vector(outputs), draw.vector(outputs), draw.matrix(outputs, self.width),
        )  # fmt: skip

    def run(self, device: EmulatedDevice) -> Numbers:
        inner, x, ln_weight, ln_bias, bias = map(device.upload, self.inputs[:5])
        weight = device.upload(padded(self.inputs[5]))
        out = device.empty(x.shape, stored(self.dtype))
        launch = launches.residual_matvec(self.dtype, self.rows, self.width, self.outputs, self.sms)
        affine = (ln_weight, ln_bias) if self.post_norm else (None, None)
        device.launch(
            launch, inner, weight, weight.shape[1], bias, x, *affine, EPSILON, out, self.rows, self.width, self.outputs,
            launch.splits, weight, weight.nbytes // 16,
        )  # fmt: skip
        return out

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        inner, x, ln_weight, ln_bias, bias, weight = (array.astype(a) for array in self.inputs)
        return (norm(x, ln_weight, ln_bias) if self.post_norm else x) + linear(inner, weight, bias)


@dataclass(frozen=True)
class Head(Problem):
    """A call of head_matvec, with or without the final norm, and of choose_best on its result."""

    rows: int = 1
    width: int = 72
    outputs: int = 50
    sms: int = 4
    final_norm: bool = True

    @property
    def returned(self) -> str:
        return "float32"

    @property
    def rounds(self) -> bool:
        return self.final_norm

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, width = self.draws, self.width
        head = draw.matrix(self.outputs, width)
        head = head[np.arange(self.outputs) % max(1, self.outputs // 3)]  # every best score occurs three times
        return draw.hidden(self.rows, width), draw.vector(width, 1.0), draw.vector(width), head

    def run(self, device: EmulatedDevice) -> Numbers:
        x, ln_weight, ln_bias = map(device.upload, self.inputs[:3])
        weight = device.upload(padded(self.inputs[3]))
        launch = launches.head_matvec(self.dtype, self.rows, self.width, self.outputs, self.sms)
        logits, parts = device.empty((self.rows, self.outputs), np.float32), launch.grid[1]
        score, best = device.empty((self.rows, parts), np.float32), device.empty((self.rows, parts), np.int32)
        forbidden, broken = device.upload(self.forbidden), device.zeros(1, np.int32)
        affine = (ln_weight, ln_bias) if self.final_norm else (None, None)
        device.launch(
            launch, x, *affine, EPSILON, weight, weight.shape[1], logits, forbidden, score, best, broken, self.rows,
            self.width, self.outputs, launch.splits,
        )  # fmt: skip
        ids, chosen, drawn = (device.zeros(shape, np.int32) for shape in ((self.rows,), (self.rows, 1), (self.rows,)))
        device.launch(
            launches.choose_best(self.rows), score, best, ids, chosen, drawn, device.zeros(1, np.int32), 1, parts
        )
        allowed = np.where(self.forbidden, -np.inf, logits)
        assert ids.tolist() == chosen[:, 0].tolist() == allowed.argmax(axis=1).tolist()  # the lowest of equal tokens
        assert broken.tolist() == [0]
        return logits

    @cached_property
    def forbidden(self) -> Numbers:
        """Mask (V,) of each row's best token; tokens with an equal score are allowed."""
        best = self.formula(np.dtype(np.float64), lambda x: x).argmax(axis=1)
        return np.isin(np.arange(self.outputs), best).astype(np.uint8)

    def formula(self, a: Any, rounding: Rounding) -> Numbers:
        x, ln_weight, ln_bias, weight = (array.astype(a) for array in self.inputs)
        hidden = rounding(norm(x, ln_weight, ln_bias)) if self.final_norm else x
        return hidden @ weight.T
