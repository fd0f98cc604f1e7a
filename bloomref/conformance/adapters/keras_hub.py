"""KerasHub's BLOOM; on JAX, unless Keras was imported or KERAS_BACKEND was set to something else.

On JAX each question is one program, compiled at XLA's lowest optimization level: a drawn case has shapes of its own, and is asked
few questions. Nothing else than XLA's choice of instructions depends on that.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import need, params_of, refuse, versions_of
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.formats import keras_lora
from bloomref.formats.keras import places
from bloomref.params import Params
from bloomref.shapes import Array, Bool, Float, Int

INSTALL = '"keras>=3.10" "keras-hub>=0.20" "jax>=0.4"'


class KerasHub:
    """BloomBackbone and BloomCausalLM. float64 is left out: in Keras its layer norms and softmax are float32 (docs/findings.md)."""

    name = "keras-hub"
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset(FEATURES) - {"post-layernorm", "untied"},
        scores="model",
        adapters=("keras",),
    )

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "KerasModel":
        """A new backbone, each variable of which is assigned.

        Raises:
            Unsupported: KerasHub is not installed, or has no way to say what the config says.
        """
        os.environ.setdefault("KERAS_BACKEND", "jax")
        need(self.name, "keras", "keras_hub", command=INSTALL)
        refuse(
            self.name,
            the_residual_after_the_norm=config.apply_residual_connection_post_layernorm,
            a_head_of_its_own=not config.tie_word_embeddings,
        )
        return KerasModel(config, _build(config, params_of(config, weights), dtype))

    def versions(self) -> Mapping[str, str]:
        return versions_of("keras-hub", "keras", "jax")


def _build(config: BloomConfig, params: Params, dtype: str) -> Any:
    import keras_hub

    sizes = config.replace(attention_dropout=0.0, hidden_dropout=0.0).to_keras()
    with _without_initial_values():
        backbone = keras_hub.models.BloomBackbone(**sizes, dtype=dtype)
    unset = {variable.path for variable in backbone.weights}
    for key, weight, array in params.named():
        for place in places(weight, key):
            variable = _variable(backbone, key, place.path)
            variable.assign(np.ascontiguousarray(place.select(array, weight)).reshape(variable.shape))
            unset.remove(variable.path)
    assert not unset
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=None)


@contextmanager
def _without_initial_values() -> Iterator[None]:
    """Inside, random initial values are zeros: they will be assigned, and JAX would compile a generator for each shape."""
    from keras import initializers

    def zeros(_self: object, shape: Any, dtype: Any = None) -> Array:  # noqa: ARG001
        return np.zeros(shape, np.float32)

    with ExitStack() as patches:
        for name in ("RandomNormal", "TruncatedNormal", "VarianceScaling"):
            patches.enter_context(mock.patch.object(getattr(initializers, name), "__call__", zeros))
        yield


def _variable(backbone: Any, key: str, path: str) -> Any:
    """The variable at a path such as `layers/bloom_decoder_1/_self_attention_layer/_query_dense/vars/0`."""
    model = {
        "reversible_embedding": backbone.token_embedding,
        "layer_normalization": backbone.embeddings_layer_norm,
        "layer_normalization_1": backbone.layer_norm,
    }
    _, first, *names, _, index = path.split("/")
    layer = backbone.transformer_layers[int(key.split(".")[1])] if key.startswith("h.") else model[first]
    for name in names:
        layer = getattr(layer, name)
    return layer.weights[int(index)]


class KerasModel:
    """One loaded model."""

    def __init__(self, config: BloomConfig, model: Any) -> None:
        self.config = config
        self.model = model
        self.compiled: dict[str, Callable[..., Any]] = {}

    def adapted(self, path: Path) -> "KerasModel":
        """By `enable_lora` on the layers that the file has factors of, and `load_lora_weights`."""
        rank, kernels = keras_lora.read(path, self.config)
        with _without_initial_values():
            self.model.backbone.enable_lora(rank, sorted({layer for _, layer in kernels}))
        self.model.backbone.load_lora_weights(str(path))
        return KerasModel(self.config, self.model)

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return _array(self._run(self.model, "model", _inputs(token_ids, is_real)))

    def hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return _array(self._run(self.model.backbone, "backbone", _inputs(token_ids, is_real)))

    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> dict[str, Array]:
        """All names of MOD-8; the scores with an ALiBi that counts from the last key, which differs by a constant in each row."""
        seen = self._run(self._observed, "observed", _inputs(token_ids, is_real))
        return {name: _array(tensor) for name, tensor in seen.items()}

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> Float[Array, "B T V"]:
        """By `call_with_cache`, which takes no mask: `is_real` has no way in."""
        from keras import ops

        del is_real
        batch, time = token_ids.shape
        backbone = self.model.backbone
        width = backbone.hidden_dim // backbone.num_heads
        shape = (batch, backbone.num_layers, 2, max(capacity, time), backbone.num_heads, width)
        cache, parts = ops.zeros(shape, dtype=backbone.token_embedding.compute_dtype), []
        for start, stop in pairwise((0, *cuts, time)):
            piece = token_ids[:, start:stop].astype(np.int32)
            logits, _, cache = self._run(self.model.call_with_cache, "cached", piece, cache, np.int32(start))
            parts.append(_array(logits))
        return np.concatenate(parts, axis=1)

    def call(self, token_ids: Any, padding_mask: Any) -> Array:
        """The model called on a dictionary; without a mask, on one of ones, since there is no call without."""
        mask = np.ones_like(np.asarray(token_ids)) if padding_mask is None else padding_mask
        return _array(self._run(self.model, "model", {"token_ids": token_ids, "padding_mask": mask}))

    def _observed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        with observed(self.model.backbone) as seen:
            hidden = self.model.backbone(inputs)
        logits = self.model.backbone.token_embedding(hidden, reverse=True)
        return seen | {"final_norm": hidden, "logits": logits}

    def _run(self, function: Callable[..., Any], name: str, *arguments: Any) -> Any:
        """`function(*arguments)`; on JAX as one program, which is kept for the next call of these shapes."""
        import keras

        if keras.backend.backend() != "jax":
            return function(*arguments)
        if name not in self.compiled:
            self.compiled[name] = _compile(function, self.model.variables)
        return self.compiled[name](*arguments)


def _compile(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    import jax
    import keras

    values = [variable.value for variable in variables]

    def call(values: Any, *arguments: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*arguments)

    compiled = jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})
    return lambda *arguments: compiled(values, *arguments)


def _inputs(token_ids: Array, is_real: Array) -> dict[str, Array]:
    """KerasHub has no call without a mask; a full one stands for it."""
    return {"token_ids": np.asarray(token_ids, np.int32), "padding_mask": is_real.astype(np.int32)}


def _array(tensor: Any) -> Array:
    """float32, which holds every 16-bit number."""
    from keras import ops

    return np.array(ops.convert_to_numpy(ops.cast(tensor, "float32")))


@contextmanager
def observed(backbone: Any) -> Iterator[dict[str, Any]]:
    """A dictionary that fills with what enters and leaves the layers of a BloomBackbone, under the names of MOD-8."""
    seen: dict[str, Any] = {}
    with ExitStack() as patches:
        for layer, note in _notes(backbone, seen):
            patches.enter_context(mock.patch.object(layer, "call", _watched(layer.call, note)))
        yield seen


Note = Callable[[Any, Any], None]


def _watched(call: Callable[..., Any], note: Note) -> Callable[..., Any]:
    def watched(first: Any = None, *rest: Any, **named: Any) -> Any:
        result = call(*(() if first is None else (first, *rest)), **named)
        note(first, result)
        return result

    return watched


def _notes(backbone: Any, seen: dict[str, Any]) -> Iterator[tuple[Any, Note]]:
    yield backbone.token_embedding, _output(seen, "word_embedding")
    yield backbone.embeddings_layer_norm, _output(seen, "embedding_norm")
    for i, layer in enumerate(backbone.transformer_layers):
        name, attention = f"layers.{i}", layer._self_attention_layer
        yield layer._pre_attention_layernorm, _output(seen, f"{name}.attention.norm")
        for part in ("query", "key", "value"):
            yield getattr(attention, f"_{part}_dense"), _heads(seen, f"{name}.attention.{part}")
        yield attention._alibi_layer, _output(seen, f"{name}.attention.scores")
        yield attention._softmax, _output(seen, f"{name}.attention.probabilities")
        yield attention._output_dense, _both(seen, f"{name}.attention.context", f"{name}.attention.output")
        yield layer._post_attention_layernorm, _both(seen, f"{name}.attention_block", f"{name}.mlp.norm")
        yield layer._mlp_intermediate_dense, _output(seen, f"{name}.mlp.up")
        yield layer._mlp_output_dense, _both(seen, f"{name}.mlp.gelu", f"{name}.mlp.output")
        yield layer, _output(seen, f"{name}.mlp_block")


def _output(seen: dict[str, Any], name: str) -> Note:
    def note(_input: Any, output: Any) -> None:
        seen[name] = output

    return note


def _both(seen: dict[str, Any], before: str, after: str) -> Note:
    def note(given: Any, output: Any) -> None:
        seen[before], seen[after] = given, output

    return note


def _heads(seen: dict[str, Any], name: str) -> Note:
    """(B, T, H, K) to (B, H, T, K)."""

    def note(_input: Any, output: Any) -> None:
        seen[name] = output.swapaxes(1, 2)

    return note
