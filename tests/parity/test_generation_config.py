"""Settings in generation_config.json and config.json: the tokens of transformers, which reads the same folder."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not (find_spec("torch") and find_spec("transformers")):
    pytest.skip("needs torch and transformers: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
from parity.hugging_face import in_float64
from small_models import make_lm
from transformers import BloomForCausalLM

from bloomref import BloomCausalLM, BloomConfig

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
PROMPT = [5, 6, 7, 3]


@pytest.mark.clause("GEN-16", "GEN-17", "GEN-18")
@pytest.mark.parametrize(
    ("file", "settings", "arguments"),
    [
        ("generation_config.json", {"eos_token_id": [2, 9, 11], "max_new_tokens": 12}, {}),
        ("generation_config.json", {"max_length": 9, "repetition_penalty": 1.4}, {}),
        ("generation_config.json", {"max_length": 9, "num_beams": 3, "length_penalty": 0.3}, {"max_new_tokens": 7}),
        ("generation_config.json", {"max_new_tokens": 9, "no_repeat_ngram_size": 1}, {"repetition_penalty": 1.2}),
        ("generation_config.json", {"num_beams": 3, "max_new_tokens": 5}, {"num_beams": 1}),
        ("generation_config.json", {"do_sample": True, "temperature": 0.1}, {"do_sample": False, "max_new_tokens": 6}),
        ("generation_config.json", {"temperature": 0.1, "top_p": 0.2, "typical_p": 0.5}, {"max_new_tokens": 6}),
        ("generation_config.json", {"suppress_tokens": [*range(8, 20)], "max_new_tokens": 6}, {}),
        ("generation_config.json", {"sequence_bias": [[[4], 9.0], [[5], -9.0]], "max_new_tokens": 6}, {}),
        ("generation_config.json", {"use_cache": False, "unknown": 1, "min_length": 0}, {"max_new_tokens": 6}),
        ("generation_config.json", {"forced_eos_token_id": 7, "max_new_tokens": 5}, {}),
        ("generation_config.json", {"forced_eos_token_id": [7, 8], "max_length": 9, "num_beams": 2}, {}),
        ("generation_config.json", {"min_length": 9, "eos_token_id": [*range(2, 20)], "max_new_tokens": 9}, {}),
        ("generation_config.json", {"begin_suppress_tokens": [*range(8, 20)], "max_new_tokens": 5}, {}),
        ("generation_config.json", {"begin_suppress_tokens": [*range(8, 20)], "num_beams": 3, "max_new_tokens": 5}, {}),
        ("generation_config.json", {"forced_bos_token_id": 9, "max_new_tokens": 5}, {}),
        ("config.json", {"max_length": 11, "repetition_penalty": 1.4, "eos_token_id": [9, 11]}, {}),
        ("config.json", {"num_beams": 2, "eos_token_id": 9}, {"max_new_tokens": 9}),
    ],
)
def test_transformers_generates_the_same(
    tmp_path: Path, file: str, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """Without an end token in the file, transformers does not end at all: bloomref then ends at that of config.json."""
    settings = {"eos_token_id": 2} | settings
    make_lm(CONFIG, seed=1).save_to_preset(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))
    ours = BloomCausalLM.from_preset(tmp_path, dtype="float64")
    theirs = BloomForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    for prompt in (PROMPT, PROMPT[:1]):
        ids = torch.tensor([prompt])
        with in_float64(), torch.no_grad():
            expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=3, **arguments)
        assert ours.generate(prompt, **arguments) == expected[0].tolist()
