"""Fresh adapters, initialised as PEFT and Keras do: the model's results do not change yet. Clauses: LRA-2, LRA-13."""

import math
from collections.abc import Collection, Iterator

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import DType, cast
from bloomref.errors import Unsupported, describe, invalid
from bloomref.formats.adapters.keras_lora import kernel_shapes
from bloomref.formats.adapters.peft_config import EMBEDDING, LoraConfig
from bloomref.formats.adapters.peft_tensors import PeftTensors
from bloomref.lora.adapter import Adapter, from_keras, from_peft
from bloomref.machine_memory import check_memory
from bloomref.params import LM_HEAD, WORD_EMBEDDING, Params, Weight, keys
from bloomref.reference.lora import row_norms
from bloomref.shapes import Array


def new_peft(name: str, base: Params, config: BloomConfig, settings: LoraConfig, seed: int, dtype: DType) -> Adapter:
    """A fresh adapter with PEFT's initialisation: A uniform within 1 / sqrt(N), or normal / R ("gaussian"), B zero;
    of the embedding, A zero, B normal. What replaces weights begins as a copy of them, DoRA's magnitudes as norms.

    Raises:
        InvalidInput: when the settings match nothing in this model; Unsupported: for another initialisation.
    """
    if settings.init_lora_weights not in (True, "gaussian"):
        hint = "initialise it with PEFT and load it here, or use True"
        got = repr(settings.init_lora_weights)
        raise Unsupported(describe("init_lora_weights", "True or 'gaussian' for a new adapter", got, hint))
    rng = np.random.default_rng(seed)

    def pair(key: str, weight: Weight) -> tuple[Array, Array]:
        rows, columns = weight.hf_shape(config)
        r = settings.rank(key)
        if key.startswith(EMBEDDING):
            return np.zeros((r, rows), dtype), cast(rng.standard_normal((columns, r)), dtype)
        if settings.init_lora_weights == "gaussian":
            return cast(rng.standard_normal((r, columns)) / r, dtype), np.zeros((rows, r), dtype)
        bound = 1.0 / math.sqrt(columns)
        return cast(rng.uniform(-bound, bound, (r, columns)), dtype), np.zeros((rows, r), dtype)

    sides = {key: sum(weight.hf_shape(config)) for key, weight in settings.targets(config).items()}
    check_memory("the new adapter", 8 * sum(settings.rank(key) * side for key, side in sides.items()))
    stored = _Stored(base, config, dtype)
    pairs = {key: pair(key, weight) for key, weight in settings.targets(config).items()}
    rows = {key: stored[key].T if key == stored.embedding else stored[key] for key in pairs if settings.use_dora}
    tensors = PeftTensors(
        pairs,
        magnitudes={key: row_norms(matrix) for key, matrix in rows.items()},
        shifts={key: np.zeros(len(b), dtype) for key, (_, b) in pairs.items() if settings.lora_bias},
        weights={key: stored[key] for key in _replaced(settings, config, pairs)},
        rows={key: stored[key][list(ids)] for key, ids in _rows(settings, config).items()},
    )
    if tensors.is_empty():
        raise invalid("config", "something to adapt in this model", "no such module")
    return from_peft(name, settings, tensors, dtype)


class _Stored:
    """A model's weights by key, each a copy in Hugging Face's shape; a tied LM head has those of the embedding."""

    embedding = WORD_EMBEDDING.hf_key

    def __init__(self, base: Params, config: BloomConfig, dtype: DType) -> None:
        self._arrays = {key: (weight, array) for key, weight, array in base.named()}
        self._config, self._dtype = config, dtype

    def __getitem__(self, key: str) -> Array:
        weight, array = self._arrays[key if key in self._arrays else self.embedding]
        return cast(array.reshape(weight.hf_shape(self._config)), self._dtype).copy()


def _replaced(settings: LoraConfig, config: BloomConfig, targets: Collection[str]) -> Iterator[str]:
    """Keys of the weights that the adapter replaces: whole modules, and biases."""
    linears = {f"{key.removesuffix('.weight')}.bias" for key in targets}
    together = config.tie_word_embeddings and not settings.unties()
    for key in (*dict(keys(config)), *((LM_HEAD.hf_key,) if config.tie_word_embeddings else ())):
        is_bias = key.endswith(".bias") and (
            settings.bias == "all" or (settings.bias == "lora_only" and key in linears)
        )
        if (settings.saves(key) or is_bias) and not (key == LM_HEAD.hf_key and together):
            yield key


def _rows(settings: LoraConfig, config: BloomConfig) -> dict[str, tuple[int, ...]]:
    """Ids of the rows that the adapter replaces, by key. A tied LM head has the embedding's, if not others (LRA-20)."""
    ids = {key: settings.token_indices(key) for key in (WORD_EMBEDDING.hf_key, LM_HEAD.hf_key)}
    if max((*ids[WORD_EMBEDDING.hf_key], *ids[LM_HEAD.hf_key]), default=0) >= config.vocabulary_size:
        hint = "resize_token_embeddings makes room"
        raise invalid("trainable_token_indices", f"ids below {config.vocabulary_size}", str(ids), hint)
    if config.tie_word_embeddings and ids[LM_HEAD.hf_key] == ids[WORD_EMBEDDING.hf_key]:
        del ids[LM_HEAD.hf_key]
    return {key: rows for key, rows in ids.items() if rows}


def new_keras(name: str, config: BloomConfig, r: int, targets: tuple[str, ...], seed: int, dtype: DType) -> Adapter:
    """A fresh adapter with Keras's initialisation: A uniform within sqrt(6 / inputs), B zero.

    Args:
        targets: keys of `DENSE_LAYERS`, adapted in every layer.
    """
    rng = np.random.default_rng(seed)

    def pair(dense: str) -> tuple[Array, Array]:
        a, b = kernel_shapes(config, dense, r)
        bound = math.sqrt(6.0 / math.prod(a[:-1]))
        return cast(rng.uniform(-bound, bound, a), dtype), np.zeros(b, dtype)

    layers = range(config.num_layers)
    numbers = sum(math.prod(shape) for dense in targets for shape in kernel_shapes(config, dense, r))
    check_memory("the new adapter", 8 * config.num_layers * numbers)
    return from_keras(name, {(i, dense): pair(dense) for i in layers for dense in targets}, dtype)
