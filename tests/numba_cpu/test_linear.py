"""Packing and products against NumPy in float64, for every kind of weight and sizes that are no multiple of a tile."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from layout import as_rows, read_rows

from accel.numba_cpu import weight_packing
from accel.numba_cpu.isa import HAS_BF16_DOT, KC, NR
from accel.numba_cpu.linear import (
    FLOAT32,
    GELU,
    MC,
    PLAIN,
    RESIDUAL,
    SUMS,
    product,
)
from accel.numba_cpu.structs import Epilogue, PackedRows, Projection
from accel.numba_cpu.weight_packing import FORMATS, Format, pack, pack_bits
from bloomref.dtypes import cast

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KINDS = {
    "float32": (np.dtype(np.float32), FORMATS[np.dtype(np.float32)]),
    "float16": (np.dtype(np.float16), FORMATS[np.dtype(np.float16)]),
    "bfloat16, shifted": (BFLOAT16, Format(np.uint16, np.float32, np.uint16, False)),
    "bfloat16, pairs": (BFLOAT16, Format(np.uint16, np.uint16, np.uint16, True)),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
SIZES = [
    (1, 1, 1),
    (2, 33, 2),
    (3, 31, 5),
    (5, 70, 255),
    (13, 65, 256),
    (23, 32, 257),
    (24, 7, 511),
    (25, 97, 513),
    (37, 64, 700),
]


def multiply(kind, x, weight, bias, epilogue=PLAIN, base=None, threads=2):
    dtype, form = KINDS[kind]
    if form.paired and not HAS_BF16_DOT:
        pytest.skip("this processor, or BLOOMREF_NUMBA_ISA, has no product of bfloat16 pairs")
    (n, k), m = weight.shape, len(x)
    panels = np.empty((n + NR - 1) // NR * form.panel_elements(k), form.weight)
    pack_bits(np.ascontiguousarray(weight.astype(dtype)).view(form.weight), form, panels)
    rows = as_rows(form, x)
    width = weight_packing.up(n)
    out, following = np.full((m, width), np.nan, np.float32), np.full(form.row_elements(m, n), 7, form.rows)
    bias, base = np.pad(bias, (0, width - n)), out if base is None else np.pad(base, ((0, 0), (0, width - n)))
    sums = np.full((threads, SUMS), np.nan, np.float32)
    packed = Projection(panels, bias, n, form.steps(k))
    product(PackedRows(rows, m), packed, Epilogue(epilogue, base, FLOAT32), out, PackedRows(following, m), sums)
    return read_rows(form, following, m, n) if epilogue == GELU else out[:, :n]


def draw(kind, m, n, k, seed=0):
    """x, weight, bias: numbers of the weight's dtype."""
    rng, dtype = np.random.default_rng(seed), KINDS[kind][0]
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (n, k)))
    return x.astype(np.float32), weight, rng.standard_normal(n).astype(np.float32)


@EVERY_KIND
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_whole_numbers_are_exact(kind, m, n, k):
    """Sums of small whole numbers have no rounding: every element must be the exact one."""
    rng = np.random.default_rng(1)
    x, weight = rng.integers(-8, 9, (m, k)), rng.integers(-8, 9, (n, k))
    bias = rng.integers(-99, 100, n)
    got = multiply(kind, x, weight.astype(np.float32), bias.astype(np.float32))
    np.testing.assert_array_equal(got, x @ weight.T + bias)


@EVERY_KIND
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_product(kind, m, n, k):
    """Within the bound of a sum in any order: (terms + 1) units of the sum of absolute values."""
    x, weight, bias = draw(kind, m, n, k)
    wide = weight.astype(np.float64)
    got = multiply(kind, x, weight, bias)
    bound = (k + 1) * 2.0**-24 * (np.abs(x) @ np.abs(wide).T + np.abs(bias))
    assert (np.abs(got - (x @ wide.T + bias)) <= bound).all()


@EVERY_KIND
def test_epilogues(kind):
    """GELU of the sum with the bias; the base plus the sum with the bias."""
    x, weight, bias = draw(kind, 14, 45, 300)
    base = np.random.default_rng(9).standard_normal((14, 45)).astype(np.float32)
    plain = multiply(kind, x, weight, bias).astype(np.float64)
    np.testing.assert_allclose(multiply(kind, x, weight, bias, RESIDUAL, base), base + plain, rtol=0, atol=1e-5)
    gelu = 0.5 * plain * (1 + np.tanh(0.79788456 * plain * (1 + 0.044715 * plain**2)))
    got = multiply(kind, x, weight, bias, GELU)
    if KINDS[kind][1].paired:  # the rows of the next product are bfloat16
        assert (got == cast(got, BFLOAT16).astype(np.float32)).all()
        np.testing.assert_allclose(got, gelu, rtol=2.0**-8, atol=1e-5)
    else:
        np.testing.assert_allclose(got, gelu, rtol=0, atol=1e-5)


@EVERY_KIND
def test_a_row_does_not_depend_on_the_other_rows_nor_on_the_threads(kind):
    """Across every way in which rows are cut into tiles, and panels taken by one or two."""
    x, weight, bias = draw(kind, 61, 100, 2 * KC + 3)
    whole = multiply(kind, x, weight, bias)
    for rows in (1, 2, 3, 7, 12, 13, 23, 25, 60):
        assert multiply(kind, x[-rows:], weight, bias, threads=1).tobytes() == whole[-rows:].tobytes()


def test_more_rows_than_one_pass_takes():
    """Past MC rows the weights are read again."""
    x, weight, bias = draw("float32", 1100, 40, 9)
    np.testing.assert_allclose(multiply("float32", x, weight, bias), x @ weight.T + bias, rtol=0, atol=1e-5)


def test_no_pass_has_more_rows_than_its_sums_have_room():
    for m in range(1, 4 * MC):
        passes = max(1, (m + MC // 2) // MC)
        assert -(-m // passes) * NR <= SUMS


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
@pytest.mark.parametrize("n", [1, NR - 1, NR + 1, 4 * NR, 4 * NR + 1, 9 * NR + 3])
def test_pack_keeps_every_weight(kind, stored, n, monkeypatch):
    """Read back through a product with unit rows: also past the number of rows that are converted at a time."""
    monkeypatch.setattr(weight_packing, "CHUNK", 4 * NR * 3)
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    weight = np.random.default_rng(n).standard_normal((n, 3)).astype(stored)
    packed, form = pack(weight, None, dtype, np.dtype(np.float32)), FORMATS[dtype]
    rows, out = as_rows(form, np.eye(3, dtype=np.float32)), np.empty((3, weight_packing.up(n)), np.float32)
    sums = np.empty((2, SUMS), np.float32)
    product(PackedRows(rows, 3), packed, Epilogue(PLAIN, out, FLOAT32), out, PackedRows(rows, 3), sums)
    np.testing.assert_array_equal(out[:, :n].T, weight.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_pack_rounds_once(name):
    """A float64 just off the middle between two numbers of the dtype is exactly on it in float32."""
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    middle = 1.0 + (2.0**-8 if name == "bfloat16" else 2.0**-11)
    weight = np.array([[middle * (1 + 2.0**-40)], [middle * (1 - 2.0**-40)]])
    packed = pack(weight, weight[:, 0], dtype, dtype)
    assert packed.bias[:2].tolist() == [1.0 + (2.0**-7 if name == "bfloat16" else 2.0**-10), 1.0]
    bits = packed.panels.view(dtype).astype(np.float64)
    assert sorted(bits[bits != 0]) == sorted(packed.bias[:2].tolist())
