"""The clauses on presets, through the public API: names, figures, handles, and the sources of files."""

import shutil
import socket

import numpy as np
import pytest

from bloomref import BloomBackbone, InvalidInput
from bloomref.errors import BadWeights
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import count_params
from bloomref.presets.preset_registry import PRESETS
from bloomref.presets.resolver import resolve

TINY = "bloom_tiny_udhr"


@pytest.mark.clause("PRE-1")
def test_the_eight_names_of_keras_hub_and_the_larger_ones():
    for size in ("560m", "1.1b", "1.7b", "3b", "7b", "176b"):
        assert {f"bloom_{size}_multi", f"bloomz_{size}_multi"} <= set(PRESETS)
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.clause("PRE-2")
@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_closed_formula(name):
    preset = PRESETS[name]
    v, d, layers = preset.config.vocabulary_size, preset.config.hidden_dim, preset.config.num_layers
    assert preset.parameters == v * d + 4 * d + layers * (12 * d**2 + 13 * d) == count_params(preset.config)


@pytest.mark.clause("PRE-3")
@pytest.mark.parametrize("name", PRESETS)
def test_description_source_and_licence_are_stated(name):
    shown = BloomBackbone.presets[name]
    assert all(shown[key] for key in ("description", "parameters", "source", "licence"))
    assert ("RAIL" in shown["licence"]) == (name != TINY)
    assert "BigScience" in shown["disclaimer"] or name == TINY


@pytest.mark.clause("PRE-5")
@pytest.mark.parametrize(
    ("typo", "meant"),
    [("bloom_560_multi", "bloom_560m_multi"), ("bloomz_3b_mutli", "bloomz_3b_multi"), ("bloom_tiny", TINY)],
)
def test_a_misspelt_name_is_refused_with_the_nearest(typo, meant):
    with pytest.raises(InvalidInput, match=f"^preset: expected .*got {typo}.*{meant}"):
        resolve(typo)


@pytest.mark.clause("PRE-4", "PRE-5")
@pytest.mark.parametrize(
    "handle",
    [
        "",
        None,
        3,
        "hf://",
        "hf://user",
        "hf://a/b/c",
        "hf:///b",
        "kaggle://",
        "kaggle://a/b",
        "s3://a/b",
        "no/such/folder",
    ],
)
def test_what_is_no_handle_is_refused(handle):
    with pytest.raises(InvalidInput, match="preset: expected"):
        resolve(handle)


@pytest.mark.clause("PRE-4")
def test_a_folder_is_its_own_place(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(InvalidInput, match="expected a folder"):
        resolve(tmp_path / "file")


@pytest.mark.clause("PRE-6")
def test_config_json_tells_the_layout(tmp_path):
    pytest.importorskip("h5py")
    model = BloomBackbone(10, 1, 2, 8, 16)
    for layout in ("hf", "keras"):
        model.save_to_preset(tmp_path / layout, format=layout)
        assert open_checkpoint(tmp_path / layout).layout == layout
    shutil.copy(tmp_path / "hf/config.json", tmp_path / "keras/config.json")
    assert open_checkpoint(tmp_path / "keras").layout == "hf"


@pytest.mark.clause("PRE-7")
def test_without_weights_none_are_read(tmp_path):
    source = resolve(TINY)
    shutil.copy(source / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    fresh = BloomBackbone.from_preset(tmp_path, load_weights=False)
    assert fresh.count_params() == PRESETS[TINY].parameters
    assert (fresh.params.layers[0].ln_attn_weight == 1).all()
    with pytest.raises(BadWeights):
        BloomBackbone.from_preset(tmp_path)


@pytest.mark.clause("PRE-8")
def test_the_embedded_preset_needs_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = BloomBackbone.from_preset(TINY)
    assert model.count_params() == PRESETS[TINY].parameters
    assert np.isfinite(model({"token_ids": [[1, 2, 3]]})).all()
