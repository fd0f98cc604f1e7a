"""Adapter files: complete when written, checked when read, refused with a reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import Float32Case

from bloomref import BadWeights, BloomBackbone, BloomConfig, InvalidInput, Unsupported
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors

CONFIG = BloomConfig(vocabulary_size=23, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)
TOKENS = {"token_ids": [[3, 1, 4, 1, 5]]}
ALL = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "word_embeddings")
OUTER = "base_model.model.transformer."
QKV_A = "base_model.model.transformer.h.0.self_attention.query_key_value.lora_A.weight"


def backbone() -> BloomBackbone:
    return BloomBackbone.from_params(CONFIG, Float32Case(CONFIG).params)


def filled(model: BloomBackbone) -> BloomBackbone:
    rng = np.random.default_rng(1)
    model.assign_variables({n: rng.standard_normal(x.shape) for n, x in model.trainable_variables().items()})
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of PEFT."""
    model = backbone()
    model.add_adapter({"target_modules": ALL, "r": 3})
    filled(model).save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def keras_file(tmp_path: Path) -> Path:
    pytest.importorskip("h5py")
    model = backbone()
    model.enable_lora(3)
    filled(model).save_adapter(tmp_path / "adapter.lora.h5")
    return tmp_path / "adapter.lora.h5"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    file = SafetensorsFile(path)
    arrays = {name: file.view(name).copy() for name in file.entries}
    change(arrays)
    write_safetensors(path, arrays)


@pytest.mark.clause("LRA-10", "LRA-11")
def test_there_and_back_to_the_last_bit(folder: Path, keras_file: Path, tmp_path: Path):
    for source, copy in ((folder, tmp_path / "copy"), (keras_file, tmp_path / "copy.lora.h5")):
        first, second = backbone(), backbone()
        first.load_adapter(source)
        first.save_adapter(copy)
        second.load_adapter(copy)
        for name, array in first.trainable_variables().items():
            np.testing.assert_array_equal(second.trainable_variables()[name], array)
        np.testing.assert_array_equal(first(TOKENS), second(TOKENS))


@pytest.mark.clause("LRA-10")
def test_an_adapter_of_the_bare_model_is_read(folder: Path):
    """An adapter of peft on a BloomModel, whose names lack `transformer.`"""
    expected = backbone()
    expected.load_adapter(folder)
    rewrite(
        folder, lambda arrays: [arrays.update({n.replace("transformer.", ""): arrays.pop(n)}) for n in list(arrays)]
    )
    model = backbone()
    model.load_adapter(folder)
    np.testing.assert_array_equal(model(TOKENS), expected(TOKENS))


UNSUPPORTED = {
    "another method": ({"peft_type": "IA3"}, "merge it with PEFT"),
    "a method without weights to merge": ({"peft_type": "PREFIX_TUNING"}, "bloomref finetune"),
    "no method": ({"peft_type": None}, "peft_type"),
    "the first peft's MergedLinear": ({"enable_lora": [True, False, True]}, "PEFT 0.2"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "layers repeated": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "activated by tokens": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "what is not known yet": ({"use_tomorrows_variant": True}, "use_tomorrows_variant"),
}


@pytest.mark.clause("LRA-18")
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_runs_in_peft_alone_is_refused_with_a_way_out(case: str, folder: Path):
    changes, hint = UNSUPPORTED[case]
    edit(folder, **changes)
    with pytest.raises(Unsupported, match=hint):
        backbone().load_adapter(folder)


WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "null": dict.fromkeys(("bias", "modules_to_save", "layers_to_transform", "rank_pattern", "use_dora", "later")),
    "facts": {"fan_in_fan_out": True, "runtime_config": {"ephemeral_gpu_offload": True}, "eva_config": {"rho": 2.0}},
    "early keys": {"enable_lora": None, "merge_weights": False},
    "converted": {"init_lora_weights": True, "loftq_config": {"loftq_bits": 4}},
    "other targets": {"target_modules": r".*\.(?!2\b)\d+\.(?:self_attention|mlp)\..*", "layers_pattern": "h"},
    "an expression that would not end": {"rank_pattern": {"(.|.)" * 40: 4}, "exclude_modules": "(.*)*x"},
}


@pytest.mark.clause("LRA-10", "LRA-18", "LRA-25")
@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_the_names_of_the_file_decide(case: str, folder: Path):
    model, expected = backbone(), backbone()
    expected.load_adapter(folder)
    edit(folder, **WITHOUT_EFFECT[case])
    model.load_adapter(folder)
    np.testing.assert_array_equal(model(TOKENS), expected(TOKENS))


@pytest.mark.clause("LRA-10")
def test_some_modules_are_enough(folder: Path):
    rewrite(folder, lambda arrays: [arrays.pop(name) for name in list(arrays) if ".h.1." in name])
    model = backbone()
    model.load_adapter(folder)
    assert {name.split(".")[1] for name in model.trainable_variables() if name.startswith("h.")} == {"0"}


def test_facts_are_written_again(folder: Path, tmp_path: Path):
    facts = {"base_model_name_or_path": "bigscience/bloom-560m", "revision": "\ud800é", "inference_mode": False}
    edit(folder, **facts)
    model = backbone()
    model.load_adapter(folder)
    model.save_adapter(tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "adapter_config.json").read_text("utf-8"))
    assert {name: written[name] for name in facts} == facts


BAD_CONFIG = {
    "rank 0": {"r": 0},
    "another rank": {"r": 4},
    "rank of a text": {"r": "3"},
    "a huge rank": {"r": 10**30},
    "alpha": {"lora_alpha": "8"},
    "rslora": {"use_rslora": 1},
    "targets": {"target_modules": [1]},
    "layers": {"layers_to_transform": ["0"]},
    "no expression": {"target_modules": "(("},
    "a back-reference": {"alpha_pattern": {r"(.)\1": 3}},
    "a pattern of lists": {"rank_pattern": [3]},
    "a pattern's rank": {"rank_pattern": {"dense": True}},
    "a bias": {"bias": "some"},
    "a saved module": {"modules_to_save": "ln_f"},
    "a token twice": {"trainable_token_indices": [1, 1]},
    "a parameter": {"target_parameters": "dense.weight"},
    "no magnitudes": {"use_dora": True},
}


@pytest.mark.clause("LRA-17")
@pytest.mark.parametrize("case", BAD_CONFIG)
def test_a_damaged_config_is_refused(case: str, folder: Path):
    edit(folder, **BAD_CONFIG[case])
    with pytest.raises((BadWeights, ValueError), match="expected"):
        backbone().load_adapter(folder)


BAD_WEIGHTS = {
    "missing": lambda arrays: arrays.pop(QKV_A),
    "unknown": lambda arrays: arrays.update({QKV_A.replace("h.0", "h.2"): arrays[QKV_A]}),
    "no module": lambda arrays: arrays.update({QKV_A.replace("query_key_value.lora_A", "bias"): np.zeros(36)}),
    "a short bias": lambda arrays: arrays.update({QKV_A.replace("lora_A.weight", "base_layer.bias"): np.zeros(35)}),
    "magnitudes": lambda arrays: arrays.update({QKV_A.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(36)}),
    "rows": lambda arrays: arrays.update(
        {f"{OUTER}word_embeddings.token_adapter.trainable_tokens_delta": np.ones((2, 12))}
    ),
    "factors of a norm": lambda arrays: arrays.update({f"{OUTER}ln_f.lora_A.weight": np.ones((3, 12))}),
    "two heads": lambda arrays: arrays.update(
        {f"{OUTER}word_embeddings.weight": np.ones((23, 12)), f"{OUTER[:17]}lm_head.weight": np.zeros((23, 12))}
    ),
    "two vocabularies": lambda arrays: arrays.update({f"{OUTER}word_embeddings.weight": np.ones((24, 12))}),
    "a bias of factors alone": lambda arrays: arrays.update(
        {f"{OUTER}h.0.self_attention.dense.lora_B.bias": np.ones(1)}
    ),
    "shape": lambda arrays: arrays.update({QKV_A: arrays[QKV_A].T.copy()}),
    "a vector": lambda arrays: arrays.update({f"{OUTER}word_embeddings.lora_embedding_A": np.ones(23)}),
    "integers": lambda arrays: arrays.update({QKV_A: arrays[QKV_A].astype(np.int32)}),
    "nan": lambda arrays: arrays[QKV_A].__setitem__((0, 0), np.nan),
    "nothing": lambda arrays: arrays.clear(),
}


@pytest.mark.clause("LRA-17")
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_damaged_factors_are_refused(case: str, folder: Path):
    rewrite(folder, BAD_WEIGHTS[case])
    model = backbone()
    with pytest.raises(BadWeights):
        model.load_adapter(folder)
    assert model.adapters == {}


def test_missing_files_are_refused(folder: Path, tmp_path: Path):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02}.")
    with pytest.raises(Unsupported, match=r"pickle.*bloomref convert --from-pickle"):
        backbone().load_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(BadWeights):
        backbone().load_adapter(folder)
    with pytest.raises(InvalidInput, match=f"pass the newest: {folder}"):
        backbone().load_adapter(tmp_path)
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.lora.h5"):
        with pytest.raises(InvalidInput, match=r"^adapter: expected a folder of PEFT"):
            backbone().load_adapter(path)


def keras_damage(path: Path, case: str) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        if case == "no rank":
            del file["lora/vars/rank"]
        elif case == "rank":
            file["lora/vars/rank"][()] = 4
        elif case == "rank of a vector":
            del file["lora/vars/rank"]
            file["lora/vars/rank"] = np.array([3])
        elif case == "half a pair":
            del file["lora/8/vars/lora_kernel_b"]
        elif case == "another layer":
            file.move("lora/8", "lora/28")
        elif case == "a layer norm":
            file.move("lora/8", "lora/11")
        elif case == "a link":
            del file["lora/8/vars/lora_kernel_a"]
            file["lora/8/vars/lora_kernel_a"] = h5py.ExternalLink("other.h5", "/x")
        elif case == "shape":
            file.move("lora/8/vars/lora_kernel_a", "x")
            file["lora/8/vars/lora_kernel_a"] = file["x"][:].transpose(1, 0, 2)
            del file["x"]
        elif case == "nan":
            file["lora/8/vars/lora_kernel_a"][0, 0, 0] = np.nan


KERAS_DAMAGE = (
    "no rank",
    "rank",
    "rank of a vector",
    "half a pair",
    "another layer",
    "a layer norm",
    "a link",
    "shape",
    "nan",
)


@pytest.mark.clause("LRA-17")
@pytest.mark.parametrize("case", KERAS_DAMAGE)
def test_a_damaged_keras_file_is_refused(case: str, keras_file: Path):
    keras_damage(keras_file, case)
    with pytest.raises(BadWeights):
        backbone().load_adapter(keras_file)


@pytest.mark.clause("LRA-11")
def test_value_comes_before_query(keras_file: Path):
    """Trap 80: 8 + 10 i is the value of layer i, 10 + 10 i its query."""
    import h5py

    with h5py.File(keras_file, "r") as file:
        kernels = {int(k): file[f"lora/{k}/vars/lora_kernel_b"][:] for k in file["lora"] if k != "vars"}
    model = backbone()
    model.load_adapter(keras_file)
    factors = model.trainable_variables()
    assert sorted(kernels) == [8, 10, 18, 20]
    for index, name in ((8, "h.0.{}.value"), (10, "h.0.{}.query"), (18, "h.1.{}.value"), (20, "h.1.{}.query")):
        key = name.format("self_attention.query_key_value") + ".lora_kernel_b.default"
        np.testing.assert_array_equal(factors[key], kernels[index])


def test_an_interrupted_write_leaves_what_was_there(folder: Path, keras_file: Path, monkeypatch: Any):
    contents = {path: path.read_bytes() for path in (*folder.iterdir(), keras_file)}
    model, other = backbone(), backbone()
    model.add_adapter()
    other.enable_lora(1)

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr("os.replace", fail)
    for source, path in ((model, folder), (other, keras_file)):
        with pytest.raises(OSError, match="full"):
            source.save_adapter(path, overwrite=True)
    found = {path: path.read_bytes() for path in (*folder.iterdir(), *keras_file.parent.glob("*.h5"))}
    assert found == contents
    assert not list(keras_file.parent.glob(".*"))
