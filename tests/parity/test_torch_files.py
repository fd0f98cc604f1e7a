"""Files that torch, transformers and peft write, converted without them: the same bits, whatever the form."""

import json
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers") and find_spec("peft")):
    pytest.skip("needs torch, transformers and peft: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
from parity import hugging_face
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file

from bloomref import BloomConfig
from bloomref.errors import BadWeights
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.pickles.from_pickle import convert
from bloomref.formats.pickles.megatron import joined, layers
from bloomref.formats.pickles.torch_file import TorchFile
from bloomref.params import init_params

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FORMS: dict[str, dict[str, Any]] = {
    "zip": {},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_read(path: Path, value: dict[str, torch.Tensor]) -> None:
    file = TorchFile(path)
    assert list(file.tensors()) == list(value)
    for name, tensor in file.tensors().items():
        view = file.view(tensor)
        assert view.shape == tuple(value[name].shape)
        assert view.dtype.name == str(value[name].dtype).removeprefix("torch.")
        assert np.ascontiguousarray(view).tobytes() == bits(value[name]), name


def views(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors with strides, offsets and shared storages."""
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    return {
        "base": base,
        "transposed": base.T,
        "row": base[2],
        "column": base[:, 3],
        "window": base[1:4, 2:7],
        "steps": base[::2, ::3],
        "three": base.reshape(2, 3, 8).permute(2, 0, 1),
        "scalar": base[1, 1],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base[3:].clone()),
    }


@pytest.mark.clause("WGT-31")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_as_torch_reads_them(tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    torch.save(views(dtype), tmp_path / "a.bin", **FORMS[form])
    assert_read(tmp_path / "a.bin", views(dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool], ids=str)
def test_integers_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    value = OrderedDict(a=torch.tensor([0, 1, 1, 0, 1]).to(dtype))
    torch.save(value, tmp_path / "a.bin")
    assert_read(tmp_path / "a.bin", value)


@pytest.mark.parametrize("value", [{"a": torch.zeros(2, dtype=torch.complex64)}, {"a": torch.zeros(2, device="meta")},
                                   {"a": torch.zeros(2).to_sparse()}, {"a": torch.nn.Linear(1, 1)}, {"a": 1}, torch.zeros(2)],
                         ids=["complex", "meta", "sparse", "module", "number", "bare"])  # fmt: skip
def test_other_objects_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.bin")
    with pytest.raises(BadWeights):
        TorchFile(tmp_path / "a.bin").tensors()


@pytest.mark.clause("WGT-30")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_dict_of_transformers_is_converted_bit_for_bit(tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    model = hugging_face.build(CONFIG, init_params(CONFIG, 3), dtype)
    source = tmp_path / "source"
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin", **FORMS[form])
    convert(source, tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    state = model.state_dict()
    assert bits(state.pop("lm_head.weight")) == bits(state["transformer.word_embeddings.weight"])  # tied: one storage
    assert {name: bits(tensor) for name, tensor in written.items()} == {name: bits(t) for name, t in state.items()}
    again = type(model).from_pretrained(tmp_path / "out", dtype=dtype)
    assert all(bits(again.state_dict()[name]) == bits(tensor) for name, tensor in state.items())
    open_checkpoint(tmp_path / "out").params()


def test_shards_that_torch_wrote_are_converted(tmp_path: Path) -> None:
    config = CONFIG.replace(tie_word_embeddings=False)
    model = hugging_face.build(config, init_params(config, 3), torch.bfloat16)
    source = tmp_path / "source"
    model.config.save_pretrained(source)
    state = model.state_dict()
    names = {key: f"pytorch_model_{i % 4 + 1:05}-of-00004.bin" for i, key in enumerate(state)}
    for file in set(names.values()):
        torch.save({key: tensor for key, tensor in state.items() if names[key] == file}, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    convert(source, tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert {name: bits(t) for name, t in again.state_dict().items()} == {name: bits(t) for name, t in state.items()}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_that_peft_pickled_is_converted(tmp_path: Path) -> None:
    model = get_peft_model(
        hugging_face.build(CONFIG, init_params(CONFIG, 3), torch.float32),
        PeftConfig(task_type="CAUSAL_LM", target_modules=["query_key_value", "dense"], r=3, init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    model.save_pretrained(tmp_path / "safe")
    assert (tmp_path / "pickled/adapter_model.bin").exists()
    convert(tmp_path / "pickled", tmp_path / "out")
    written, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "safe"))
    assert {name: bits(tensor) for name, tensor in written.items()} == {n: bits(t) for n, t in expected.items()}


@pytest.mark.clause("WGT-32")
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_slices_are_averaged_as_torch_does(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    parts = [torch.randn(50, generator=generator).to(dtype) for _ in range(count)]
    for number, part in enumerate(parts):
        torch.save({"weight": part}, tmp_path / f"layer_09-model_{number:02}-model_states.pt")
    (paths,) = layers(tmp_path)
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    files = [TorchFile(path) for path in paths]
    assert joined(files)["transformer.ln_f.weight"].tobytes() == bits(total / count)
