"""Arguments of the wrong type, size or form at public functions: the documented error, never one from inside."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import text_lm

from bloomref import (
    BloomBackbone,
    BloomCausalLM,
    BloomConfig,
    BloomForTokenClassification,
    BloomTokenizer,
    GenerationOptions,
    LoraConfig,
)
from bloomref.conformance.diff import trace_files
from bloomref.dtypes import dtype_policy
from bloomref.errors import BadWeights, BloomrefError, InvalidInput, Unsupported
from bloomref.params import init_params
from bloomref.runtime import registry
from bloomref.training import data_files

CONFIG = BloomConfig(vocabulary_size=9, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=12)
PARAMS = init_params(CONFIG, 0)


class Liar(list):
    """A list that lies about its length."""

    def __len__(self) -> int:
        return 3


VALUES: list[Any] = [
    None,
    True,
    -1,
    1.5,
    2**63,
    10**400,
    float("nan"),
    "",
    "x",
    "\ud800",
    b"x",
    [],
    [[]],
    [[[1]]],
    [None],
    [1, "x"],
    ["a", 1],
    {},
    {"a": 1},
    {"token_ids": None},
    {"token_ids": [[1]], "padding_mask": "x"},
    set(),
    object(),
    int,
    np.zeros(0),
    np.array("x"),
    np.array([[0.5]]),
    np.array([[object()]]),
    Liar(),
    Path("/nonexistent/x"),
    lambda: None,
]


@pytest.fixture(scope="module")
def lm() -> BloomCausalLM:
    return text_lm()


CALLS: dict[str, Any] = {
    "hidden": lambda lm, x: lm.backbone(x),
    "trace": lambda lm, x: lm.backbone.trace(x),
    "logits": lambda lm, x: lm.logits(x),
    "gradients": lambda lm, x: lm.loss_and_gradients(x),
    "labels": lambda lm, x: lm.loss_and_gradients({"token_ids": [[1, 2]], "labels": x}),
    "generate": lambda lm, x: lm.generate(x, max_new_tokens=1),
    "max_new_tokens": lambda lm, x: lm.generate("the", max_new_tokens=x) if x is not None and x is not True else None,
    "stop": lambda lm, x: lm.generate("the", max_new_tokens=1, stop_token_ids=x),
    "score": lambda lm, x: lm.score(x),
    "context": lambda lm, x: lm.score("the", context=x),
    "tokenize": lambda lm, x: lm.tokenizer.tokenize(x),
    "detokenize": lambda lm, x: lm.tokenizer.detokenize(x),
    "token": lambda lm, x: lm.tokenizer.token_to_id(x),
    "id": lambda lm, x: lm.tokenizer.id_to_token(x),
    "vocabulary": lambda _, x: BloomTokenizer(x, []),
    "merges": lambda _, x: BloomTokenizer({"a": 0}, x),
    "sizes": lambda _, x: BloomConfig(vocabulary_size=x, num_layers=1, num_heads=1, hidden_dim=1, intermediate_dim=1),
    "dtype": lambda _, x: BloomBackbone(9, 1, 1, 2, 2, dtype=x),
    "options": lambda _, x: GenerationOptions(temperature=x),
    "rank": lambda _, x: LoraConfig(r=x),
    "params": lambda _, x: BloomBackbone.from_params(CONFIG, x),
    "config": lambda _, x: BloomBackbone.from_params(x, PARAMS),
    "backbone": lambda _, x: BloomCausalLM(x),
    "backend": lambda _, x: BloomBackbone(9, 1, 1, 2, 2, backend=x),
    "seed": lambda _, x: BloomBackbone(9, 1, 1, 2, 2, seed=x) if not callable(x) else None,
    "names of a trace": lambda lm, x: lm.backbone.trace([[1]], x),
    "a model's config": lambda _, x: BloomBackbone.from_config(x),
    "a model's name": lambda _, x: BloomBackbone(9, 1, 1, 2, 2, name=x),
    "an adapter's config": lambda _, x: small().add_adapter(x),
    "an adapter's name": lambda _, x: small().add_adapter(name=x),
    "an adapter's seed": lambda _, x: small().add_adapter(seed=x),
    "layers of an adapter": lambda _, x: small().enable_lora(1, x),
    "seed of KerasHub's adapter": lambda _, x: small().enable_lora(1, seed=x),
    "the active adapter": lambda _, x: small().set_adapter(x),
    "an adapter to delete": lambda _, x: small().delete_adapter(x),
    "adapters": lambda _, x: small().use_adapters(x),
    "variables": lambda _, x: small().assign_variables(x),
    "keys of an adapter": lambda _, x: [getattr(LoraConfig(), name)(x) for name in KEYED],
    "targets": lambda _, x: LoraConfig().targets(x),
    "scales": lambda _, x: LoraConfig().scales(x) if not isinstance(x, dict) else None,
    "contents of adapter_config.json": lambda _, x: LoraConfig.from_json(x),
    "a head": lambda lm, x: BloomForTokenClassification(lm.backbone, head=x),
    "a head's seed": lambda lm, x: BloomForTokenClassification(lm.backbone, seed=x),
    "a head's adapter": lambda lm, x: BloomForTokenClassification(lm.backbone).use_adapters(x),
    "config of a head's adapter": lambda _, x: BloomForTokenClassification(small()).add_adapter(x),
    "labels to ignore": lambda lm, x: tagger(lm).classify("the", ignore_labels=x),
    "problem_type": lambda lm, x: BloomForTokenClassification(lm.backbone, problem_type=x),
    "lost_characters": lambda lm, x: lm.tokenizer.lost_characters(x),
    "has_token": lambda lm, x: lm.tokenizer.has_token(x),
    "as_prompts": lambda lm, x: lm.tokenizer.as_prompts(x),
    "spans": lambda lm, x: lm.tokenizer.spans("the", x),
    "special tokens": lambda lm, x: lm.tokenizer.detokenize([5], x),
    "tools": lambda lm, x: lm.tokenizer.apply_chat_template([{}], chat_template="x", tools=x),
    "messages": lambda lm, x: lm.tokenizer.encode_answers(x, chat_template="x"),
    "asked": lambda lm, x: lm.tokenizer.encode_answers([{}], chat_template="x", asked=x),
    "prompts": lambda lm, x: list(lm.generate_each(x, max_new_tokens=1)),
    "load_weights": lambda _, x: BloomBackbone.from_preset("bloom_tiny_udhr", load_weights=x),
    "prompts to skip": lambda lm, x: list(lm.generate_each(["the"], max_new_tokens=1, skip=x)),
    "do_sample": lambda lm, x: lm.generate("the", max_new_tokens=1, do_sample=x),
    "suppressed tokens": lambda _, x: GenerationOptions(suppress_tokens=x),
    "early stopping": lambda _, x: GenerationOptions(num_beams=2, early_stopping=x),
    "evaluate": lambda lm, x: lm.fit(["the a"], steps=1, batch=1, context=4, evaluate=x if not callable(x) else None),
    "save_every": lambda lm, x: lm.fit(["the a"], steps=1, batch=1, context=4, save_every=x),
}
KEYED = ("rank", "scale", "saves", "adapts_parameter", "token_indices")


def small() -> BloomBackbone:
    return BloomBackbone(9, 1, 1, 2, 2)


def tagger(lm: BloomCausalLM) -> BloomForTokenClassification:
    return BloomForTokenClassification(lm.backbone, lm.tokenizer)


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_type_is_the_documented_error(call: str, lm: BloomCausalLM) -> None:
    wrong = []
    for value in VALUES:
        try:
            CALLS[call](lm, value)
        except BloomrefError:
            continue
        except Exception as error:
            wrong.append(f"{value!r:.60}: {type(error).__name__}: {error}"[:200])
    assert wrong == []


PATHS: dict[str, Any] = {
    "save_to_preset": lambda lm, x: lm.save_to_preset(x),
    "save_to_preset of a backbone": lambda lm, x: lm.backbone.save_to_preset(x),
    "save_to_preset of a head": lambda lm, x: tagger(lm).save_to_preset(x),
    "save": lambda lm, x: lm.tokenizer.save(x),
    "find": lambda _, x: BloomTokenizer.find(x),
    "load_prefix": lambda lm, x: lm.load_prefix(x),
    "checkpoints": lambda lm, x: lm.fit(["the a"], steps=1, batch=1, context=4, checkpoints=x),
}


def test_more_than_the_memory_of_the_machine_is_refused(lm: BloomCausalLM) -> None:
    for call in (
        lambda: small().enable_lora(2**50),
        lambda: small().add_adapter({"r": 2**50}),
        lambda: BloomForTokenClassification(lm.backbone, num_labels=2**50),
    ):
        with pytest.raises(Unsupported, match="memory"):
            call()


def test_a_path_that_the_system_refuses_is_named(lm: BloomCausalLM) -> None:
    with pytest.raises(InvalidInput, match=r"preset: expected a path that the system can have.*too long"):
        BloomTokenizer.from_preset("x" * 5000)
    with pytest.raises(InvalidInput, match=r"preset: .*home of a user that the system knows, got ~nosuchuser/x"):
        BloomTokenizer.from_preset("~nosuchuser/x")
    with pytest.raises(InvalidInput, match="folder: expected an existing folder, got missing"):
        lm.tokenizer.save(Path("missing"))


@pytest.mark.parametrize("call", PATHS)
def test_what_is_no_path_is_refused(call: str, lm: BloomCausalLM) -> None:
    for value in (3, [1], b"x", object()):
        with pytest.raises(InvalidInput, match="expected a path"):
            PATHS[call](lm, value)


@pytest.mark.parametrize("call", [*PATHS, "load_adapter", "held_out"])
@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\ud800", Path("a\0b"), Path("\udfff/x")])
def test_a_path_that_no_file_system_has_is_refused(call: str, path: Any, lm: BloomCausalLM) -> None:
    others = {
        "load_adapter": lambda lm, x: lm.load_adapter(x),
        "held_out": lambda lm, x: lm.fit(["the a"], steps=1, batch=1, context=4, held_out=x),
    }
    with pytest.raises(InvalidInput, match="expected a path that the system can have"):
        {**PATHS, **others}[call](lm, path)


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    return nested


ARRAYS = [np.array([]), np.array([[1, 2]]), np.array([None, "x"]), np.zeros((2, 0))]
WORDS: dict[str, Any] = {
    "dtype": lambda _, x: BloomBackbone.from_params(CONFIG, PARAMS, x),
    "backend": lambda _, x: registry.choose(x, CONFIG, dtype_policy("float32")),
    "format": lambda lm, x: lm.save_to_preset("missing/x", format=x),
    "target_layer_names": lambda _, x: small().enable_lora(2, x),
    "chat_template": lambda lm, x: lm.fit(["the a"], steps=1, batch=1, context=4, chat_template=x),
    "separator": lambda lm, x: lm.fit(["the a"], steps=1, batch=1, context=4, separator=x),
    "generation_config": lambda lm, x: BloomCausalLM(lm.backbone, generation_config=x),
    **{
        name: lambda _, x, name=name: LoraConfig(**{name: x})
        for name in ("bias", "target_modules", "target_parameters", "modules_to_save", "rank_pattern")
    },
}


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", [deep(), *ARRAYS], ids=lambda value: type(value).__name__)
def test_nested_lists_and_arrays_are_no_words(name: str, value: Any, lm: BloomCausalLM) -> None:
    with pytest.raises(InvalidInput, match=name):
        WORDS[name](lm, value)


@pytest.mark.parametrize(
    "value", [deep(), ["a"], "config.json", 0.5, Path("."), np.zeros((2, 2))], ids=lambda v: type(v).__name__
)
def test_what_is_no_dictionary_is_no_config(value: Any) -> None:
    for read in (BloomConfig.from_hf, BloomConfig.from_keras, LoraConfig.from_json):
        with pytest.raises(InvalidInput, match="data: expected a dictionary"):
            read(value)


IDS = st.lists(st.integers(0, 8), min_size=1, max_size=4)


@given(IDS, st.sampled_from(["stop_token_ids", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"]))
def test_ids_are_the_same_in_a_list_an_array_and_an_iterator(ids: list[int], name: str) -> None:
    options = GenerationOptions(**{name: ids})
    assert options == GenerationOptions(**{name: iter(ids)})
    assert list(getattr(options, name)) == list(getattr(GenerationOptions(**{name: np.array(ids)}), name)) == ids


@given(st.lists(IDS, min_size=1, max_size=3))
def test_words_of_ids_are_the_same_in_lists_arrays_and_iterators(words: list[list[int]]) -> None:
    options = GenerationOptions(bad_words_ids=words)
    assert options == GenerationOptions(bad_words_ids=iter([iter(word) for word in words]))
    assert options == GenerationOptions(bad_words_ids=[np.array(word) for word in words])


def test_a_stop_string_is_valid_unicode() -> None:
    with pytest.raises(InvalidInput, match="stop_strings: expected valid Unicode"):
        GenerationOptions(stop_strings=["x", "\ud800"])


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3), max_leaves=5))
@settings(max_examples=15)
def test_any_nested_value_is_taken_or_refused(value: Any) -> None:
    model = text_lm()
    for call in (model.generate, model.score, model.tokenizer.tokenize):
        with suppress(BloomrefError):
            call(value, max_new_tokens=1) if call == model.generate else call(value)


@pytest.mark.parametrize(
    "change",
    ["vocabulary_size", "hidden_dim", "intermediate_dim", "num_layers", "num_heads", "tie_word_embeddings"],
)
def test_weights_of_another_config_are_refused(change: str) -> None:
    other = {"tie_word_embeddings": False, "hidden_dim": 10, "num_heads": 4}.get(change, 11)
    config = CONFIG.replace(**{change: other})
    with pytest.raises(InvalidInput, match="params"):
        BloomBackbone.from_params(config, PARAMS)
    with pytest.raises(InvalidInput, match="params"):
        BloomBackbone.from_params(CONFIG, PARAMS).replace_params(init_params(config, 0))
    assert BloomBackbone.from_params(config, init_params(config, 0)).config == config


@pytest.mark.clause("GRD-4")
def test_gradients_have_the_shapes_of_files(lm: BloomCausalLM) -> None:
    _, gradients = lm.loss_and_gradients({"token_ids": [[1, 2, 3]]})
    config, variables = lm.backbone.config, lm.trainable_variables()
    d = config.hidden_dim
    assert gradients["h.0.self_attention.query_key_value.weight"].shape == (3 * d, d)
    assert gradients["h.0.self_attention.query_key_value.bias"].shape == (3 * d,)
    assert gradients["h.1.self_attention.dense.weight"].shape == (d, d)
    for key, weight, array in lm.params.named():
        assert gradients[key].shape == variables[key].shape == weight.hf_shape(config)
        assert np.shares_memory(variables[key], array) or np.array_equal(variables[key].ravel(), array.ravel())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_the_loss_of_an_empty_batch_is_zero(shape: tuple[int, int], lm: BloomCausalLM) -> None:
    loss, gradients = lm.loss_and_gradients({"token_ids": np.zeros(shape, int)})
    assert loss == 0.0
    assert gradients.keys() == lm.trainable_variables().keys()
    assert not any(gradient.any() for gradient in gradients.values())


# --- files that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device"])
def test_training_data_and_traces_that_are_no_files_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    makers: dict[str, Any] = {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "link to a device": lambda: path.symlink_to("/dev/zero"),
    }
    makers[kind]()
    with pytest.raises(InvalidInput, match="regular file"):
        data_files.read([path])
    with pytest.raises(BadWeights, match="expected a file"):
        trace_files.metadata(path)


@pytest.mark.parametrize("record", [{"text": "a\ud800"}, {"prompt": "\udfff", "completion": "x"}, "ab\ud900c"])
def test_lone_surrogates_are_named_by_file_and_line(record: object, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in ({"text": "good"}, record)))
    with pytest.raises(InvalidInput, match=r"data\.jsonl, line 2: expected \w+ in valid Unicode"):
        data_files.read([path])


# --- records and batches -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [object(), len, int, np.array(1), ..., 3j, b"x"], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("name", ["data", "held_out"])
def test_what_is_neither_texts_nor_batches_is_refused_by_its_name(name: str, value: Any, lm: BloomCausalLM) -> None:
    if callable(value) and name == "data":
        value = lambda _: 1  # noqa: E731  (a function of batches that gives none)
    arguments = {"data": ["the a"], "steps": 1, "batch": 1, "context": 4, name: value}
    with pytest.raises(InvalidInput, match=rf"^{name}\b"):
        lm.fit(**arguments)


def test_a_record_of_evaluation_data_is_named_as_such(lm: BloomCausalLM) -> None:
    with pytest.raises(InvalidInput, match=r"^held_out\[1\]"):
        lm.fit(["the a"], steps=1, batch=1, context=4, held_out=["the", {"x": 1}])


def test_an_array_of_floats_is_no_prompt(lm: BloomCausalLM) -> None:
    huge = np.broadcast_to(np.float32(0), (10**6, 10**6))
    for value in (huge, np.zeros((1, 2), "M8[s]"), np.ones(2, bool)):
        with pytest.raises(InvalidInput, match="inputs: expected a text"):
            lm.generate(value, max_new_tokens=1)
    with pytest.raises(InvalidInput, match="bad_words_ids"):
        lm.generate("the", bad_words_ids=huge)


def test_more_rows_than_the_memory_holds_are_refused(lm: BloomCausalLM) -> None:
    with pytest.raises(Unsupported, match="rows of the embedding"):
        lm.resize_token_embeddings(2**50)
