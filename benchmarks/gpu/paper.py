"""Occupancy of the kernels of a decoding step on an H200, computed without one: grid, registers, waves, bytes.

The step is queued on a device that has shapes but no memory, so the launches are those of a real device. NVRTC compiles
each kernel and reports its registers. The rest is arithmetic: resident thread blocks per SM, waves (thread blocks over
resident thread blocks), and bytes that a kernel must move. No figure is a time.

Example: python -m benchmarks.gpu.paper --output benchmarks/results/gpu-kernels.json
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from accel.cupy_gpu.blocks import Blocks
from accel.cupy_gpu.decode import ChoosingStep, Workspace
from accel.cupy_gpu.device_cache import Cache
from accel.cupy_gpu.launches import Launch, weight_stride
from accel.cupy_gpu.loading import Layer, Linear, Norm, Weights
from benchmarks.machine import command_line, versions
from benchmarks.model import model_config
from bloomref.dtypes import dtype_policy
from bloomref.runtime.backend import Choice

PRESETS = ("bloom_560m_multi", "bloom_1.1b_multi", "bloom_1.7b_multi", "bloom_3b_multi", "bloom_7b_multi")
PREFETCHES = ("qkv_matvec", "gelu_", "residual_", "qkv_tensor")
"""Kernels whose last two arguments are the weights of the next product."""
TOOLS = Path(__file__).parents[2] / "tests/cupy_gpu"
"""Folder of the module `nvrtc`."""


@dataclass(frozen=True)
class Chip:
    """Limits of an SM of compute capability 9.0, from the CUDA programming guide, and the number of SMs of an H200."""

    name: str = "H200"
    arch: int = 90
    sms: int = 132
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    shared: int = 228 * 1024
    reserved_shared: int = 1024
    """Bytes of shared memory that the system reserves per thread block."""

    def resident_blocks(self, warps: int, registers: int, shared: int) -> int:
        """Return the resident thread blocks per SM. Registers are allocated to warps in units of 256."""
        of_warp = math.ceil(registers * 32 / 256) * 256
        by_shared = self.shared // (shared + self.reserved_shared)
        return min(self.blocks, self.warps // warps, self.registers // (of_warp * warps), by_shared)


@dataclass(frozen=True)
class Row:
    """One kernel of the step. `times` is its number of launches in a step; the rest is per launch.

    The fields are keys of the committed report; `warps_a_processor` is the number of resident warps per SM.
    """

    preset: str
    kernel: str
    times: int
    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    warps_a_processor: int
    waves: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Shape:
    """An array without memory."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]


class Paper:
    """A `Device` without memory that records launches."""

    def __init__(self, chip: Chip) -> None:
        self.name, self.arch, self.sms = f"{chip.name} on paper", chip.arch, chip.sms
        self.launched: list[tuple[Launch, tuple[Any, ...]]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Shape:
        return Shape(shape, np.dtype(dtype))

    zeros = empty

    def upload(self, host: Any) -> Shape:
        return Shape(host.shape, host.dtype)

    def launch(self, launch: Launch, *arguments: Any) -> None:
        self.launched.append((launch, arguments))


def launched(preset: str, rows: int, context: int, dtype: str, chip: Chip) -> list[tuple[Launch, int]]:
    """Return each launch of a greedy step over a full cache, with the bytes that it must move."""
    config, device = model_config(preset), Paper(chip)
    compute: Any = dtype_policy(dtype).compute_dtype
    workspace: Any = Workspace(device)  # type: ignore[arg-type]
    blocks = Blocks(device, config, compute, Shape((config.num_heads,), np.dtype(np.float32)), workspace)  # type: ignore[arg-type]
    cache = Cache.zeros(device, config, compute, rows, context)  # type: ignore[arg-type]
    step = ChoosingStep(
        Choice(),
        weights=weights(config, compute),
        blocks=blocks,
        workspace=workspace,
        cache=cache,
        is_dense=True,
        graph=False,
    )
    step.run()
    return [(launch, bytes_of(launch, arguments)) for launch, arguments in device.launched]


def weights(config: Any, dtype: Any) -> Weights:
    """Return the shapes of a model's weights on a device."""
    d, f, wide = config.hidden_dim, config.intermediate_dim, np.dtype(np.float32)

    def linear(outputs: int, width: int) -> Linear:
        return Linear(Shape((outputs, weight_stride(width)), dtype), Shape((outputs,), wide))

    norm = Norm(Shape((d,), wide), Shape((d,), wide))
    layer = Layer(norm, linear(3 * d, d), linear(d, d), norm, linear(f, d), linear(d, f))
    embedding = Shape((config.vocabulary_size, weight_stride(d)), dtype)
    return Weights(embedding, norm, (layer,) * config.num_layers, norm, embedding)


def bytes_of(launch: Launch, arguments: tuple[Any, ...]) -> int:
    """Return the bytes that a launch must move: each array once, of an embedding table only the rows that are read.

    Keys and values count with the whole capacity if they are read, and with one column if they are written.
    """
    name = name_of(launch)
    if name.startswith(PREFETCHES):
        arguments = arguments[:-2]  # the next product's weights count there
    arrays = [a for a in arguments if hasattr(a, "nbytes")]
    total = sum(a.nbytes for a in arrays)
    if name == "embed_norm":
        ids, table = arrays[:2]
        return total - table.nbytes + len(ids) * table.nbytes // len(table)
    if name in ("qkv_matvec", "qkv_tensor"):
        caches = [a for a in arrays if len(a.shape) == 4]
        return total - sum(a.nbytes - a.nbytes // a.shape[2] for a in caches)
    return total


def name_of(launch: Launch) -> str:
    return launch.kernel.expression.partition("<")[0]


# --- the table ---------------------------------------------------------------------------------------------------


def table(
    presets: tuple[str, ...], rows: int, context: int, dtype: str, compile_module: Callable[..., Any]
) -> list[Row]:
    """Return one row for each different launch of a preset's step, in order."""
    chip, table_rows, registers = Chip(), [], {}
    for preset in presets:
        step = launched(preset, rows, context, dtype, chip)
        for launch in {launch.kernel: launch for launch, _ in step}.values():
            if launch.kernel not in registers:
                report = compile_module(launch.kernel.module, (launch.kernel.expression,), chip.arch)
                registers[launch.kernel] = report.reports[launch.kernel.expression].registers
        table_rows += [
            _row(preset, launch, size, step.count((launch, size)), registers[launch.kernel], chip)
            for launch, size in dict.fromkeys(step)
        ]
    return table_rows


def _row(preset: str, launch: Launch, size: int, times: int, registers: int, chip: Chip) -> Row:
    warps, blocks = launch.block // 32, math.prod(launch.grid)
    resident = chip.resident_blocks(warps, registers, launch.shared)
    waves = round(blocks / (resident * chip.sms), 2)
    return Row(
        preset, name_of(launch), times, blocks, launch.block, registers, launch.shared, resident * warps, waves, size
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="+", default=PRESETS, choices=PRESETS, help="presets whose dimensions are used"
    )
    parser.add_argument("--rows", type=int, default=1, help="rows of the batch")
    parser.add_argument("--context", type=int, default=2048, help="visible positions of the cache")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    arguments = parser.parse_args()
    sys.path.append(str(TOOLS))
    from nvrtc import compile_module

    rows = table(tuple(arguments.presets), arguments.rows, arguments.context, arguments.dtype, compile_module)
    show(rows)
    if arguments.output:
        report = {
            "command": command_line(),
            "what": f"{arguments.rows} rows, context {arguments.context}, {arguments.dtype}, {Chip().name}",
            "packages": versions(("nvidia-cuda-nvrtc",)),
            "kernels": [asdict(row) for row in rows],
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def show(rows: list[Row]) -> None:
    shown = Table(
        "preset", "kernel", "times", "blocks", "threads", "registers", "warps/SM", "waves", "MB", "share of bytes",
        box=None, pad_edge=False,
    )  # fmt: skip
    for row in rows:
        total = sum(other.times * other.bytes for other in rows if other.preset == row.preset)
        cells = (row.times, row.blocks, row.threads, row.registers, row.warps_a_processor, row.waves)
        share = f"{row.times * row.bytes / total:.1%}"
        shown.add_row(row.preset, row.kernel, *map(str, cells), f"{row.bytes / 1e6:.2f}", share)
    Console(width=None if sys.stdout.isatty() else 140).print(shown)


if __name__ == "__main__":
    main()
