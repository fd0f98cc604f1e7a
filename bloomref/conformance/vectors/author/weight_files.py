"""Vectors about files: model folders, valid and damaged, and LoRA adapters. This module also writes the folders."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.subject import named_weights
from bloomref.conformance.vectors.author.draft import Draft, answer, ask, case_of, with_adapter
from bloomref.conformance.vectors.author.vector_models import MODELS
from bloomref.formats import saved_folder
from bloomref.formats.adapters import peft
from bloomref.formats.adapters.peft_config import EMBEDDING as EMBEDDING_MODULE
from bloomref.formats.adapters.peft_config import LINEARS
from bloomref.formats.files import write_json
from bloomref.formats.layouts import hf
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.params import HF_PREFIX, LM_HEAD, WORD_EMBEDDING
from bloomref.shapes import Array

EMBEDDING = HF_PREFIX + WORD_EMBEDDING.hf_key
QKV = f"{HF_PREFIX}h.0.self_attention.query_key_value.weight"
ADAPTED = "heads3"
Weights = dict[str, Array]
IDS = [[0, 4, 2, 1], [3, 3, 0, 4]]


def write_model(folder: Path, case: Case) -> None:
    """Write a model folder in Hugging Face's layout."""
    hf.save(folder, case.config, case.params.astype(np.dtype(np.float32)))
    _without_list(folder)


def _without_list(folder: Path) -> None:
    """Remove the list of files that a save leaves for the next one: a vector's folder is written once."""
    (folder / saved_folder.LIST).unlink()


# --- folders of weights ----------------------------------------------------------------------------------------------


def _cast(dtype: Any) -> Callable[[Weights], Weights]:
    return lambda weights: {key: array.astype(dtype) for key, array in weights.items()}


def _without_prefix(weights: Weights) -> Weights:
    return {key.removeprefix(HF_PREFIX): array for key, array in weights.items()}


def _with(key: str, change: Callable[[Weights], Array]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {key: change(weights)}


def _without(key: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: array for name, array in weights.items() if name != key}


def _nan(weights: Weights) -> Array:
    changed = weights[QKV].copy()
    changed[1, 1] = np.nan
    return changed


RIGHT: dict[str, tuple[str, str, Callable[[Weights], Weights]]] = {
    "wgt-float32": ("WGT-1 WGT-3 WGT-6", "float32, with the prefix `transformer.`", dict),
    "wgt-without-prefix": ("WGT-2", "float32, without the prefix `transformer.`", _without_prefix),
    "wgt-mixed-prefix": ("WGT-2", "the prefix on all names but one", lambda w: _without_prefix({EMBEDDING: w[EMBEDDING]}) | _without(EMBEDDING)(w)),
    "wgt-float16": ("WGT-6", "stored as float16", _cast(np.float16)),
    "wgt-bfloat16": ("WGT-6", "stored as bfloat16", _cast(ml_dtypes.bfloat16)),
    "wgt-float64": ("WGT-6", "stored as float64", _cast(np.float64)),
    "wgt-tied-copy": ("WGT-4", "the tied head is also stored, equal to the embedding", _with(LM_HEAD.hf_key, lambda w: w[EMBEDDING].copy())),
}  # fmt: skip
"""Valid folders: name -> clauses, comment, and a change of the weights of the model "tiny"."""
WRONG: dict[str, tuple[str, str, Callable[[Weights], Weights]]] = {
    "wgt-missing": ("WGT-5", "a bias is missing", _without(f"{HF_PREFIX}h.0.mlp.dense_h_to_4h.bias")),
    "wgt-unknown": ("WGT-5", "an unknown weight", _with(f"{HF_PREFIX}h.0.mlp.gate.weight", lambda w: w[EMBEDDING])),
    "wgt-shape": ("WGT-5", "a matrix stored transposed", _with(QKV, lambda w: np.ascontiguousarray(w[QKV].T))),
    "wgt-head-differs": ("WGT-4", "a stored head that differs from the embedding, although the config ties them", _with(LM_HEAD.hf_key, lambda w: w[EMBEDDING] * 2.0)),
    "wgt-nan": ("WGT-7", "a NaN among the weights", _with(QKV, _nan)),
    "wgt-infinity": ("WGT-7", "an infinity among the weights", _with(EMBEDDING, lambda w: np.where(w[EMBEDDING] == w[EMBEDDING].max(), np.inf, w[EMBEDDING]).astype(np.float32))),
    "wgt-int8": ("WGT-6", "weights of a dtype that is not allowed", _cast(np.int8)),
}  # fmt: skip
"""Folders that must be refused: name -> clauses, comment, and a change of the weights."""


def _header_too_long(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data[8:]


def _gap(data: bytes) -> bytes:
    """Append eight bytes, and move the offsets of all tensors but the first by eight."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] > 0:
            entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :] + bytes(8)


DAMAGED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "wgt-truncated": ("the last bytes are missing", lambda data: data[:-5]),
    "wgt-header-too-long": ("the header claims more bytes than the file has", _header_too_long),
    "wgt-gap": ("the offsets leave a gap", _gap),
    "wgt-empty-file": ("an empty file", lambda _: b""),
}
"""Damaged files: name of the folder -> comment, and a change of the bytes."""


def write_folders(root: Path) -> None:
    """Write the checkpoints and adapters that the vectors of `weights` and `lora` name."""
    case = MODELS["tiny"]
    weights = named_weights(case.config, case.params)
    for name, (_, _, change) in {**RIGHT, **WRONG}.items():
        folder = _folder(root, name, case)
        write_safetensors(folder / hf.WEIGHTS, change(weights))
    for name, (_, damage) in DAMAGED.items():
        folder = _folder(root, name, case)
        write_safetensors(folder / hf.WEIGHTS, weights)
        (folder / hf.WEIGHTS).write_bytes(damage((folder / hf.WEIGHTS).read_bytes()))
    _write_shards(root, case, weights)
    _write_adapters(root / "adapters")


def _folder(root: Path, name: str, case: Case) -> Path:
    folder = root / "checkpoints" / name
    folder.mkdir(parents=True)
    write_json(folder / hf.CONFIG, dict(sorted(case.config.to_hf().items())))
    return folder


def _write_shards(root: Path, case: Case, weights: Weights) -> None:
    keys = sorted(weights)
    halves = {"one.safetensors": keys[::2], "two.safetensors": keys[1::2]}
    placed = {key: name for name, half in halves.items() for key in half}
    index = {"metadata": {"total_size": sum(array.nbytes for array in weights.values())}, "weight_map": placed}
    outside = index | {"weight_map": placed | {EMBEDDING: "../wgt-float32/model.safetensors"}}
    lost = index | {"weight_map": {key: name for key, name in placed.items() if key != EMBEDDING}}
    for name, content in {"wgt-shards": index, "wgt-shard-outside": outside, "wgt-shard-unlisted": lost}.items():
        folder = _folder(root, name, case)
        for file, half in halves.items():
            write_safetensors(folder / file, {key: weights[key] for key in half})
        write_json(folder / hf.INDEX, content)


def weights() -> list[Draft]:
    case = MODELS["tiny"]
    inputs = {"token_ids": IDS, "padding_mask": [[1] * 4] * 2}

    def right(name: str, clauses: str, comment: str) -> Draft:
        input_case = case_of(case, name, token_ids=IDS)
        answers = (("the specification's", lambda: answer(input_case)),)
        return Draft(name, tuple(clauses.split()), comment, "load", ("weights-file",), model=f"checkpoints/{name}", arguments=inputs, answers=answers)  # fmt: skip

    def wrong(name: str, clauses: str, comment: str) -> Draft:
        return Draft(name, tuple(clauses.split()), comment, "load", ("weights-file",), "invalid", "BadWeights", f"checkpoints/{name}", arguments=inputs)  # fmt: skip

    return [
        *(right(name, clauses, comment) for name, (clauses, comment, _) in RIGHT.items()),
        right("wgt-shards", "WGT-8", "two shards with arbitrary names, which only the index lists"),
        right("wgt-shard-unlisted", "WGT-16", "a shard contains a weight that the index does not list"),
        *(wrong(name, clauses, comment) for name, (clauses, comment, _) in WRONG.items()),
        *(wrong(name, "WGT-11", comment) for name, (comment, _) in DAMAGED.items()),
        wrong("wgt-shard-outside", "WGT-8", "the index names a file outside the folder"),
    ]


# --- adapters --------------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, Lora] = {
    "lra-qkv": Lora(rank=2, alpha=4.0),
    "lra-all-linear": Lora(LINEARS, rank=2, alpha=3.0),
    "lra-rslora": Lora(("dense", "dense_h_to_4h"), alpha=2.0, rslora=True),
    "lra-patterns": Lora(LINEARS, rank=3, ranks=(("dense", 2),), alphas=(("dense_h_to_4h", 3.0),)),
    "lra-embedding": Lora((EMBEDDING_MODULE,), rank=2),
    "lra-dropout": Lora(("query_key_value", "dense_4h_to_h"), rank=2, dropout=0.5),
}
"""Adapters of the model "heads3": name of the folder -> adapter."""
COMMENTS = {
    "lra-qkv": ("LRA-1 LRA-3 LRA-12", "the fused projection: rows of B head by head"),
    "lra-all-linear": ("LRA-1 LRA-10 LRA-12", "all four linear layers, by the word `all-linear`"),
    "lra-rslora": ("LRA-12", "the scale is alpha over the root of the rank; `dense` is not `dense_h_to_4h`"),
    "lra-patterns": ("LRA-12", "a separate rank and alpha for some modules"),
    "lra-embedding": ("LRA-4", "the embedding lookup only: the tied head uses the embedding without the adapter"),
    "lra-dropout": ("LRA-9", "dropout acts in training only"),
}
"""Name of an adapter -> clauses and comment of its vector."""


def write_adapter(folder: Path, adapter: Lora, **changes: Any) -> None:
    """Write a PEFT folder; `changes` replace keys of its config."""
    folder.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        adapter.write(Path(scratch), MODELS[ADAPTED].config).rename(folder)
    _without_list(folder)
    if changes:
        write_json(folder / peft.CONFIG, dict(sorted((adapter.settings().to_json() | changes).items())))


def _write_adapters(root: Path) -> None:
    for name, adapter in ADAPTERS.items():
        write_adapter(root / name, adapter, **({"target_modules": "all-linear"} if name == "lra-all-linear" else {}))
    usual = ADAPTERS["lra-qkv"]
    write_adapter(root / "lra-layers-repeated", usual, layer_replication=[[0, 2], [1, 2]])
    write_adapter(root / "lra-prompt-tuning", usual, peft_type="PROMPT_TUNING")
    write_adapter(root / "lra-rank-wrong", usual, r=3)
    write_adapter(root / "lra-factor-missing", usual)
    stored = SafetensorsFile(root / "lra-factor-missing" / peft.WEIGHTS)
    remaining = {name: stored.view(name).copy() for name in stored.entries if "h.1" in name or "lora_A" in name}
    write_safetensors(root / "lra-factor-missing" / peft.WEIGHTS, remaining)


def lora() -> list[Draft]:
    def case(name: str, adapter: str, **changes: Any) -> Case:
        return with_adapter(case_of(MODELS[ADAPTED], name, **changes), ADAPTERS[adapter])

    def right(name: str) -> Draft:
        clauses, comment = COMMENTS[name]
        return on(name, ask(case(name, name, batch=2, time=5), ADAPTED, clauses, comment, "lora", question="adapter"))

    def on(adapter: str, draft: Draft) -> Draft:
        return replace(draft, adapter=f"adapters/{adapter}")

    def wrong(name: str, clause: str, comment: str, error: str) -> Draft:
        return Draft(name, (clause,), comment, "adapter", ("lora",), "invalid", error, f"models/{ADAPTED}", f"adapters/{name}", {"token_ids": IDS})  # fmt: skip

    steps = case("lra-over-cache", "lra-all-linear", batch=1, time=6, cuts=(4, 5))
    return [
        *map(right, ADAPTERS),
        on("lra-all-linear", ask(steps, ADAPTED, "LRA-16 KVC-7", "the adapter also acts in later calls over a cache", "lora pieces", ["logits"], "in_pieces", cuts=[4, 5], capacity=6)),
        wrong("lra-layers-repeated", "LRA-18", "repeated layers are another model", "Unsupported"),
        wrong("lra-prompt-tuning", "LRA-18", "an adapter of another method than LoRA", "Unsupported"),
        wrong("lra-rank-wrong", "LRA-17", "the config has another rank than the factors", "BadWeights"),
        wrong("lra-factor-missing", "LRA-17", "a B is missing", "BadWeights"),
    ]  # fmt: skip
