"""The built-in presets against the closed formula, the shipped files, and KerasHub's own list."""

import dataclasses
import json
import re
from importlib.util import find_spec

import pytest

from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.params import count_params
from bloomref.presets.preset_registry import PRESETS, RAIL_URL, Preset

PAGE = [f"{kind}_{size}_multi" for kind in ("bloom", "bloomz") for size in ("560m", "1.1b", "1.7b", "3b")]
LARGE = ["bloom_7b_multi", "bloom_176b_multi", "bloomz_7b_multi", "bloomz_176b_multi"]
LARGE += ["bloomz_7b_mt", "bloomz_176b_mt", "bloomz_7b_p3", "bloomz_176b_p3"]
EVERY = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())


@pytest.mark.clause("PRE-1")
def test_names() -> None:
    assert set(PRESETS) == {"bloom_tiny_udhr", *PAGE, *LARGE}
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.clause("PRE-2")
@EVERY
def test_parameters_follow_from_the_config(preset: Preset) -> None:
    c = preset.config
    d = c.hidden_dim
    assert preset.parameters == count_params(c)
    assert preset.parameters == c.vocabulary_size * d + 4 * d + c.num_layers * (12 * d * d + 13 * d)


@pytest.mark.clause("PRE-3")
@EVERY
def test_source_and_licence_are_stated(preset: Preset) -> None:
    assert len(preset.description) > 20
    assert "as is" in preset.disclaimer or preset.source == "embedded"
    summary = preset.summary()
    assert {"description", "parameters", "source", "licence", "disclaimer"} <= summary.keys()
    json.dumps(summary)
    if preset.source != "embedded":
        assert re.fullmatch(r"bigscience/bloomz?(-\d[\w]*)?(-mt|-p3)?", preset.source)
        assert preset.licence_url == RAIL_URL
        assert preset.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", preset.revision)


def test_sources_agree_with_names() -> None:
    """bloomz_1.1b_multi is bigscience/bloomz-1b1, and so on: no two names share a repository."""
    sizes = {"560m": "-560m", "1.1b": "-1b1", "1.7b": "-1b7", "3b": "-3b", "7b": "-7b1", "176b": ""}
    for name in (*PAGE, *LARGE):
        kind, size, variant = name.split("_")
        suffix = "" if variant == "multi" else f"-{variant}"
        assert PRESETS[name].source == f"bigscience/{kind}{sizes[size]}{suffix}"


def test_presets_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["bloom_3b_multi"].revision = "other"  # type: ignore[misc]


@pytest.mark.clause("PRE-8")
def test_embedded_preset_is_what_it_says() -> None:
    preset = PRESETS["bloom_tiny_udhr"]
    assert preset.folder is not None
    checkpoint = open_checkpoint(preset.folder)
    assert checkpoint.config.replace(extra={}) == preset.config
    assert sum(array.size for _, _, array in checkpoint.params().named()) == preset.parameters
    assert (preset.folder / "tokenizer.json").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not find_spec("keras_hub"), reason="needs keras_hub, in a separate environment")
def test_the_presets_of_keras_hub_are_all_here() -> None:
    from keras_hub.models import BloomBackbone

    for name, theirs in BloomBackbone.presets.items():
        ours = PRESETS[name]
        assert ours.parameters == theirs["metadata"]["params"]
        assert ours.kaggle == theirs["kaggle_handle"]
        assert f"{ours.config.num_layers}-layer" in theirs["metadata"]["description"]
    assert set(BloomBackbone.presets) == set(PAGE)
