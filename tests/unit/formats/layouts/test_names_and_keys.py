"""One rule for names and keys: refused only where ignoring could change the result (WGT-15), whatever the spelling."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import CONFIG, json_file, load

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig
from bloomref.errors import BadWeights, BloomrefError, Unsupported
from bloomref.formats.files import read_json
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.params import Params, init_params
from bloomref.shapes import Array

EMBEDDING, HEAD, NORM = "transformer.word_embeddings.weight", "lm_head.weight", "transformer.ln_f.bias"
QKV = "transformer.h.1.self_attention.query_key_value"
INDEX = "model.safetensors.index.json"
Tensors = dict[str, Array]
PARAMS = init_params(CONFIG, 1)


def tensors(config: BloomConfig = CONFIG) -> Tensors:
    params = PARAMS if config is CONFIG else init_params(config, 1)
    return {hf.full_key(key): array.reshape(weight.hf_shape(config)) for key, weight, array in params.named()}


def folder_of(folder: Path, stored: Tensors, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf() | config))
    return folder


def same(one: Params, other: Params) -> bool:
    return all(a.tobytes() == b.tobytes() for (_, _, a), (_, _, b) in zip(one.named(), other.named(), strict=True))


def renamed(*names: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    new = dict(names)
    return lambda stored: {new.get(name, name): array for name, array in stored.items()}


def plus(*names: str, dtype: Any = np.float32) -> Callable[[Tensors], Tensors]:
    return lambda stored: stored | {name: np.ones(3, dtype) for name in names}


ACCEPTED: dict[str, Callable[[Tensors], Tensors]] = {
    "as saved": dict,
    "tied, only the head": renamed((EMBEDDING, HEAD)),
    "tied, only the head, with the prefix": renamed((EMBEDDING, "transformer.lm_head.weight")),
    "tied, both": lambda w: w | {HEAD: w[EMBEDDING]},
    "tied, the head twice": lambda w: w | {HEAD: w[EMBEDDING], "transformer.lm_head.weight": w[EMBEDDING]},
    "no prefix": lambda w: {name.removeprefix("transformer."): array for name, array in w.items()},
    "no prefix, only the head": lambda w: {
        HEAD if name == EMBEDDING else name.removeprefix("transformer."): array for name, array in w.items()
    },
    "prefix on some": renamed((NORM, "ln_f.bias"), (EMBEDDING, "word_embeddings.weight")),
    "one twice, equal": lambda w: w | {"ln_f.bias": w[NORM]},
    "sequence classification": plus("score.weight"),
    "token classification": plus("classifier.weight", "classifier.bias"),
    "question answering": plus("qa_outputs.weight", "qa_outputs.bias"),
    "value head": plus("v_head.summary.weight", "v_head.summary.bias"),
    "reward heads": plus("reward_head.weight", "rank_head.bias", "value_head.0.weight"),
    "optimizer": plus("optimizer.state.0.exp_avg", "exp_avg_sq", "global_step", dtype=np.int64),
    "old masks": plus("transformer.h.0.self_attention.scale_mask_softmax.causal_mask", dtype=np.bool_),
    "mask constants": plus("transformer.h.0.self_attention.masked_bias"),
}


@pytest.mark.clause("WGT-2", "WGT-4", "WGT-15")
@pytest.mark.parametrize("spelling", ACCEPTED)
def test_a_complete_model_loads_in_every_spelling(tmp_path: Path, spelling: str) -> None:
    folder = folder_of(tmp_path / "model", ACCEPTED[spelling](tensors()))
    assert same(load(folder), PARAMS)
    assert open_checkpoint(folder).dtype == np.float32
    assert same(BloomBackbone.from_preset(folder).params, PARAMS)
    assert BloomCausalLM.from_preset(folder).generate([3], max_new_tokens=1)


REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str, type[BloomrefError]]] = {
    "another bias": (plus(f"{QKV}.extra_bias"), "unknown h.1.self.*extra_bias; to ignore it could change", BadWeights),
    "bias of the head": (plus("lm_head.bias"), "unknown lm_head.bias; to ignore it could change", BadWeights),
    "positions": (plus("wpe.weight"), "unknown wpe.weight", BadWeights),
    "soft prompt": (plus("prompt_encoder.default.embedding.weight"), "unknown prompt_encoder", BadWeights),
    "a layer too many": (
        lambda w: w | {name.replace("h.1.", "h.2."): array for name, array in w.items() if "h.1." in name},
        "the weights have 3 layers, n_layer in config.json says otherwise",
        BadWeights,
    ),
    "one twice, different": (lambda w: w | {"ln_f.bias": w[NORM] + 1}, "ln_f.bias once, got two different", BadWeights),
    "int8, bitsandbytes": (plus(f"{QKV}.SCB"), r"SCB: these weights are quantised \(bitsandbytes int8\)", Unsupported),
    "4 bits, bitsandbytes": (
        plus(f"{QKV}.weight.absmax", f"{QKV}.weight.quant_state.bitsandbytes__nf4"),
        r"quantised \(bitsandbytes, 4 bits\)",
        Unsupported,
    ),
    "GPTQ": (plus(f"{QKV}.qweight", f"{QKV}.g_idx"), r"these weights are quantised \(GPTQ\)", Unsupported),
    "AWQ": (plus(f"{QKV}.qweight", f"{QKV}.scales"), r"these weights are quantised \(GPTQ or AWQ\)", Unsupported),
    "FP8": (plus(f"{QKV}.weight_scale_inv"), r"these weights are quantised \(FP8\)", Unsupported),
    "compressed": (plus(f"{QKV}.weight_packed"), r"quantised \(compressed-tensors\)", Unsupported),
    "adapter inside": (plus(f"{QKV}.lora_A.default.weight"), r"an adapter inside it; .*merge_and_unload", Unsupported),
    "base layers": (
        renamed((f"{QKV}.weight", f"{QKV}.base_layer.weight")),
        "an adapter inside it; .*merge_and_unload",
        Unsupported,
    ),
    "DDP": (lambda w: {f"module.{name}": a for name, a in w.items()}, "every name begins with 'module.'", BadWeights),
    "torch.compile": (
        lambda w: {f"_orig_mod.{name}": array for name, array in w.items()},
        "every name begins with '_orig_mod.'",
        BadWeights,
    ),
    "neither embedding nor head": (
        lambda w: {name: array for name, array in w.items() if name != EMBEDDING},
        "missing word_embeddings.weight",
        BadWeights,
    ),
}


@pytest.mark.clause("WGT-5", "WGT-15")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_could_change_the_result_is_refused_by_name(tmp_path: Path, reason: str) -> None:
    change, words, error = REFUSED[reason]
    with pytest.raises(error, match=words):
        load(folder_of(tmp_path / "model", change(tensors())))


def test_tensors_that_are_not_used_are_listed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", plus("score.weight", "v_head.bias")(tensors()))
    assert sorted(hf.open_weights(folder).unused) == ["score.weight", "v_head.bias"]


def test_the_backbone_of_an_untied_classifier_needs_no_head(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", plus("score.weight")(tensors()), tie_word_embeddings=False)
    backbone = BloomBackbone.from_preset(folder)
    assert same(backbone.params, PARAMS)
    assert backbone.tie_word_embeddings
    with pytest.raises(BadWeights, match=r"missing lm_head\.weight"):
        BloomCausalLM.from_preset(folder)


def test_an_untied_head_is_read_under_either_name(tmp_path: Path) -> None:
    config = CONFIG.replace(tie_word_embeddings=False)
    for name in (HEAD, "transformer.lm_head.weight"):
        folder = folder_of(tmp_path / "model", renamed((HEAD, name))(tensors(config)), tie_word_embeddings=False)
        assert same(load(folder), init_params(config, 1))
        assert not BloomBackbone.from_preset(folder).tie_word_embeddings


@pytest.mark.clause("WGT-15")
def test_variables_beside_the_layers_of_keras_are_ignored(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    keras.save(tmp_path / "model", CONFIG, PARAMS)
    with h5py.File(tmp_path / "model" / "model.weights.h5", "r+") as file:
        file["score/vars/0"], file["optimizer/vars/0"] = [1.0], [2.0]
    assert same(load(tmp_path / "model"), PARAMS)
    with h5py.File(tmp_path / "model" / "model.weights.h5", "r+") as file:
        file["layers/bloom_decoder/gate/vars/0"] = [1.0]
    with pytest.raises(BadWeights, match="unknown layers/bloom_decoder/gate/vars/0"):
        load(tmp_path / "model")


# --- shards ------------------------------------------------------------------------------------------------------


def weight_map(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return json_file(INDEX, lambda data: change(data["weight_map"]))


def moved(index: dict[str, Any]) -> None:
    index[EMBEDDING] = next(name for name in index.values() if name != index[EMBEDDING])


INDEXES: dict[str, Callable[[Path], object]] = {
    "a tied head that no file holds": weight_map(lambda index: index.update({HEAD: index[EMBEDDING]})),
    "an unknown weight that no file holds": weight_map(lambda index: index.update({"score.weight": index[EMBEDDING]})),
    "a weight too few": weight_map(lambda index: index.pop(NORM)),
    "a weight in the wrong shard": weight_map(moved),
    "a weight at null": weight_map(lambda index: index.update({NORM: None})),
    "no metadata": json_file(INDEX, lambda data: data.update(metadata=None)),
}


@pytest.mark.clause("WGT-16")
@pytest.mark.parametrize("change", INDEXES)
def test_an_index_may_name_one_too_many_or_one_too_few(tmp_path: Path, change: str) -> None:
    hf.save(tmp_path / "model", CONFIG, PARAMS, max_shard_bytes=4000)
    INDEXES[change](tmp_path / "model")
    assert same(load(tmp_path / "model"), PARAMS)


@pytest.mark.clause("WGT-16")
def test_of_two_tensors_the_index_decides(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    hf.save(folder, CONFIG, PARAMS, max_shard_bytes=4000)
    index = read_json(folder / INDEX)["weight_map"]
    other = folder / next(name for name in index.values() if name != index[NORM])
    file = SafetensorsFile(other)
    stored = {name: np.array(file.view(name)) for name in file.entries}
    write_safetensors(other, stored | {NORM: np.full(12, 7, np.float32)})
    assert same(load(folder), PARAMS)
    weight_map(lambda index: index.pop(NORM))(folder)
    with pytest.raises(BadWeights, match=r"ln_f\.bias: expected it in one shard"):
        load(folder)


@pytest.mark.clause("WGT-16")
def test_missing_shards_are_counted(tmp_path: Path) -> None:
    hf.save(tmp_path / "model", CONFIG, PARAMS, max_shard_bytes=4000)
    shards = sorted((tmp_path / "model").glob("model-*"))
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(BadWeights, match=f"got {len(shards) - 2} of {len(shards)}: .* is missing; download"):
        load(tmp_path / "model")


# --- null --------------------------------------------------------------------------------------------------------

NULLS = ("model_type", "dtype", "torch_dtype", "quantization_config", "tie_word_embeddings", "layer_norm_epsilon")


def test_null_is_absent_in_a_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", tensors(), **dict.fromkeys(NULLS))
    assert same(load(folder), PARAMS)


def test_null_is_absent_in_the_header_of_safetensors(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", tensors())
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]) | {"__metadata__": None}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert same(load(folder), PARAMS)
