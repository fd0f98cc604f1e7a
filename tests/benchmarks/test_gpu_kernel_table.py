"""`python -m benchmarks.gpu.paper`: its step is that of a device, and the committed table is up to date."""

import json
from pathlib import Path
from typing import Any

import pytest

from accel.cupy_gpu import memory
from benchmarks.gpu import paper
from benchmarks.gpu.paper import Chip, Row, launched
from benchmarks.model import model_config
from bloomref.dtypes import POLICIES

RESULT = Path(paper.__file__).parents[1] / "results/gpu-kernels.json"


class Report:
    registers = 96


def compiled(module: str, expressions: tuple[str, ...], arch: int) -> Any:
    assert (module, arch) in {(name, 90) for name in ("rows", "matvec", "attention", "choice")}

    class Result:
        reports = dict.fromkeys(expressions, Report)

    return Result


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "expected"),
    [(8, 96, 0, 2), (8, 32, 0, 8), (8, 255, 0, 1), (4, 80, 0, 6), (1, 16, 0, 32), (4, 128, 100 * 1024, 2), (8, 33, 0, 6)],
)  # fmt: skip
def test_resident_blocks_are_bounded_by_warps_registers_and_shared_memory(
    warps: int, registers: int, shared: int, expected: int
) -> None:
    assert Chip().resident_blocks(warps, registers, shared) == expected


@pytest.mark.parametrize("preset", paper.PRESETS)
def test_a_step_reads_every_weight_and_every_key_once(preset: str) -> None:
    config, policy = model_config(preset), POLICIES["bfloat16"]
    total = sum(size for _, size in launched(preset, 1, 2048, "bfloat16", Chip()))
    weights = memory.weight_bytes(config, policy)
    cache = memory.cache_bytes(config, policy, 1, 2048, Chip.sms)
    assert weights + cache <= total <= 1.02 * (weights + cache)


def test_the_committed_table_is_up_to_date() -> None:
    """Registers are not compared, because they depend on the compiler's version."""
    report = json.loads(RESULT.read_text("utf-8"))
    current = paper.table(paper.PRESETS, 1, 2048, "bfloat16", compiled)
    known = [Row(**row) for row in report["kernels"]]
    assert [(r.preset, r.kernel, r.times, r.blocks, r.threads, r.shared_bytes, r.bytes) for r in known] == [
        (r.preset, r.kernel, r.times, r.blocks, r.threads, r.shared_bytes, r.bytes) for r in current
    ]
    for row in known:
        resident = Chip().resident_blocks(row.threads // 32, row.registers, row.shared_bytes)
        assert row.warps_a_processor == resident * row.threads // 32
