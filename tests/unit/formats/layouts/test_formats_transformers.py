"""Files that transformers writes, and files of bloomref in transformers. Needs transformers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import MERGES, small_tokenizer, small_vocabulary
from strategies import draw_params

from bloomref import BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.tokenizers.tokenizer_files import vocabulary_and_merges
from bloomref.params import Params, keys

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DTYPES = ["float32", "float16", "bfloat16"]
IDS = np.array([[5, 1, 39, 7, 7, 20], [0, 3, 3, 11, 38, 2]])


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def model(dtype: str, **options: Any) -> Any:
    """A BLOOM with random weights and biases."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=40, hidden_size=24, n_layer=2, n_head=3, pad_token_id=3, **options)
    made = transformers.BloomForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.to(getattr(torch, dtype))


def assert_same_bits(params: Params, config: BloomConfig, state: dict[str, Any]) -> None:
    named = {key: array.reshape(weight.hf_shape(config)) for key, weight, array in params.named()}
    assert named.keys() == dict(keys(config)).keys()
    for key, array in named.items():
        peer = state.get(f"transformer.{key}", state.get(key)).detach().contiguous()
        assert array.dtype.name == str(peer.dtype).removeprefix("torch."), key
        assert array.tobytes() == peer.view(torch.uint8).numpy().tobytes(), key


@pytest.mark.clause("WGT-2", "WGT-3", "WGT-6", "WGT-8", "PRE-6")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", ["20KB", "5GB"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_save_pretrained_writes_is_read_bit_for_bit(tmp_path: Path, dtype: str, shards: str, tied: bool) -> None:
    peer = model(dtype, tie_word_embeddings=tied)
    peer.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / hf.INDEX).exists() == (shards == "20KB")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.layout, checkpoint.dtype_name, checkpoint.declared_dtype) == ("hf", dtype, dtype)
    assert_same_bits(checkpoint.params(), checkpoint.config, peer.state_dict())


@pytest.mark.clause("WGT-2")
def test_base_model_has_no_prefix(tmp_path: Path) -> None:
    peer = model("float32")
    peer.transformer.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert all(not name.startswith("transformer.") for _, name in checkpoint.weights.files.values())
    assert_same_bits(checkpoint.params(), checkpoint.config, peer.state_dict())


@pytest.mark.clause("HEA-10")
@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_the_model_below_a_classification_head_is_read_bit_for_bit(tmp_path: Path, head: str) -> None:
    config = transformers.BloomConfig(vocab_size=40, hidden_size=24, n_layer=1, n_head=3)
    peer = getattr(transformers, f"BloomFor{head}")(config)
    peer.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert_same_bits(checkpoint.params(), checkpoint.config, peer.state_dict())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shards", ["20KB", "5GB"])
def test_logits_of_a_folder_are_those_of_transformers(tmp_path: Path, shards: str, tied: bool) -> None:
    peer = model("float32", tie_word_embeddings=tied)
    peer.save_pretrained(tmp_path, max_shard_size=shards)
    with torch.no_grad():
        expected = peer(torch.from_numpy(IDS)).logits.numpy()
    logits = BloomCausalLM.from_preset(str(tmp_path)).logits({"token_ids": IDS})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [20_000, 10**9])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_bloomref_writes_transformers_loads(tmp_path: Path, dtype: str, limit: int, tied: bool) -> None:
    peer = model(dtype, tie_word_embeddings=tied)
    peer.save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    hf.save(tmp_path / "ours", checkpoint.config, checkpoint.params(), max_shard_bytes=limit)
    assert (tmp_path / "ours" / hf.INDEX).exists() == (limit == 20_000)
    loaded, report = transformers.BloomForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.dtype == peer.dtype
    assert_same_bits(checkpoint.params(), checkpoint.config, loaded.state_dict())
    with torch.no_grad():
        theirs, ours = (m(torch.from_numpy(IDS)).logits for m in (peer, loaded.eval()))
    assert torch.equal(theirs, ours)
    kept = {"transformers_version", "architectures", "_name_or_path"}
    before, after = (m.config.to_dict() for m in (peer, loaded))
    assert {k: v for k, v in before.items() if k not in kept} == {k: v for k, v in after.items() if k not in kept}


def test_tokenizer_through_the_keras_layout(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_tokenizer(tmp_path / "source")
    config = BloomConfig(vocabulary_size=400, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=32)
    params = draw_params(config, np.random.default_rng(0)).map(lambda array: array.astype(np.float32))
    hf.save(tmp_path / "one", config, params, tokenizer_from=tmp_path / "source")
    keras.save(tmp_path / "keras", config, params, tokenizer_from=tmp_path / "one")
    hf.save(tmp_path / "two", config, params, tokenizer_from=tmp_path / "keras")
    keras.save(tmp_path / "again", config, params, tokenizer_from=tmp_path / "keras")
    for folder in ("one", "keras", "two", "again"):
        assert vocabulary_and_merges(tmp_path / folder) == (small_vocabulary(), MERGES)
        assert all(path.exists() for path in open_checkpoint(tmp_path / folder).tokenizer_files)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "two")
    for text in ("the is a, b.", "意 the</s>!", "  \n\n x", ""):
        assert peer(text)["input_ids"] == list(small_tokenizer().tokenize(text))
    assert (peer.bos_token, peer.eos_token, peer.pad_token, peer.unk_token) == ("<s>", "</s>", "<pad>", "<unk>")


def write_tokenizer(folder: Path) -> None:
    from bloomref.formats.files import write_json
    from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json

    os.makedirs(folder)
    write_json(folder / "tokenizer.json", bloom_tokenizer_json(small_vocabulary(), MERGES))
