"""The safetensors file format, read through a memory map and written as a stream.

A file begins with the length of its JSON header, a little-endian u64. The header is followed by the bytes of the
tensors, without overlaps or holes. The header gives each tensor's `dtype`, `shape` and `data_offsets` [start, stop),
counted from the end of the header. This module decodes bfloat16 itself, because NumPy has no such dtype and the
safetensors package does not read it for NumPy.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bloomref.dtypes import DType
from bloomref.errors import BadWeights, InvalidInput, describe
from bloomref.formats.files import parse_json, regular_file
from bloomref.formats.recognise import AGAIN, SAFETENSORS, named_for_what_it_is
from bloomref.formats.staging import staged_file
from bloomref.shapes import Array

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
_PIECE = 1 << 18  # bytes: what is checked and converted at a time stays in the processor's cache
DTYPES: dict[str, DType] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a header; the offsets count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """Open file. Its arrays are read-only views of the memory map, and stay valid as long as they are referenced.

    Raises:
        BadWeights: when the header is damaged or hostile, naming the file and the tensor. Clause: WGT-11.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with regular_file(path).open("rb") as file, named_for_what_it_is(path, "a safetensors file", SAFETENSORS):
            size = os.fstat(file.fileno()).st_size
            header, begin = _read_header(file.read(8), file, size, path.name)
            self.entries = _entries(header, begin, size, path.name)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _second_opinion(path)

    def view(self, name: str) -> Array:
        """Return a tensor as a read-only array. Only a misaligned tensor is copied."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        array = np.frombuffer(self._map, dtype, math.prod(entry.shape), entry.start).reshape(entry.shape)
        return array if array.flags.aligned else _read_only(array.copy())

    def pieces(self, name: str) -> Iterator[Array]:
        """Yield a tensor as consecutive flat views. The memory of earlier chunks is released."""
        flat, begin = self.view(name).reshape(-1), self.entries[name].start
        released = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        step = _PIECE // flat.itemsize
        for start in range(0, flat.size, step):
            yield flat[start : start + step]
            stop = (begin + min(start + step, flat.size) * flat.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            # the pages stay in the file: a later read fetches them
            if stop > released and hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED, released, stop - released)
                released = stop


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _read_header(prefix: bytes, file: Any, size: int, name: str) -> tuple[dict[str, Any], int]:
    if len(prefix) < 8:
        raise BadWeights(describe(name, "a safetensors file", f"{size} bytes"))
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise BadWeights(describe(f"{name}: header", f"at most {MAX_HEADER_BYTES} bytes", f"{length} bytes"))
    start = file.read(min(length, size - 8))
    if length > size - 8:
        hint = f"the file is incomplete; {AGAIN}" if start.startswith(b"{") else ""
        raise BadWeights(describe(f"{name}: header", f"{length} bytes", f"the {size - 8} bytes of the file", hint))
    return parse_json(start, f"{name}: header"), 8 + length


def _entries(header: dict[str, Any], begin: int, size: int, name: str) -> dict[str, Entry]:
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadWeights(describe(f"{name}: __metadata__", "an object of strings", metadata))
    _check_complete(header, begin, size, name)
    entries = {key: _entry(value, begin, size, f"{name}: {key}") for key, value in header.items()}
    end = begin
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            problem = "overlaps the tensor before it" if entry.start < end else "leaves a hole before it"
            raise BadWeights(f"{name}: {key}: expected data from byte {end}, got {entry.start}: it {problem}")
        end = entry.stop
    if end != size:
        raise BadWeights(describe(name, f"a file of {end} bytes, the end of its last tensor", f"{size} bytes"))
    return entries


def _check_complete(header: dict[str, Any], begin: int, size: int, name: str) -> None:
    """Refuse a file that ends early: its header is right, and names more bytes than follow."""
    offsets: list[Any] = [value.get("data_offsets") if isinstance(value, dict) else None for value in header.values()]
    if not offsets or not all(_natural_numbers(pair) and len(pair) == 2 for pair in offsets):
        return
    spans = sorted(offsets)
    if all(before[1] == after[0] for before, after in pairwise([[0, 0], *spans])) and begin + spans[-1][1] > size:
        raise BadWeights(f"{name}: incomplete: {size} of {begin + spans[-1][1]} bytes; {AGAIN}")


def _entry(value: object, begin: int, size: int, name: str) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadWeights(describe(name, "dtype, shape and data_offsets", value))
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadWeights(describe(f"{name}: dtype", f"one of {', '.join(FLOATS)}", dtype))
    if not _natural_numbers(shape):
        raise BadWeights(describe(f"{name}: shape", "a list of integers >= 0", shape))
    if not _natural_numbers(offsets) or len(offsets) != 2:
        raise BadWeights(describe(f"{name}: data_offsets", "two integers >= 0", offsets))
    start, stop = begin + offsets[0], begin + offsets[1]
    if not start <= stop <= size:
        raise BadWeights(describe(f"{name}: data_offsets", f"a range within the file's {size - begin} bytes", offsets))
    if math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
        needed = math.prod(shape) * DTYPES[dtype].itemsize
        raise BadWeights(describe(name, f"{needed} bytes for {dtype} {shape}", f"{stop - start} bytes"))
    return Entry(dtype, tuple(shape), start, stop)


def _second_opinion(path: Path) -> None:
    """Refuse a file that the `safetensors` package refuses, even if it passes the checks of this module."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise BadWeights(f"{path.name}: expected a safetensors file, got {error}") from error


def _natural_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def write_safetensors(
    path: Path,
    arrays: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], object] | None = None,
) -> None:
    """Write a file atomically. At most one array at a time is copied, to make it contiguous. Clause: WGT-12.

    Args:
        path: the file to write.
        arrays: name -> array.
        metadata: strings for `__metadata__`; None: `{"format": "pt"}`, which transformers requires.
        advance: called with the number of bytes after each piece of at most 64 MiB that was written; None: no call.

    Raises:
        InvalidInput: for an array whose dtype the format does not have.
    """
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))  # wide first: all stay aligned
    with staged_file(path) as stage, stage.open("xb") as file:
        file.write(_header(arrays, {"format": "pt"} if metadata is None else metadata))
        for array in arrays.values():
            for chunk in _bytes(array):
                file.write(chunk)
                if advance is not None:
                    advance(len(chunk))


def _header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise InvalidInput(describe(name, f"a dtype of safetensors ({', '.join(DTYPES)})", array.dtype))
        stop = position + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor of a multiple of 8 bytes starts at one
    return len(text).to_bytes(8, "little") + text


def _bytes(array: Array) -> Iterable[memoryview]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    step = 1 << 26
    return (flat[start : start + step].data for start in range(0, flat.size, step))
