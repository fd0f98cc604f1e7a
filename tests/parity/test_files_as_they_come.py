"""Checkpoints in every spelling: transformers and bloomref both load them as they load the complete file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomref import BloomCausalLM, BloomConfig
from bloomref.formats.layouts import hf
from bloomref.formats.safetensors_io import write_safetensors
from bloomref.params import init_params

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
CONFIG = BloomConfig(vocabulary_size=17, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
EMBEDDING, HEAD, NORM = "transformer.word_embeddings.weight", "lm_head.weight", "transformer.ln_f.bias"
INDEX = "model.safetensors.index.json"
IDS = [[3, 1, 4, 1, 5]]
Tensors = dict[str, Any]


def tensors() -> Tensors:
    params = init_params(CONFIG, 1)
    return {hf.full_key(key): array.reshape(weight.hf_shape(CONFIG)) for key, weight, array in params.named()}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: {new if name == old else name: array for name, array in stored.items()}


def plus(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: stored | {name: np.ones((2, 12), np.float32) for name in names}


SPELLINGS: dict[str, Callable[[Tensors], Tensors]] = {
    "only the head": renamed(EMBEDDING, HEAD),
    "only the head, with the prefix": renamed(EMBEDDING, "transformer.lm_head.weight"),
    "both": lambda w: w | {HEAD: w[EMBEDDING]},
    "no prefix": lambda w: {name.removeprefix("transformer."): array for name, array in w.items()},
    "prefix on some": renamed(NORM, "ln_f.bias"),
    "one twice": lambda w: w | {"ln_f.bias": w[NORM]},
    "other heads": plus("score.weight", "v_head.summary.weight", "reward_head.weight"),
    "optimizer": plus("optimizer.state.0.exp_avg"),
}
INDEXES: dict[str, Callable[[dict[str, str]], object]] = {
    "a tied head that no shard holds": lambda index: index.update({HEAD: index[EMBEDDING]}),
    "a weight too few": lambda index: index.pop(NORM),
}


def of_transformers(folder: Path) -> Any:
    import torch
    from transformers import BloomForCausalLM

    model = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def of_bloomref(folder: Path) -> Any:
    return BloomCausalLM.from_preset(folder).logits({"token_ids": IDS})


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("complete")
    hf.save(folder, CONFIG, init_params(CONFIG, 1))
    return of_transformers(folder), of_bloomref(folder)


def agree(folder: Path, expected: tuple[Any, Any]) -> bool:
    return (of_transformers(folder) == expected[0]).all() and (of_bloomref(folder) == expected[1]).all()


@pytest.mark.clause("WGT-2", "WGT-4", "WGT-15")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_names(tmp_path: Path, expected: tuple[Any, Any], spelling: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    write_safetensors(tmp_path / "model.safetensors", SPELLINGS[spelling](tensors()))
    assert agree(tmp_path, expected)


@pytest.mark.clause("WGT-16")
@pytest.mark.parametrize("index", INDEXES)
def test_indexes_that_do_not_fit(tmp_path: Path, expected: tuple[Any, Any], index: str) -> None:
    folder = tmp_path / "model"
    hf.save(folder, CONFIG, init_params(CONFIG, 1), max_shard_bytes=4000)
    data = json.loads((folder / INDEX).read_text())
    INDEXES[index](data["weight_map"])
    (folder / INDEX).write_text(json.dumps(data))
    assert agree(folder, expected)


@pytest.mark.clause("PRE-11")
def test_an_adapter_as_the_model(tmp_path: Path) -> None:
    """transformers loads the base that the adapter names, and the adapter on it, as bloomref does."""
    pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    hf.save(tmp_path / "base", CONFIG, init_params(CONFIG, 1))
    lm = BloomCausalLM.from_preset(tmp_path / "base")
    lm.add_adapter({"r": 2})
    rng = np.random.default_rng(1)
    lm.assign_variables({n: rng.normal(size=a.shape).astype(a.dtype) for n, a in lm.trainable_variables().items()})
    lm.save_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    ours = of_bloomref(tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(IDS)).logits.numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert (ours != of_bloomref(tmp_path / "base")).any()
