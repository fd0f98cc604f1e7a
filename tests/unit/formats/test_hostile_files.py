"""Damaged and hostile checkpoints: the error names the file; none crashes or hangs."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from damage import CONFIG, Damage, file, folder_instead, json_file, load, pipe_instead, truncated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomref.errors import BadWeights, BloomrefError, Unsupported
from bloomref.formats.files import write_json
from bloomref.formats.layouts import hf, keras
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.safetensors_io import SafetensorsFile
from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json, vocabulary_and_merges
from bloomref.params import init_params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "transformer.word_embeddings.weight", "transformer.word_embeddings_layernorm.weight"


# --- tools -----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(folder: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Damage: the header, changed; the data stays."""

    def damage(folder: Path) -> None:
        head, data = read(folder)
        change(head)
        write(folder, head, data)

    return damage


def entry(name: str = FIRST, **fields: Any) -> Damage:
    return header(lambda head: head[name].update(fields))


def shift(name: str, by: int) -> Damage:
    return header(lambda head: head[name].update(data_offsets=[x + by for x in head[name]["data_offsets"]]))


def numbers(change: Callable[[dict[str, np.ndarray]], object], config: dict[str, Any] | None = None) -> Damage:
    """Damage: a well-formed file of other tensors."""

    def damage(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        arrays = load_file(folder / WEIGHTS)
        change(arrays)
        save_file(arrays, folder / WEIGHTS)
        if config:
            json_file("config.json", lambda data: data.update(config))(folder)

    return damage


def poke(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays["transformer.h.1.mlp.dense_4h_to_h.bias"].__setitem__(-1, value)


def sharded(damage: Damage) -> Damage:
    def both(folder: Path) -> None:
        hf.save(folder, CONFIG, init_params(CONFIG, 1), max_shard_bytes=4000)
        assert not (folder / WEIGHTS).exists()
        damage(folder)

    return both


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def place(key: str, name: object) -> Damage:
    """Damage: the index says that a weight lies in the file `name`; a number is that shard."""

    def damage(folder: Path) -> None:
        found = shards(folder)[name].name if type(name) is int else name
        json_file(INDEX, lambda data: data["weight_map"].update({key: found}))(folder)

    return sharded(damage)


def outside_shard(folder: Path) -> None:
    """The file exists and would load: only its name is wrong."""
    shard = shards(folder)[0]
    os.rename(shard, folder.parent / shard.name)
    json_file(INDEX, lambda data: data.update(weight_map=renamed(data["weight_map"], shard.name)))(folder)


def renamed(places: dict[str, str], name: str) -> dict[str, str]:
    return {key: f"../{name}" if value == name else value for key, value in places.items()}


# --- the table: what is done to a good checkpoint, and what the message must say
# ---------------------------------------

HF_CASES: dict[str, tuple[Damage, str]] = {
    # the header of a safetensors file
    "empty file": (file(WEIGHTS, b""), WEIGHTS),
    "seven bytes": (file(WEIGHTS, b"\x07" * 7), WEIGHTS),
    "truncated in the header": (truncated(WEIGHTS, 0.1), "header"),
    "truncated in the data": (truncated(WEIGHTS, 0.9), "incomplete"),
    "one byte short": (lambda folder: write(folder, read(folder)[0], read(folder)[1][:-1]), "incomplete"),
    "bytes after the end": (lambda folder: write(folder, read(folder)[0], read(folder)[1] + b"\0"), "end of its last"),
    "header longer than the file": (lambda folder: write(folder, *read(folder), length=10**6), "header"),
    "header of 2^63 bytes": (lambda folder: write(folder, *read(folder), length=2**63), "header"),
    "header over the limit": (lambda folder: write(folder, *read(folder), length=100_000_001), "100000000"),
    "header is not JSON": (lambda folder: write(folder, b"{not json", read(folder)[1]), "header"),
    "header is not UTF-8": (lambda folder: write(folder, b'{"\xff": 1}', read(folder)[1]), "header"),
    "header is a list": (lambda folder: write(folder, b"[1, 2]", read(folder)[1]), "JSON object"),
    "header nested too deep": (lambda folder: write(folder, b"[" * 10**6, b""), "header"),
    "header with a huge number": (lambda folder: write(folder, b'{"a": ' + b"9" * 10**5 + b"}", b""), "header"),
    "name given twice": (
        lambda folder: write(folder, json.dumps(read(folder)[0]).encode()[:-1] + b', "__metadata__": {}}', b""),
        "twice",
    ),
    "metadata is no object of strings": (header(lambda head: head.update(__metadata__={"a": 1})), "__metadata__"),
    "entry is a number": (header(lambda head: head.update({FIRST: 3})), FIRST),
    "entry without a shape": (header(lambda head: head[FIRST].pop("shape")), FIRST),
    "entry with more than it should have": (entry(pickled="cos\nsystem"), FIRST),
    "dtype of another planet": (entry(dtype="F99"), FIRST),
    "dtype is a list": (entry(dtype=["F32"]), FIRST),
    "shape with a negative size": (entry(shape=[-17, -12]), FIRST),
    "shape with a fraction": (entry(shape=[17.0, 12]), FIRST),
    "shape is a text": (entry(shape="17x12"), FIRST),
    "shape that overflows 64 bits": (entry(shape=[2**62, 8]), FIRST),
    "shape that overflows to the right size": (entry(shape=[17 * 12 + 2**62, 1]), FIRST),
    "shape and bytes disagree": (entry(shape=[17, 13]), FIRST),
    "offsets beyond the file": (entry(data_offsets=[0, 10**12]), FIRST),
    "offsets negative": (entry(data_offsets=[-816, 0]), FIRST),
    "offsets in the wrong order": (entry(data_offsets=[816, 0]), FIRST),
    "offsets are three": (entry(data_offsets=[0, 400, 816]), FIRST),
    "offsets are true and false": (entry(data_offsets=[False, True]), FIRST),
    "offsets overlap": (shift(SECOND, -8), SECOND),
    "offsets leave a hole": (shift(SECOND, 4), SECOND),
    "two names for the same bytes": (
        header(lambda head: head[SECOND].update(data_offsets=head[SECOND.replace("weight", "bias")]["data_offsets"])),
        "word_embeddings_layernorm",
    ),
    # the weights
    "NaN": (numbers(poke(np.nan)), "h.1.mlp.dense_4h_to_h.bias"),
    "plus infinity": (numbers(poke(np.inf)), "h.1.mlp.dense_4h_to_h.bias"),
    "minus infinity": (numbers(poke(-np.inf)), "h.1.mlp.dense_4h_to_h.bias"),
    "integer weights": (
        numbers(lambda arrays: arrays.update({FIRST: arrays[FIRST].astype(np.int8)})),
        "word_embeddings.weight: dtype",
    ),
    "weights cut to half their rows": (
        numbers(lambda arrays: arrays.update({FIRST: arrays[FIRST][:8].copy()})),
        "model.safetensors: word_embeddings.weight: shape",
    ),
    "weights transposed": (
        numbers(
            lambda arrays: arrays.update(
                {name: np.ascontiguousarray(x.T) for name, x in arrays.items() if "dense_h_to_4h.weight" in name}
            )
        ),
        "dense_h_to_4h.weight: shape",
    ),
    "tensor missing": (numbers(lambda arrays: arrays.pop("transformer.ln_f.bias")), "missing ln_f.bias"),
    "tensor unknown": (numbers(lambda arrays: arrays.update({"transformer.extra": np.zeros(1)})), "unknown extra"),
    "layer too many": (
        numbers(lambda arrays: arrays.update({"transformer.h.2.input_layernorm.weight": np.ones(12)})),
        "unknown h.2.input_layernorm.weight",
    ),
    "two weights of one name": (
        numbers(lambda arrays: arrays.update({"ln_f.bias": arrays["transformer.ln_f.bias"] + 1})),
        "ln_f.bias",
    ),
    "tied head that differs": (
        numbers(lambda arrays: arrays.update({"lm_head.weight": arrays[FIRST] + np.float32(1e-3)})),
        "lm_head.weight",
    ),
    "tied head that differs in the sign of zero": (
        numbers(lambda arrays: arrays.update({"lm_head.weight": signed_zero(arrays[FIRST])})),
        "lm_head.weight",
    ),
    "tied head of another dtype": (
        numbers(lambda arrays: arrays.update({"lm_head.weight": arrays[FIRST].astype(np.float64)})),
        "lm_head.weight",
    ),
    "tied head of another shape": (
        numbers(lambda arrays: arrays.update({"lm_head.weight": arrays[FIRST][:5].copy()})),
        "lm_head.weight: shape",
    ),
    "separate head missing": (
        numbers(lambda _: None, config={"tie_word_embeddings": False}),
        "missing lm_head.weight",
    ),
    # config.json
    "config is missing": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config is a folder": (folder_instead("config.json"), "config.json"),
    "config is a pipe": (pipe_instead("config.json"), "config.json"),
    "config is not JSON": (file("config.json", b"{"), "config.json"),
    "config is not text": (file("config.json", b"\xff\xfe\x00"), "config.json"),
    "config is a list": (file("config.json", b"[]"), "config.json"),
    "config of another model": (json_file("config.json", lambda data: data.update(model_type="gpt2")), "gpt2"),
    "config without a size": (json_file("config.json", lambda data: data.pop("vocab_size")), "vocab_size"),
    "config with a size of zero": (json_file("config.json", lambda data: data.update(n_head=0)), "num_heads"),
    "config with a text for a size": (json_file("config.json", lambda data: data.update(n_head="3")), "num_heads"),
    "config with 10^15 layers": (json_file("config.json", lambda data: data.update(n_layer=10**15)), "layers"),
    "config with 10^18 columns": (
        json_file("config.json", lambda data: data.update(hidden_size=3 * 10**18)),
        "hidden_dim: expected an integer <= 2147483647",
    ),
    # files and shards
    "weights are missing": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "weights are a folder": (folder_instead(WEIGHTS), WEIGHTS),
    "weights are a pipe": (pipe_instead(WEIGHTS), WEIGHTS),
    "weights are a link to nothing": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("gone")),
        WEIGHTS,
    ),
    "index is not JSON": (sharded(file(INDEX, b"weight_map")), INDEX),
    "index without a map": (sharded(json_file(INDEX, lambda data: data.pop("weight_map"))), "weight_map"),
    "index with an empty map": (sharded(json_file(INDEX, lambda data: data.update(weight_map={}))), "weight_map"),
    "index names a folder above": (sharded(outside_shard), "inside the checkpoint's folder"),
    "index names a file that no system can have": (place(FIRST, "x" * 300), "inside the checkpoint's folder"),
    "index names an absolute path": (place(FIRST, "/etc/passwd"), "inside the checkpoint's folder"),
    "index names a Windows path": (place(FIRST, "..\\model.safetensors"), "inside the checkpoint's folder"),
    "index names a drive": (place(FIRST, "C:model.safetensors"), "inside the checkpoint's folder"),
    "index names a text with a zero": (place(FIRST, "a\0b"), "inside the checkpoint's folder"),
    "index names the folder itself": (place(FIRST, "."), "folder"),
    "index names nothing": (place(FIRST, ""), "weight_map"),
    "index names a number": (place(FIRST, 3.0), "weight_map"),
    "index names a missing shard": (sharded(lambda folder: shards(folder)[1].unlink()), "model-00002"),
    "index names a folder": (sharded(lambda folder: folder_instead(shards(folder)[0].name)(folder)), "model-00001"),
    "shard is truncated": (sharded(lambda folder: truncated(shards(folder)[1].name, 0.5)(folder)), "model-00002"),
    "adapter instead of a model": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "PEFT",
    ),
}


def signed_zero(array: np.ndarray) -> np.ndarray:
    array[0, 0] = 0.0
    other = array.copy()
    other[0, 0] = -0.0
    return other


@pytest.fixture
def good(tmp_path: Path) -> Path:
    hf.save(tmp_path / "checkpoint", CONFIG, init_params(CONFIG, 1))
    return tmp_path / "checkpoint"


@pytest.mark.clause("CFG-10", "WGT-1", "WGT-2", "WGT-4", "WGT-5", "WGT-6", "WGT-7", "WGT-8", "WGT-11")
@pytest.mark.parametrize("name", HF_CASES)
def test_hostile_hugging_face_folder(good: Path, name: str) -> None:
    damage, words = HF_CASES[name]
    load(good)  # the control: untouched, it loads
    damage(good)
    with pytest.raises(BadWeights) as caught:
        load(good)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.clause("WGT-4", "WGT-6", "WGT-8")
def test_controls_load(good: Path) -> None:
    """Changes that are odd but legal: the table above does not pass because every change is refused."""
    sharded(lambda _: None)(good)
    load(good)
    first = shards(good)[0]
    os.rename(first, good.parent / "blob")  # the hub's cache: a name inside, a link that points outside
    first.symlink_to(good.parent / "blob")
    load(good)
    odd = "Ünïcode_model 00001 of 4"
    os.rename(first, good / odd)
    same = {first.name: odd}
    json_file(INDEX, lambda d: d.update(weight_map={k: same.get(v, v) for k, v in d["weight_map"].items()}))(good)
    load(good)
    hf.save(good, CONFIG, init_params(CONFIG, 1))
    numbers(lambda arrays: arrays.update({"lm_head.weight": arrays[FIRST]}))(good)
    load(good)
    mask = {"transformer.h.0.self_attention.scale_mask_softmax.causal_mask": np.ones(8, bool)}
    numbers(lambda arrays: arrays.update(mask))(good)
    load(good)
    text = json.dumps(read(good)[0]).encode()
    write(good, text + b" " * (1 - len(text) % 2), read(good)[1])  # tensors at odd addresses
    assert load(good).word_embedding.flags.aligned


@pytest.mark.clause("WGT-7")
@pytest.mark.clause("WGT-7")
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found_in_every_dtype(tmp_path: Path, dtype: type, value: float) -> None:
    params = init_params(CONFIG, 1, np.dtype(dtype)).map(lambda array: array.copy())
    params.layers[1].qkv_weight[2, 1, 3, 11] = value
    hf.save(tmp_path, CONFIG, params)
    for wanted in (None, np.dtype(np.float32)):
        with pytest.raises(BadWeights, match=r"h\.1\.self_attention\.query_key_value\.weight"):
            open_checkpoint(tmp_path).params(wanted)


@pytest.mark.parametrize("layout", [hf, keras], ids=["hf", "keras"])
@pytest.mark.parametrize("value", [1e5, -1e5])
@pytest.mark.parametrize("read", ["params", "stored"])
def test_numbers_too_large_for_the_wanted_dtype_are_refused(
    tmp_path: Path, layout: ModuleType, value: float, read: str
) -> None:
    pytest.importorskip("h5py")
    params = init_params(CONFIG, 1).map(lambda array: array.copy())
    params.layers[0].mlp_up_bias[3] = value
    layout.save(tmp_path, CONFIG, params)
    getattr(open_checkpoint(tmp_path), read)(np.dtype(ml_dtypes.bfloat16))
    with pytest.raises(BadWeights, match=r"(h\.0\.mlp\.dense_h_to_4h\.bias|mlp_intermediate_dense/vars/1) as float16"):
        getattr(open_checkpoint(tmp_path), read)(np.dtype(np.float16))


def test_stored_weights_stay_in_their_file(tmp_path: Path) -> None:
    hf.save(tmp_path, CONFIG, init_params(CONFIG, 1))
    for _, _, array in open_checkpoint(tmp_path).stored(np.dtype(ml_dtypes.bfloat16)).named():
        assert array.dtype == np.float32
        assert not array.flags.writeable


@pytest.mark.clause("WGT-11")
@pytest.mark.clause("WGT-11")
@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_the_header_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Every file that the package safetensors refuses is also refused by bloomref's checks."""
    from safetensors import SafetensorError, safe_open

    hf.save(tmp_path, CONFIG, init_params(CONFIG, 1))
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 + length - 1))
        content[at] = data.draw(st.sampled_from(b'0123456789[]{}",:- aF\x00\xff'))
    (tmp_path / WEIGHTS).write_bytes(content)
    try:
        with patch("bloomref.formats.safetensors_io._second_opinion"):
            ours = {name: entry.shape for name, entry in SafetensorsFile(tmp_path / WEIGHTS).entries.items()}
    except BadWeights:
        return
    try:
        with safe_open(tmp_path / WEIGHTS, framework="np") as other:
            assert ours == {name: tuple(other.get_slice(name).get_shape()) for name in other.keys()}  # noqa: SIM118
    except SafetensorError as error:
        pytest.fail(f"accepted here, refused there: {error}")


@pytest.mark.clause("WGT-10")
def test_quantized_and_pickled_weights_are_unsupported(good: Path) -> None:
    (good / WEIGHTS).unlink()
    (good / "pytorch_model.bin").write_bytes(b"\x80\x02}.")
    with pytest.raises(Unsupported, match="convert --from-pickle"):
        load(good)
    json_file("config.json", lambda data: data.update(quantization_config={"quant_method": "gptq"}))(good)
    with pytest.raises(Unsupported, match="gptq"):
        load(good)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_may_stand_in_the_json_files(tmp_path: Path, data: st.DataObject) -> None:
    """A value of config.json, the index or tokenizer.json is replaced by any other: a refusal, or no effect."""
    hf.save(tmp_path, CONFIG, init_params(CONFIG, 1), max_shard_bytes=4000)
    write_json(tmp_path / "tokenizer.json", bloom_tokenizer_json({"<s>": 0, "a": 1, "b": 2, "ab": 3}, ["a b"]))
    name = data.draw(st.sampled_from(["config.json", INDEX, "tokenizer.json"]))
    content = json.loads((tmp_path / name).read_text())
    where: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        inner = where[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        where = inner
    where[key] = data.draw(ANYTHING)
    (tmp_path / name).write_text(json.dumps(content))
    try:
        load(tmp_path)
        vocabulary_and_merges(tmp_path)
    except BloomrefError:
        return
