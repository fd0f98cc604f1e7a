"""A BLOOM in llama.cpp's file format, with a tokenizer of placeholder tokens, for timing alone."""

from pathlib import Path
from typing import Any

import numpy as np

MODEL = {"word_embeddings": "token_embd", "word_embeddings_layernorm": "token_embd_norm", "ln_f": "output_norm"}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}


def write_gguf(folder: Path, file: Path, dtype: str) -> None:
    """Convert a folder in Hugging Face layout. llama.cpp keeps query, key and value as three blocks of rows."""
    import gguf

    from bloomref.formats.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    writer = gguf.GGUFWriter(str(file), "bloom")
    writer.add_context_length(2304)
    writer.add_embedding_length(config.hidden_dim)
    writer.add_feed_forward_length(config.intermediate_dim)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    _add_tokenizer(writer, config.vocabulary_size)
    kind = gguf.GGMLQuantizationType.BF16 if dtype == "bfloat16" else None
    writer.add_file_type(32 if kind else 0)
    for key, weight, array in checkpoint.params(None).named():
        stored = _blocks(array) if weight.attribute.startswith("qkv") else array.reshape(weight.hf_shape(config))
        values = np.ascontiguousarray(stored.astype(np.float32))
        if kind is not None and values.ndim == 2:
            writer.add_tensor(_name(key), gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name(key), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(key: str) -> str:
    base, suffix = key.rsplit(".", 1)
    if not key.startswith("h."):
        return f"{MODEL[base]}.{suffix}"
    _, layer, rest = base.split(".", 2)
    return f"blk.{layer}.{BLOCK[rest]}.{suffix}"


def _blocks(fused: Any) -> Any:
    """(H, C, K[, D]) to (C H K[, D])."""
    return fused.swapaxes(0, 1).reshape(-1, *fused.shape[3:])


def _add_tokenizer(writer: Any, size: int) -> None:
    names = ["<unk>", "<s>", "</s>", "<pad>"] + [f"t{i}" for i in range(size - 4)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("bloom")
    writer.add_token_list(names)
    writer.add_token_types([3] * 4 + [1] * (size - 4))
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_unk_token_id(0)
