"""An adapter with tokens of its own: its embedding resizes the model, and its tokenizer knows the new ids."""

import json
from pathlib import Path

import pytest
from command_line import run

import bloomref

FOLDER = Path(bloomref.__file__).parent / "presets" / "bloom_tiny_udhr"


@pytest.mark.slow
@pytest.mark.clause("LRA-23")
def test_a_token_of_the_adapter_is_one_token(tmp_path: Path):
    lm = bloomref.BloomCausalLM.from_preset("bloom_tiny_udhr")
    size = lm.tokenizer.vocabulary_size()
    assert len(lm.tokenizer.tokenize("<new>")) > 1
    lm.resize_token_embeddings(size + 1)  # as with transformers: fewer rows than the model had, one more than tokens
    lm.add_adapter({"modules_to_save": ["word_embeddings", "lm_head"], "r": 1, "layers_to_transform": [0]})
    lm.save_adapter(tmp_path / "adapter")
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": size, "content": "<new>"})
    (tmp_path / "adapter" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    arguments = ["score", "<new>", "--context", "Everyone has", "--backend", "numpy", "--json"]
    with_adapter = run(*arguments, "--adapter", str(tmp_path / "adapter"))
    assert json.loads(with_adapter.stdout)["token_ids"] == [size]
    assert "tokenizer of the adapter" in with_adapter.stderr
