"""Every kernel compiled for every architecture, without a GPU: no register spills, and the expected instructions.

The fast tests compile for the oldest architecture and for the H200's.
"""

import itertools
import re
from collections.abc import Iterator

import pytest
import toolchain
from machine_code import distances, loops, main_loop
from nvrtc import Compiled, compile_module

from accel.cupy_gpu import launches
from accel.cupy_gpu.launches import Launch
from bloomref.config import BloomConfig

ARCHS = (75, 80, 86, 89, 90, 100, 120)
DTYPES = ("bfloat16", "float16", "float32", "float64")
HEAD_WIDTHS = (64, 80, 96, 128)
H200 = 132  # SMs
ROWS = {(75, "float16"): (1, 16), (90, "bfloat16"): (1, 2, 4, 8, 16)}
"""Row counts of the gemv kernels, whose compilation takes the most time.

Other targets compile the fewest and the most.
"""
FAST = {(75, "float16"), (90, "bfloat16")}
MAX_SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a thread block may have."""

TARGETS = [
    pytest.param(arch, dtype, marks=() if (arch, dtype) in FAST else pytest.mark.slow, id=f"sm_{arch}-{dtype}")
    for arch in ARCHS
    for dtype in DTYPES
    if (arch, dtype) != (75, "bfloat16")  # not supported by the backend
]


@pytest.fixture(scope="session", autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    toolchain.require(toolchain.compiler_missing(), request.config)


def row_kernels(dtype: str) -> Iterator[Launch]:
    for kernel in (
        launches.embed_norm,
        launches.layer_norm,
        launches.qkv_split,
        launches.bias_gelu,
        launches.bias_residual,
    ):
        yield kernel(dtype, 1)


def attention_kernels(dtype: str) -> Iterator[Launch]:
    for width in HEAD_WIDTHS:
        yield launches.attention_rows(dtype, width, 1, 1, 1)
        for context in {"float32", dtype} if dtype != "float64" else ():
            yield launches.attention_decode(dtype, width, 1, 1, 64, H200, context)


def flash_kernels(dtype: str, arch: int) -> Iterator[Launch]:
    for width in HEAD_WIDTHS:
        if launches.has_flash(dtype, width, arch):
            yield launches.attention_flash(dtype, width, 1, 1, 1, arch)


def tiled_kernels(arch: int) -> Iterator[Launch]:
    for width in HEAD_WIDTHS:
        if launches.has_tiled("float32", width, launches.TILED_TIME, arch):
            yield launches.attention_tiled(width, 1, 1, 1, arch)


def matvec_kernels(dtype: str, rows: tuple[int, ...]) -> Iterator[Launch]:
    if dtype == "float64":
        return
    for count in rows:
        for kernel in (launches.qkv_matvec, launches.gelu_matvec, launches.residual_matvec, launches.head_matvec):
            yield kernel(dtype, count, 1024, 4096, H200)


def tensor_kernels(dtype: str, arch: int) -> Iterator[Launch]:
    if not launches.supports_tensor_cores(
        BloomConfig(vocabulary_size=8, num_layers=1, num_heads=1, hidden_dim=8, intermediate_dim=32), dtype, arch
    ):
        return
    for rows, outputs in itertools.product((8, 16, 32, 64), (1024, 16384)):
        for kernel in (launches.qkv_tensor, launches.gelu_tensor, launches.residual_tensor, launches.head_tensor):
            yield kernel(dtype, rows, 1024, outputs, H200)


def compiled(kernels: Iterator[Launch], arch: int) -> dict[str, str]:
    """Return the instructions of each kernel by expression, and assert that the kernels fit an SM and do not spill."""
    by_expression = {launch.kernel.expression: launch for launch in kernels}
    if not by_expression:
        return {}
    module = next(iter(by_expression.values())).kernel.module
    result = compile_module(module, tuple(by_expression), arch)
    assert set(result.instructions) == set(result.reports) == set(by_expression)
    for expression, report in result.reports.items():
        launch = by_expression[expression]
        assert (report.spills, report.stack) == (0, 0), f"{expression} on sm_{arch}: {report}"
        assert report.registers * launch.block <= 65536
        assert launch.shared <= MAX_SHARED[arch] * 1024
        assert not re.search(r"\b(LDL|STL)\b", result.instructions[expression])
        check_start(launch, arch, result.instructions[expression])
    return result.instructions


def check_start(launch: Launch, arch: int, instructions: str) -> None:
    """Assert that a kernel that may start early lets the next one start and waits, and reads only weights before."""
    before, waits, _ = instructions.partition("ACQBULK")
    assert bool(waits) == (launch.starts_early and arch >= 90), launch.kernel
    if waits:
        assert "PREEXIT" in before, launch.kernel
        touched = re.findall(r"\b(?:LDG|LDGSTS|LD|STG|ST|ATOMG?|RED|LDS|STS)\.\S+", before)
        assert all(".NA." in name or ".LTC128B." in name for name in touched), (launch.kernel, touched)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_kernels_that_choose_tokens_compile(arch: int) -> None:
    kernels = [
        launches.choose_best(1),
        launches.top_parts(1, 250_880),
        launches.choose_top(1, launches.TOP_K),
        launches.any_best(1, 250_880),
        launches.any_digits(1, 250_880),
        launches.any_sums(1, 250_880),
        launches.choose_any(1),
    ]
    assert len(compiled(iter(kernels), arch)) == 7


@pytest.mark.parametrize("arch", ARCHS)
def test_tiled_attention_multiplies_most_of_the_time(arch: int) -> None:
    """Its two products are loops of multiplications with few loads from shared memory."""
    kernels = compiled(tiled_kernels(arch), arch)
    assert len(kernels) == (3 if arch == 75 else 4)
    for expression, instructions in kernels.items():
        assert ("LDGSTS" in instructions) == (arch >= 80), expression
        products = [body for body in loops(instructions) if "FFMA" in body and "MUFU" not in body]
        assert len(products) == 2, expression
        for body in products:
            multiplied = len(re.findall(r"\bFFMA\b", body))
            assert multiplied > 0.74 * body.count(";"), expression  # 0.748 for sm_120 with NVRTC 13.0
            assert multiplied > (2.6 if ", 64>" in expression else 1.5) * words_from_shared(body), expression


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_fit_the_shared_memory_of_each_architecture(arch: int) -> None:
    """64 keys per iteration are used if two thread blocks fit an SM. The widest heads do not fit sm_75."""
    widths = [width for width in range(1, 129) if launches.has_tiled("float32", width, 64, arch)]
    assert widths == list(range(1, 97 if arch == 75 else 129))
    for width in widths:
        launch = launches.attention_tiled(width, 1, 1, 64, arch)
        of_two = 2 * (launch.shared + 1024) <= (MAX_SHARED[arch] + (arch >= 80)) * 1024
        assert launch.shared <= MAX_SHARED[arch] * 1024
        assert of_two or launch.kernel.expression.endswith("32>")


@pytest.mark.parametrize(("arch", "dtype"), TARGETS)
class TestKernels:
    def test_row_kernels_compile(self, arch: int, dtype: str) -> None:
        compiled(row_kernels(dtype), arch)

    def test_attention_loads_16_bytes(self, arch: int, dtype: str) -> None:
        for expression, instructions in compiled(attention_kernels(dtype), arch).items():
            assert wide_loads(instructions) >= 4, expression

    def test_splits_are_counted_by_one_fence_of_one_thread(self, arch: int, dtype: str) -> None:
        """A block that is alone does not count; the others fence in the one thread that counts, after the barrier."""
        for expression, instructions in compiled(attention_kernels(dtype), arch).items():
            fences = re.findall(r"\b(?:MEMBAR\.\w+\.GPU|ATOMG|BAR\.SYNC)", instructions)
            counted = ["BAR.SYNC", "MEMBAR.ALL.GPU", "ATOMG", "BAR.SYNC"]
            assert ("_decode" in expression) == bool(fences), expression
            assert arch < 80 or fences[-4:] in ([], counted), (expression, fences)

    def test_flash_runs_on_tensor_cores(self, arch: int, dtype: str) -> None:
        for expression, instructions in compiled(flash_kernels(dtype, arch), arch).items():
            assert len(re.findall(r"\bHMMA\.(16816|1688)\.F32", instructions)) >= 64, expression
            assert "LDSM" in instructions, expression
            assert ("LDGSTS" in instructions) == (arch >= 80), expression

    def test_products_run_on_tensor_cores_and_prefetch_weights(self, arch: int, dtype: str) -> None:
        for expression, instructions in compiled(tensor_kernels(dtype, arch), arch).items():
            assert len(re.findall(r"\bHMMA\.(16816|1688)\.F32", instructions)) >= 8, expression
            assert arch < 90 or prefetches_before_it_waits(expression, instructions), expression
            # the ring has four steps of one tile or three of two; all but the one that is multiplied are in flight
            steps = 3 if expression.endswith(", 2>") else 4
            ahead = distances(main_loop(instructions, "HMMA"), "HMMA", steps)
            assert ahead, expression
            assert min(ahead) >= steps - 1, (expression, ahead)

    def test_gemv_has_several_loads_of_16_bytes_in_flight(self, arch: int, dtype: str) -> None:
        rows = ROWS.get((arch, dtype), (1, 16))
        for expression, instructions in compiled(matvec_kernels(dtype, rows), arch).items():
            assert in_a_row(instructions) >= 4, expression
            assert arch < 90 or prefetches_before_it_waits(expression, instructions), expression


def test_a_spill_is_detected() -> None:
    """Control: a head that is too wide for the registers of the tensor-core kernel."""
    name = "attention_flash<__half, 512, 1>"
    assert compile_module("flash", (name,), 80).reports[name].spills > 0


def wide_loads(instructions: str) -> int:
    return len(re.findall(r"\bLDG\.E[.\w]*\.128", instructions))


def words_from_shared(instructions: str) -> int:
    """Return the number of 4-byte words that a lane loads from shared memory."""
    loads = re.findall(r"\bLDS(?:\.U)?(\.64|\.128)? R", instructions)
    return sum({"": 1, ".64": 2, ".128": 4}[width] for width in loads)


def prefetches_before_it_waits(expression: str, instructions: str) -> bool:
    """True if a product has issued eight loads of weights and prefetches before it waits for the preceding kernel."""
    before = instructions.partition("ACQBULK")[0]
    loads = wide_loads(before) + len(re.findall(r"\bLDGSTS\.E[.\w]*\.128", before))
    assert expression.startswith("head_") or "UBLKPF" in before, expression  # weights of the next product, if there is
    return loads >= 8 and re.search(r"\bCCTL\.E\.PF2", before) is not None


def in_a_row(instructions: str) -> int:
    """Return the largest number of 16-byte loads without a multiplication in between."""
    return max(wide_loads(stretch) for stretch in re.split(r"\bFFMA\b", instructions))


def test_the_report_names_every_kernel() -> None:
    result: Compiled = compile_module("rows", ("layer_norm<float>", "bias_gelu<double>"), 90)
    assert set(result.reports) == set(result.instructions) == {"layer_norm<float>", "bias_gelu<double>"}
