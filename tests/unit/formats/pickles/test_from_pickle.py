"""`bloomref convert --from-pickle`: folders of pickled weights become safetensors with the same bits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch_writer
from damage import CONFIG
from torch_writer import call, mapping, name, number, pickled, storage, tensor, text, write_zip

from bloomref.cli.app import run
from bloomref.dtypes import FLOAT32, DType, cast
from bloomref.errors import BadWeights, InvalidInput
from bloomref.formats.files import write_json
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.pickles import megatron
from bloomref.formats.pickles.from_pickle import convert, size
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.params import full_key, init_params

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
Arrays = Mapping[str, np.ndarray]


def weights(dtype: DType = FLOAT32) -> dict[str, np.ndarray]:
    """A model's weights under Hugging Face's keys, in their stored shapes; no two are equal."""
    rng = np.random.default_rng(5)
    shapes = {full_key(key): weight.hf_shape(CONFIG) for key, weight, _ in init_params(CONFIG, 1).named()}
    return {key: cast(rng.standard_normal(shape), dtype) for key, shape in shapes.items()}


def stored(folder: Path, pattern: str = "*.safetensors") -> dict[str, np.ndarray]:
    files = [SafetensorsFile(path) for path in folder.glob(pattern)]
    return {name: file.view(name) for file in files for name in file.entries}


def assert_same(left: Arrays, right: Arrays) -> None:
    assert set(left) == set(right)
    for key in left:
        assert (left[key].dtype, left[key].shape) == (right[key].dtype, right[key].shape)
        assert left[key].tobytes() == right[key].tobytes(), key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", CONFIG.to_hf())
    return source


def sharded(folder: Path, arrays: Arrays, count: int = 3) -> None:
    names = {key: f"pytorch_model-{i % count + 1:05}-of-{count:05}.bin" for i, key in enumerate(arrays)}
    for file in set(names.values()):
        torch_writer.save(folder / file, {key: array for key, array in arrays.items() if names[key] == file})
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": names})


@pytest.mark.clause("WGT-30")
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_model_is_converted_bit_for_bit(folder: Path, tmp_path: Path, dtype: str) -> None:
    arrays = weights(BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))
    torch_writer.save(folder / "pytorch_model.bin", arrays)
    counted: list[int] = []
    report = convert(folder, tmp_path / "out", advance=counted.append)
    assert_same(stored(tmp_path / "out", "model.safetensors"), arrays)
    total = sum(array.nbytes for array in arrays.values())
    assert (report.kind, report.tensors, report.bytes, sum(counted)) == ("model", len(arrays), total, total)
    assert size(folder) == (folder / "pytorch_model.bin").stat().st_size
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@pytest.mark.clause("WGT-30")
def test_shards_stay_shards(folder: Path, tmp_path: Path) -> None:
    arrays = weights()
    sharded(folder, arrays)
    convert(folder, tmp_path / "out")
    assert_same(stored(tmp_path / "out", "model-*-of-00003.safetensors"), arrays)
    index = json.loads((tmp_path / "out" / hf.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert set(index["weight_map"]) == set(arrays)
    assert not (tmp_path / "out" / "pytorch_model.bin.index.json").exists()
    open_checkpoint(tmp_path / "out").params()


def test_a_tensor_in_two_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    sharded(folder, weights())
    torch_writer.save(folder / "pytorch_model-00002-of-00003.bin", weights())
    with pytest.raises(BadWeights, match="in one file, got it in two"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_outside_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": {"a": "../../x.bin"}})
    with pytest.raises(BadWeights, match="inside the checkpoint's folder"):
        convert(folder, tmp_path / "out")


def shared_head(folder: Path, tie: bool) -> dict[str, np.ndarray]:
    write_json(folder / "config.json", CONFIG.replace(tie_word_embeddings=tie).to_hf())
    arrays = weights()
    body, data = torch_writer.state_dict(arrays)
    embedding = arrays["transformer.word_embeddings.weight"]
    head = text("lm_head.weight") + tensor(storage("0", embedding.size), embedding.shape)
    write_zip(folder / "pytorch_model.bin", body + head + b"s", data)
    return arrays | {"lm_head.weight": embedding}


def test_a_tied_head_that_shares_its_storage_is_stored_once(folder: Path, tmp_path: Path) -> None:
    arrays = shared_head(folder, tie=True)
    convert(folder, tmp_path / "out")
    del arrays["lm_head.weight"]
    assert_same(stored(tmp_path / "out"), arrays)


def test_an_untied_head_that_shares_its_storage_is_stored(folder: Path, tmp_path: Path) -> None:
    arrays = shared_head(folder, tie=False)
    convert(folder, tmp_path / "out")
    assert_same(stored(tmp_path / "out"), arrays)


def test_what_stands_beside_the_weights_is_copied(folder: Path, tmp_path: Path) -> None:
    torch_writer.save(folder / "pytorch_model.bin", weights())
    for beside in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "README.md", "LICENSE"):
        (folder / beside).write_text(f"{{}} {beside}")
    (folder / "training_args.bin").write_bytes(b"\x80\x02.")
    convert(folder, tmp_path / "out")
    copied = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    beside = {"tokenizer.json", "generation_config.json", "chat_template.jinja", "README.md", "LICENSE"}
    assert copied == beside | {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.pop("transformer.ln_f.bias"), "ln_f.bias"),
        (lambda arrays: arrays.update({"transformer.ln_f.bias": np.zeros(13, np.float32)}), "ln_f.bias: shape"),
        (lambda arrays: arrays["transformer.ln_f.bias"].fill(np.nan), "ln_f.bias: expected finite"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(folder: Path, tmp_path: Path, change: Any, words: str) -> None:
    arrays = weights()
    change(arrays)
    torch_writer.save(folder / "pytorch_model.bin", arrays)
    with pytest.raises(BadWeights, match=words):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_adapter_is_converted(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "target_modules": ["dense"]})
    arrays = {"base_model.model.transformer.h.0.self_attention.dense.lora_A.weight": np.ones((2, 12), np.float16)}
    torch_writer.save(folder / "adapter_model.bin", arrays)
    assert convert(folder, tmp_path / "out").kind == "adapter"
    assert_same(stored(tmp_path / "out", "adapter_model.safetensors"), arrays)
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_info_names_the_command_for_a_pickled_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").unlink()
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "target_modules": ["dense"]})
    torch_writer.save(folder / "adapter_model.bin", {"a": np.ones(2)})
    assert run(["info", str(folder)]) == 0
    assert f"bloomref convert --from-pickle {folder} OUT" in " ".join(capsys.readouterr().out.split())


def test_the_config_may_be_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(tmp_path / "other.json")
    torch_writer.save(folder / "pytorch_model.bin", weights())
    with pytest.raises(BadWeights, match=r"config\.json"):
        convert(folder, tmp_path / "out")
    convert(folder, tmp_path / "out", config=tmp_path / "other.json")
    assert open_checkpoint(tmp_path / "out").config == CONFIG


@pytest.mark.parametrize("name", ["bloom.pt", "pytorch_model.fp16.bin", "consolidated.00.pth"])
def test_a_single_model_may_have_another_name(folder: Path, tmp_path: Path, name: str) -> None:
    torch_writer.save(folder / name, weights())
    (folder / "optimizer.pt").write_bytes(b"\x80\x02.")
    convert(folder, tmp_path / "out")
    assert_same(stored(tmp_path / "out", "model.safetensors"), weights())


def test_shards_may_lack_their_index(folder: Path, tmp_path: Path) -> None:
    sharded(folder, weights())
    (folder / "pytorch_model.bin.index.json").unlink()
    convert(folder, tmp_path / "out")
    assert_same(stored(tmp_path / "out", "model-*-of-00003.safetensors"), weights())
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(InvalidInput, match="with all its shards"):
        convert(folder, tmp_path / "other")


def test_several_models_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in ("a.pt", "b.bin"):
        torch_writer.save(folder / file, weights())
    with pytest.raises(InvalidInput, match=r"got a\.pt, b\.bin; leave one model"):
        convert(folder, tmp_path / "out")


def test_a_checkpoint_of_deepspeed_without_layers_has_a_way_out(folder: Path, tmp_path: Path) -> None:
    (folder / megatron.ARGUMENTS).write_bytes(b"")
    with pytest.raises(InvalidInput, match="zero_to_fp32"):
        convert(folder, tmp_path / "out")


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_writer.save(folder / "pytorch_model.bin", weights())
    out = str(tmp_path / "out")
    assert run(["convert", str(folder), out]) == 3
    assert f"`bloomref convert --from-pickle {folder} OUT`" in capsys.readouterr().err
    assert run(["convert", "--from-pickle", str(folder), out, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["tensors"], printed["target"]) == ("model", len(weights()), out)
    assert run(["convert", "--from-pickle", str(folder), out]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["convert", "--from-pickle", str(folder), out, "--force"]) == 0
    assert "as safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "keras"], "NEW --to keras"),
        (["--dtype", "float16"], "bit for bit as stored"),
    ],
)
def test_other_conversions_come_after_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["convert", "--from-pickle", str(folder), str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_config_alone_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(folder), "out", "--config", "config.json"]) == 2
    assert "--from-pickle" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nothing", "config.json", "."])
def test_a_source_without_pickles_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="--from-pickle: expected a folder"):
        convert(folder / name, tmp_path / "out")


# --- Megatron-DeepSpeed ------------------------------------------------------------------------------------------

REPEATED = ("layernorm.weight", "layernorm.bias", "self_attention.dense.bias", "mlp.dense_4h_to_h.bias")
COLUMNS = ("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")


def slices(key: str, array: np.ndarray, count: int) -> list[np.ndarray]:
    if key.endswith((*REPEATED, "ln_f.weight", "ln_f.bias")):
        return [array] * count
    return np.split(array, count, axis=1 if key.endswith(COLUMNS) else 0)


def write_layers(folder: Path, arrays: Arrays, count: int) -> None:
    """Layer files as Megatron-DeepSpeed names them: the embedding, the blocks from 3 on, the final norm."""
    layers: dict[int, dict[str, str]] = {}
    for key in arrays:
        plain = key.removeprefix("transformer.")
        if plain.startswith("h."):
            layers.setdefault(3 + int(plain.split(".")[1]), {})[key] = plain.split(".", 2)[2]
        elif plain.startswith("ln_f."):
            layers.setdefault(4 + CONFIG.num_layers, {})[key] = plain.removeprefix("ln_f.")
        else:
            layers.setdefault(1, {})[key] = plain.replace("embeddings_layernorm", "embeddings.norm")
    for number_, names in layers.items():
        for part in range(count):
            path = folder / f"layer_{number_:02}-model_{part:02}-model_states.pt"
            torch_writer.save(path, {names[key]: slices(key, arrays[key], count)[part] for key in names})


def divisible(dtype: DType = FLOAT32) -> dict[str, np.ndarray]:
    """Weights of a model that can be cut in 1, 2 or 3 slices."""
    arrays = weights(dtype)
    config = CONFIG.replace(vocabulary_size=18, intermediate_dim=24)
    shapes = {full_key(key): weight.hf_shape(config) for key, weight, _ in init_params(config, 1).named()}
    return {key: np.resize(array, shapes[key]) for key, array in arrays.items()}


MEGATRON = CONFIG.replace(vocabulary_size=18, intermediate_dim=24)


@pytest.mark.clause("WGT-32")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_layer_files_are_joined(folder: Path, tmp_path: Path, count: int) -> None:
    arrays = divisible(BFLOAT16)
    write_json(folder / "config.json", MEGATRON.to_hf())
    write_layers(folder, arrays, count)
    report = convert(folder, tmp_path / "out")
    assert report.kind == "layer files of Megatron-DeepSpeed"
    assert_same(stored(tmp_path / "out"), arrays)
    assert open_checkpoint(tmp_path / "out").params().word_embedding.shape == (18, 12)


@pytest.mark.clause("WGT-32")
def test_repeated_weights_that_differ_are_averaged(folder: Path, tmp_path: Path) -> None:
    write_json(folder / "config.json", MEGATRON.to_hf())
    arrays = divisible(BFLOAT16)
    write_layers(folder, arrays, 2)
    other = {"weight": cast(np.linspace(1, 2, 12), BFLOAT16), "bias": cast(np.linspace(-3, 1e-3, 12), BFLOAT16)}
    torch_writer.save(folder / "layer_06-model_01-model_states.pt", other)
    convert(folder, tmp_path / "out")
    for end, second in other.items():
        first = arrays[f"transformer.ln_f.{end}"]
        mean = cast(
            cast(first.astype(np.float32) + second.astype(np.float32), BFLOAT16).astype(np.float32) / 2, BFLOAT16
        )
        assert stored(tmp_path / "out")[f"transformer.ln_f.{end}"].tobytes() == mean.tobytes()


@pytest.mark.filterwarnings("error")
def test_an_average_that_overflows_is_refused_without_a_warning(folder: Path, tmp_path: Path) -> None:
    write_json(folder / "config.json", MEGATRON.to_hf())
    write_layers(folder, divisible(np.dtype(np.float16)), 2)
    for part, bias in enumerate((60000, 60001)):
        large = {"weight": np.ones(12, np.float16), "bias": np.full(12, bias - part * 64, np.float16)}
        torch_writer.save(folder / f"layer_06-model_{part:02}-model_states.pt", large)
    with pytest.raises(BadWeights, match=r"ln_f\.bias: expected finite numbers"):
        convert(folder, tmp_path / "out")


def test_a_matrix_without_columns_is_refused(folder: Path, tmp_path: Path) -> None:
    write_json(folder / "config.json", MEGATRON.to_hf())
    for part in range(2):
        flat = {"self_attention.dense.weight": np.ones(12, np.float32)}
        torch_writer.save(folder / f"layer_03-model_{part:02}-model_states.pt", flat)
    with pytest.raises(BadWeights, match="fit together"):
        convert(folder, tmp_path / "out")


def arguments(**changes: bytes) -> bytes:
    position = call("megatron.enums", "PositionEmbeddingType", number(3))
    fields = {
        "padded_vocab_size": number(18),
        "hidden_size": number(12),
        "num_layers": number(2),
        "num_attention_heads": number(3),
        "ffn_hidden_size": number(24),
        "layernorm_epsilon": b"G?\x1a6\xe2\xeb\x1cC-",
        "apply_residual_connection_post_layernorm": b"\x89",
        "position_embedding_type": position,
        "optimizer": call("os", "system", text("touch hacked")),
    }
    space = name("argparse", "Namespace") + b")\x81" + mapping(fields | changes) + b"b"
    return mapping({"args": space, "rng": call("numpy.random", "RandomState"), "seed": tensor(storage("0", 2), (2,))})


@pytest.mark.clause("WGT-32")
def test_the_arguments_of_the_training_give_the_config(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "config.json").unlink()
    write_layers(folder, divisible(), 2)
    with pytest.raises(BadWeights, match="pass --config"):
        convert(folder, tmp_path / "out")
    write_zip(folder / megatron.ARGUMENTS, arguments(), {"0": bytes(8)})
    convert(folder, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config.replace(extra={}) == MEGATRON.replace(
        extra={}, layer_norm_epsilon=1e-4
    )
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (arguments(num_layers=b"N"), "num_layers: expected an integer, got NoneType; pass --config"),
        (arguments(position_embedding_type=call("megatron.enums", "P", number(1))), "expected ALiBi"),
        (mapping({"args": number(1)}), "the arguments of a training, got int"),
        (b"]", "the arguments of a training"),
        (b"0", "opcode .*; pass --config"),
    ],
)
def test_other_arguments_are_refused(folder: Path, tmp_path: Path, body: bytes, words: str) -> None:
    (folder / "config.json").unlink()
    write_layers(folder, divisible(), 1)
    write_zip(folder / megatron.ARGUMENTS, body, {"0": bytes(8)})
    with pytest.raises(BadWeights, match=words):
        convert(folder, tmp_path / "out")


@pytest.mark.clause("WGT-32")
@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("layer_04-model_01-model_states.pt", None, "expected slices 0 to 1"),
        ("layer_06-model_01-model_states.pt", {"weight": np.ones(12, np.float32)}, "the same names in each slice"),
        ("layer_06-model_01-model_states.pt", {"weight": np.ones(12, np.float32), "bias": np.ones(12)}, "fit together"),
        (
            "layer_06-model_01-model_states.pt",
            {"weight": np.ones(12, np.float32), "bias": np.ones(11, np.float32)},
            "fit together",
        ),
    ],
)
def test_slices_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, file: str, content: Arrays | None, words: str
) -> None:
    write_json(folder / "config.json", MEGATRON.to_hf())
    write_layers(folder, divisible(), 2)
    if content is None:
        (folder / file).unlink()
    else:
        torch_writer.save(folder / file, content)
    with pytest.raises(BadWeights, match=words):
        convert(folder, tmp_path / "out")


def test_a_missing_layer_is_refused(folder: Path, tmp_path: Path) -> None:
    write_json(folder / "config.json", MEGATRON.to_hf())
    write_layers(folder, divisible(), 1)
    (folder / "layer_03-model_00-model_states.pt").unlink()
    with pytest.raises(BadWeights, match=r"h\.0\."):
        convert(folder, tmp_path / "out")


def test_python_pickles_are_no_torch_files(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickled(b"}"))
    with pytest.raises(BadWeights, match=r"a file of torch\.save, got another pickle"):
        convert(folder, tmp_path / "out")
