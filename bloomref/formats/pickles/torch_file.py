"""Tensors in a file of `torch.save`, read through a memory map by a reader that runs no code of the file.

Since version 1.6, torch writes a ZIP file: `NAME/data.pkl` describes the tensors, and `NAME/data/KEY` has the bytes of
one storage, uncompressed. Before, it wrote five pickles (a magic number, a version, facts of the machine, the
description, the keys of the storages), then each storage as its number of elements, a little-endian i64, and its bytes.
A tensor is a view of a storage: offset, shape and strides, all counted in elements. Clauses: WGT-30, WGT-31.
"""

import math
import mmap
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bloomref.dtypes import DType
from bloomref.errors import BadWeights, Unsupported, describe
from bloomref.formats.files import regular_file
from bloomref.formats.pickles.pickle_machine import MAX_BYTES, Call, Rules, read_pickle
from bloomref.formats.pickles.torch_zip import Member, members
from bloomref.formats.recognise import PICKLE, named_for_what_it_is
from bloomref.shapes import Array

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
_VERSION = 1001
_DTYPES: dict[str, DType] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class Storage:
    """Flat numbers of a file, of which tensors are views."""

    key: str
    dtype: DType
    size: int


@dataclass(frozen=True)
class Tensor:
    """View of a storage. Offset and strides are counted in elements; the view is inside the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class TorchFile:
    """Open file. Only the descriptions of the tensors are read at once.

    Args:
        path: the file.
        inert: True: unknown classes are read as `Inert` values; False: they are refused.

    Raises:
        BadWeights: when the file is damaged or hostile, or has more than tensors.
        Unsupported: for a TorchScript or an older archive, and for numbers of a big-endian machine.
    """

    path: Path
    inert: bool = False
    value: Any = field(init=False)
    """The saved object, with `Tensor`s in the place of tensors."""

    def __post_init__(self) -> None:
        self._storages: dict[str, Storage] = {}
        self._checked: set[str] = set()
        with (
            regular_file(self.path).open("rb") as file,
            named_for_what_it_is(self.path, "a file of torch.save", PICKLE),
        ):
            start = file.read(4)
            if start != b"PK\3\4" and start[:1] != b"\x80":
                raise BadWeights(describe(self.path.name, "a file of torch.save", f"one that begins with {start!r}"))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            is_zip = start == b"PK\3\4"
            self._places = self._open_zip(members(file, self._map, self.path.name)) if is_zip else self._open_legacy()

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of a file that has a dict of tensors, by name.

        Raises:
            BadWeights: when the file has something else.
        """
        if type(self.value) is not dict or not self.value:
            raise BadWeights(describe(self.path.name, "a dict of tensors", type(self.value).__name__))
        for name, value in self.value.items():
            if type(name) is not str or not isinstance(value, Tensor):
                raise BadWeights(f"{self.path.name}: {name!r:.80}: expected a tensor, got {type(value).__name__}")
        return dict(self.value)

    def view(self, tensor: Tensor) -> Array:
        """Numbers of a tensor: a read-only view of the memory map.

        Raises:
            BadWeights: when the checksum of its storage is wrong.
        """
        place, dtype = self._places[tensor.storage.key], tensor.storage.dtype
        if place.checksum and place.name not in self._checked:
            with memoryview(self._map) as content:
                if zlib.crc32(content[place.start : place.stop]) != place.checksum:
                    raise BadWeights(f"{self.path.name}: {place.name!r:.80}: expected its checksum, got damaged data")
            self._checked.add(place.name)
        start = place.start + tensor.offset * dtype.itemsize
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        return np.ndarray(tensor.shape, dtype, self._map, start, strides)

    def release(self) -> None:
        """Give the memory of the pages that were read back to the system; they stay in the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    # --- the two formats -----------------------------------------------------------------------------------------

    def _open_zip(self, entries: dict[str, Member]) -> dict[str, Member]:
        if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
            raise Unsupported(f"{self.path.name}: expected weights, got a TorchScript program; save its state_dict()")
        if "data.pkl" not in entries:
            raise BadWeights(f"{self.path.name}: expected the member data.pkl of torch.save, got {len(entries)} others")
        order = self._content(entries["byteorder"]) if "byteorder" in entries else b"little"
        self._check_order(order == b"little")
        self.value, _ = self._pickle(self._content(entries["data.pkl"]))
        places: dict[str, Member] = {}
        for key, storage in self._storages.items():
            place = entries.get(f"data/{key}")
            if place is None or place.stop - place.start != storage.size * storage.dtype.itemsize:
                got = "no such member" if place is None else f"{place.stop - place.start} bytes"
                expected = f"{storage.size} numbers of {storage.dtype.name}"
                raise BadWeights(describe(f"{self.path.name}: storage {key!r:.40}", expected, got))
            places[key] = place
        return places

    def _content(self, member: Member) -> bytes:
        if member.stop - member.start > MAX_BYTES:
            size = f"{member.stop - member.start} bytes"
            raise BadWeights(describe(f"{self.path.name}: {member.name}", f"at most {MAX_BYTES} bytes", size))
        content = self._map[member.start : member.stop]
        if member.checksum and zlib.crc32(content) != member.checksum:
            raise BadWeights(f"{self.path.name}: {member.name}: expected its checksum, got damaged data")
        return content

    def _open_legacy(self) -> dict[str, Member]:
        position = 0

        def following() -> Any:
            nonlocal position
            value, length = self._pickle(self._map[position : position + MAX_BYTES])
            position += length
            return value

        for expected in (_MAGIC, _VERSION):
            number = following()
            if type(number) is not int or number != expected:
                raise BadWeights(describe(self.path.name, "a file of torch.save", "another pickle"))
        facts = following()
        self._check_order(type(facts) is dict and facts.get("little_endian") is True)
        self.value, keys = following(), following()
        names_storages = type(keys) is list and all(type(key) is str for key in keys)
        if not names_storages or len(set(keys)) != len(keys) or set(keys) != set(self._storages):
            raise BadWeights(f"{self.path.name}: expected the keys of its {len(self._storages)} storages, got others")
        places: dict[str, Member] = {}
        for key in keys:
            storage = self._storages[key]
            start, stop = position + 8, position + 8 + storage.size * storage.dtype.itemsize
            if stop > len(self._map) or int.from_bytes(self._map[position:start], "little") != storage.size:
                raise BadWeights(
                    describe(
                        f"{self.path.name}: storage {key!r:.40}",
                        f"{storage.size} numbers of {storage.dtype.name}",
                        f"a file of {len(self._map)} bytes, cut or damaged",
                    )
                )
            places[key] = Member(key, start, stop, 0)
            position = stop
        return places

    def _check_order(self, is_little: bool) -> None:
        if not is_little:
            raise Unsupported(f"{self.path.name}: expected numbers in little-endian order, got another order")

    # --- what a pickle may name ----------------------------------------------------------------------------------

    def _pickle(self, data: bytes) -> tuple[Any, int]:
        return read_pickle(data, Rules(_NAMES, self._storage, self.inert), self.path.name)

    def _storage(self, identifier: Any) -> Storage:
        """Storage of a persistent id: ("storage", type, key, device, size), in the older format with a sixth value."""
        fields = identifier if type(identifier) is tuple and len(identifier) in (5, 6) else (None,) * 5
        marker, kind, key, device, size, *view = fields
        texts = all(type(text) is str for text in (marker, key, device))
        if not texts or marker != "storage" or not _is_natural(size) or view not in ([], [None]):
            raise BadWeights(f"{self.path.name}: expected the reference to a storage, got another persistent id")
        if not isinstance(kind, np.dtype) or device == "meta":
            problem = "a tensor without data" if device == "meta" else "another type of numbers"
            raise BadWeights(f"{self.path.name}: expected a storage of one of {', '.join(_DTYPES)}, got {problem}")
        storage = Storage(key, kind, size)
        if self._storages.setdefault(key, storage) != storage:
            raise BadWeights(f"{self.path.name}: expected one size and type for storage {key!r:.40}, got two")
        return storage


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata)`.

    A tensor has at most as many elements as its storage: a stride of 0 would make a small file fill the memory.
    """
    storage, offset, shape, strides = arguments[:4] if 4 <= len(arguments) <= 7 else (None,) * 4
    if not isinstance(storage, Storage) or not _is_natural(offset) or not (_is_shape(shape) and _is_shape(strides)):
        raise ValueError("expected a storage, an offset, a shape and strides, got something else")
    if len(shape) != len(strides) or arguments[6:] not in ((), (None,)):
        raise ValueError("expected one stride for each axis and no other facts, got something else")
    # the stride of an axis of length 1 has no effect, and may be any number
    strides = tuple(stride if length > 1 else 0 for length, stride in zip(shape, strides, strict=True))
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count > storage.size or (count and last >= storage.size) or offset > storage.size:
        got = f"shape {list(shape)}, strides {list(strides)}, offset {offset}"
        raise ValueError(f"expected a tensor within the {storage.size} numbers of its storage, got {got:.200}")
    return Tensor(storage, offset, shape, strides)


def _is_shape(value: Any) -> bool:
    """True for a tuple of at most 32 integers >= 0 whose product, zeros aside, is less than 2^60."""
    natural = type(value) is tuple and len(value) <= 32 and all(map(_is_natural, value))
    return natural and math.prod(max(1, number) for number in value) < 1 << 60


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """Stand-in for `torch._utils._rebuild_parameter(tensor, requires_grad, hooks)`: the tensor."""
    if not arguments or not isinstance(arguments[0], Tensor):
        raise ValueError("expected a tensor for a parameter, got something else")
    return arguments[0]


def _empty_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise ValueError("expected an OrderedDict without arguments, got some")
    return {}


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _empty_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_NAMES: dict[str, Any] = {**_DTYPES, **{name: Call(function) for name, function in _FUNCTIONS.items()}}
