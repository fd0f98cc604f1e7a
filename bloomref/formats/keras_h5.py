"""HDF5 weight files as Keras writes them: plain datasets `.../vars/N`, in one file or in shards with a JSON index.

An HDF5 file can refer to other files (soft and external links, external storage, virtual datasets). It can also declare
far more data than it contains (fill values, filters). Keras uses none of these features, so all of them are refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bloomref.dtypes import DType
from bloomref.errors import BadWeights, Unsupported, describe
from bloomref.formats.files import regular_file, shard_path, weight_map
from bloomref.formats.recognise import AGAIN, HDF5, named_for_what_it_is
from bloomref.shapes import Array

_PIECE = 1 << 24  # bytes read at a time
_STATE = ("optimizer", "preprocessor", "seed_generator")  # groups that Keras saves in addition to the weights
_TRUNCATED = re.compile(r"truncated file: eof = (\d+), sblock->base_addr = \d+, stored_eof = (\d+)")
_FLOATS = ("float64", "float32", "float16")


@dataclass(frozen=True)
class Variable:
    """Stored variable. Its numbers are read on demand."""

    dataset: Any
    path: str
    dtype: DType

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored array."""
        return tuple(self.dataset.shape)

    def pieces(self, by_rows: bool) -> Iterator[tuple[slice, Array]]:
        """Yield (slice of the first axis, values), in chunks of rows, or all at once without `by_rows`.

        Raises:
            BadWeights: when the data cannot be read.
        """
        rows = self.shape[0]
        row_bytes = max(1, self.dataset.nbytes // max(1, rows))
        step = max(1, _PIECE // row_bytes) if by_rows else max(1, rows)
        for start in range(0, rows, step):
            where = slice(start, min(start + step, rows))
            yield where, self._native(self._read(where))

    def _read(self, where: slice) -> Array:
        try:
            return np.asarray(self.dataset[where])
        except OSError as error:
            raise BadWeights(f"{self.path}: expected readable data, got {error}") from error

    def _native(self, array: Array) -> Array:
        if array.dtype.kind == "V":
            return array.view(ml_dtypes.bfloat16)
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def load_h5py() -> Any:
    """Import and return h5py.

    Raises:
        Unsupported: when h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise Unsupported("Keras layout: expected the package h5py, got none; pip install bloomref[keras]") from error
    return h5py


def read_single(path: Path, prefix: str = "", integers: tuple[str, ...] = ()) -> dict[str, Variable]:
    """Open the variables of one file. Returns path -> variable.

    Args:
        path: the HDF5 file.
        prefix: only variables whose path has this prefix are returned, without the prefix.
        integers: paths of the variables that may have an integer dtype.

    Raises:
        BadWeights: when the file is damaged or hostile. Unsupported: when a variable is quantized.
    """
    variables = _variables(path, integers)
    return {name.removeprefix(prefix): variables[name] for name in variables if name.startswith(prefix)}


def read_sharded(path: Path) -> dict[str, Variable]:
    """Open the variables of all files that an index (`model.weights.json`) names. Returns path -> variable.

    Raises:
        BadWeights: when a file is damaged, hostile, or disagrees with the index.
        Unsupported: when a variable is quantized.
    """
    index = {group: _file_names(names, path.name) for group, names in weight_map(path).items()}
    paths = {name: shard_path(path.parent, name, path.name) for names in index.values() for name in names}
    for file_path in paths.values():
        regular_file(file_path)
    variables: dict[str, Variable] = {}
    for file_name, file_path in paths.items():
        for name, variable in _variables(file_path).items():
            if file_name not in index.get("/" + name.rpartition("/")[0], []) or name in variables:
                raise BadWeights(f"{file_name}: {name}: expected a variable that {path.name} places in this file, once")
            variables[name] = variable
    return variables


def _file_names(value: object, index: str) -> list[str]:
    names: list[Any] = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise BadWeights(describe(f"{index}: weight_map", "the name of a file, or a list of names", value))
    return names


def _variables(path: Path, integers: tuple[str, ...] = ()) -> dict[str, Variable]:
    with named_for_what_it_is(path, "an HDF5 file as Keras writes it", HDF5):
        return _open(path, integers)


def _open(path: Path, integers: tuple[str, ...]) -> dict[str, Variable]:
    h5py = load_h5py()
    try:
        file = h5py.File(regular_file(path), "r")
        _check_links(file, path.name)
        datasets: dict[str, Any] = {}
        file.visititems(lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        return {
            name: _variable(dataset, f"{path.name}: {name}", name in integers)
            for name, dataset in datasets.items()
            if not any(part in _STATE for part in name.split("/"))
        }
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, SystemError) as error:  # h5py raises all of these
        if isinstance(error, BadWeights | Unsupported):
            raise
        if sizes := _TRUNCATED.search(str(error)):
            raise BadWeights(f"{path.name}: incomplete: {sizes[1]} of {sizes[2]} bytes; {AGAIN}") from error
        raise BadWeights(f"{path.name}: expected an HDF5 file as Keras writes it, got {error}") from error


def _check_links(file: Any, name: str) -> None:
    h5py = load_h5py()

    links: dict[str, Any] = {}
    file.visititems_links(lambda path, link: links.update({path: link}))  # h5py drops errors of the callback
    for path, link in links.items():
        if not isinstance(link, h5py.HardLink):
            raise BadWeights(f"{name}: {path}: expected data, got a link ({type(link).__name__})")


def _variable(dataset: Any, name: str, may_be_integer: bool) -> Variable:
    if dataset.is_virtual or dataset.external:
        raise BadWeights(f"{name}: expected data in this file, got a reference to another file")
    if dataset.shape is None or dataset.id.get_storage_size() != dataset.nbytes:
        held = dataset.id.get_storage_size()
        raise BadWeights(describe(name, f"{dataset.nbytes} plain bytes for {dataset.dtype} {dataset.shape}", held))
    if may_be_integer and dataset.dtype.kind == "i":
        return Variable(dataset, name, dataset.dtype)
    return Variable(dataset, name, _dtype(dataset, name))


def _dtype(dataset: Any, name: str) -> DType:
    if dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    if dataset.dtype.kind in "iu":
        raise Unsupported(f"{name}: expected a floating dtype, got {dataset.dtype}: quantized weights cannot be read")
    if dataset.dtype.name not in _FLOATS:
        raise BadWeights(describe(f"{name}: dtype", "float64, float32, float16 or bfloat16", str(dataset.dtype)))
    return np.dtype(dataset.dtype.name)


def write_h5(path: Path, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write variables to a new HDF5 file.

    Args:
        path: the file.
        arrays: variable path -> array.
        shapes: variable path -> stored shape; the array is reshaped to it.
    """
    with load_h5py().File(path, "w") as file:
        for name, array in arrays.items():
            stored = np.ascontiguousarray(array).reshape(shapes[name])
            dataset = file.create_dataset(name, data=stored)
            if stored.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
