"""Problems for the row-wise kernels around cuBLAS. That of the projection also serves the gemv kernel."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from emulated_device import EmulatedDevice
from problem import EPSILON, Numbers, Problem, Rounding, accumulated, linear, norm, padded, stored

from accel.cupy_gpu import launches
from bloomref.reference import ops


@dataclass(frozen=True)
class Norm(Problem):
    """A call of layer_norm, or of embed_norm for some rows of a table."""

    rows: int = 3
    width: int = 40
    embedding: bool = False

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw = self.draws
        ids = np.array([(7 * r) % 5 for r in range(self.rows)], np.int32)
        table = draw.hidden(5 if self.embedding else self.rows, self.width, scale=0.02, mean=0.03)
        return table, draw.vector(self.width, 1.0), draw.vector(self.width), ids

    def run(self, device: EmulatedDevice) -> Numbers:
        table, ln_weight, ln_bias, ids = self.inputs
        out = device.empty((self.rows, self.width), stored(self.dtype))
        affine = (device.upload(ln_weight), device.upload(ln_bias), EPSILON, out, self.width)
        if self.embedding:
            wide = device.upload(padded(table))
            device.launch(launches.embed_norm(self.dtype, self.rows), device.upload(ids), wide, wide.shape[1], *affine)
        else:
            device.launch(launches.layer_norm(self.dtype, self.rows), device.upload(table), *affine)
        return out

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        table, ln_weight, ln_bias, ids = self.inputs
        return norm((table[ids] if self.embedding else table).astype(a), ln_weight.astype(a), ln_bias.astype(a))


@dataclass(frozen=True)
class Activation(Problem):
    """A call of bias_gelu."""

    rows: int = 3
    width: int = 300

    @cached_property
    def inputs(self) -> tuple[Numbers, Numbers]:
        return 3 * self.draws.inner(self.rows, self.width), self.draws.vector(self.width)

    def run(self, device: EmulatedDevice) -> Numbers:
        y, bias = map(device.upload, self.inputs)
        out = device.empty(y.shape, stored(self.dtype))
        device.launch(launches.bias_gelu(self.dtype, self.rows), y, bias, out, self.width)
        return out

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        y, bias = self.inputs
        return ops.gelu((y.astype(a) + bias.astype(a))[None])[0]


@dataclass(frozen=True)
class Residual(Problem):
    """A call of bias_residual, with either residual."""

    rows: int = 3
    width: int = 300
    post_norm: bool = False

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, width = self.draws, self.width
        return (
            draw.inner(self.rows, width), draw.vector(width), draw.hidden(self.rows, width),
            draw.vector(width, 1.0), draw.vector(width),
        )  # fmt: skip

    def run(self, device: EmulatedDevice) -> Numbers:
        y, bias, x, ln_weight, ln_bias = map(device.upload, self.inputs)
        out = device.empty(y.shape, stored(self.dtype))
        affine = (ln_weight, ln_bias) if self.post_norm else (None, None)
        launch = launches.bias_residual(self.dtype, self.rows)
        device.launch(launch, y, bias, x, *affine, EPSILON, out, self.width)
        return out

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        y, bias, x, ln_weight, ln_bias = (array.astype(a) for array in self.inputs)
        return (norm(x, ln_weight, ln_bias) if self.post_norm else x) + (y + bias)


@dataclass(frozen=True)
class Projection(Problem):
    """A call of qkv_split or qkv_matvec.

    The result is (3, rows, D): queries, and keys and values read from the cache.
    """

    batch: int = 2
    time: int = 3
    heads: int = 3
    head_width: int = 20
    start: int = 2
    matvec: bool = False
    sms: int = 4

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @cached_property
    def inputs(self) -> tuple[Numbers, ...]:
        draw, rows, width = self.draws, self.batch * self.time, self.width
        bias = draw.vector(3 * width)
        if not self.matvec:
            return bias, draw.inner(rows, 3 * width)
        return (
            bias,
            draw.hidden(rows, width),
            draw.vector(width, 1.0),
            draw.vector(width),
            draw.matrix(3 * width, width),
        )

    def run(self, device: EmulatedDevice) -> Numbers:
        rows, capacity, stride = (
            self.batch * self.time,
            self.start + self.time + 1,
            launches.cache_stride(self.head_width),
        )
        shape = (self.batch, self.heads, capacity, stride)
        keys, values = (device.zeros(shape, stored(self.dtype)) for _ in "kv")
        query = device.empty((rows, self.width), accumulated(self.dtype))
        left = (query, keys, values, device.upload(np.array([self.start], np.int32)))
        bias = device.upload(self.inputs[0])
        shapes = (self.time, self.heads, self.head_width, stride, capacity)
        self.launch(device, bias, left, shapes)
        return np.stack([query.astype(np.float64), *(self._written(cache) for cache in (keys, values))])

    def launch(self, device: EmulatedDevice, bias: Any, left: tuple[Any, ...], shapes: tuple[int, ...]) -> None:
        """Launch the kernel.

        `left` has the output arrays and the first column, `shapes` those of positions and cache.
        """
        rows = self.batch * self.time
        if not self.matvec:
            device.launch(launches.qkv_split(self.dtype, rows), device.upload(self.inputs[1]), bias, *left, *shapes)
            return
        x, ln_weight, ln_bias = map(device.upload, self.inputs[1:4])
        weight = device.upload(padded(self.inputs[4]))
        launch = launches.qkv_matvec(self.dtype, rows, self.width, 3 * self.width, self.sms)
        device.launch(
            launch, x, ln_weight, ln_bias, EPSILON, weight, weight.shape[1], bias, *left, rows, self.width, *shapes,
            launch.splits, weight, weight.nbytes // 16,
        )  # fmt: skip

    def _written(self, cache: Numbers) -> Numbers:
        """Return the columns of the call, (rows, D), and assert that the others are unchanged."""
        inside = np.zeros(cache.shape, bool)
        inside[:, :, self.start : self.start + self.time, : self.head_width] = True
        assert not cache[~inside].any()
        call = cache[inside].reshape(self.batch, self.heads, self.time, self.head_width).swapaxes(1, 2)
        return call.reshape(self.batch * self.time, self.width).astype(np.float64)

    def formula(self, a: Any, rounding: Rounding) -> Numbers:  # noqa: ARG002
        fused = self.projected(a).reshape(-1, self.heads, 3, self.head_width)
        return fused.transpose(2, 0, 1, 3).reshape(3, -1, self.width)

    def projected(self, a: Any) -> Numbers:
        """(rows, 3 D)."""
        bias, x, *weights = (array.astype(a) for array in self.inputs)
        return linear(norm(x, weights[0], weights[1]), weights[2], bias) if self.matvec else x + bias
