"""Writer of a BLOOM in GGUF, llama.cpp's file format, with a tokenizer of placeholder tokens."""

from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.params import Params
from bloomref.shapes import Array

MODEL = {
    "word_embeddings": "token_embd",
    "word_embeddings_layernorm": "token_embd_norm",
    "ln_f": "output_norm",
    "lm_head": "output",
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
CONTEXT = 2304  # context length in the file; llama.cpp accepts longer inputs
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def write_gguf(file: Path, config: BloomConfig, params: Params, dtype: str) -> None:
    """Write a model. llama.cpp stores query, key and value as three blocks of rows, and has no post-layernorm residual.

    Args:
        dtype: dtype of the matrices, "float32", "float16" or "bfloat16"; everything else is float32.
    """
    import gguf

    writer = gguf.GGUFWriter(str(file), "bloom")
    _add_sizes(writer, config)
    _add_tokenizer(writer, config.vocabulary_size)
    kind = gguf.GGMLQuantizationType[KINDS[dtype]]
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    for key, weight, array in params.named():
        stored = _blocks(array) if weight.attribute.startswith("qkv") else array.reshape(weight.hf_shape(config))
        values = np.ascontiguousarray(stored.astype(np.float32))
        if dtype != "float32" and values.ndim == 2:
            writer.add_tensor(_name(key), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name(key), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: BloomConfig) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_dim)
    writer.add_feed_forward_length(config.intermediate_dim)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _name(key: str) -> str:
    if not key.startswith("h."):
        base, suffix = key.rsplit(".", 1)
        return f"{MODEL[base]}.{suffix}"
    _, layer, rest = key.split(".", 2)
    base, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{BLOCK[base]}.{suffix}"


def _blocks(fused: Array) -> Array:
    """Reorder the fused rows from (H, C, K[, D]) to (C H K[, D])."""
    return fused.swapaxes(0, 1).reshape(-1, *fused.shape[3:])


def _add_tokenizer(writer: Any, size: int) -> None:
    names = [*SPECIAL, *(f"t{i}" for i in range(size - len(SPECIAL)))][:size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("bloom")
    writer.add_token_list(names)
    writer.add_token_types([3 if name in SPECIAL else 1 for name in names])
    writer.add_token_merges(["t 0"])
    setters = (writer.add_unk_token_id, writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id)
    for token_id, setter in enumerate(setters[:size]):
        setter(token_id)
