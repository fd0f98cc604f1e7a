"""The safetensors reader and writer against the package that defines the format."""

import json
import math
import mmap
import os
import re
from pathlib import Path
from typing import Any
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


def test_the_progress_of_a_write_counts_every_byte(tmp_path: Path) -> None:
    counts: list[int] = []
    write_safetensors(tmp_path / "x", {"a": np.ones(3), "b": np.ones(3, np.float16)}, advance=counts.append)
    assert counts == [24, 6]


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


# --- files written byte by byte ----------------------------------------------------------------------------------


def raw_file(path: Path, header: dict[str, Any], data: bytes, declared: int | None = None) -> Path:
    """A file of this header and data; `declared` replaces the header's length."""
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if declared is None else declared).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start], "data_offsets": [start, stop]}


@pytest.mark.clause("WGT-11")
@pytest.mark.parametrize(
    ("second", "problem"), [(entry(3, 7), "it overlaps the tensor before it"), (entry(5, 8), "it leaves a hole")]
)
def test_the_message_says_whether_tensors_overlap_or_leave_a_hole(tmp_path: Path, second: Any, problem: str) -> None:
    path = raw_file(tmp_path / "a", {"a": entry(0, 4), "b": second}, bytes(second["data_offsets"][1]))
    with pytest.raises(BadWeights, match=f"b: expected data from byte .*: {problem}"):
        SafetensorsFile(path)


@pytest.mark.clause("WGT-11")
@pytest.mark.parametrize("offsets", [[0], [0, 4, 8], [-4, 0], [0.0, 4.0], "04", [0, True]])
def test_offsets_are_two_integers(tmp_path: Path, offsets: Any) -> None:
    path = raw_file(tmp_path / "a", {"a": {"dtype": "U8", "shape": [4], "data_offsets": offsets}}, bytes(4))
    with pytest.raises(BadWeights, match="data_offsets: expected two integers >= 0"):
        SafetensorsFile(path)


@pytest.mark.clause("WGT-11")
def test_a_header_may_fill_the_file_but_not_exceed_it(tmp_path: Path) -> None:
    assert SafetensorsFile(raw_file(tmp_path / "a", {}, b"")).entries == {}
    with pytest.raises(BadWeights, match="expected 3 bytes, got the 2 bytes of the file; the file is incomplete"):
        SafetensorsFile(raw_file(tmp_path / "b", {}, b"", declared=3))
    (tmp_path / "c").write_bytes((3).to_bytes(8, "little") + b"[]")
    with pytest.raises(BadWeights, match=r"expected 3 bytes, got the 2 bytes of the file$"):
        SafetensorsFile(tmp_path / "c")


@pytest.mark.clause("WGT-14")
@pytest.mark.parametrize("lost", [1, 3, 6])
def test_only_a_right_header_proves_that_a_file_is_incomplete(tmp_path: Path, lost: int) -> None:
    whole = {"a": entry(0, 2), "b": entry(2, 3), "c": entry(3, 9)}
    with pytest.raises(BadWeights, match=r"a: incomplete: (\d+) of (\d+) bytes; download it again") as caught:
        SafetensorsFile(raw_file(tmp_path / "a", whole, bytes(9 - lost)))
    size, expected = (int(number) for number in re.findall(r"\d+", str(caught.value))[:2])
    assert (size, expected - size) == ((tmp_path / "a").stat().st_size, lost)
    gap = {"a": entry(0, 2), "b": entry(3, 8)}
    with pytest.raises(BadWeights, match="b: data_offsets"):
        SafetensorsFile(raw_file(tmp_path / "b", gap, bytes(8 - lost)))
    assert SafetensorsFile(raw_file(tmp_path / "c", {"a": entry(0, 2), "b": entry(2, 2)}, bytes(2))).entries


def test_a_misaligned_tensor_is_read_only_too(tmp_path: Path) -> None:
    values = np.arange(3, dtype="<f4")
    header = {"a": entry(0, 1), "b": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]}}
    view = SafetensorsFile(raw_file(tmp_path / "a", header, b"\1" + values.tobytes())).view("b")
    np.testing.assert_array_equal(view, values)
    assert view.flags.aligned
    assert not view.flags.writeable


class RecordingMap(mmap.mmap):
    """A memory map that records the ranges whose memory is released."""

    released: list[tuple[int, int]]

    def madvise(self, option: int, start: int, length: int) -> None:  # type: ignore[override]
        assert option == mmap.MADV_DONTNEED
        self.released.append((start, start + length))


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system cannot release pages of a map")
def test_pieces_release_whole_pages_that_have_been_read_and_no_others(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {"a": np.ones(100, np.float32), "b": np.arange(300_000, dtype=np.float32)})
    file = SafetensorsFile(tmp_path / "a")
    with (tmp_path / "a").open("rb") as descriptor:
        file._map = RecordingMap(descriptor.fileno(), 0, access=mmap.ACCESS_READ)
    file._map.released = []
    tensor, read, parts = file.entries["b"], 0, []
    for piece in file.pieces("b"):
        assert all(stop <= tensor.start + read for _, stop in file._map.released)
        read += piece.nbytes
        parts.append(piece)
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(300_000, dtype=np.float32))
    starts, stops = zip(*file._map.released, strict=True)
    assert len(parts) > 2
    assert starts[0] == -(-tensor.start // mmap.PAGESIZE) * mmap.PAGESIZE
    assert starts[1:] == stops[:-1]
    assert stops[-1] == tensor.stop // mmap.PAGESIZE * mmap.PAGESIZE


def test_wide_tensors_are_written_first_so_that_all_are_aligned(tmp_path: Path) -> None:
    arrays = {"a": np.ones(3, np.uint8), "b": np.ones(3, np.float16), "c": np.ones(3, np.float64)}
    write_safetensors(tmp_path / "a", arrays)
    entries = SafetensorsFile(tmp_path / "a").entries
    assert sorted(entries, key=lambda name: entries[name].start) == ["c", "b", "a"]
    assert all(entries[name].start % arrays[name].itemsize == 0 for name in arrays)


@pytest.mark.clause("WGT-11")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 28]}, "expected 24 bytes for F32 [2, 3], got 20 bytes"),
        ({"dtype": "U8", "shape": [40], "data_offsets": [0, 40]}, "expected a range within the file's 28 bytes, got"),
    ],
)
def test_messages_about_sizes_count_from_the_data(tmp_path: Path, tensor: Any, message: str) -> None:
    path = raw_file(tmp_path / "a", {"a": entry(0, 8), "b": tensor}, bytes(28))
    with pytest.raises(BadWeights, match=re.escape(message)):
        SafetensorsFile(path)


def test_a_header_is_written_as_compact_utf_8(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", {"é": np.ones(1, np.uint8)}, {})
    expected = '{"__metadata__":{},"é":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode()
    assert (tmp_path / "a").read_bytes()[8:].startswith(expected)
