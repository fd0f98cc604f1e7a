"""BloomCausalLM: every form of input, the methods of the class, and refusals that name the argument."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import (
    TOKENS,
    id_prompts,
    make_lm,
    text_lm,
)

import bloomref
from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput
from bloomref.errors import BadWeights
from bloomref.generation.options import GenerationArguments, GenerationOptions
from bloomref.params import Params

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
TEXT_LM = text_lm()


# --- forms of input ------------------------------------------------------------------------------


def test_what_comes_back_has_the_form_of_what_went_in() -> None:
    ids = TEXT_LM.tokenizer("the th")
    new = TEXT_LM.generate(ids, max_new_tokens=4, strip_prompt=True)
    text = TEXT_LM.generate("the th", max_new_tokens=4, strip_prompt=True)
    assert TEXT_LM.generate("the th", max_new_tokens=4) == "the th" + text
    assert TEXT_LM.generate(["the th"] * 2, max_new_tokens=4) == ["the th" + text] * 2
    assert TEXT_LM.generate(("the th",), max_new_tokens=4) == ["the th" + text]
    assert TEXT_LM.generate(ids, max_new_tokens=4) == ids + new
    assert TEXT_LM.generate(np.array(ids, np.int32), max_new_tokens=4) == ids + new
    assert TEXT_LM.generate([ids, ids], max_new_tokens=4) == [ids + new] * 2
    assert TEXT_LM.generate([], max_new_tokens=4) == []
    assert all(type(token_id) is int for token_id in TEXT_LM.generate(ids, max_new_tokens=4))


def test_an_empty_prompt_starts_from_the_begin_token() -> None:
    new = TEXT_LM.generate([1], max_new_tokens=5, strip_prompt=True)
    assert TEXT_LM.generate([[]], max_new_tokens=5) == [[1, *new]]
    assert TEXT_LM.generate("", max_new_tokens=5) == TEXT_LM.generate([""], max_new_tokens=5, strip_prompt=True)[0]
    none = make_lm(CONFIG.replace(bos_token_id=None))
    with pytest.raises(InvalidInput, match="inputs: expected a prompt"):
        none.generate([[]], max_new_tokens=1)


@settings(max_examples=20)
@given(st.data(), st.sampled_from(("left", "right", "both")))
def test_padding_of_a_dictionary_has_no_influence(data: st.DataObject, side: str) -> None:
    prompts = data.draw(id_prompts(20, min_length=1))
    width = max(map(len, prompts)) + data.draw(st.integers(0, 2))
    ids, mask = np.full((len(prompts), width), 7), np.zeros((len(prompts), width))
    for row, prompt in enumerate(prompts):
        start = {"left": width - len(prompt), "right": 0, "both": (width - len(prompt)) // 2}[side]
        ids[row, start : start + len(prompt)] = prompt
        mask[row, start : start + len(prompt)] = 1
    for strip in (False, True):
        expected = LM.generate(prompts, max_new_tokens=4, strip_prompt=strip)
        found = LM.generate({"token_ids": ids, "padding_mask": mask}, max_new_tokens=4, strip_prompt=strip)
        rows = [row[real].tolist() for row, real in zip(found["token_ids"], found["padding_mask"], strict=True)]
        assert rows == expected
        longest = max(map(len, expected))
        assert found["token_ids"].shape == (len(prompts), longest)
        assert all(real[: len(row)].all() for row, real in zip(rows, found["padding_mask"], strict=True))
        assert (found["token_ids"][~found["padding_mask"]] == 3).all()


@pytest.mark.clause("ALI-4")
def test_a_hole_keeps_its_column() -> None:
    ids, mask = [[5, 9, 6, 7, 3]], [[1, 0, 1, 1, 0]]
    found = LM.generate({"token_ids": ids, "padding_mask": mask}, max_new_tokens=4, stop_token_ids=None)
    row, real = [5, 9, 6, 7], [1, 0, 1, 1]
    for _ in range(4):
        logits = LM.logits({"token_ids": [row], "padding_mask": [real]})
        row, real = [*row, int(logits[0, -1].argmax())], [*real, 1]
    assert found["token_ids"].tolist() == [row]
    assert found["padding_mask"].tolist() == [[bool(x) for x in real]]


def test_a_dictionary_without_rows() -> None:
    found = LM.generate({"token_ids": np.zeros((0, 3), int)})
    assert found["token_ids"].shape == found["padding_mask"].shape == (0, 0)


@pytest.mark.clause("GEN-2")
def test_ids_without_a_token_are_never_chosen() -> None:
    unknown: Any = dict.fromkeys(range(TOKENS, TOKENS + 12), 50.0)
    strategies: list[Any] = [
        {},
        {"num_beams": 2},
        {"penalty_alpha": 0.5, "top_k": 999},
        {"temperature": 9.0, "seed": 0},
    ]
    for options in strategies:
        ids = TEXT_LM.generate([TOKENS + 7, 5], max_new_tokens=20, logit_bias=unknown, strip_prompt=True, **options)
        assert max(ids) < TOKENS
    without = BloomCausalLM(TEXT_LM.backbone)
    assert min(without.generate([5], max_new_tokens=5, logit_bias=unknown, strip_prompt=True)) >= TOKENS


# --- the class -----------------------------------------------------------------------------------


def test_logits_are_the_head_on_the_backbone() -> None:
    inputs = {"token_ids": [[1, 2, 3]], "padding_mask": [[0, 1, 1]]}
    expected = LM.backbone.token_embedding(LM.backbone(inputs), reverse=True)
    np.testing.assert_array_equal(LM.logits(inputs), expected)
    np.testing.assert_array_equal(LM(inputs), expected)
    assert LM.logits(inputs).dtype == np.float64


def test_from_preset() -> None:
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr", dtype="float64")
    assert lm.backbone.policy.name == "float64"
    assert lm.tokenizer is not None
    assert lm.generate("Everyone has", max_new_tokens=3).startswith("Everyone has")
    assert "bloom_tiny_udhr" in BloomCausalLM.presets
    random = BloomCausalLM.from_preset("bloom_tiny_udhr", load_weights=False)
    assert random.backbone.count_params() == lm.backbone.count_params()


def test_a_folder_without_tokenizer_takes_ids(tmp_path: Any) -> None:
    LM.backbone.save_to_preset(tmp_path / "model")
    lm = BloomCausalLM.from_preset(tmp_path / "model", dtype="float64")
    assert lm.tokenizer is None
    assert lm.generate([4, 5], max_new_tokens=5) == LM.generate([4, 5], max_new_tokens=5)
    with pytest.raises(InvalidInput, match=r"inputs: .*no tokenizer"):
        lm.generate("text")


@pytest.mark.parametrize("layout", ["hf", "keras"])
def test_save_to_preset_keeps_model_and_tokenizer(layout: Any, tmp_path: Any) -> None:
    if layout == "keras":
        pytest.importorskip("h5py")
    TEXT_LM.save_to_preset(tmp_path / "model", layout)
    lm = BloomCausalLM.from_preset(tmp_path / "model", dtype="auto")
    assert lm.tokenizer is not None
    assert lm.tokenizer.get_vocabulary() == TEXT_LM.tokenizer.get_vocabulary()
    assert lm.generate("the 意</s>, a", max_new_tokens=9) == TEXT_LM.generate("the 意</s>, a", max_new_tokens=9)
    BloomCausalLM(TEXT_LM.backbone).save_to_preset(tmp_path / "without", layout)
    assert BloomCausalLM.from_preset(tmp_path / "without", dtype="auto").tokenizer is None
    with pytest.raises(InvalidInput, match="format: expected 'hf' or 'keras', got 'onnx'"):
        TEXT_LM.save_to_preset(tmp_path / "x", "onnx")  # type: ignore[arg-type]


def test_reduced_precision_generates() -> None:
    for dtype in ("float16", "bfloat16", "mixed_float16", "float32"):
        lm = BloomCausalLM.from_preset("bloom_tiny_udhr", dtype=dtype)
        assert len(lm.generate([5, 6], max_new_tokens=4, stop_token_ids=None, num_beams=2)) == 6


def test_weights_that_overflow_are_refused() -> None:
    params = LM.backbone.params
    broken = Params.build(
        2, True, lambda w, key: np.full(w.shape(CONFIG), np.nan) if key == "ln_f.bias" else _named(params)[key]
    )
    with pytest.raises(BadWeights, match="logits: expected finite numbers, got nan"):
        BloomCausalLM(BloomBackbone.from_params(CONFIG, broken)).generate([1])


def _named(params: Params) -> dict[str, Any]:
    return {key: array for key, _, array in params.named()}


# --- mistakes ------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "max_length 0": ({"max_length": 0}, "max_length: expected an integer >= 1, got 0"),
    "max_length of the prompt": (
        {"max_length": 2},
        "max_length: expected more than the 2 tokens.*got 2.*max_new_tokens",
    ),
    "max_length real": ({"max_length": 5.0}, "max_length: expected an integer"),
    "both lengths": ({"max_length": 5, "max_new_tokens": 3}, "max_length: expected either"),
    "max_new_tokens 0": ({"max_new_tokens": 0}, "max_new_tokens: expected an integer >= 1, got 0"),
    "max_new_tokens bool": ({"max_new_tokens": True}, "max_new_tokens: .*got True"),
    "temperature < 0": ({"temperature": -1.0}, "temperature: .*>= 0.*got -1.0"),
    "temperature nan": ({"temperature": float("nan")}, "temperature: .*finite.*got nan"),
    "temperature text": ({"temperature": "hot"}, "temperature: .*got 'hot'"),
    "temperature 0 drawn": ({"temperature": 0, "do_sample": True}, "temperature: .*> 0 with do_sample=True"),
    "top_k -1": ({"top_k": -1}, "top_k: expected an integer >= 0, got -1"),
    "top_k real": ({"top_k": 2.5}, "top_k: .*got 2.5"),
    "top_p 0": ({"top_p": 0.0}, r"top_p: expected a probability in \(0, 1\], got 0.0"),
    "top_p > 1": ({"top_p": 1.01}, "top_p: .*got 1.01"),
    "min_p < 0": ({"min_p": -0.1}, r"min_p: expected a number in \[0, 1\], got -0.1"),
    "seed < 0": ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    "seed real": ({"seed": 0.5}, "seed: .*got 0.5"),
    "do_sample text": ({"do_sample": "yes"}, "do_sample: expected True, False or None, got yes"),
    "no beams": ({"num_beams": 0}, "num_beams: expected an integer >= 1, got 0"),
    "beams and temperature": ({"num_beams": 2, "temperature": 1.0}, "temperature: expected none with num_beams=2"),
    "beams and do_sample": ({"num_beams": 2, "do_sample": True}, "do_sample=True: expected none with num_beams=2"),
    "beams and top_k": ({"num_beams": 2, "top_k": 3}, "top_k: expected none with num_beams=2"),
    "beams and alpha": ({"num_beams": 2, "penalty_alpha": 0.5}, "penalty_alpha: expected none with num_beams"),
    "length penalty alone": ({"length_penalty": 2.0}, "length_penalty: expected 1.0 without beam search, got 2.0"),
    "length penalty inf": ({"num_beams": 2, "length_penalty": float("inf")}, "length_penalty: .*finite.*got inf"),
    "length penalty of no float": (
        {"num_beams": 2, "length_penalty": -1e300},
        r"length_penalty: .*\[-30, 30\], got -1e",
    ),
    "alpha without top_k": ({"penalty_alpha": 0.5}, "penalty_alpha: expected top_k as well"),
    "alpha > 1": ({"penalty_alpha": 1.5, "top_k": 4}, "penalty_alpha: .*got 1.5"),
    "alpha and top_p": ({"penalty_alpha": 0.5, "top_k": 4, "top_p": 0.9}, "top_p: expected none with penalty_alpha"),
    "greedy with top_p": ({"do_sample": False, "top_p": 0.9}, "top_p: expected none with do_sample=False"),
    "greedy with top_k": ({"do_sample": False, "top_k": 2}, "top_k: expected none with do_sample=False"),
    "repetition penalty 0": ({"repetition_penalty": 0.0}, "repetition_penalty: .*> 0, got 0.0"),
    "n-gram < 0": ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: .*got -1"),
    "bias list": ({"logit_bias": [1.0]}, "logit_bias: expected a dictionary"),
    "bias id": ({"logit_bias": {20: 1.0}}, r"logit_bias: expected ids in \[0, 20\).*got 20"),
    "bias id text": ({"logit_bias": {"a": 1.0}}, "logit_bias: expected an integer"),
    "bias nan": ({"logit_bias": {1: float("nan")}}, "logit_bias: expected finite numbers or -inf"),
    "bias inf": ({"logit_bias": {1: float("inf")}}, "logit_bias: expected finite numbers or -inf"),
    "stop id": ({"stop_token_ids": [20]}, r"stop_token_ids: expected ids in \[0, 20\).*got 20"),
    "stop id < 0": ({"stop_token_ids": -1}, "stop_token_ids: .*got -1"),
    "stop ids text": ({"stop_token_ids": "never"}, "stop_token_ids: expected 'auto', None"),
    "stop ids bool": ({"stop_token_ids": True}, "stop_token_ids: expected 'auto', None"),
    "stop ids real": ({"stop_token_ids": [1.0]}, "stop_token_ids: expected an integer"),
    "stop string empty": ({"stop_strings": ""}, "stop_strings: expected a text or a list of texts, none of them empty"),
    "stop strings of ids": ({"stop_strings": [1]}, "stop_strings: expected a text"),
    "stop strings bytes": ({"stop_strings": b"a"}, "stop_strings: expected a text"),
    "stop string without tokenizer": ({"stop_strings": "a"}, "stop_strings: .*no tokenizer"),
    "unknown": ({"max_new_token": 3}, "max_new_token: expected an option of generation, .*did you mean max_new_tokens"),
    "strip_prompt": ({"strip_prompt": "no"}, "strip_prompt: expected True or False, got 'no'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistaken_options(mistake: str) -> None:
    options, message = MISTAKES[mistake]
    with pytest.raises(InvalidInput, match=message):
        LM.generate([1, 2], **options)


INPUTS: dict[str, tuple[Any, str]] = {
    "None": (None, "inputs: expected a text"),
    "bytes": (b"abc", "inputs: expected a text"),
    "number": (3, "inputs: expected a text"),
    "reals": ([1.0, 2.0], "inputs: expected integers.*got 1.0"),
    "bools": ([True], "inputs: expected integers.*got True"),
    "id V": ([20], r"inputs: expected ids in \[0, 20\).*got 20"),
    "id -1": ([[3], [-1]], r"inputs\[1\]: .*got -1"),
    "texts and ids": (["a", 3], r"inputs\[1\]: expected a text, as the others are, got 3"),
    "rows and ids": ([[1], 2], r"inputs\[1\]: expected a list of token ids, as the others are, got 2"),
    "three levels": ([[[1]]], r"inputs\[0\]: expected integers"),
    "text without tokenizer": ("a", "inputs: .*no tokenizer"),
    "dictionary without ids": ({"padding_mask": [[1]]}, "inputs: expected a key 'token_ids'"),
    "ragged dictionary": ({"token_ids": [[1], [2, 3]]}, "token_ids: expected a rectangular array"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_mistaken_inputs(case: str) -> None:
    inputs, message = INPUTS[case]
    with pytest.raises(InvalidInput, match=message):
        LM.generate(inputs)


CONSTRUCTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "no backbone": (lambda: BloomCausalLM("bloom"), "backbone: expected a BloomBackbone, got str"),  # type: ignore[arg-type]
    "no tokenizer": (lambda: BloomCausalLM(LM.backbone, "bloom"), "tokenizer: expected a BloomTokenizer"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_mistaken_constructions(case: str) -> None:
    make, message = CONSTRUCTIONS[case]
    with pytest.raises(InvalidInput, match=message):
        make()


def test_the_keyword_arguments_are_the_fields_of_the_options() -> None:
    """Names and types; the two that KerasHub has as positional parameters are written in the signatures."""
    fields = {name: field.type for name, field in GenerationOptions.__dataclass_fields__.items()}
    positional = {name: fields.pop(name) for name in ("max_length", "stop_token_ids")}
    assert GenerationArguments.__annotations__ == fields
    for method in (BloomCausalLM.generate, BloomCausalLM.stream):
        parameters = signature(method).parameters
        assert {name: parameters[name].annotation for name in positional} == positional
    assert bloomref.GenerationOptions is GenerationOptions
