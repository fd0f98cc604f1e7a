"""The Hugging Face layout, and its round trip through the Keras layout."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import configs, draw_params

from bloomref.config import BloomConfig
from bloomref.dtypes import FLOAT32
from bloomref.errors import BadWeights, InvalidInput, Unsupported
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.params import Params, count_params, init_params
from bloomref.presets.resolver import resolve

CONFIG = BloomConfig(
    vocabulary_size=40, num_layers=2, num_heads=3, hidden_dim=24, intermediate_dim=96, extra={"pretraining_tp": 4}
)
DTYPES = [np.dtype(name) for name in ("float64", "float32", "float16", ml_dtypes.bfloat16)]


def drawn(config: BloomConfig, dtype: np.dtype = FLOAT32, seed: int = 0) -> Params:
    return draw_params(config, np.random.default_rng(seed)).map(lambda array: array.astype(dtype))


def assert_same(one: Params, other: Params) -> None:
    for (key, _, x), (other_key, _, y) in zip(one.named(), other.named(), strict=True):
        assert (key, x.dtype, x.shape) == (other_key, y.dtype, y.shape)
        assert x.tobytes() == y.tobytes(), key


@pytest.mark.clause("WGT-3", "WGT-6")
@given(config=configs(), dtype=st.sampled_from(DTYPES), limit=st.sampled_from([10**9, 3000]), seed=st.integers(0, 99))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_is_bit_exact(tmp_path: Path, config: BloomConfig, dtype: np.dtype, limit: int, seed: int) -> None:
    params = drawn(config, dtype, seed)
    hf.save(tmp_path, config, params, max_shard_bytes=limit)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.replace(extra={}) == config
    assert checkpoint.dtype == dtype
    assert_same(checkpoint.params(), params)


@pytest.mark.clause("WGT-9")
@given(config=configs(), dtype=st.sampled_from(DTYPES), limit=st.sampled_from([10**9, 3000]), seed=st.integers(0, 99))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hugging_face_to_keras_and_back_is_bit_exact(
    tmp_path: Path, config: BloomConfig, dtype: np.dtype, limit: int, seed: int
) -> None:
    pytest.importorskip("h5py")
    config = config.replace(
        tie_word_embeddings=True,
        apply_residual_connection_post_layernorm=False,
        pad_token_id=None,
        hidden_dropout=0.25,
        attention_dropout=0.25,
        extra={"pretraining_tp": 4},
    )
    hf.save(tmp_path / "one", config, drawn(config, dtype, seed), max_shard_bytes=limit)
    first = open_checkpoint(tmp_path / "one")
    keras.save(tmp_path / "keras", first.config, first.params(), max_shard_bytes=limit)
    middle = open_checkpoint(tmp_path / "keras")
    assert (middle.layout, middle.dtype) == ("keras", dtype)
    hf.save(tmp_path / "two", middle.config, middle.params(), max_shard_bytes=limit)
    names = sorted(os.listdir(tmp_path / "one"))
    assert names == sorted(os.listdir(tmp_path / "two"))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.clause("WGT-2")
def test_names_without_prefix_and_both_spellings_of_the_config(tmp_path: Path) -> None:
    params = drawn(CONFIG)
    hf.save(tmp_path, CONFIG, params)
    file = SafetensorsFile(tmp_path / "model.safetensors")
    plain = {name.removeprefix("transformer."): file.view(name) for name in file.entries}
    assert not plain.keys() & file.entries.keys()
    write_safetensors(tmp_path / "model.safetensors", plain)
    spelling = {"vocab_size": 40, "n_embed": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom", **spelling}))
    assert_same(open_checkpoint(tmp_path).params(), params)
    with pytest.raises(BadWeights, match=r"transformer\.lm_head\.weight|lm_head\.weight once"):
        _with_extra(
            tmp_path,
            {"lm_head.weight": plain["word_embeddings.weight"], "transformer.lm_head.weight": plain["ln_f.bias"]},
        )


def _with_extra(folder: Path, extra: dict[str, np.ndarray]) -> None:
    file = SafetensorsFile(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors", {name: file.view(name) for name in file.entries} | extra)
    open_checkpoint(folder).params()


@pytest.mark.clause("WGT-4")
def test_heads(tmp_path: Path) -> None:
    untied = CONFIG.replace(tie_word_embeddings=False)
    params = drawn(untied)
    hf.save(tmp_path / "untied", untied, params)
    assert_same(open_checkpoint(tmp_path / "untied").params(), params)
    tied = drawn(CONFIG)
    hf.save(tmp_path / "tied", CONFIG, tied)
    _with_extra(tmp_path / "tied", {"lm_head.weight": tied.word_embedding})
    assert open_checkpoint(tmp_path / "tied").params().lm_head is None
    with pytest.raises(BadWeights, match="ties it"):
        _with_extra(tmp_path / "tied", {"lm_head.weight": np.nextafter(tied.word_embedding, np.float32(9))})


def test_stored_dtype_is_a_view_and_another_is_a_copy(tmp_path: Path) -> None:
    params = drawn(CONFIG, np.dtype(ml_dtypes.bfloat16))
    hf.save(tmp_path, CONFIG, params)
    checkpoint = open_checkpoint(tmp_path)
    views, again = checkpoint.params(), checkpoint.params(np.dtype(ml_dtypes.bfloat16))
    for (_, _, x), (_, _, y) in zip(views.named(), again.named(), strict=True):
        assert not x.flags.writeable
        assert np.shares_memory(x, y)
    wide = checkpoint.params(np.dtype(np.float32))
    assert_same(wide, params.astype(np.dtype(np.float32)))
    assert all(array.flags.writeable for _, _, array in wide.named())


def test_mixed_dtypes_become_the_narrowest_that_holds_all(tmp_path: Path) -> None:
    params = drawn(CONFIG, np.dtype(np.float16))
    hf.save(tmp_path, CONFIG, params)
    _with_extra(tmp_path, {"transformer.ln_f.bias": params.ln_final_bias.astype(ml_dtypes.bfloat16).astype(np.float32)})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype == np.float32
    assert {array.dtype for _, _, array in checkpoint.params().named()} == {np.dtype(np.float32)}


@pytest.mark.clause("WGT-12")
@pytest.mark.parametrize("layout", [hf, keras], ids=["hf", "keras"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")], ids=["interrupt", "disk full"])
def test_an_interrupted_save_leaves_the_old_result_whole(tmp_path: Path, layout: object, error: object) -> None:
    pytest.importorskip("h5py")
    layout.save(tmp_path / "old", CONFIG, drawn(CONFIG, seed=1))
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for folder in ("old", "new"):
        target = f"{layout.__name__}.write_json"
        with patch(target, side_effect=error), pytest.raises(error if isinstance(error, type) else type(error)):
            layout.save(tmp_path / folder, CONFIG, drawn(CONFIG, seed=2), max_shard_bytes=5000)
    assert os.listdir(tmp_path) == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


@pytest.mark.parametrize("layout", [hf, keras], ids=["hf", "keras"])
def test_saving_over_an_older_result(tmp_path: Path, layout: object) -> None:
    pytest.importorskip("h5py")
    for seed, limit in enumerate((10**9, 5000, 9000, 10**9)):
        params = drawn(CONFIG, seed=seed)
        layout.save(tmp_path, CONFIG, params, max_shard_bytes=limit)
        (tmp_path / "notes.txt").write_text("mine")
        assert_same(open_checkpoint(tmp_path).params(), params)
        used = {path.name for path in tmp_path.iterdir()}
    fresh = tmp_path / "fresh"
    layout.save(fresh, CONFIG, params)
    assert used == set(os.listdir(fresh)) | {"notes.txt"}  # no shard of an older result is left
    with pytest.raises(InvalidInput, match="overwrite=True"):
        layout.save(fresh, CONFIG, params, overwrite=False)
    with pytest.raises(InvalidInput, match=r"the file .*notes\.txt"):
        layout.save(tmp_path / "notes.txt", CONFIG, params)


def test_saving_over_the_files_that_are_being_read(tmp_path: Path) -> None:
    params = drawn(CONFIG)
    hf.save(tmp_path, CONFIG, params)
    views = open_checkpoint(tmp_path).params()
    hf.save(tmp_path, CONFIG, views.map(lambda array: array * 2))
    assert_same(views, params)
    assert_same(open_checkpoint(tmp_path).params(), params.map(lambda array: array * 2))


def test_changing_layout_in_place(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    params = drawn(CONFIG)
    for layout, name in ((hf, "hf"), (keras, "keras"), (hf, "hf")):
        layout.save(tmp_path, CONFIG, params, max_shard_bytes=5000)
        checkpoint = open_checkpoint(tmp_path)
        assert checkpoint.layout == name
        assert_same(checkpoint.params(), params)
    assert not list(tmp_path.glob("*.h5"))


def test_the_keras_layout_refuses_what_it_cannot_express(tmp_path: Path) -> None:
    for change in ({"tie_word_embeddings": False}, {"apply_residual_connection_post_layernorm": True}):
        config = CONFIG.replace(**change)
        with pytest.raises(InvalidInput, match=next(iter(change))):
            keras.save(tmp_path / "x", config, init_params(config, 0))
    assert not os.listdir(tmp_path)


def test_a_folder_without_weights_still_tells_its_config(tmp_path: Path) -> None:
    hf.save(tmp_path, CONFIG, drawn(CONFIG, np.dtype(np.float16)))
    (tmp_path / "model.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config.num_heads, checkpoint.dtype_name, checkpoint.has_weights) == (3, "float16", False)
    with pytest.raises(BadWeights, match=r"model\.safetensors"):
        checkpoint.params()


def test_keras_layout_without_h5py(tmp_path: Path) -> None:
    with patch.dict(sys.modules, {"h5py": None}), pytest.raises(Unsupported, match=r"bloomref\[keras\]"):
        keras.save(tmp_path / "x", CONFIG, drawn(CONFIG))


def test_embedded_preset_has_the_weights_of_its_config() -> None:
    checkpoint = open_checkpoint(resolve("bloom_tiny_udhr"))
    assert sum(array.size for _, _, array in checkpoint.params().named()) == count_params(checkpoint.config)
    assert {path.name for path in checkpoint.tokenizer_files} >= {"tokenizer.json", "tokenizer_config.json"}


MEMORY = """
import resource, sys, numpy as np
from pathlib import Path
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.layouts import hf, keras
from bloomref.params import Params
import ml_dtypes
def now():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
def peak():  # not ru_maxrss: that one is inherited from the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
checkpoint = open_checkpoint(sys.argv[1])
checkpoint.dtype
start = now()
params = checkpoint.params(np.dtype(sys.argv[2]))
size = sum(array.nbytes for _, _, array in params.named())
print((peak() - start) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
@pytest.mark.parametrize("layout", [hf, keras], ids=["hf", "keras"])
@pytest.mark.parametrize(("stored", "wanted"), [("float16", "float32"), ("float32", "float32"), ("float32", "float16")])
def test_loading_needs_little_more_memory_than_the_weights(
    tmp_path: Path, layout: object, stored: str, wanted: str
) -> None:
    """Peak resident memory, mapped pages included, over the bytes of the result; 68 M parameters, 56 % embedding."""
    pytest.importorskip("h5py")
    config = BloomConfig(vocabulary_size=60_000, num_layers=6, num_heads=10, hidden_dim=640, intermediate_dim=2560)
    params = init_params(config, 0, np.dtype(stored))
    layout.save(tmp_path / "model", config, params, max_shard_bytes=10**8)
    del params
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "model"), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.95 < float(done.stdout) <= 1.2, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
@pytest.mark.parametrize("layout", [hf, keras], ids=["hf", "keras"])
def test_saving_needs_no_second_copy_of_the_weights(tmp_path: Path, layout: object) -> None:
    pytest.importorskip("h5py")
    config = BloomConfig(vocabulary_size=60_000, num_layers=6, num_heads=10, hidden_dim=640, intermediate_dim=2560)
    hf.save(tmp_path / "model", config, init_params(config, 0))
    script = MEMORY.replace(
        "print((peak()",
        f"start, _ = now(), {layout.__name__}.save(sys.argv[1] + '-copy', checkpoint.config, params)\nprint((peak()",
    )
    script = "import bloomref.formats.layouts.hf, bloomref.formats.layouts.keras\n" + script
    command = [sys.executable, "-c", script, str(tmp_path / "model"), "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 0.1, done.stdout
