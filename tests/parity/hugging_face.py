"""transformers' BLOOM with bloomref's weights, and a patch that makes it a float64 model.

In a model of dtype float64, transformers still computes two things in float32: the softmax of the attention scores and
the ALiBi slopes. That costs 1e-9 to 1e-4 of accuracy, and under left padding it turns real positions into NaN: the mask
adds the smallest float64, which overflows to minus infinity for a whole row in the float32 softmax. Within
`in_float64`, the module that defines the model has a `torch` whose name `float32` means
float64. The module is unchanged otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from parity.cases import ParityCase
from parity.compare import Arrays, join
from transformers import BloomConfig as HuggingFaceConfig
from transformers import BloomForCausalLM, DynamicCache

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.transformers import cache_argument, in_float64
from bloomref.params import Params

__all__ = ["build", "in_float64", "pieces", "whole"]

torch.set_num_threads(1)


def build(config: BloomConfig, params: Params, dtype: torch.dtype = torch.float64) -> BloomForCausalLM:
    assert config.intermediate_dim == 4 * config.hidden_dim, "transformers has no other width"
    model = BloomForCausalLM(HuggingFaceConfig.from_dict(config.to_hf())).to(dtype).eval()
    prefixed = {
        key if key == "lm_head.weight" else f"transformer.{key}": torch.from_numpy(
            array.reshape(weight.hf_shape(config))
        )
        for key, weight, array in params.named()
    }
    missing, unknown = model.load_state_dict(prefixed, strict=False)
    assert not unknown
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return model


def whole(model: BloomForCausalLM, case: ParityCase) -> Arrays:
    """The states that `parity.compare.names` lists, of one forward pass over all positions."""
    return _call(model, case.token_ids, case.mask)


def pieces(model: BloomForCausalLM, case: ParityCase) -> Arrays:
    """The states of a run over a DynamicCache, chunk by chunk, each with the mask of all positions so far."""
    cache = DynamicCache(config=model.config)
    parts, name = [], cache_argument(model)
    for start, stop in case.intervals():
        mask = None if case.mask is None else case.mask[:, :stop]
        parts.append(_call(model, case.token_ids[:, start:stop], mask, use_cache=True, **{name: cache}))
    return join(parts)


def _call(model: BloomForCausalLM, token_ids: np.ndarray, mask: np.ndarray | None, **cache: Any) -> Arrays:
    mask_tensor = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad(), _observed(model) as states:
        output = model(torch.from_numpy(token_ids), attention_mask=mask_tensor, **cache)
    return states | {"logits": _array(output.logits)}


@contextmanager
def _observed(model: BloomForCausalLM) -> Iterator[Arrays]:
    """A context with a dictionary that receives the output of each module whose output has a name in bloomref."""
    body, states = model.transformer, {}
    modules = {"embedding_norm": body.word_embeddings_layernorm}
    for index, block in enumerate(body.h):
        modules |= {f"layers.{index}.attention_block": block.self_attention, f"layers.{index}.mlp_block": block}
    modules["final_norm"] = body.ln_f

    def recorder(name: str) -> Any:
        def hook(_module: object, _inputs: object, output: Any) -> None:
            states[name] = _array(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()
