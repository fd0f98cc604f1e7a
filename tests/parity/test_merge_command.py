"""`bloomref convert BASE OUT --adapter A` compared with peft's merge_and_unload."""

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
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import BloomForCausalLM

from bloomref import BloomConfig
from bloomref.cli.app import run
from bloomref.params import init_params

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
CASES: dict[str, list[dict[str, Any]]] = {
    "one": [{"target_modules": ["query_key_value", "dense"], "r": 3, "lora_alpha": 5}],
    "two": [
        {"target_modules": ["query_key_value"], "r": 3, "lora_alpha": 5},
        {"target_modules": ["query_key_value", "dense_4h_to_h"], "r": 2, "use_rslora": True},
    ],
}


def write(tmp_path: Path, case: str, dtype: torch.dtype) -> list[Path]:
    """Write the base model and the case's adapters, with random factors."""
    hugging_face.build(CONFIG, init_params(CONFIG, 3), dtype).save_pretrained(tmp_path / "base")
    folders = []
    for number, settings in enumerate(CASES[case]):
        model = get_peft_model(
            BloomForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype),
            PeftConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings),
        )
        folders.append(tmp_path / f"adapter_{number}")
        model.save_pretrained(folders[-1])
    return folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_merge_and_unload(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    folders = write(tmp_path, case, dtype)
    model = PeftModel.from_pretrained(
        BloomForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype), folders[0], adapter_name="0"
    )
    for number, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=str(number))
    merged = model.merge_and_unload(adapter_names=[str(number) for number in range(len(folders))]).state_dict()
    options = [word for folder in folders for word in ("--adapter", str(folder))]
    assert run(["convert", str(tmp_path / "base"), str(tmp_path / "out"), *options]) == 0
    written = load_file(tmp_path / "out/model.safetensors")
    before = load_file(tmp_path / "base/model.safetensors")
    assert set(written) == set(merged) - {"lm_head.weight"}
    for name, tensor in written.items():
        assert tensor.dtype == dtype
        if not name.endswith(("query_key_value.weight", "dense.weight", "4h_to_h.weight")):
            assert torch.equal(tensor, before[name])
        # peft rounds the product, and the sum after each adapter; bloomref rounds once
        allowed = 4 * torch.finfo(dtype).eps * max(1.0, float(merged[name].abs().max()))
        np.testing.assert_allclose(tensor.double(), merged[name].double(), rtol=0, atol=allowed, err_msg=name)
    again = BloomForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in written.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query_key_value", "dense"], "bias": "lora_only", "modules_to_save": ["ln_f"], "use_dora": True},
        {"target_modules": ["word_embeddings", "dense"]},  # merge_and_unload would change the tied head, too
    ],
    ids=["many kinds", "embedding"],
)  # fmt: skip
def test_the_merged_model_is_the_adapted_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "base").mkdir()
    base = hugging_face.build(CONFIG, init_params(CONFIG, 3), torch.float64)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, PeftConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=2, **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    model.save_pretrained(tmp_path / "adapter")
    assert run(["convert", str(tmp_path / "base"), str(tmp_path / "out"), "--adapter", str(tmp_path / "adapter")]) == 0
    merged = BloomForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    token_ids = torch.arange(1, 9)[None]
    expected = model(token_ids).logits.detach().numpy()
    np.testing.assert_allclose(merged(token_ids).logits.detach(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
