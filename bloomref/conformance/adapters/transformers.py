"""transformers' eager BLOOM on torch, as installed, and patched for float64.

In a float64 model, transformers computes softmax and ALiBi slopes in float32. The errors are 1e-9 to 1e-4, and with
left padding real positions become NaN. `TransformersFloat64` gives the module of the model a `torch` whose `float32` is
float64; nothing else is changed.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import need, refuse, versions_of
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.conformance.model.pieces import join
from bloomref.params import PROJECTIONS
from bloomref.shapes import Array, Bool, Float, Int

ADAPTER = "default"
"""Name that peft gives to an adapter."""
INSTALL = '"torch>=2.6" "transformers>=5.0"'


class Transformers:
    """transformers as installed."""

    name = "transformers"
    capabilities = Capabilities(
        dtypes=("float32", "bfloat16", "float16", "float64"),
        features=frozenset(FEATURES) - {"mlp-width"},
        scores="model",
        gradients=("float32", "float64"),  # autograd in 16 bits rounds every step; GRD-5 asks for float32
    )

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "TorchModel":
        """Build a model from the weights, without initialisation.

        Raises:
            Unsupported: torch or transformers is not installed, or the MLP width is not 4 D.
        """
        need(self.name, "torch", "transformers", command=INSTALL)
        refuse(self.name, an_MLP_width_other_than_4_D=config.intermediate_dim != 4 * config.hidden_dim)
        return TorchModel(_build(config, weights, dtype), nullcontext)

    def versions(self) -> Mapping[str, str]:
        return versions_of("transformers", "torch")


class TransformersFloat64(Transformers):
    """transformers in float64, with softmax and slopes patched to float64."""

    name = "transformers-float64"
    capabilities = Capabilities(dtypes=("float64",), features=Transformers.capabilities.features)

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "TorchModel":
        """Build a model as `Transformers.load`, which runs inside `in_float64`."""
        model = super().load(config, weights, dtype)
        return TorchModel(model.model, in_float64)


@contextmanager
def in_float64() -> Iterator[None]:
    """Context in which transformers computes slopes and softmax in float64."""
    import torch
    from transformers.models.bloom import modeling_bloom

    class Wide:
        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    with mock.patch.object(modeling_bloom, "torch", Wide()):
        yield


def cache_argument(model: Any) -> str:
    """Name of the argument that takes the cache: "cache" since transformers 5.24, "past_key_values" before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _build(config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.BloomForCausalLM(transformers.BloomConfig.from_dict(config.to_hf()))
    tensors = {key: torch.tensor(array).to(getattr(torch, dtype)) for key, array in weights.items()}
    missing, unknown = model.load_state_dict(tensors, strict=False, assign=True)
    assert not unknown
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.train(False)


class TorchModel:
    """A loaded model. Every call runs inside the context `patched`."""

    def __init__(self, model: Any, patched: Callable[[], AbstractContextManager[None]]) -> None:
        self.model = model
        self.patched = patched

    def adapted(self, path: Path) -> "TorchModel":
        """Apply a PEFT adapter by peft, which replaces modules of the model.

        Raises:
            Unsupported: peft is not installed.
        """
        need("transformers with an adapter", "peft", command='"peft>=0.15"')
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning that the tied head uses the base embedding, as LRA-4 requires
            model = PeftModel.from_pretrained(self.model, str(path), is_trainable=True).get_base_model()
        return TorchModel(model.train(False), self.patched)

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return _array(self._run(token_ids, is_real, use_cache=False).logits)

    def hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.trace(token_ids, is_real)["final_norm"]

    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> dict[str, Array]:
        """All intermediates of MOD-8 but the scores, which stay inside transformers' attention function."""
        return self._traced(token_ids, is_real, use_cache=False)

    def _traced(self, token_ids: Array, is_real: Array, **arguments: Any) -> dict[str, Array]:
        with observed(self.model) as tensors:
            output = self._run(token_ids, is_real, output_attentions=True, **arguments)
        tensors |= {f"layers.{i}.attention.probabilities": _array(p) for i, p in enumerate(output.attentions)}
        return tensors | {"logits": _array(output.logits)}

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> Float[Array, "B T V"]:
        """Logits of calls over a DynamicCache, which grows by itself.

        Each call gets the mask of all positions so far.
        """
        del capacity
        calls = self._calls(token_ids, is_real, cuts)
        return np.concatenate([_array(self._run(*call, **cached).logits) for call, cached in calls], axis=1)

    def trace_in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> dict[str, Array]:
        """Intermediates of the calls of `in_pieces`, as in `trace`."""
        del capacity
        calls = self._calls(token_ids, is_real, cuts)
        return join([self._traced(*call, **cached) for call, cached in calls], token_ids.shape[1])

    def _calls(self, token_ids: Array, is_real: Array, cuts: Sequence[int]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the input and the keyword arguments of each call over one cache."""
        from transformers import DynamicCache

        cached = {"use_cache": True, cache_argument(self.model): DynamicCache(config=self.model.config)}
        for start, stop in pairwise((0, *cuts, token_ids.shape[1])):
            yield (token_ids[:, start:stop], is_real[:, :stop]), cached

    def loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, dict[str, Array]]:
        """Loss of GRD-1 and GRD-2 from the model's logits, in float32 or float64, and its gradients by autograd.

        transformers' own loss is float32 at most, and counts tokens that follow padding.
        """
        import torch

        self.model.zero_grad(set_to_none=True)
        counted = is_real[:, 1:] & is_real[:, :-1]
        target = torch.tensor(np.where(counted, labels[:, 1:], -100).astype(np.int64))
        with torch.enable_grad(), self.patched():
            logits = self._call(token_ids, is_real, use_cache=False).logits[:, :-1]
            wide = logits if logits.dtype == torch.float64 else logits.float()
            total = torch.nn.functional.cross_entropy(wide.flatten(0, 1), target.flatten(), reduction="sum")
            loss = total / max(int((target != -100).sum()), 1)
            torch.autograd.backward(loss)
        named = self.model.named_parameters()
        return loss.item(), {_name(key): _array(value.grad) for key, value in named if value.grad is not None}

    def call(self, token_ids: Any, padding_mask: Any) -> Array:
        """Call the model on the arguments, converted by `torch.tensor`."""
        import torch

        mask = None if padding_mask is None else torch.tensor(padding_mask)
        with torch.no_grad(), self.patched():
            return _array(self.model(torch.tensor(token_ids), attention_mask=mask).logits)

    def _run(self, token_ids: Array, is_real: Array, **options: Any) -> Any:
        import torch

        with torch.no_grad(), self.patched():
            return self._call(token_ids, is_real, **options)

    def _call(self, token_ids: Array, is_real: Array, **options: Any) -> Any:
        """Call the model; without padding there is no mask, which is another path of transformers."""
        import torch

        mask = None if is_real.all() else torch.tensor(np.ascontiguousarray(is_real, np.int64))
        return self.model(torch.tensor(np.ascontiguousarray(token_ids)), attention_mask=mask, **options)


def _name(key: str) -> str:
    """Name of a parameter in files: of a weight, or of a factor that peft added (GRD-4)."""
    return f"base_model.model.{key}".replace(f".{ADAPTER}", "") if "lora_" in key else key


def _array(tensor: Any) -> Array:
    """Convert a tensor to float64 if it is float64, and otherwise to float32, which is exact."""
    import torch

    wide = tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
    return wide.numpy().copy()


@contextmanager
def observed(model: Any) -> Iterator[dict[str, Array]]:
    """Context that records inputs and outputs of the modules of a BloomForCausalLM, by name (MOD-8)."""
    tensors: dict[str, Array] = {}
    handles = []
    for name, module in _modules(model.transformer):
        handles.append(module.register_forward_hook(_record(tensors, name)))
    for i, block in enumerate(model.transformer.h):
        attention = block.self_attention
        handles.append(attention.query_key_value.register_forward_hook(_record_split(tensors, i, attention)))
        handles.append(
            attention.dense.register_forward_pre_hook(_record_input(tensors, f"layers.{i}.attention.context"))
        )
    try:
        yield tensors
    finally:
        for handle in handles:
            handle.remove()


def _modules(body: Any) -> Iterator[tuple[str, Any]]:
    yield "word_embedding", body.word_embeddings
    yield "embedding_norm", body.word_embeddings_layernorm
    for i, block in enumerate(body.h):
        yield f"layers.{i}.attention.norm", block.input_layernorm
        yield f"layers.{i}.attention.output", block.self_attention.dense
        yield f"layers.{i}.attention_block", block.self_attention
        yield f"layers.{i}.mlp.norm", block.post_attention_layernorm
        yield f"layers.{i}.mlp.up", block.mlp.dense_h_to_4h
        yield f"layers.{i}.mlp.gelu", block.mlp.gelu_impl
        yield f"layers.{i}.mlp.output", block.mlp.dense_4h_to_h
        yield f"layers.{i}.mlp_block", block
    yield "final_norm", body.ln_f


def _record(tensors: dict[str, Array], name: str) -> Callable[..., None]:
    def hook(_module: object, _inputs: object, output: Any) -> None:
        tensors[name] = _array(output[0] if isinstance(output, tuple) else output)

    return hook


def _record_input(tensors: dict[str, Array], name: str) -> Callable[..., None]:
    def hook(_module: object, inputs: Any) -> None:
        tensors[name] = _array(inputs[0])

    return hook


def _record_split(tensors: dict[str, Array], layer: int, attention: Any) -> Callable[..., None]:
    """Record query, key and value, split by transformers' own function."""

    def hook(_module: object, _inputs: object, fused: Any) -> None:
        for name, part in zip(PROJECTIONS, attention._reshape(fused), strict=True):
            tensors[f"layers.{layer}.attention.{name}"] = _array(part)

    return hook
