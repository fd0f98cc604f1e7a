"""Files that KerasHub writes, and files of bloomref in KerasHub. Needs KerasHub."""

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not find_spec("keras_hub"):
    pytest.skip("needs keras_hub and a Keras backend, in a separate environment", allow_module_level=True)

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_hub
from small_models import MERGES, small_vocabulary
from strategies import draw_params

from bloomref import BloomBackbone, BloomCausalLM, Unsupported
from bloomref.config import BloomConfig
from bloomref.formats.files import write_json
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json, vocabulary_and_merges
from bloomref.params import Params

# Warnings of the imports of Keras, JAX and TensorFlow do not concern the results.
pytestmark = pytest.mark.filterwarnings("ignore")

DTYPES = ["float32", "float16", "bfloat16"]
CONFIG = BloomConfig(vocabulary_size=300, num_layers=2, num_heads=3, hidden_dim=24, intermediate_dim=50)
IDS = np.array([[5, 1, 39, 7, 7, 20], [0, 3, 3, 11, 38, 2]], np.int32)
INPUTS = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}


def drawn(dtype: str) -> Params:
    from bloomref.dtypes import floating_dtype

    return draw_params(CONFIG, np.random.default_rng(0)).map(lambda array: array.astype(floating_dtype(dtype)))


def keras_model(dtype: str) -> Any:
    """A KerasHub BLOOM, with a tokenizer, whose every variable is random."""
    tokenizer = keras_hub.models.BloomTokenizer(vocabulary=small_vocabulary(), merges=MERGES)
    preprocessor = keras_hub.models.BloomCausalLMPreprocessor(tokenizer, sequence_length=8)
    backbone = keras_hub.models.BloomBackbone(**CONFIG.to_keras(), dtype=dtype)
    rng = np.random.default_rng(1)
    for variable in backbone.weights:
        variable.assign(rng.standard_normal(variable.shape) * 0.3)
    return keras_hub.models.BloomCausalLM(backbone=backbone, preprocessor=preprocessor)


def assert_same_values(params: Params, backbone: Any) -> None:
    """Sums and sizes of all variables; another test compares hidden states, which depend on their order."""
    ours = sorted((array.astype(np.float32).sum(dtype=np.float64), array.size) for array in as_variables(params))
    theirs = sorted((np.asarray(v).astype(np.float32).sum(dtype=np.float64), v.numpy().size) for v in backbone.weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def as_variables(params: Params) -> list[np.ndarray]:
    split = [(array, "C" in weight.axes.split()) for _, weight, array in params.named()]
    return [part for array, fused in split for part in (np.moveaxis(array, 1, 0) if fused else [array])]


@pytest.mark.clause("WGT-3", "WGT-6", "WGT-9", "PRE-6")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_gigabytes", [10, 2.7e-5], ids=["single", "sharded"])
def test_what_save_to_preset_writes_is_read(tmp_path: Path, dtype: str, shard_gigabytes: float) -> None:
    peer = keras_model(dtype)
    peer.save_to_preset(str(tmp_path), max_shard_size=shard_gigabytes)
    assert (tmp_path / keras.INDEX).exists() == (shard_gigabytes < 1)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.layout, checkpoint.dtype_name, checkpoint.declared_dtype) == ("keras", dtype, dtype)
    assert checkpoint.config == CONFIG
    assert_same_values(checkpoint.params(), peer.backbone)
    assert vocabulary_and_merges(tmp_path) == (small_vocabulary(), MERGES)
    hf.save(tmp_path / "hf", checkpoint.config, checkpoint.params())
    keras.save(tmp_path / "back", CONFIG, open_checkpoint(tmp_path / "hf").params())
    back = open_checkpoint(tmp_path / "back")
    assert all(
        x.tobytes() == y.tobytes()
        for (_, _, x), (_, _, y) in zip(checkpoint.params().named(), back.params().named(), strict=True)
    )


@pytest.mark.clause("WGT-3")
def test_hidden_states_of_a_folder_are_those_of_keras_hub(tmp_path: Path) -> None:
    peer = keras_model("float32")
    peer.save_to_preset(str(tmp_path))
    expected = np.asarray(peer.backbone(INPUTS))
    hidden = BloomBackbone.from_preset(str(tmp_path))(INPUTS)
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert BloomCausalLM.from_preset(str(tmp_path)).tokenizer is not None


def test_weights_of_a_task_alone(tmp_path: Path) -> None:
    peer = keras_model("float32")
    peer.save_to_preset(str(tmp_path))
    (tmp_path / keras.WEIGHTS).unlink()
    peer.save_weights(tmp_path / keras.TASK_WEIGHTS)
    assert_same_values(open_checkpoint(tmp_path).params(), peer.backbone)


def test_quantized_presets_are_unsupported(tmp_path: Path) -> None:
    peer = keras_model("float32")
    peer.backbone(INPUTS)
    peer.backbone.quantize("int8")
    peer.backbone.save_to_preset(str(tmp_path))
    with pytest.raises(Unsupported, match="quantized"):
        open_checkpoint(tmp_path).params()
    data = json.loads((tmp_path / "config.json").read_text())
    data["config"]["dtype"] = "float32"
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(Unsupported, match=r"vars/\d"):
        open_checkpoint(tmp_path).params()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [20_000, 10**9], ids=["sharded", "single"])
def test_what_bloomref_writes_keras_hub_loads(tmp_path: Path, dtype: str, limit: int) -> None:
    params = drawn(dtype)
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "tokenizer.json", bloom_tokenizer_json(small_vocabulary(), MERGES))
    keras.save(tmp_path / "keras", CONFIG, params, max_shard_bytes=limit, tokenizer_from=source)
    backbone = keras_hub.models.BloomBackbone.from_preset(str(tmp_path / "keras"), dtype=dtype)
    assert_same_values(params, backbone)
    backbone.save_to_preset(str(tmp_path / "theirs"))
    again = open_checkpoint(tmp_path / "theirs")
    for (key, _, x), (_, _, y) in zip(params.named(), again.params().named(), strict=True):
        assert x.tobytes() == y.tobytes(), key
    assert json.loads((tmp_path / "theirs" / "config.json").read_text()) == json.loads(
        (tmp_path / "keras" / "config.json").read_text()
    )


def test_what_bloomref_writes_with_a_tokenizer_keras_hub_runs(tmp_path: Path) -> None:
    params = drawn("float32")
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "tokenizer.json", bloom_tokenizer_json(small_vocabulary(), MERGES))
    keras.save(tmp_path / "keras", CONFIG, params, tokenizer_from=source)
    tokenizer = keras_hub.models.BloomTokenizer.from_preset(str(tmp_path / "keras"))
    assert [int(i) for i in tokenizer("the")] == [small_vocabulary()["the"]]
    assert (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id) == (1, 2, 3)
    task = keras_hub.models.BloomCausalLM.from_preset(str(tmp_path / "keras"))
    ours = BloomCausalLM.from_preset(str(tmp_path / "keras"))
    expected = np.asarray(task(INPUTS))
    np.testing.assert_allclose(ours.logits(INPUTS), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert isinstance(task.generate("the", max_length=6), str)
    config = json.loads((tmp_path / "keras" / "tokenizer.json").read_text())
    tokenizer.save_to_preset(str(tmp_path / "theirs"))
    assert config == json.loads((tmp_path / "theirs" / "tokenizer.json").read_text())
