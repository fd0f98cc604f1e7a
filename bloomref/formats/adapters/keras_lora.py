"""LoRA weights of KerasHub: a `.lora.h5` file with one rank, and two factors for each adapted layer. Clause: LRA-11.

KerasHub numbers all layers that have weights: `token_embedding` is 0, `embedding_layernorm` is 1, and the ten layers of
decoder i begin at 2 + 10 i. Within a decoder it numbers them from the last to the first, so value precedes query.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, InvalidInput, describe
from bloomref.formats.arrays import check_finite
from bloomref.formats.keras_h5 import Variable, load_h5py, read_single
from bloomref.formats.staging import staged_file
from bloomref.shapes import Array

SUFFIX = ".lora.h5"
OFFSETS = {
    "mlp_output_dense": 1,
    "mlp_intermediate_dense": 2,
    "output_dense": 5,
    "value_dense": 6,
    "key_dense": 7,
    "query_dense": 8,
}
_FIRST, _PER_LAYER = 2, 10
_RANK = "lora/vars/rank"

Kernels = dict[tuple[int, str], tuple[Array, Array]]
"""(layer, name of the dense layer) -> lora_kernel_a, lora_kernel_b, in the order (layer, path through the block)."""


def kernel_shapes(config: BloomConfig, name: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of lora_kernel_a, (*input axes of the kernel, R), and of lora_kernel_b, (R, last axis of the kernel)."""
    size = config.sizes
    kernel = {
        "output_dense": (size["D"], size["D"]),
        "mlp_intermediate_dense": (size["D"], size["F"]),
        "mlp_output_dense": (size["F"], size["D"]),
    }.get(name, (size["D"], size["H"], size["K"]))
    return (*kernel[:-1], rank), (rank, kernel[-1])


def read(path: Path, config: BloomConfig) -> tuple[int, Kernels]:
    """Read the rank and the factors of an adapter for a model of `config`.

    Raises:
        BadWeights: when the file is damaged or hostile, or its layers or shapes do not match the model.
        Unsupported: when h5py is not installed.
    """
    stored = variables(path)
    rank = _rank(stored, path.name)
    names = {f"lora/{_index(i, n)}/vars/": (i, n) for i in range(config.num_layers) for n in reversed(OFFSETS)}
    adapted = {prefix: place for prefix, place in names.items() if prefix + "lora_kernel_a" in stored}
    expected = {prefix + kernel for prefix in adapted for kernel in ("lora_kernel_a", "lora_kernel_b")}
    for name in sorted(expected ^ (stored.keys() - {_RANK})):
        problem = "missing" if name in expected else f"not of a model with {config.num_layers} layers"
        raise BadWeights(f"{path.name}: expected two factors for each adapted layer, got {name}: {problem}")
    if not adapted:
        raise BadWeights(describe(path.name, "factors of at least one layer", "none"))
    return rank, {place: _pair(stored, prefix, config, place[1], rank) for prefix, place in adapted.items()}


def variables(path: Path) -> dict[str, Variable]:
    """Open all variables of a file, by path. Their numbers are read on demand."""
    return read_single(path, integers=(_RANK,))


def _rank(variables: Mapping[str, Variable], file: str) -> int:
    variable = variables.get(_RANK)
    if variable is None or variable.dtype.kind != "i" or variable.shape != ():
        raise BadWeights(
            describe(f"{file}: {_RANK}", "an integer", "none" if variable is None else str(variable.shape))
        )
    rank = int(variable.dataset[()])
    if rank < 1:
        raise BadWeights(describe(f"{file}: {_RANK}", "an integer >= 1", rank))
    return rank


def _index(layer: int, name: str) -> int:
    return _FIRST + _PER_LAYER * layer + OFFSETS[name]


def factor_name(layer: int, name: str, factor: str) -> str:
    """Path of factor "a" or "b" of a dense layer in the file."""
    return f"lora/{_index(layer, name)}/vars/lora_kernel_{factor}"


def _pair(
    variables: Mapping[str, Variable], prefix: str, config: BloomConfig, name: str, rank: int
) -> tuple[Array, Array]:
    a, b = kernel_shapes(config, name, rank)
    return _kernel(variables[prefix + "lora_kernel_a"], a), _kernel(variables[prefix + "lora_kernel_b"], b)


def _kernel(variable: Variable, shape: tuple[int, ...]) -> Array:
    if variable.shape != shape or variable.dtype.kind == "i":
        raise BadWeights(
            describe(variable.path, f"floating numbers of shape {shape}", f"{variable.dtype} {variable.shape}")
        )
    ((_, values),) = variable.pieces(by_rows=False)
    check_finite(values, variable.path)
    return np.ascontiguousarray(values)


def save(path: Path, rank: int, kernels: Mapping[tuple[int, str], tuple[Array, Array]]) -> None:
    """Write a file that KerasHub's `load_lora_weights` reads, in float32. The write is atomic.

    Args:
        path: the file; its name ends in `.lora.h5`.
        rank: the rank R.
        kernels: (layer, name of the dense layer) -> (lora_kernel_a, lora_kernel_b), in the shapes of `kernel_shapes`.

    Raises:
        InvalidInput: when the path does not end in `.lora.h5`; Unsupported: when h5py is not installed.
    """
    if not path.name.endswith(SUFFIX):
        raise InvalidInput(describe("path", f"a name that ends in {SUFFIX}, as KerasHub requires", str(path)))
    with staged_file(path) as stage, load_h5py().File(stage, "w") as file:
        file.create_dataset(_RANK, data=np.int64(rank))
        for (layer, name), pair in kernels.items():
            for kernel, array in zip(("a", "b"), pair, strict=True):
                file.create_dataset(factor_name(layer, name, kernel), data=array.astype(np.float32))
