"""The three classes with a classification head, without transformers: logits, labels, files, refusals."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_tokenizer
from strategies import draw_params

from bloomref import (
    BadWeights,
    BloomBackbone,
    BloomCausalLM,
    BloomConfig,
    BloomForQuestionAnswering,
    BloomForSequenceClassification,
    BloomForTokenClassification,
    InvalidInput,
)
from bloomref.cli.app import run
from bloomref.dtypes import POLICIES
from bloomref.formats.layouts.checkpoint import open_checkpoint
from bloomref.formats.layouts.oddities import remarks
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.heads.labels import Labels, sigmoid, softmax
from bloomref.heads.question_answering import best_span
from bloomref.heads.sequence_classification import last_tokens
from bloomref.runtime.inputs import token_batch

CONFIG = BloomConfig(vocabulary_size=290, num_layers=1, num_heads=3, hidden_dim=12, intermediate_dim=48)
CLASSES: Any = (BloomForSequenceClassification, BloomForTokenClassification, BloomForQuestionAnswering)
TEXTS = ["the cat", "a, b", "the", "意 is a the cat"]


def backbone(dtype: str = "float64", **changes: Any) -> BloomBackbone:
    return BloomBackbone.from_params(CONFIG.replace(**changes), draw_params(CONFIG, 1), dtype)


def build(kind: Any = BloomForSequenceClassification, model: BloomBackbone | None = None, **arguments: Any) -> Any:
    return kind(model or backbone(), small_tokenizer(), seed=3, **arguments)


# --- logits ------------------------------------------------------------------------------------------------------


@pytest.mark.clause("HEA-2")
@pytest.mark.parametrize("dtype", POLICIES)
def test_logits_are_the_product_with_rounded_weights(dtype: str):
    model = build(BloomForTokenClassification, backbone(dtype), num_labels=3)
    inputs, policy = {"token_ids": [[5, 6, 7]]}, POLICIES[dtype]
    model.head = model.head.map(lambda array: array + array.dtype.type(1))  # a bias, too
    hidden = model.backbone(inputs)
    wide = np.float64 if dtype == "float64" else np.float32
    weight, bias = (x.astype(policy.compute_dtype).astype(wide) for x in (model.head.weight, model.head.bias))
    logits = model(inputs)
    assert model.head.weight.dtype == policy.variable_dtype
    assert logits.dtype == wide
    np.testing.assert_array_equal(logits, hidden.astype(wide) @ weight.T + bias)


@pytest.mark.clause("HEA-3")
@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 6))
def test_the_last_token_is_the_rightmost_that_is_no_padding(rows: list[list[int]], pad: int):
    expected = [max((i for i, token in enumerate(row) if token != pad), default=0) for row in rows]
    assert last_tokens(token_batch({"token_ids": rows}, 5), pad).tolist() == expected


@pytest.mark.clause("HEA-3")
def test_padding_on_either_side_of_any_width_changes_nothing():
    model, row = build(), [5, 6, 3, 7]  # a padding token within the text
    expected = model({"token_ids": [row]})[0]
    for left, right in ((0, 3), (2, 0), (1, 2)):
        inputs = {
            "token_ids": [[3] * left + row + [3] * right, [9] * (4 + left + right)],
            "padding_mask": [[0] * left + [1] * 4 + [0] * right, [1] * (4 + left + right)],
        }
        np.testing.assert_allclose(model(inputs)[0], expected, rtol=1e-12)


@pytest.mark.clause("HEA-3")
def test_a_row_of_padding_is_read_at_its_first_position():
    model = build()
    np.testing.assert_allclose(model({"token_ids": [[3, 3], [5, 6]]})[0], model({"token_ids": [[3]]})[0], rtol=1e-12)


@pytest.mark.clause("HEA-4")
def test_without_a_padding_token_one_row_is_read_at_its_end():
    model = build(model=backbone(pad_token_id=None))
    hidden = model.backbone({"token_ids": [[5, 3, 3]]})[:, -1]
    np.testing.assert_allclose(model({"token_ids": [[5, 3, 3]]}), hidden @ model.head.weight.T, rtol=1e-12)
    with pytest.raises(InvalidInput, match="token_ids: expected one row, since the model's config has no pad_token_id"):
        model({"token_ids": [[5, 6], [7, 8]]})
    assert model([[5, 6], [7, 8, 9]]).shape == (2, 2)


@pytest.mark.clause("HEA-5")
@pytest.mark.parametrize("token_ids", [[[5, 6, 0], [5, 6, 7]], [[3, 3, 3], [5, 6, 7]]])
def test_a_masked_last_token_is_refused(token_ids: list[list[int]]):
    mask = [[int(token not in (0, 3)) for token in row] for row in token_ids]
    with pytest.raises(InvalidInput, match=r"of row 0, which holds id [03]; pad with that id"):
        build()({"token_ids": token_ids, "padding_mask": mask})


@pytest.mark.parametrize("kind", CLASSES)
def test_texts_ids_and_dictionaries_agree(kind: Any):
    model = build(kind)
    rows = small_tokenizer().tokenize(TEXTS)
    first = rows[0]
    by_text, by_ids, by_dictionary = model(TEXTS), model(rows), model({"token_ids": [first]})
    for text, ids, one in zip(*map(np.atleast_2d, (by_text, by_ids, by_dictionary)), strict=False):
        np.testing.assert_array_equal(text, ids)
        np.testing.assert_allclose(np.ravel(text)[: one.size], np.ravel(one), rtol=1e-9)


def test_a_long_list_of_texts_is_cut_into_batches(monkeypatch: pytest.MonkeyPatch):
    model = build()
    expected = model(TEXTS)
    monkeypatch.setattr("bloomref.generation.prompts.POSITIONS_AT_ONCE", 5)
    np.testing.assert_allclose(model(TEXTS), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"token_ids": [[290]]}, "token_ids: expected ids in"),
        ([[]], r"inputs\[0\]: expected at least one token"),
        (["the", ""], r"inputs\[1\]: expected at least one token"),
        (7, "inputs: expected a text"),
        ({"ids": [[1]]}, "inputs: expected the keys"),
    ],
)
def test_wrong_inputs_are_refused_by_name(kind: Any, inputs: object, message: str):
    with pytest.raises(InvalidInput, match=message):
        build(kind)(inputs)


def test_a_model_without_tokenizer_takes_ids_alone():
    model = BloomForSequenceClassification(backbone())
    assert model([5, 6]).shape == (1, 2)
    with pytest.raises(InvalidInput, match="inputs: expected token ids, since this model has no tokenizer"):
        model("the cat")


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.clause("HEA-7")
@pytest.mark.parametrize(
    ("problem_type", "count", "rule"),
    [
        (None, 3, softmax),
        ("single_label_classification", 2, softmax),
        ("single_label_classification", 1, sigmoid),
        (None, 1, sigmoid),
        ("multi_label_classification", 3, sigmoid),
        ("regression", 3, lambda x: x),
        ("regression", 1, lambda x: x),
    ],
)
def test_scores_by_problem_type(problem_type: str | None, count: int, rule: Any):
    model = build(num_labels=count, problem_type=problem_type)
    expected = rule(model(TEXTS))
    for row, ranked in zip(expected, model.classify(TEXTS, top_k=None), strict=True):
        assert {entry["label"]: entry["score"] for entry in ranked} == {f"LABEL_{i}": x for i, x in enumerate(row)}
        assert [entry["score"] for entry in ranked] == sorted(row, reverse=True)


def test_the_forms_of_classify():
    model = build(id2label={0: "no", 1: "maybe", 2: "yes"})
    ranked = model.classify("the cat", top_k=None)
    assert model.classify("the cat") == ranked[0]
    assert model.classify(["the cat"], top_k=2) == [ranked[:2]]
    assert model.classify(["the cat"]) == [ranked[0]]
    assert model.classify([]) == []
    with pytest.raises(InvalidInput, match="top_k: expected an integer >= 1"):
        model.classify("the cat", top_k=0)


def test_pairs_of_texts():
    model = build(num_labels=3)
    pair = {"text": "the cat", "text_pair": "a, b"}
    joined = model.classify([[span.id for span in small_tokenizer().spans("the cat", "a, b")]])
    assert [model.classify(pair)] == model.classify([pair]) == joined
    mixed = model.classify([pair, "the"], top_k=1)
    assert [row[0]["label"] for row in mixed] == [joined[0]["label"], model.classify("the")["label"]]
    assert model.classify({"text": "the"}) == model.classify("the")


@pytest.mark.parametrize(
    "wrong", [{"text_pair": "a"}, {"text": 1}, {"text": "a", "text_pair": 2}, {"text": "a", "x": 1}]
)
def test_wrong_pairs_are_refused_by_index(wrong: dict[str, Any]):
    with pytest.raises(InvalidInput, match=r"inputs\[1\]: expected a text, or"):
        build().classify(["the", wrong])


def test_softmax_and_sigmoid_of_large_logits():
    x = np.array([1e4, -1e4, 0.0])
    np.testing.assert_array_equal(softmax(x), [1, 0, 0])
    np.testing.assert_array_equal(sigmoid(x), [1, 0, 0.5])


def test_equal_scores_rank_by_index():
    assert [entry["label"] for entry in Labels(("a", "b", "c")).best(np.array([0.25, 0.5, 0.25]))] == ["b", "a", "c"]


@pytest.mark.clause("HEA-6")
def test_names_of_labels():
    assert Labels.read({}, 2).names == ("LABEL_0", "LABEL_1")
    assert Labels.read({"id2label": None, "problem_type": None}, 1).names == ("LABEL_0",)
    assert Labels.read({"id2label": {"1": "b", "0": "a"}}, 2).names == ("a", "b")


@pytest.mark.clause("HEA-6")
@pytest.mark.parametrize(
    "extra",
    [{"id2label": {"1": "a", "2": "b"}}, {"id2label": ["a", "b"]}, {"id2label": {}}, {"problem_type": "ranking"}],
)
def test_wrong_labels_are_refused(extra: dict[str, Any]):
    with pytest.raises(BadWeights, match=next(iter(extra))):
        Labels.read(extra, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels"),
        ({"id2label": ["a"]}, "id2label"),
        ({"id2label": {1: "a"}}, "id2label"),
        ({"id2label": {}}, "id2label"),
        (
            {"head": {"score.weight": [[1] * 12]}},
            "score.weight: expected an array of floating numbers, got dtype int64",
        ),
        ({"problem_type": "ranking"}, "problem_type"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        build(**arguments)


def test_logits_that_are_not_finite_have_no_label():
    model = build()
    model.head = model.head.map(lambda array: np.full_like(array, np.inf))
    with pytest.raises(BadWeights, match=r"^logits: expected finite numbers, got (nan|-?inf); .* in float64$"):
        model.classify("the cat")


def test_labelled_tokens_and_their_characters():
    model = build(BloomForTokenClassification, id2label={0: "O", 1: "PER", 2: "LOC"})
    text = "the cat is, 意"
    entities = model.classify(text, ignore_labels=())
    scores = softmax(model(text)[0])
    assert [entity["index"] for entity in entities] == list(range(len(scores)))
    assert [entity["score"] for entity in entities] == scores.max(axis=1).tolist()
    assert {text[entity["start"] : entity["end"]] for entity in entities} >= {"the", " is", "意"}
    assert model.classify([text]) == [[entity for entity in entities if entity["entity"] != "O"]]


# --- questions ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("HEA-8")
def test_the_two_rows_are_start_and_end():
    model = build(BloomForQuestionAnswering)
    inputs = {"token_ids": [[5, 6, 7]]}
    start, end = model(inputs)
    both = model.backbone(inputs) @ model.head.weight.T
    np.testing.assert_allclose((start, end), (both[..., 0], both[..., 1]), rtol=1e-12)


@pytest.mark.clause("HEA-9")
@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_best_answer_is_the_best_of_all_pairs(width: int, longest: int, seed: int):
    rng = np.random.default_rng(seed)
    start, end, in_context = rng.normal(size=width), rng.normal(size=width), rng.random(width) < 0.7
    in_context[rng.integers(width)] = True
    places = np.flatnonzero(in_context)
    p, q = softmax(start[places]), softmax(end[places])
    pairs = [(s, e) for s in range(len(p)) for e in range(s, min(len(p), s + longest))]
    best = max(pairs, key=lambda pair: p[pair[0]] * q[pair[1]])
    assert best_span(start, end, in_context, longest) == (places[best[0]], places[best[1]], p[best[0]] * q[best[1]])


def test_an_answer_is_made_of_whole_words_of_the_context():
    model, context = build(BloomForQuestionAnswering), "the cat is a, the"
    answer = model.answer("a the?", context, max_answer_length=1)
    assert answer["answer"] == context[answer["start"] : answer["end"]] != ""
    assert answer["answer"] in ("the", "cat", "is", "a", ",")
    with pytest.raises(InvalidInput, match="context: expected at least one token"):
        model.answer("the?", "")
    with pytest.raises(InvalidInput, match="question: expected a text"):
        model.answer(["the?"], context)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.clause("HEA-1", "HEA-11")
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_read_bit_for_bit(tmp_path: Path, kind: Any, dtype: str):
    count = {} if kind is BloomForQuestionAnswering else {"num_labels": 3}
    model = build(kind, backbone(dtype, extra={"pretraining_tp": 2}), **count)
    model.save_to_preset(tmp_path / "saved")
    again = kind.from_preset(tmp_path / "saved", dtype="auto")
    assert again.config.replace(extra={}) == model.config.replace(extra={})
    assert again.config.extra == model.config.extra | {"dtype": dtype}
    assert again.labels == model.labels
    assert again.backbone.policy.name == dtype
    for key, array in model.head.named(kind.kind).items():
        assert array.tobytes() == again.head.named(kind.kind)[key].tobytes()
    np.testing.assert_array_equal(model(TEXTS), again(TEXTS))
    stored = json.loads((tmp_path / "saved/config.json").read_text())
    assert stored["architectures"] == [kind.__name__]
    assert stored.get("id2label") == ({str(i): f"LABEL_{i}" for i in range(3)} if count else None)


@pytest.mark.clause("HEA-10")
@pytest.mark.parametrize("front_door", [BloomBackbone, BloomCausalLM])
def test_the_model_below_loads_alone(tmp_path: Path, front_door: Any):
    model = build()
    model.save_to_preset(tmp_path)
    below, ids = front_door.from_preset(tmp_path, dtype="float64"), {"token_ids": [[5, 6]]}
    np.testing.assert_array_equal(getattr(below, "backbone", below)(ids), model.backbone(ids))


def edited(folder: Path, change: Any = None, **config: Any) -> Path:
    """The folder of a saved classifier with other tensors, and other keys in its config."""
    build(num_labels=3).save_to_preset(folder)
    if change:
        path = folder / "model.safetensors"
        arrays = {name: SafetensorsFile(path).view(name).copy() for name in SafetensorsFile(path).entries}
        change(arrays)
        write_safetensors(path, arrays)
    data = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))
    return folder


@pytest.mark.clause("HEA-1", "HEA-6")
@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda arrays: arrays.pop("score.weight"), {}, "score.weight: expected the head of a .*num_labels=2"),
        (lambda arrays: arrays.update({"score.weight": np.zeros((3, 11))}), {}, "score.weight: shape"),
        (lambda arrays: arrays.update({"score.weight": np.zeros(12)}), {}, "score.weight: shape"),
        (lambda arrays: arrays.update({"score.weight": np.zeros((0, 12))}), {}, "score.weight: shape"),
        (lambda arrays: arrays.update({"score.weight": np.zeros((3, 12), np.int32)}), {}, "score.weight: dtype"),
        (lambda arrays: arrays.update({"score.weight": np.full((3, 12), np.nan)}), {}, "score.weight: expected finite"),
        (
            lambda arrays: arrays.update({"score.bias": np.ones(3)}),
            {},
            "score.bias: expected a head of score.weight alone",
        ),
        (None, {"id2label": {"0": "a", "1": "b"}}, "score.weight: expected 2 rows"),
        (None, {"id2label": {"a": 0, "b": 1, "c": 2}}, "id2label"),
        (None, {"problem_type": "ranking"}, "problem_type"),
    ],
)
def test_damaged_heads_are_refused(tmp_path: Path, change: Any, config: dict[str, Any], message: str):
    with pytest.raises(BadWeights, match=message):
        BloomForSequenceClassification.from_preset(edited(tmp_path, change, **config))


def test_a_head_of_another_kind_is_named(tmp_path: Path):
    build().save_to_preset(tmp_path)
    with pytest.raises(BadWeights, match="BloomForTokenClassification, got BloomForSequenceClassification"):
        BloomForTokenClassification.from_preset(tmp_path)


def test_a_bias_without_its_weight_is_refused(tmp_path: Path):
    folder = edited(tmp_path, lambda arrays: arrays.update({"classifier.bias": np.zeros(3)}))
    with pytest.raises(BadWeights, match=r"classifier\.weight: expected the head"):
        BloomForTokenClassification.from_preset(folder)


@pytest.mark.clause("HEA-4")
@pytest.mark.parametrize("value", [None, "absent"])
def test_a_config_without_padding_token(tmp_path: Path, value: Any):
    folder = edited(tmp_path, pad_token_id=value)
    model = BloomForSequenceClassification.from_preset(folder)
    assert model.config.pad_token_id is None
    model.save_to_preset(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["pad_token_id"] is None
    assert BloomForSequenceClassification.from_preset(folder, pad_token_id=4).config.pad_token_id == 4


@pytest.mark.clause("HEA-10")
def test_a_classifier_of_a_model_with_an_untied_head_has_none(tmp_path: Path):
    """So has transformers' file: a language model cannot be had from it."""
    folder = edited(tmp_path, tie_word_embeddings=False)
    model = BloomForSequenceClassification.from_preset(folder)
    model.save_to_preset(tmp_path / "again")
    for path in (folder, tmp_path / "again"):
        assert np.array_equal(BloomForSequenceClassification.from_preset(path)("the cat"), model("the cat"))
        with pytest.raises(BadWeights, match=r"lm_head\.weight"):
            BloomCausalLM.from_preset(path)


def test_what_stands_beside_the_weights_survives(tmp_path: Path):
    folder = edited(tmp_path)
    (folder / "LICENSE").write_text("terms")
    BloomForSequenceClassification.from_preset(folder).save_to_preset(tmp_path / "again")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {path.name for path in (tmp_path / "again").iterdir()} >= names
    assert (tmp_path / "again/LICENSE").read_text() == "terms"


def test_a_model_shows_its_size():
    assert repr(build(num_labels=5)).startswith("BloomForSequenceClassification(5 labels) on BloomBackbone(")


@pytest.mark.clause("HEA-11")
def test_labels_of_a_file_survive(tmp_path: Path):
    facts = {
        "id2label": {"0": "schlecht", "1": "gut", "2": "心"},
        "label2id": {"schlecht": 0, "gut": 1, "心": 2},
        "problem_type": "multi_label_classification",
        "classifier_dropout": 0.25,
    }
    model = BloomForSequenceClassification.from_preset(edited(tmp_path, **facts))
    model.save_to_preset(tmp_path / "again")
    stored = json.loads((tmp_path / "again/config.json").read_text())
    assert {key: stored[key] for key in facts} == facts
    assert model.labels == ("schlecht", "gut", "心")


def test_a_language_model_takes_a_random_head_on_request():
    model = BloomForSequenceClassification.from_preset("bloom_tiny_udhr", id2label={0: "no", 1: "yes"}, seed=4)
    assert model.head.weight.shape == (2, 144)
    assert 0.01 < model.head.weight.std() < 0.03
    with pytest.raises(BadWeights, match=r"from_preset\(\.\.\., num_labels=2\) puts a random one on it"):
        BloomForSequenceClassification.from_preset("bloom_tiny_udhr")


def test_the_command_labels_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    model = build(model=backbone("float32"), id2label={0: "no", 1: "yes"})
    model.save_to_preset(tmp_path)
    command = ["classify", "--model", str(tmp_path), "--backend", "numpy"]
    expected = model.classify(TEXTS, top_k=None)
    assert remarks(open_checkpoint(tmp_path)) == [
        "score.weight: the head of a BloomForSequenceClassification; a language model ignores it"
    ]
    assert run([*command, *TEXTS, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results == [{"text": text, "labels": row} for text, row in zip(TEXTS, expected, strict=True)]
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n\nthe\n"))
    assert run([*command, "-", "-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{expected[0][0]['label']} {expected[0][0]['score']:.4f}  the cat"
    assert len(lines) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run([*command, "-"]) == 2
    assert "texts: expected at least one line" in capsys.readouterr().err
    assert run(["classify", "--help"]) == 0
    assert "Example: bloomref classify" in capsys.readouterr().out


@pytest.mark.clause("HEA-11")
@pytest.mark.parametrize(("kind", "tied"), list(zip(CLASSES, (True, False, True), strict=True)))
def test_convert_keeps_the_head(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any, tied: bool):
    model = build(kind, backbone("float32"))
    model.config = model.config.replace(tie_word_embeddings=tied)
    model.save_to_preset(tmp_path / "first")
    assert run(["convert", str(tmp_path / "first"), str(tmp_path / "copy")]) == 0
    assert run(["convert", str(tmp_path / "first"), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    half = kind.from_preset(tmp_path / "half", dtype="auto")
    rounded = model.head.map(lambda array: array.astype(half.head.weight.dtype))
    assert half.head.weight.tobytes() == rounded.weight.tobytes()
    capsys.readouterr()
    assert run(["convert", str(tmp_path / "first"), str(tmp_path / "keras"), "--to", "keras"]) == 0
    assert f"left out: {', '.join(kind.kind.keys)}" in capsys.readouterr().err
    np.testing.assert_array_equal(
        BloomBackbone.from_preset(tmp_path / "keras").params.word_embedding, model.params.word_embedding
    )


def test_an_adapter_acts_on_the_logits_and_is_merged_when_saved(tmp_path: Path):
    model = build()
    before = model("the cat")
    model.enable_lora(2, seed=1)
    model.assign_variables({name: np.ones(x.shape) for name, x in model.trainable_variables().items()})
    adapted = model("the cat")
    assert not np.allclose(before, adapted)
    model.save_to_preset(tmp_path)
    again = BloomForSequenceClassification.from_preset(tmp_path, dtype="float64")
    np.testing.assert_allclose(again("the cat"), adapted, rtol=1e-9)
