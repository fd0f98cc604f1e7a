"""The safetensors reader and writer against the package that defines the format."""

import json
import math
import os
from pathlib import Path
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bloomref.errors import BadWeights, InvalidInput
from bloomref.formats.arrays import check_finite, common_dtype, convert, is_narrower
from bloomref.formats.safetensors_io import DTYPES, SafetensorsFile, write_safetensors

FLOATS = [np.dtype(name) for name in ("float64", "float32", "float16", ml_dtypes.bfloat16)]


def values(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    return (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), unique=True, max_size=5))
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    kinds = st.sampled_from(list(DTYPES.values()))
    named = [name for name in names if name != "__metadata__"]
    return {name: values(draw(shapes), draw(kinds), draw(st.integers(0, 99))) for name in named}


@pytest.mark.clause("WGT-6")
@given(arrays=tensors())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, arrays, {"made": "here"})
    ours = SafetensorsFile(path)
    assert ours.entries.keys() == arrays.keys()
    with safe_open(path, framework="np") as theirs:
        assert theirs.metadata() == {"made": "here"}
        for name, array in arrays.items():
            read = ours.view(name)
            assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert tuple(theirs.get_slice(name).get_shape()) == array.shape
            if array.dtype != ml_dtypes.bfloat16:
                assert theirs.get_tensor(name).tobytes() == array.tobytes()


@given(arrays=tensors())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_package_writes_is_read_bit_for_bit(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {name: array for name, array in arrays.items() if array.dtype != ml_dtypes.bfloat16}
    save_file(arrays, path)
    ours = SafetensorsFile(path)
    assert {name: ours.view(name).tobytes() for name in ours.entries} == {n: x.tobytes() for n, x in arrays.items()}


def test_non_contiguous_arrays_are_written_in_row_order(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    write_safetensors(tmp_path / "x", {"a": array, "b": array[::2, :, ::-1]})
    read = load_file(tmp_path / "x")
    np.testing.assert_array_equal(read["a"], array)
    np.testing.assert_array_equal(read["b"], array[::2, :, ::-1])


def test_views_share_the_map_and_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"a": np.arange(200_000.0), "b": np.ones(3, np.float16)})
    file = SafetensorsFile(path)
    view = file.view("a")
    assert np.shares_memory(view, file.view("a"))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    np.testing.assert_array_equal(np.concatenate(list(file.pieces("a"))), view)
    del file
    path.unlink()
    np.testing.assert_array_equal(view, np.arange(200_000.0))


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"a": np.zeros(3)})
    before = path.read_bytes()
    with (
        patch("bloomref.formats.safetensors_io._bytes", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        write_safetensors(path, {"a": np.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


def test_dtypes_that_the_format_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="scores"):
        write_safetensors(tmp_path / "x", {"scores": np.zeros(3, complex)})
    assert not os.listdir(tmp_path)


def test_the_second_opinion_is_heard(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 5)
    module = "bloomref.formats.safetensors_io._entries"
    with patch(module, return_value={}), pytest.raises(BadWeights, match="safetensors file"):
        SafetensorsFile(tmp_path / "x")


@pytest.mark.clause("WGT-6")
@pytest.mark.parametrize("source", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("target", FLOATS, ids=lambda d: d.name)
def test_conversion_rounds_once_to_nearest_even(source: np.dtype, target: np.dtype) -> None:
    rng = np.random.default_rng(7)
    largest = min(float(ml_dtypes.finfo(d).max) for d in (source, target))
    array = (rng.standard_normal(300_000) * 10.0 ** rng.integers(-9, 4, 300_000)).clip(-largest / 2, largest / 2)
    array = array.astype(source)
    converted = convert(np.array_split(array, 7), (300, 1000), target, "x")
    assert (converted.dtype, converted.shape) == (target, (300, 1000))
    wide = array.astype(np.float64)
    exact = converted.reshape(-1).astype(np.float64)
    spacing = np.spacing(np.abs(wide).astype(np.float32 if target.itemsize == 2 else target)).astype(np.float64)
    if not is_narrower(target, source) and target.itemsize > source.itemsize:
        np.testing.assert_array_equal(exact, wide)
    bits = {"float16": 13, "bfloat16": 16}.get(target.name, 0)
    normal = np.abs(wide) > 1e-4
    assert np.all(np.abs(exact - wide)[normal] <= spacing[normal] * 2**bits / 2)


@given(
    dtype=st.sampled_from(FLOATS),
    size=st.integers(1, 400_000),
    where=st.floats(0, 1, exclude_max=True),
    bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
)
@settings(max_examples=50)
def test_one_number_that_is_not_finite_is_found_anywhere(dtype: np.dtype, size: int, where: float, bad: float) -> None:
    array = np.full(size, ml_dtypes.finfo(dtype).max, dtype)
    check_finite(array, "w")
    array[int(where * size)] = bad
    with pytest.raises(BadWeights, match=r"^w: expected finite numbers, got -?(nan|inf)$"):
        check_finite(array, "w")


def test_common_dtype_holds_all() -> None:
    half, brain, single, double = (np.dtype(n) for n in ("float16", ml_dtypes.bfloat16, "float32", "float64"))
    assert common_dtype([half, half]) == half
    assert common_dtype([brain]) == brain
    assert common_dtype([half, brain]) == single
    assert common_dtype([brain, single]) == single
    assert common_dtype([half, double, single]) == double
