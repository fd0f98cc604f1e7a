"""Files that are not what their name says, and folders without a model.

The message names what they are, and the next command.
"""

import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import CONFIG
from refusals import refusal

from bloomref.errors import BadWeights, BloomrefError, InvalidInput, Unsupported
from bloomref.formats.files import read_json
from bloomref.formats.folder_contents import models_below
from bloomref.formats.layouts import hf
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.recognise import by_content, by_name
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.params import init_params
from bloomref.tokenizer import BloomTokenizer


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"\x80\x02}.")
    return buffer.getvalue()


def tape() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:8a7c\nsize 1118459450\n"
LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
# content -> words of the message, class of the error
CONTENTS: dict[str, tuple[bytes, str, type[BloomrefError]]] = {
    "git-lfs": (LFS, "a git-lfs pointer to a file of 1118459450 bytes.* run `git lfs pull` in ", BadWeights),
    "git-lfs without a size": (LFS[:60], "a git-lfs pointer; .* run `git lfs pull` in ", BadWeights),
    "git-annex": (b"/annex/objects/SHA256E-s9--0\n", "a git-annex pointer; .* run `git annex get ", BadWeights),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page in its place; .*/resolve/", BadWeights),
    "HTML after white space": (b"\n\n <HTML lang='en'>", "an HTML page", BadWeights),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML page; a server's answer", BadWeights),
    "a server's sentence": (b"Entry not found", "a text that begins with 'Entry not found'; download", BadWeights),
    "control characters": (b"a\x1b[2Jb", "expected", BadWeights),
    "empty": (b"", "an empty file; .*download it again", BadWeights),
    "zeros": (bytes(4096), "zeros only; .*download it again", BadWeights),
    "torch": (archive("bloom/data.pkl", "bloom/data/0"), "a pickle.*`bloomref convert --from-pickle .* OUT`", Unsupported),
    "torch, cut": (archive("bloom/data.pkl", "bloom/data/0")[:60], "the first part of .* zip", BadWeights),
    "torch before 1.6": (LEGACY_TORCH, "a pickle.*`bloomref convert --from-pickle .* OUT`", Unsupported),
    "pickle 5": (pickle.dumps({"a": 1}, protocol=5), "a pickle", Unsupported),
    "Keras archive": (archive("config.json", "model.weights.h5"), r"a \.keras archive; unpack it", Unsupported),
    "NumPy archive": (archive("a.npy", "b.npy"), "a NumPy archive", Unsupported),
    "other zip": (archive("readme.txt"), "a zip archive; unpack it", Unsupported),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "a gzip archive; unpack it", Unsupported),
    "xz": (b"\xfd7zXZ\0\0\x04abcdef", "an xz archive; unpack it", Unsupported),
    "tar": (tape(), "a tar archive; unpack it", Unsupported),
    "GGUF": (b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0", "a GGUF file, which llama.cpp reads", Unsupported),
    "GGML": (b"tjgg\x03\0\0\0\x10\0\0\0\0\0\0\0", "a GGUF file", Unsupported),
    "Flax": (b"\x81\xabtransformer\x85\xa1h\x84", "Flax weights .*from_flax=True", Unsupported),
    "Flax, many layers": (b"\xde\x00\x20\xa5layer\x85\xa1h\x84", "Flax weights", Unsupported),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX graph", Unsupported),
    "NumPy": (b"\x93NUMPY\x01\0v\0{'descr': '<f4'", "a NumPy array", Unsupported),
}  # fmt: skip


@pytest.mark.clause("WGT-13")
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "model.weights.h5"])
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, content: str) -> None:
    data, words, error = CONTENTS[content]
    path = tmp_path / name
    path.write_bytes(data)
    message = refusal(error, lambda: READERS[name](path))
    assert re.search(words, message)
    assert name in message


def h5(path: Path) -> object:
    pytest.importorskip("h5py")
    from bloomref.formats.keras_h5 import read_single

    return read_single(path)


READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": SafetensorsFile,
    "config.json": read_json,
    "tokenizer.json": lambda path: BloomTokenizer.find(path.parent),
    "model.weights.h5": h5,
}


@pytest.mark.clause("WGT-13")
def test_the_formats_that_are_read_are_named_under_the_names_of_others(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    hf.save(tmp_path / "model", CONFIG, init_params(CONFIG, 1))
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["a"] = np.zeros(2)
    with pytest.raises(BadWeights, match=r"expected an HDF5 file .*, got a safetensors file"):
        h5(weights)
    with pytest.raises(BadWeights, match=r"expected an HDF5 file .*, got a JSON text"):
        h5(config)
    with pytest.raises(BadWeights, match="expected a safetensors file, got an HDF5 file"):
        SafetensorsFile(tmp_path / "weights.h5")
    with pytest.raises(BadWeights, match="expected a safetensors file, got a JSON text"):
        SafetensorsFile(config)
    with pytest.raises(BadWeights, match="expected a JSON object, got a safetensors file"):
        read_json(weights)


@pytest.mark.clause("WGT-14")
@pytest.mark.parametrize("share", [0.02, 0.3, 0.999])
def test_a_cut_download_states_its_bytes(tmp_path: Path, share: float) -> None:
    h5py = pytest.importorskip("h5py")
    hf.save(tmp_path, CONFIG, init_params(CONFIG, 1))
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["a"] = np.zeros(5000)
    for name in ("model.safetensors", "config.json", "model.weights.h5"):
        path = tmp_path / name
        data = path.read_bytes()
        cut = data[: min(len(data) - 2, max(9, int(len(data) * share)))]
        if len(cut) < 100 and name.endswith("h5"):
            continue  # not even the header, which has the size
        path.write_bytes(cut)
        with pytest.raises(BadWeights, match=rf"{len(cut)}( of {len(data)})? bytes|the file is incomplete"):
            READERS[name](path)


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00004.safetensors", "tokenizer.json"])
def test_a_link_whose_target_is_gone_is_named(tmp_path: Path, name: str) -> None:
    """A copy of the hub's cache without its blobs has such links."""
    folder = tmp_path / "model"
    hf.save(folder, CONFIG, init_params(CONFIG, 1), max_shard_bytes=4000)
    shards = sorted(folder.glob("model-*"))
    file = folder / (shards[1].name if name.startswith("model") else name)
    file.unlink(missing_ok=True)
    file.symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(BadWeights, match=rf"{file.name}: .*a link to a file that does not exist; its target was moved"):
        (BloomTokenizer.find if name == "tokenizer.json" else read_model)(folder)


def read_model(folder: Path) -> object:
    return open_checkpoint(folder).params()


def test_what_cannot_be_known_is_not_named(tmp_path: Path) -> None:
    for content in (b"\x07\x01\x02\xff", os.urandom(3) + b"\xff\xfe" * 9, "é".encode("latin-1") * 9):
        (tmp_path / "a").write_bytes(content)
        assert by_content(tmp_path / "a") is None or content[:1] in b"\x80\x1f"
    assert by_content(tmp_path) is None
    assert by_content(tmp_path / "none") is None


# --- folders -----------------------------------------------------------------------------------------------------

ONLY: dict[str, tuple[str, str, type[BloomrefError]]] = {
    "flax_model.msgpack": ("Flax weights", "from_flax=True", Unsupported),
    "tf_model.h5": ("TensorFlow weights", "from_tf=True", Unsupported),
    "model.onnx": ("an ONNX graph", "the checkpoint from which it was made", Unsupported),
    "bloom-560m.Q4_K_M.gguf": ("a GGUF file", "the checkpoint from which it was made", Unsupported),
    "pytorch_model.bin": ("a PyTorch file", "`bloomref convert --from-pickle ", Unsupported),
    "pytorch_model-00001-of-00002.bin": ("a PyTorch file", "`bloomref convert --from-pickle ", Unsupported),
    "consolidated.00.pth": ("a PyTorch file", "`bloomref convert --from-pickle ", Unsupported),
    "layer_01-model_00-model_states.pt": ("a layer file of Megatron-DeepSpeed", "join", Unsupported),
    "mp_rank_00_model_states.pt": ("a layer file of Megatron-DeepSpeed", "join", Unsupported),
    "model.safetensors.incomplete": ("an incomplete download", "download it again", BadWeights),
    "bloom.tar.gz": ("an archive", "unpack it", Unsupported),
    "rust_model.ot": ("weights for rust-bert", "the checkpoint from which it was made", Unsupported),
    "weights.safetensors": ("a safetensors file", "rename it", BadWeights),
    "model-00001-of-00002.safetensors": ("without it", "names the shard of each weight", BadWeights),
    "gptq_model-4bit-128g.safetensors": ("these weights are quantised (GPTQ)", "gptq_model-4bit", Unsupported),
    "bloom-awq.safetensors": ("these weights are quantised (AWQ)", "bloom-awq", Unsupported),
    "README.md": ("README.md", "download it again", BadWeights),
}


@pytest.mark.clause("WGT-13")
@pytest.mark.parametrize("name", ONLY)
def test_a_folder_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    kind, remedy, error = ONLY[name]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (tmp_path / name).write_bytes(bytes(64))
    (tmp_path / "optimizer.pt").write_bytes(bytes(64))  # the state of a training is not the model
    (tmp_path / "training_args.bin").write_bytes(bytes(64))
    message = refusal(error, lambda: read_model(tmp_path))
    assert kind in message
    assert remedy in message


def test_the_config_of_a_quantiser_states_bits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128, "quant_method": "gptq"}')
    with pytest.raises(Unsupported, match=r"quantize_config\.json: these weights are quantised \(gptq, 4 bits\)"):
        open_checkpoint(tmp_path).params()


def test_a_pointer_in_a_folder_of_another_format_is_named_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    (tmp_path / "pytorch_model.bin").write_bytes(LFS)
    with pytest.raises(BadWeights, match=r"pytorch_model\.bin: a git-lfs pointer"):
        open_checkpoint(tmp_path).params()


def test_the_state_of_a_training_promises_no_weights() -> None:
    names = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json", "a.txt")
    assert [by_name(name) for name in names] == [None] * len(names)


@pytest.mark.clause("PRE-10")
@pytest.mark.parametrize(
    ("places", "newest"),
    [
        (["checkpoint-500"], "checkpoint-500"),
        (["checkpoint-90", "checkpoint-500", "checkpoint-1000"], "checkpoint-1000"),
        (["models--a--b/snapshots/" + "0" * 40], "models--a--b/snapshots/" + "0" * 40),
        (["bloom/1"], "bloom/1"),
        (["global_step9", "global_step10", "b7"], "global_step10"),
    ],
)
def test_a_folder_above_a_model_names_the_newest(tmp_path: Path, places: list[str], newest: str) -> None:
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / "runs").mkdir()
    message = refusal(InvalidInput, lambda: open_checkpoint(tmp_path))
    assert message.endswith(f": {tmp_path / newest}")
    assert all(place in message for place in places)


def test_a_large_tree_is_not_searched_for_ever(tmp_path: Path) -> None:
    loop = tmp_path / "a"
    loop.mkdir()
    (loop / "again").symlink_to(tmp_path)
    assert models_below(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words", "error"),
    [
        ("model.safetensors", "config.json: expected a file, got a folder with model.safetensors; copy", BadWeights),
        ("layer_01-model_00-model_states.pt", "Megatron-DeepSpeed", Unsupported),
        ("bloom.gguf", "a GGUF file", Unsupported),
        ("notes.txt", "a folder with notes.txt", BadWeights),
    ],
)
def test_a_folder_without_config_names_its_files(tmp_path: Path, name: str, words: str, error: type) -> None:
    (tmp_path / name).write_bytes(b"abc")
    with pytest.raises(error, match=words):
        open_checkpoint(tmp_path)
