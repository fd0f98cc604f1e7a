"""The tensors of an adapter of PEFT, read and written by their names. Clauses: LRA-10, LRA-19 ... LRA-22.

The names decide what an adapter changes; adapter_config.json only says how: scales, and whose rows and copies they are.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from bloomref.config import BloomConfig
from bloomref.errors import BadWeights, describe
from bloomref.formats.adapters.peft_config import EMBEDDING, HEAD, LINEARS, LoraConfig
from bloomref.formats.arrays import check_finite
from bloomref.formats.safetensors_io import FLOATS, SafetensorsFile
from bloomref.head_params import HEAD_KINDS
from bloomref.params import HF_PREFIX, LM_HEAD, WORD_EMBEDDING, Weight, full_key, keys
from bloomref.shapes import Array

WEIGHTS = "adapter_model.safetensors"
_OUTER = "base_model.model."
_TENSORS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_B.bias": "shifts",
    "lora_magnitude_vector": "magnitudes",
    "lora_magnitude_vector.weight": "magnitudes",
    "token_adapter.trainable_tokens_delta": "rows",
}
_NAME = re.compile(r"(?P<module>.+)\.(?P<tensor>" + "|".join(map(re.escape, _TENSORS)) + ")")
_PARAMETER = {f"{EMBEDDING}.lora_A.weight": "parameter a", f"{EMBEDDING}.lora_B.weight": "parameter b"}
_HEADS = tuple(key for kind in HEAD_KINDS for key in kind.keys)
_INNER = re.compile(r"\.(base_layer|modules_to_save)\.")
OTHERS = ("magnitudes", "shifts", "weights", "rows", "heads")
_AXES = {"magnitudes": 1, "shifts": 1}
_KINDS = ("a", "b", "parameter a", "parameter b", *OTHERS)

Pairs = dict[str, tuple[Array, Array]]
"""Hugging Face key of a weight (without `transformer.`) -> A (R, N), B (M, R) of the stored matrix (M, N);
of the embedding (V, D): A (R, V), B (D, R)."""


@dataclass(frozen=True, eq=False)
class PeftTensors:
    """The tensors of an adapter, by Hugging Face keys of weights (without `transformer.`).

    Args:
        pairs: A and B of the adapted matrices.
        magnitudes: of DoRA: (M) for a matrix (M, N), (D) for the embedding.
        shifts: `lora_B.bias` (M), by the key of the matrix.
        weights: arrays in the place of whole weights, in Hugging Face's shapes.
        rows: (N, D) in the place of N rows of the embedding or of the head.
        heads: of a classification head, by the names in `bloomref.head_params`; a language model ignores them.
    """

    pairs: Pairs
    magnitudes: Mapping[str, Array] = field(default_factory=dict)
    shifts: Mapping[str, Array] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    rows: Mapping[str, Array] = field(default_factory=dict)
    heads: Mapping[str, Array] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not (self.pairs or self.weights or self.rows)

    @property
    def vocabulary_size(self) -> int | None:
        """V of the model that the adapter was trained on, if its tensors say so."""
        sizes = [len(self.weights[key]) for key in (WORD_EMBEDDING.hf_key, LM_HEAD.hf_key) if key in self.weights]
        if WORD_EMBEDDING.hf_key in self.pairs:
            sizes.append(self.pairs[WORD_EMBEDDING.hf_key][0].shape[1])
        if LM_HEAD.hf_key in self.pairs:
            sizes.append(self.pairs[LM_HEAD.hf_key][1].shape[0])
        if len(set(sizes)) > 1:
            raise BadWeights(describe(WEIGHTS, "one size of the vocabulary", f"{sorted(set(sizes))}"))
        return sizes[0] if sizes else None


def read(file: SafetensorsFile, config: BloomConfig, lora: LoraConfig) -> PeftTensors:
    """Read the tensors of an adapter for a model of `config`. Arrays are copies, in their stored dtype.

    Raises:
        BadWeights: for a name that is no weight of this model, a wrong shape, a missing or repeated tensor, or
            numbers that are not finite.
    """
    table = dict((*keys(config), (LM_HEAD.hf_key, LM_HEAD)))
    by_kind: dict[str, dict[str, Array]] = {kind: {} for kind in _KINDS}
    for stored in file.entries:
        if ".original_module." in stored:  # the base's own weight, which the adapter replaces
            continue
        kind, key = _place(stored, table, lora)
        array = _array(file, stored, _axes(kind, key, table, config))
        if key in by_kind[kind] and not np.array_equal(by_kind[kind][key], array):
            raise BadWeights(describe(f"{WEIGHTS}: {stored}", "each tensor once", "it again, with other numbers"))
        by_kind[kind][key] = array
    if config.tie_word_embeddings:
        _tie(by_kind["weights"], lora)
    tensors = _assembled(by_kind, table)
    _check_shapes(tensors, config.replace(vocabulary_size=tensors.vocabulary_size or config.vocabulary_size))
    if tensors.is_empty():
        raise BadWeights(describe(WEIGHTS, "the tensors of an adapter", "none"))
    return tensors


def replaced(names: Iterable[str]) -> list[str]:
    """Of the names in a file, the weights and biases that it replaces as a whole, without prefixes."""
    inner = (_INNER.sub(".", name.removeprefix(_OUTER).removeprefix(HF_PREFIX)) for name in names)
    return sorted({name for name in inner if not _NAME.fullmatch(name) and ".original_module." not in name})


def _place(stored: str, table: Mapping[str, Weight], lora: LoraConfig) -> tuple[str, str]:
    """(kind of a tensor, Hugging Face key of its weight)."""
    name = stored.removeprefix(_OUTER).removeprefix(HF_PREFIX)
    match = _NAME.fullmatch(name)
    key = f"{match['module']}.weight" if match else _INNER.sub(".", name)
    if key in _HEADS and match is None:
        return "heads", key
    if key not in table:
        raise BadWeights(describe(WEIGHTS, "tensors for the weights of this model", stored, lora.base_hint()))
    if match and key.removesuffix(".weight").rpartition(".")[2] not in (*LINEARS, EMBEDDING, HEAD):
        raise BadWeights(
            describe(f"{WEIGHTS}: {stored}", "factors of a linear layer or an embedding", "another module")
        )
    if name in _PARAMETER:
        return _PARAMETER[name], key
    return (_TENSORS[match["tensor"]] if match else "weights"), key


def _tie(weights: dict[str, Array], lora: LoraConfig) -> None:
    """Of a matrix that is stored for the embedding and for the LM head tied to it, drop the second copy (LRA-19)."""
    embedding, head = weights.get(WORD_EMBEDDING.hf_key), weights.get(LM_HEAD.hf_key)
    if embedding is None or head is None or lora.unties():
        return
    if not np.array_equal(embedding, head):
        raise BadWeights(describe(WEIGHTS, "one matrix for the embedding and the tied LM head", "two that differ"))
    del weights[LM_HEAD.hf_key]


def _axes(kind: str, key: str, table: Mapping[str, Weight], config: BloomConfig) -> int:
    if kind == "weights":
        return len(table[key].hf_shape(config))
    return 1 if kind == "heads" and key.endswith(".bias") else _AXES.get(kind, 2)


def _array(file: SafetensorsFile, name: str, axes: int) -> Array:
    entry = file.entries[name]
    if entry.dtype not in FLOATS or len(entry.shape) != axes or 0 in entry.shape:
        got = f"{entry.dtype} {entry.shape}"
        raise BadWeights(describe(f"{WEIGHTS}: {name}", f"floating numbers in {axes} axes, at least one", got))
    array = file.view(name)
    check_finite(array, f"{WEIGHTS}: {name}")
    return array.copy()


def _assembled(by_kind: Mapping[str, Mapping[str, Array]], table: Mapping[str, Weight]) -> PeftTensors:
    a, b = dict(by_kind["a"]), dict(by_kind["b"])
    for key, array in by_kind["parameter a"].items():  # a matrix (V, D) like any other: A (R, D), B (V, R)
        b[key] = array.T.copy()
    for key, array in by_kind["parameter b"].items():
        a[key] = array.T.copy()
    for kind in ("magnitudes", "shifts"):
        for key in by_kind[kind].keys() - a.keys():
            raise BadWeights(describe(f"{WEIGHTS}: {key}", f"factors beside {kind}", "none"))
    if unpaired := a.keys() ^ b.keys():
        key = min(unpaired)
        raise BadWeights(describe(f"{WEIGHTS}: {key}", "factors A and B", f"{'A' if key in a else 'B'} alone"))
    pairs = {key: (a[key], b[key]) for key in table if key in a}
    order = (*table, *_HEADS)
    others = {kind: {key: by_kind[kind][key] for key in order if key in by_kind[kind]} for kind in OTHERS}
    return PeftTensors(pairs, **others)


def _check_shapes(tensors: PeftTensors, config: BloomConfig) -> None:
    table = dict((*keys(config), (LM_HEAD.hf_key, LM_HEAD)))
    for key, (a, b) in tensors.pairs.items():
        rows, columns = table[key].hf_shape(config)
        if key == WORD_EMBEDDING.hf_key:  # PEFT treats the embedding as a transposed linear layer of one-hot vectors
            rows, columns = columns, rows
        rank = len(a)
        for name, array, shape in (("A", a, (rank, columns)), ("B", b, (rows, rank))):
            _check_shape(f"{key}, {name}", array, shape)
        for kind in ("magnitudes", "shifts"):
            if key in getattr(tensors, kind):
                _check_shape(f"{key}, {kind}", getattr(tensors, kind)[key], (rows,))
    for key, array in tensors.weights.items():
        _check_shape(key, array, table[key].hf_shape(config))
    for key, array in tensors.rows.items():
        _check_shape(f"{key}, rows", array, (len(array), config.hidden_dim))


def _check_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise BadWeights(describe(f"{WEIGHTS}: {name}", f"numbers of shape {shape}", str(array.shape)))


def factor_name(name: str) -> str:
    """Name of a factor in a file for a BloomForCausalLM: `name` has no prefix."""
    return f"{_OUTER}{HF_PREFIX}{name}"


# --- writing -----------------------------------------------------------------------------------------------------


def stored(tensors: PeftTensors, lora: LoraConfig) -> Iterator[tuple[str, Array]]:
    """(name in the file, array) of every tensor, as PEFT names them for a model of transformers."""
    yield from ((_OUTER + key, array) for key, array in tensors.heads.items())
    for key, (a, b) in tensors.pairs.items():
        module = full_key(key).removesuffix(".weight")
        if key != WORD_EMBEDDING.hf_key:
            names, pair = ("lora_A.weight", "lora_B.weight"), (a, b)
        elif lora.adapts_parameter(key):
            names, pair = ("lora_A.weight", "lora_B.weight"), (b.T, a.T)
        else:
            names, pair = ("lora_embedding_A", "lora_embedding_B"), (a, b)
        yield from ((f"{_OUTER}{module}.{name}", array) for name, array in zip(names, pair, strict=True))
    suffixes = {"magnitudes": "lora_magnitude_vector", "shifts": "lora_B.bias", "rows": next(reversed(_TENSORS))}
    for kind, suffix in suffixes.items():
        for key, array in getattr(tensors, kind).items():
            yield f"{_OUTER}{full_key(key).removesuffix('.weight')}.{suffix}", array
    weights = dict(tensors.weights)
    if WORD_EMBEDDING.hf_key in weights and lora.saves(LM_HEAD.hf_key) and not lora.unties():
        weights.setdefault(LM_HEAD.hf_key, weights[WORD_EMBEDDING.hf_key])
    for key, array in weights.items():
        module, _, part = full_key(key).rpartition(".")
        inner = ".base_layer" if f"{key.rpartition('.')[0]}.weight" in tensors.pairs else ""
        yield f"{_OUTER}{module}{inner}.{part}", array
