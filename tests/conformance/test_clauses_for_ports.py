"""Details of the specification that a port cannot guess: lists and tables of the clauses are those of the code."""

import re
from pathlib import Path

import numpy as np
import pytest

from bloomref.backbone import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.errors import BadWeights, Unsupported
from bloomref.formats.adapters import peft_config
from bloomref.formats.adapters.peft_config import LoraConfig

ROOT = Path(__file__).parents[2]
CONFIG = BloomConfig(vocabulary_size=9, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=24)
SIZES = {"vocab_size": 9, "hidden_size": 6, "n_layer": 1, "n_head": 2}
BATCH = {"token_ids": [[1, 2, 3]]}


def clause(page: str, name: str) -> str:
    text = (ROOT / "specs" / page).read_text("utf-8")
    return text.partition(f"**{name}**")[2].partition("\n- **")[0]


@pytest.mark.clause("CFG-3", "CFG-7")
def test_null_is_absent():
    assert BloomConfig.from_hf({**SIZES, "intermediate_size": None}) == BloomConfig.from_hf(SIZES)
    old = {**SIZES, "n_embed": None, "num_hidden_layers": 1, "n_layer": None}
    assert BloomConfig.from_hf(old) == BloomConfig.from_hf(SIZES)
    with pytest.raises(BadWeights, match="vocab_size"):
        BloomConfig.from_hf({**SIZES, "vocab_size": None})


@pytest.mark.clause("MOD-8")
def test_query_is_recorded_before_its_scale():
    tensors = BloomBackbone.from_params(CONFIG, Case(CONFIG, seed=3).params, "float64").trace(BATCH)
    query, key, scores = (tensors[f"layers.0.attention.{name}"] for name in ("query", "key", "scores"))
    product = np.einsum("bhtk,bhsk->bhts", query, key) / np.sqrt(CONFIG.head_dim)
    diagonal = np.arange(3)
    np.testing.assert_allclose(scores[..., diagonal, diagonal], product[..., diagonal, diagonal], rtol=1e-12)


@pytest.mark.clause("MOD-8")
def test_the_lookup_is_recorded_with_the_adapter_of_the_embedding(tmp_path):
    model = BloomBackbone.from_params(CONFIG, Case(CONFIG, seed=3).params, "float64")
    plain = model.trace(BATCH)["word_embedding"]
    lora = Lora(("word_embeddings",), rank=2)
    model.load_adapter(lora.write(tmp_path, CONFIG))
    [(_, (a, b))] = lora._pairs(CONFIG).items()
    added = lora.settings().scale("word_embeddings.weight") * (b @ a[:, [1, 2, 3]]).T[None]
    np.testing.assert_allclose(model.trace(BATCH)["word_embedding"], plain + added, rtol=1e-6, atol=1e-6)


@pytest.mark.clause("LRA-12")
@pytest.mark.parametrize(
    ("pattern", "adapted"),
    [
        ("dense", ["self_attention.dense"]),
        ("dense.*", ["self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
        ("mlp.dense_h_to_4h", ["mlp.dense_h_to_4h"]),
        ("ense", []),
        ("transformer.h.0.self_attention.dense", ["self_attention.dense"]),
    ],
)
def test_a_key_of_a_pattern_matches_the_last_parts_of_a_name(pattern, adapted):
    config = LoraConfig(r=8, target_modules="all-linear", rank_pattern={pattern: 3})
    assert [key for key in config.targets(CONFIG) if config.rank(key) == 3] == [
        f"h.0.{name}.weight" for name in adapted
    ]


@pytest.mark.clause("LRA-18")
def test_the_table_of_keys_is_the_code():
    rows = re.findall(
        r"^  \| (`.*) \| (used|any value, without effect) \|$", clause("78-lora.md", "LRA-18"), re.MULTILINE
    )
    listed = {what: set(re.findall(r"`(\w+)`", names)) for names, what in rows}
    assert listed["used"] == {*peft_config._USED, *peft_config._MATCHING, *peft_config._SAVED}
    assert listed["any value, without effect"] == {*peft_config._INERT}
    plain = {"peft_type": "LORA", **dict.fromkeys(listed["any value, without effect"], "x")}
    LoraConfig.from_json({**plain, **dict.fromkeys(listed["used"]), "later": None})
    with pytest.raises(Unsupported, match="later"):
        LoraConfig.from_json({**plain, "later": 1})


@pytest.mark.clause("LRA-11")
def test_a_file_of_keras_hub_uses_little_of_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = Lora(("query_dense",), form="keras", rank=2).write(tmp_path, CONFIG)
    data = path.read_bytes()
    assert data[:9] == b"\x89HDF\r\n\x1a\n\0"  # the last byte is the version of the superblock
    with h5py.File(path) as file:
        rank, factor = file["lora/vars/rank"], file["lora/10/vars/lora_kernel_a"]
        assert (rank.dtype, rank.shape, int(rank[()])) == (np.dtype("<i8"), (), 2)
        assert (factor.dtype, factor.shape, factor.chunks, factor.compression) == (
            np.dtype("<f4"),
            (6, 2, 2),
            None,
            None,
        )
        where = factor.id.get_offset()
        assert data[where : where + factor.nbytes] == factor[:].astype("<f4").tobytes()
