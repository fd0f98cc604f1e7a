"""Damaged and hostile checkpoints in the Keras layout: the error names the file; none crashes or hangs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import CONFIG, Damage, file, folder_instead, json_file, load, pipe_instead, truncated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomref.errors import BadWeights, BloomrefError, Unsupported
from bloomref.formats.layouts import keras
from bloomref.params import init_params

h5py = pytest.importorskip("h5py")

H5, H5_INDEX = "model.weights.h5", "model.weights.json"
QUERY = "layers/bloom_decoder_1/_self_attention_layer/_query_dense/vars"


def h5(change: Callable[[Any], object]) -> Damage:
    def damage(folder: Path) -> None:
        with h5py.File(folder / H5, "r+") as opened:
            change(opened)

    return damage


def swap(path: str, make: Callable[[Any, np.ndarray], object]) -> Damage:
    """Damage: another object in the place of a variable; `make` gets the file and the old values."""

    def change(opened: Any) -> None:
        values = opened[path][()]
        del opened[path]
        make(opened, values)

    return h5(change)


def external_storage(opened: Any, values: np.ndarray) -> None:
    with open(f"{opened.filename}.raw", "wb") as raw:
        raw.write(values.tobytes())
    opened.create_dataset(f"{QUERY}/0", values.shape, values.dtype, external=[(f"{opened.filename}.raw", 0, 10**6)])


def virtual(opened: Any, values: np.ndarray) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "data", values.shape)
    opened.create_virtual_dataset(f"{QUERY}/0", layout)


def link(kind: str, *arguments: str) -> Damage:
    def make(opened: Any, values: np.ndarray) -> None:
        opened["spare"] = values
        opened[f"{QUERY}/0"] = getattr(h5py, kind)(*arguments)

    return swap(f"{QUERY}/0", make)


def keras_sharded(damage: Damage) -> Damage:
    def both(folder: Path) -> None:
        keras.save(folder, CONFIG, init_params(CONFIG, 1), max_shard_bytes=4000)
        assert not (folder / H5).exists()
        damage(folder)

    return both


def keras_place(group: str, name: object) -> Damage:
    return keras_sharded(json_file(H5_INDEX, lambda data: data["weight_map"].update({f"/{group}": name})))


KERAS_CASES: dict[str, tuple[Damage, str]] = {
    "empty file": (file(H5, b""), H5),
    "no HDF5 file": (file(H5, b"PK\x03\x04" * 1000), H5),
    "truncated": (truncated(H5, 0.5), H5),
    "a few bytes short": (truncated(H5, 0.999), H5),
    "a folder": (folder_instead(H5), H5),
    "a pipe": (pipe_instead(H5), H5),
    "weights are missing": (lambda folder: (folder / H5).unlink(), H5),
    "soft link": (link("SoftLink", "/spare"), f"{QUERY}/0: expected data, got a link (SoftLink)"),
    "external link": (link("ExternalLink", "other.h5", "/spare"), "got a link (ExternalLink)"),
    "external storage": (swap(f"{QUERY}/0", external_storage), f"{QUERY}/0"),
    "virtual dataset": (swap(f"{QUERY}/0", virtual), f"{QUERY}/0"),
    "group in the place of a dataset": (swap(f"{QUERY}/0", lambda o, _: o.create_group(f"{QUERY}/0")), f"{QUERY}/0"),
    "claims 10^15 numbers and holds none": (
        swap(f"{QUERY}/0", lambda o, _: o.create_dataset(f"{QUERY}/0", (10**5, 10**5, 10**5), "f4")),
        f"{QUERY}/0",
    ),
    "compressed": (
        swap(f"{QUERY}/0", lambda o, v: o.create_dataset(f"{QUERY}/0", data=v, compression="gzip")),
        f"{QUERY}/0",
    ),
    "texts": (swap(f"{QUERY}/0", lambda o, _: o.create_dataset(f"{QUERY}/0", data="text")), f"{QUERY}/0"),
    "complex numbers": (swap(f"{QUERY}/0", lambda o, v: o.create_dataset(f"{QUERY}/0", data=v * 1j)), f"{QUERY}/0"),
    "two bytes of no named dtype": (
        swap(f"{QUERY}/0", lambda o, v: o.create_dataset(f"{QUERY}/0", data=v.astype(np.float16).view("V2"))),
        f"{QUERY}/0",
    ),
    "wrong shape": (swap(f"{QUERY}/0", lambda o, v: o.create_dataset(f"{QUERY}/0", data=v.T.copy())), f"{QUERY}/0"),
    "missing variable": (swap(f"{QUERY}/1", lambda *_: None), f"missing {QUERY}/1"),
    "unknown variable": (h5(lambda o: o.create_dataset("layers/extra/vars/0", data=[1.0])), "layers/extra/vars/0"),
    "NaN": (h5(lambda o: o[f"{QUERY}/0"].__setitem__((1, 2, 3), np.nan)), f"{QUERY}/0"),
    "config of another class": (
        json_file("config.json", lambda data: data.update(registered_name="keras_hub>GPT2Backbone")),
        "GPT2Backbone",
    ),
    "config without arguments": (json_file("config.json", lambda data: data.update(config=None)), "config"),
    "config without a size": (json_file("config.json", lambda data: data["config"].pop("num_heads")), "num_heads"),
    "config with 10^15 layers": (
        json_file("config.json", lambda data: data["config"].update(num_layers=10**15)),
        "layers",
    ),
    "config with a dtype of nothing": (
        json_file("config.json", lambda data: data["config"].update(dtype={"config": None}, num_heads=None)),
        "num_heads",
    ),
    "metadata of another model": (
        json_file("metadata.json", lambda data: data["hf_config"].update(model_type="gpt2")),
        "gpt2",
    ),
    "index names a folder above": (keras_place(QUERY, "../model_00000.weights.h5"), "inside the checkpoint's folder"),
    "index names a missing shard": (keras_place(QUERY, ["model_00099.weights.h5"]), "model_00099"),
    "index names the wrong shard": (keras_place(QUERY, "model_00000.weights.h5"), QUERY),
    "index names a number": (keras_place(QUERY, [7]), "weight_map"),
    "index with an empty list": (keras_place(QUERY, []), "weight_map"),
}


@pytest.mark.clause("CFG-10", "WGT-5", "WGT-6", "WGT-7", "WGT-8")
@pytest.mark.parametrize("name", KERAS_CASES)
def test_hostile_keras_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    keras.save(folder, CONFIG, init_params(CONFIG, 1))
    load(folder)
    damage, words = KERAS_CASES[name]
    damage(folder)
    with pytest.raises(BadWeights) as caught:
        load(folder)
    assert words in str(caught.value)


def test_quantized_keras_weights_are_unsupported(tmp_path: Path) -> None:
    keras.save(tmp_path, CONFIG, init_params(CONFIG, 1))
    swap(f"{QUERY}/0", lambda o, v: o.create_dataset(f"{QUERY}/0", data=v.astype(np.int8)))(tmp_path)
    with pytest.raises(Unsupported, match="quantized"):
        load(tmp_path)
    json_file("config.json", lambda d: d["config"].update(dtype={"class_name": "DTypePolicyMap", "config": {}}))(
        tmp_path
    )
    with pytest.raises(Unsupported, match="DTypePolicyMap"):
        load(tmp_path)


@given(data=st.data())
@settings(max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_in_an_hdf5_file_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    keras.save(tmp_path, CONFIG, init_params(CONFIG, 1))
    content = bytearray((tmp_path / H5).read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / H5).write_bytes(content)
    try:
        load(tmp_path)
    except BloomrefError:
        return
