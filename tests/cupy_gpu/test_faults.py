"""Known mistakes in the kernels, each an edit of their source.

A problem that the correct source passes must detect each of them.

Barriers, waits and fences are removed, lanes and columns are off by one, a split or a mask is ignored. A mistake is
detected if, for some order of thread blocks and threads, the error exceeds the budget or a rule of the emulator is
broken.
"""

from dataclasses import dataclass

import pytest
from attention_problem import Attention
from budget import check
from emulated_device import EmulatedDevice
from matvec_problems import Down, Head, Up
from problem import Problem
from row_problems import Activation, Norm, Projection, Residual
from tensor_problems import Product

from accel.cupy_gpu import sources

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Args:
        name: Description.
        module: Module of the kernel.
        old, new: Text of the source, and its replacement.
        problem: Problem that detects the mistake.
        count: Number of occurrences that are replaced, 0 for all.
    """

    name: str
    module: str
    old: str
    new: str
    problem: Problem
    count: int = 0

    def plant(self, text: str) -> str:
        return text.replace(self.old, self.new, self.count or -1)


ROWS = Attention("float32", 5, "rows", 2, 80, 2, 9, 30, "holes")
FLASH = Attention("bfloat16", 5, "flash", 3, 80, 1, 130, 70, "holes")
ONE_STAGE = Attention("float16", 5, "flash", 3, 64, 1, 100, 40, "real")
TILED = Attention("float32", 5, "tiled", 3, 80, 2, 130, 70, "holes")
TILED_DENSE = Attention("float32", 5, "tiled", 2, 64, 1, 150, 100)
TILED_RAGGED = Attention("float32", 5, "tiled", 1, 33, 1, 70, 0)
DECODE = Attention("float16", 5, "decode", 3, 96, 2, 1, 250, "left", 16, "float32")
ONE_SPLIT = Attention("bfloat16", 5, "decode", 3, 64, 2, 1, 40, "left", 16, "float32")
GROUPS = Attention("float16", 5, "rows", 2, 64, 2, 9, 30, "holes")  # four keys at a time
SEVERAL_LOADS = Attention("float32", 5, "rows", 1, 160, 1, 9, 30)
UP, MANY_ROWS = Up("bfloat16", 5, 1, 1000, 56), Up("float16", 5, 13, 264, 56)
DOWN = Down("bfloat16", 5, 2, 2048, 56, 132, True)
LONG, MORE = Up("bfloat16", 5, 1, 5000, 56, 1), Up("bfloat16", 5, 1, 264, 600, 1)
TENSOR = Product("bfloat16", 5, "residual", 37, 1000, 50)
LONG_TENSOR, MORE_TENSOR = (
    Product("bfloat16", 5, "gelu", 20, 1000, 300, 1),
    Product("bfloat16", 5, "gelu", 20, 40, 2200, 1),
)
HEAD = Head("bfloat16", 5, 3, 264, 129)
GROUPS_UP, GROUPS_HEAD = Up("float32", 5, 17, 40, 24), Head("float32", 5, 17, 40, 24)
GROUPS_DOWN = Down("float16", 5, 33, 40, 24, 4, True)
GROUPS_QKV = Projection("float32", 5, 5, 7, 2, 8, 2, True)  # only the first group begins with a sequence
QKV = Projection("bfloat16", 5, 3, 1, 3, 80, 2, True)
SPLIT = Projection("float16", 5, 2, 3, 3, 20, 2)
NORM, RAGGED = Norm("float32", 5, 3, 264), Norm("bfloat16", 5, 3, 41)

FAULTS = (
    Fault("no barrier before the sums of the warps are read", "rows", "    __syncthreads();\n", "", NORM, 1),
    Fault("no barrier before the sums of the warps are written again", "rows", "    __syncthreads();  // the s", "    // the s", NORM),
    Fault("a sum without its last lanes", "rows", "lane = WARP / 2; lane > 0", "lane = WARP / 2; lane > 1", NORM),
    Fault("a tail that enters the variance", "rows", "k + j < width ? part[j] - mean[r] : A(0)", "part[j] - mean[r]", RAGGED),
    Fault("the unbiased variance", "rows", "inverse[r] / width", "inverse[r] / (width - 1)", NORM),
    Fault("epsilon forgotten", "rows", " + A(epsilon)", "", Norm("float32", 5, 3, 264, True)),
    Fault("a rounded GELU constant", "rows", "0.044715", "0.0447", Activation("float32", 5)),
    Fault("the post-layernorm residual ignored", "rows", "if (ln_weight) residual", "if (false) residual", Residual("bfloat16", 5, post_norm=True)),
    Fault("queries, keys and values in three blocks", "rows", "head(n / (3 * head_width)), part(n / head_width % 3)", "head(n / head_width % 3), part(n / (3 * head_width))", SPLIT),
    Fault("the cache written one column late", "rows", "column = *start + blockIdx.x % time", "column = *start + 1 + blockIdx.x % time", SPLIT),
    Fault("the query sees the next column", "attention", "view.column + 1;\n    const auto state", "view.column + 2;\n    const auto state", ROWS),
    Fault("the query does not see itself", "attention", "view.column + 1;\n    const auto state", "view.column;\n    const auto state", ROWS),
    Fault("the mask of the keys forgotten", "attention", "visible[u] = key < last && !(view.is_real && !view.is_real[key])", "visible[u] = key < last", ROWS),
    Fault("a query in padding that attends", "attention", "return is_real && !is_real[column]", "return false", ROWS),
    Fault("the mask of another row", "attention", "is_real + size_t(batch) * capacity", "is_real", ROWS),
    Fault("the distance of the first key of each group", "attention", "+ group - view.column", "- view.column", GROUPS),
    Fault("lane groups not merged", "attention", "lanes < WARP; lanes *= 2", "lanes < WARP / 2; lanes *= 2", GROUPS),
    Fault("the sum not rescaled to the new running max", "attention", "sum[i] *= factor", "sum[i] *= 1", ROWS),
    Fault("only the first chunk of each lane", "attention", "if (visible[u] && k < view.stride)", "if (visible[u] && c == 0)", SEVERAL_LOADS),
    Fault("a split lost", "attention", "count = min(WARP, splits - base)", "count = min(WARP, splits - base) - 1", DECODE),
    Fault("keys per split rounded down", "attention", "keys_per_split = (visible + splits - 1) / splits", "keys_per_split = visible / splits", DECODE),
    Fault("no barrier before the warps are merged", "attention", "    __syncthreads();\n\n    const auto store", "    const auto store", DECODE),
    Fault("merged before the last block has finished", "attention", "== splits - 1", "== splits - 2", DECODE),
    Fault("the weight of a split that does not exist", "attention", "base + lane < splits ? expf(part[0] - peak) : 0.f", "expf(part[0] - peak)", DECODE),
    Fault("one split, not written", "attention", "            store(k, merged.z / merged.y);\n", "", ONE_SPLIT),
    Fault("one split, not divided by its total", "attention", "store(k, merged.z / merged.y)", "store(k, merged.z)", ONE_SPLIT),
    Fault("the arrival counter not reset", "attention", "arrival_counter[pair] = 0", "(void)0", DECODE),
    Fault("copies not waited for", "flash", "wait_for_copies<STAGES - 1>();", "", FLASH),
    Fault("the wait one group short", "flash", "wait_for_copies<STAGES - 1>()", "wait_for_copies<STAGES>()", FLASH),
    Fault("no barrier after the copies", "flash", "        wait_for_copies<STAGES - 1>();\n        __syncthreads();", "        wait_for_copies<STAGES - 1>();", FLASH),
    Fault("tiles overwritten while they are read", "flash", "        __syncthreads();  // the tiles", "        // the tiles", FLASH),
    Fault("key rows of the wrong lanes", "flash", "lane % 8 + lane / 16 * 8", "lane % 8 + lane / 8 % 2 * 8", FLASH),
    Fault("values not transposed", "flash", "load_matrices_transposed(b", "load_matrices(b", FLASH),
    Fault("halves of the probabilities exchanged", "flash", "pack<T>(low[2], low[3]), pack<T>(high[0], high[1])", "pack<T>(high[0], high[1]), pack<T>(low[2], low[3])", FLASH),
    Fault("the diagonal left out", "flash", "key > column[e / 2] ||", "key >= column[e / 2] ||", FLASH),
    Fault("whole tiles taken one too far", "flash", "first_column + warp * 16 + 1;", "first_column + warp * 16 + 65;", ONE_STAGE),
    Fault("the start of the cache ignored", "flash", "first_column = start + t", "first_column = t", FLASH),
    Fault("the padding of the head width not zero", "flash", "key >= last || k >= stride", "key >= last", Attention("bfloat16", 5, "flash", 2, 33, 1, 70, 9, spare=0)),
    Fault("the slope not in powers of two", "flash", "slopes[head] * LOG2_E", "slopes[head]", FLASH),
    Fault("the wrong lanes hold a query's peak", "flash", "__shfl_xor_sync(ALL_LANES, x, 2));\n}\n__device__ __forceinline__ float sum", "__shfl_xor_sync(ALL_LANES, x, 4));\n}\n__device__ __forceinline__ float sum", FLASH),
    Fault("a shared tile too small", "flash", "constexpr int PITCH = WIDTH + 8;", "constexpr int PITCH = WIDTH + 16;", FLASH),
    Fault("rows of a tile not on 16 bytes", "flash", "constexpr int PITCH = WIDTH + 8;", "constexpr int PITCH = WIDTH + 2;", FLASH),
    Fault("keys not waited for", "tiled", "wait_for_copies<0>();\n        __syncthreads();  // the keys", "__syncthreads();  // the keys", TILED),
    Fault("values not waited for", "tiled", "wait_for_copies<0>();\n        __syncthreads();  // the values", "__syncthreads();  // the values", TILED),
    Fault("no barrier before the keys are read", "tiled", "__syncthreads();  // the keys", "// the keys", TILED),
    Fault("no barrier before the values are read", "tiled", "__syncthreads();  // the values", "// the values", TILED),
    Fault("the same keys again", "tiled", "(key_tile, keys, head_stride, first + KEYS", "(key_tile, keys, head_stride, first", TILED),
    Fault("a tile of keys that is not swizzled", "tiled", "SWIZZLED ? k ^ swizzle<WIDTH>(row) : k", "k", TILED),
    Fault("the future is seen", "tiled", "exists && of <= column + 8 * i", "exists", TILED),
    Fault("the mask of the keys forgotten by tiles", "tiled", "exists && of <= column + 8 * i", "of <= column + 8 * i", TILED),
    Fault("a tile at the diagonal taken for the past", "tiled", "first_column + 1)", "first_column + QUERIES)", TILED_DENSE),
    Fault("one distance for all keys of a lane", "tiled", "LANES_PER_QUERY * j - 8 * i", "-8 * i", TILED_DENSE),
    Fault("the sums not rescaled to the new running max", "tiled", "sum[i][m] *= factor", "sum[i][m] *= 1", TILED_DENSE),
    Fault("the totals not rescaled to the new running max", "tiled", "total[i] *= factor", "total[i] *= 1", TILED_DENSE),
    Fault("the running max of half the lanes", "tiled", "lanes < WARP; lanes *= 2) new_max", "lanes < WARP / 2; lanes *= 2) new_max", TILED_DENSE),
    Fault("totals of half the lanes", "tiled", "lanes < WARP; lanes *= 2) all", "lanes < WARP / 2; lanes *= 2) all", TILED_DENSE),
    Fault("a query in padding that sums values", "tiled", "is_real && !is_real[first_column + query_row]", "false", TILED),
    Fault("the mask of the first row for all", "tiled", "is_real += size_t(batch) * capacity", "(void)0", TILED),
    Fault("queries beyond the last", "tiled", "query_row >= count", "query_row > count", TILED_RAGGED),
    Fault("channels beyond the head", "tiled", "if (k < head_width) context", "context", TILED_RAGGED),
    Fault("no barrier before the sums of the tiles are read", "tensor", "            __syncthreads();\n            for (int i", "            for (int i", TENSOR),
    Fault("no barrier before the next tiles", "tensor", "            __syncthreads();  // the scratch", "            // the scratch", MORE_TENSOR),
    Fault("a warp's share of the tiles lost", "tensor", "part < splits; ++part", "part < splits - 1; ++part", TENSOR),
    Fault("the last step of the tiles left out", "tensor", "if (step >= width) break;", "if (step + STEP >= width) break;", TENSOR),
    Fault("the weights of a step taken for the next", "tensor", "load_16(weights.place(d, t, 0))", "load_16(weights.place(0, t, 0))", TENSOR),
    Fault("weights of a later step loaded too early", "tensor", "weights.copy(step + turn", "weights.copy(step + weights.apart", LONG_TENSOR),
    Fault("the first weights of further tiles forgotten", "tensor", "            weights.copy_first();\n        }", "        }", MORE_TENSOR),
    Fault("the wait for a step one group short", "tensor", "wait_for_copies<DEPTH<TILES> - 1>()", "wait_for_copies<DEPTH<TILES>>()", LONG_TENSOR),
    Fault("a later step copied before the last use", "tensor", "wait_for_copies<DEPTH<TILES> - 1>();", "wait_for_copies<DEPTH<TILES> - 1>();\n            weights.copy(step + turn, d);", LONG_TENSOR),
    Fault("halves of a load exchanged in one factor", "tensor", "left, b.x, b.y", "left, b.z, b.w", TENSOR),
    Fault("the upper half of a tile of weights twice", "tensor", "{low[t].x, high[t].x, low[t].y, high[t].y}", "{high[t].x, high[t].x, high[t].y, high[t].y}", TENSOR),
    Fault("sums of the wrong outputs", "tensor", "lane / 4 + i / 2 % 2 * 8", "lane / 4 * 2 + i / 2 % 2", TENSOR),
    Fault("outputs beyond the last one", "tensor", "row < rows && output < outputs", "row < rows", TENSOR),
    Fault("no barrier before the products are summed", "matvec", "        }\n        __syncthreads();\n        for (int i", "        }\n        for (int i", UP),
    Fault("no barrier before the next products", "matvec", "        __syncthreads();  // the scratch", "        // the scratch", MORE),
    Fault("a warp's share of the products lost", "matvec", "part < splits; ++part", "part < splits - 1; ++part", UP),
    Fault("the last load of a row left out", "matvec", "if (k >= lane.width) break;", "if (k + N >= lane.width) break;", UP),
    Fault("weights of a later turn loaded too early", "matvec", "lane.load(k + TURNS * lane.apart", "lane.load(k + lane.apart", LONG),
    Fault("the first weights of further outputs forgotten", "matvec", "(matrix, base + apart);", "(matrix, base);", MORE),
    Fault("row 8 onwards left out", "matvec", "if (r >= rows) break;\n                float x[N]", "if (r >= rows || r >= 8) break;\n                float x[N]", MANY_ROWS),
    Fault("the last outputs left out", "matvec", "row < rows && n < outputs", "row < rows && n + 4 < outputs", UP),
    Fault("outputs beyond the last", "matvec", "row < rows && n < outputs", "row < rows", HEAD),
    Fault("the moments of row 0 for all", "matvec", "value - moments[row]", "value - moments[0]", QKV),
    Fault("keys and values exchanged", "matvec", "to.part == 1 ? keys : values", "to.part == 2 ? keys : values", QKV),
    Fault("the residual not normalised", "matvec", "return ln_weight ? normed(value, row, ln_weight[n], ln_bias[n]) : value", "return value", DOWN),
    Fault("the rows of the first group for all", "matvec", "from = x + size_t(group.first) * width", "from = x", GROUPS_UP),
    Fault("a last group as large as the others", "matvec", "min(each, rows - first)", "each", GROUPS_HEAD),
    Fault("groups rounded down", "matvec", "(rows + groups - 1) / groups", "rows / groups", GROUPS_UP),
    Fault("every group's results in the place of the first", "matvec", "to = out + skipped", "to = out", GROUPS_DOWN),
    Fault("the residual of the first group for all", "matvec", "(x + skipped, ln_weight", "(x, ln_weight", GROUPS_DOWN),
    Fault("the input of the first group for all", "matvec", "{in + size_t(group.first) * width, width}", "{in, width}", GROUPS_DOWN),
    Fault("positions counted within a group", "matvec", "row = group.first + r", "row = r", GROUPS_QKV),
    Fault("the sequence counted within a group", "matvec", "row / time, *start", "r / time, *start", GROUPS_QKV),
    Fault("the best tokens of the first group for all", "matvec", "size_t(group.first + threadIdx.x)", "size_t(threadIdx.x)", GROUPS_HEAD),
    Fault("the highest of equal tokens", "matvec", "token < other_token", "token > other_token", HEAD),
    Fault("forbidden tokens are chosen", "matvec", "!(forbidden && forbidden[n])", "true", HEAD),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_known_mistake_is_detected(emulator: type[EmulatedDevice], fault: Fault) -> None:
    assert fault.old in sources.source(fault.module)
    check(fault.problem, emulator())
    with pytest.raises(AssertionError):  # noqa: PT012  # any order of threads may be the one that detects it
        for seed in SEEDS:
            check(fault.problem, emulator(seed=seed, change=fault.plant))
