"""KerasHub's BLOOM; on JAX, unless Keras was imported or KERAS_BACKEND was set to another backend.

On JAX each call is one program, compiled at XLA's lowest optimization level, because every random
case has other shapes and few calls. The level changes XLA's choice of instructions only.
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
from bloomref.formats.adapters import keras_lora
from bloomref.formats.layouts.keras import places
from bloomref.params import PROJECTIONS, Params
from bloomref.shapes import Array, Bool, Float, Int

INSTALL = '"keras>=3.10" "keras-hub>=0.20" "jax>=0.4"'


class KerasHub:
    """KerasHub without float64, in which Keras computes layer norm and softmax in float32 (docs/findings.md)."""

    name = "keras-hub"
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset(FEATURES) - {"post-layernorm", "untied"},
        scores="model",
        adapters=("keras",),
    )

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "KerasModel":
        """Build a model, and assign each of its variables.

        Raises:
            Unsupported: KerasHub is not installed, or does not support the config.
        """
        os.environ.setdefault("KERAS_BACKEND", "jax")
        need(self.name, "keras", "keras_hub", command=INSTALL)
        refuse(
            self.name,
            a_post_layernorm_residual=config.apply_residual_connection_post_layernorm,
            an_untied_LM_head=not config.tie_word_embeddings,
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
    """Context in which random initial values are zeros: JAX would compile a generator for each shape."""
    from keras import initializers

    def zeros(_self: object, shape: Any, dtype: Any = None) -> Array:  # noqa: ARG001
        return np.zeros(shape, np.float32)

    with ExitStack() as patches:
        for name in ("RandomNormal", "TruncatedNormal", "VarianceScaling"):
            patches.enter_context(mock.patch.object(getattr(initializers, name), "__call__", zeros))
        yield


def _variable(backbone: Any, key: str, path: str) -> Any:
    """Return the variable at a path such as `layers/bloom_decoder_1/_self_attention_layer/_query_dense/vars/0`."""
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
    """A loaded model."""

    def __init__(self, config: BloomConfig, model: Any) -> None:
        self.config = config
        self.model = model
        self.compiled: dict[str, Callable[..., Any]] = {}

    def adapted(self, path: Path) -> "KerasModel":
        """Apply a LoRA file by `enable_lora`, on the layers for which it has factors, and `load_lora_weights`."""
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
        """All intermediates of MOD-8. ALiBi counts from the last key, which shifts each row of scores by a constant."""
        tensors = self._run(self._traced, "traced", _inputs(token_ids, is_real))
        return {name: _array(tensor) for name, tensor in tensors.items()}

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> Float[Array, "B T V"]:
        """Logits by `call_with_cache`, which takes no mask: `is_real` is ignored."""
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
        """Call the model on a dictionary. KerasHub needs a mask: None becomes ones."""
        mask = np.ones_like(np.asarray(token_ids)) if padding_mask is None else padding_mask
        return _array(self._run(self.model, "model", {"token_ids": token_ids, "padding_mask": mask}))

    def _traced(self, inputs: dict[str, Any]) -> dict[str, Any]:
        with observed(self.model.backbone) as tensors:
            hidden = self.model.backbone(inputs)
        logits = self.model.backbone.token_embedding(hidden, reverse=True)
        return tensors | {"final_norm": hidden, "logits": logits}

    def _run(self, function: Callable[..., Any], name: str, *arguments: Any) -> Any:
        """Call `function(*arguments)`; on JAX as one compiled program, cached by `name`."""
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
    """Inputs of KerasHub, which needs a mask: without padding it is all ones."""
    return {"token_ids": np.asarray(token_ids, np.int32), "padding_mask": is_real.astype(np.int32)}


def _array(tensor: Any) -> Array:
    """Convert a tensor to float32, which represents every 16-bit number."""
    from keras import ops

    return np.array(ops.convert_to_numpy(ops.cast(tensor, "float32")))


@contextmanager
def observed(backbone: Any) -> Iterator[dict[str, Any]]:
    """Context that records inputs and outputs of the layers of a BloomBackbone, by the names of MOD-8."""
    tensors: dict[str, Any] = {}
    with ExitStack() as patches:
        for layer, record in _hooks(backbone, tensors):
            patches.enter_context(mock.patch.object(layer, "call", _hooked(layer.call, record)))
        yield tensors


Hook = Callable[[Any, Any], None]
"""Called with the first input and the output of a layer."""


def _hooked(call: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    def hooked(first: Any = None, *rest: Any, **named: Any) -> Any:
        result = call(*(() if first is None else (first, *rest)), **named)
        hook(first, result)
        return result

    return hooked


def _hooks(backbone: Any, tensors: dict[str, Any]) -> Iterator[tuple[Any, Hook]]:
    """Yield each layer with the hook that records its tensors."""
    yield backbone.token_embedding, _output(tensors, "word_embedding")
    yield backbone.embeddings_layer_norm, _output(tensors, "embedding_norm")
    for i, layer in enumerate(backbone.transformer_layers):
        name, attention = f"layers.{i}", layer._self_attention_layer
        yield layer._pre_attention_layernorm, _output(tensors, f"{name}.attention.norm")
        for part in PROJECTIONS:
            yield getattr(attention, f"_{part}_dense"), _heads(tensors, f"{name}.attention.{part}")
        yield attention._alibi_layer, _output(tensors, f"{name}.attention.scores")
        yield attention._softmax, _output(tensors, f"{name}.attention.probabilities")
        yield attention._output_dense, _both(tensors, f"{name}.attention.context", f"{name}.attention.output")
        yield layer._post_attention_layernorm, _both(tensors, f"{name}.attention_block", f"{name}.mlp.norm")
        yield layer._mlp_intermediate_dense, _output(tensors, f"{name}.mlp.up")
        yield layer._mlp_output_dense, _both(tensors, f"{name}.mlp.gelu", f"{name}.mlp.output")
        yield layer, _output(tensors, f"{name}.mlp_block")


def _output(tensors: dict[str, Any], name: str) -> Hook:
    def record(_input: Any, output: Any) -> None:
        tensors[name] = output

    return record


def _both(tensors: dict[str, Any], before: str, after: str) -> Hook:
    def record(inputs: Any, output: Any) -> None:
        tensors[before], tensors[after] = inputs, output

    return record


def _heads(tensors: dict[str, Any], name: str) -> Hook:
    """Record an output of (B, T, H, K) as (B, H, T, K)."""

    def record(_input: Any, output: Any) -> None:
        tensors[name] = output.swapaxes(1, 2)

    return record
