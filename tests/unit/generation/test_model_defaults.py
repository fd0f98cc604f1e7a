"""generation_config.json: arguments, then the file, then defaults; refused is only what would change the result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_models import text_lm

from bloomref import BadWeights, BloomCausalLM, InvalidInput, Unsupported
from bloomref.cli.app import run
from bloomref.generation.model_defaults import ModelDefaults
from bloomref.generation.options import GenerationOptions

LM = text_lm()
PROMPT = "the a is"
FILES = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans() | st.none(),
        "num_beams": st.sampled_from([1, 3, None]),
        "temperature": st.sampled_from([0.5, 1.0, None]),
        "top_k": st.sampled_from([0, 3, 50, None]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "penalty_alpha": st.sampled_from([0.6, 0.0]),
        "length_penalty": st.sampled_from([2.0, 1.0]),
        "max_length": st.integers(1, 9),
        "max_new_tokens": st.integers(1, 9) | st.none(),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "stop_strings": st.sampled_from([["x"], None]),
        "suppress_tokens": st.lists(st.integers(0, 9)),
        "num_return_sequences": st.integers(1, 3),
        "eos_token_id": st.integers(0, 9) | st.lists(st.integers(0, 9)),
    },
)
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"num_beams": np.int64(4)},
    {"num_beams": 1},
    {"num_beams": 2, "length_penalty": 0.5},
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": None},
    {"do_sample": False},
    {"do_sample": True, "top_k": 5},
    {"top_k": 2},
    {"penalty_alpha": 0.5, "top_k": 4},
    {"max_length": 20},
    {"max_new_tokens": 3, "stop_token_ids": None},
    {"repetition_penalty": 1.0},
]


@pytest.mark.clause("GEN-17")
@settings(max_examples=60)
@given(FILES, st.sampled_from(ARGUMENTS))
def test_no_error_speaks_of_what_nobody_typed(file: dict[str, Any], arguments: dict[str, Any]) -> None:
    """An argument and a setting never contradict each other; two settings of a file do, if beams are to be sampled."""
    assume(not (file.get("do_sample") and file.get("num_beams") == 3))
    joined = ModelDefaults(file).options(arguments)
    typed = GenerationOptions.create(**arguments)
    assert all(getattr(joined, name) == getattr(typed, name) for name in arguments)
    assert joined.strategy == typed.strategy or not arguments.keys() & {"top_k", "penalty_alpha"}


@pytest.mark.clause("GEN-16", "GEN-17", "GEN-18")
@pytest.mark.parametrize(
    ("settings", "arguments", "equal"),
    [
        ({"max_new_tokens": 3}, {}, {"max_new_tokens": 3}),
        ({"max_new_tokens": 3}, {"max_length": 9}, {"max_length": 9}),
        ({"max_length": 9, "max_new_tokens": 3}, {}, {"max_new_tokens": 3}),
        ({"max_length": 9}, {"max_new_tokens": 2}, {"max_new_tokens": 2}),
        ({"num_beams": 3, "length_penalty": 0.2}, {}, {"num_beams": 3, "length_penalty": 0.2}),
        ({"num_beams": 3, "length_penalty": 0.2}, {"num_beams": 1}, {"num_beams": 1}),
        ({"num_beams": 3}, {"temperature": 0.5}, {"temperature": 0.5}),
        ({"penalty_alpha": 0.6, "top_k": 4}, {}, {"penalty_alpha": 0.6, "top_k": 4}),
        ({"penalty_alpha": 0.6}, {}, {}),
        ({"repetition_penalty": 5.0}, {}, {"repetition_penalty": 5.0}),
        ({"repetition_penalty": 5.0}, {"repetition_penalty": 1.0}, {}),
        ({"no_repeat_ngram_size": 1, "temperature": None}, {}, {"no_repeat_ngram_size": 1}),
        ({"stop_strings": ["e", "i"]}, {"do_sample": False}, {"stop_strings": ["e", "i"], "do_sample": False}),
        (
            {"suppress_tokens": [4], "sequence_bias": [[[5], 3.0]]},
            {},
            {"suppress_tokens": (4,), "logit_bias": {5: 3.0}},
        ),
        ({"num_beams": 3, "num_return_sequences": 2}, {}, {"num_beams": 3, "num_return_sequences": 2}),
        ({"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 1}, {"num_beams": 1}),
        ({"min_new_tokens": 2, "bad_words_ids": [[4, 5]]}, {}, {"min_new_tokens": 2, "bad_words_ids": [[4, 5]]}),
        ({"forced_eos_token_id": [2], "min_length": 4}, {}, {"forced_eos_token_id": [2], "min_length": 4}),
        ({"num_beams": 2, "early_stopping": True}, {}, {"num_beams": 2, "early_stopping": True}),
        ({"do_sample": True, "top_k": 9, "typical_p": 0.9}, {}, {"do_sample": True, "top_k": 9, "typical_p": 0.9}),
        ({"sequence_bias": [[[5], 3.0]]}, {"logit_bias": {7: 1.0}}, {"logit_bias": {7: 1.0}}),
        (
            {"temperature": 0.1, "top_k": 1, "early_stopping": True, "typical_p": 0.5},
            {},
            {},
        ),  # greedy without do_sample
        ({"do_sample": True}, {}, {"do_sample": True, "top_k": 50}),  # 50 is transformers' value where it samples
        ({"do_sample": True, "top_k": 0, "top_p": 0.9}, {}, {"do_sample": True, "top_p": 0.9}),
        ({"do_sample": True, "top_k": 3}, {"top_p": 0.7}, {"do_sample": True, "top_k": 3, "top_p": 0.7}),
        ({"temperature": 0.3}, {"do_sample": True}, {"do_sample": True, "temperature": 0.3}),
        ({"do_sample": True, "temperature": 0.3}, {"temperature": None}, {"do_sample": True, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.5}, {"num_beams": 2}, {"num_beams": 2}),
        ({"do_sample": True, "temperature": 0.5}, {"temperature": 0}, {"temperature": 0}),
        ({"do_sample": True, "top_p": 0.5}, {"do_sample": False}, {"do_sample": False}),
        ({"num_beams": 2, "do_sample": True}, {"do_sample": False}, {"num_beams": 2, "do_sample": False}),
        ({"transformers_version": "4.1", "use_cache": False, "my_key": {}, "min_length": 0}, {}, {}),
    ],
)
def test_a_setting_of_the_file_acts_as_an_argument(
    settings: dict[str, Any], arguments: dict[str, Any], equal: dict[str, Any]
) -> None:
    assert ModelDefaults(settings).options(arguments) == GenerationOptions.create(**equal)


def test_ids_that_the_model_cannot_generate_are_ignored() -> None:
    settings = {"suppress_tokens": [1, 9], "bad_words_ids": [[1, 2], [1, 9]], "eos_token_id": [9, 3]}
    defaults = ModelDefaults(settings, vocabulary_size=9)
    assert defaults.end_ids() == (3,)
    assert defaults.options({}) == GenerationOptions(suppress_tokens=(1,), bad_words_ids=[[1, 2]])
    with pytest.raises(BadWeights, match="bad_words_ids"):
        ModelDefaults({"bad_words_ids": [1]}).options({})


def test_several_results_of_a_file_are_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "generation_config.json").write_text('{"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 3}')
    assert run(["generate", PROMPT, "--model", str(folder), "--backend", "numpy"]) == 0
    expected = LM.generate(PROMPT, num_beams=2, num_return_sequences=2, max_new_tokens=3)
    assert capfd.readouterr().out == "\n\n".join(expected) + "\n"
    assert list(BloomCausalLM.from_preset(folder).stream(PROMPT))  # one of them


@pytest.mark.clause("GEN-18")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"max_time": 2.5},
            Unsupported,
            "generation_config: max_time: expected a setting that bloomref has",
        ),
        ({"guidance_scale": 1.5}, Unsupported, "guidance_scale.*--no-generation-config"),
        ({"num_beams": 2, "do_sample": True}, Unsupported, "do_sample with num_beams"),
        ({"num_beams": 2, "num_beam_groups": 2}, Unsupported, "num_beam_groups"),
        ({"sequence_bias": [[[4, 5], 1.0]]}, Unsupported, "several ids"),
        ({"sequence_bias": 3}, BadWeights, "sequence_bias"),
        ({"suppress_tokens": ["a"]}, BadWeights, "suppress_tokens: expected ids"),
        (
            {"repetition_penalty": "high"},
            BadWeights,
            "generation_config: repetition_penalty: expected a finite number > 0",
        ),
        ({"do_sample": True, "temperature": 0.0}, BadWeights, "generation_config: temperature"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(settings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ModelDefaults(settings).options({})
    with pytest.raises(InvalidInput, match="max_length"):  # the caller's own mistake comes first where it is one
        ModelDefaults({"repetition_penalty": "high"}).options({"max_length": -1})


@pytest.mark.clause("GEN-16")
def test_the_end_token_is_the_files_then_the_configs_then_the_tokenizers(tmp_path: Path) -> None:
    def ends(**loading: Any) -> tuple[int, ...]:
        lm = BloomCausalLM.from_preset(tmp_path, **loading)
        return tuple(lm._stopping(GenerationOptions()).token_ids)

    LM.save_to_preset(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert ends() == (LM.tokenizer.end_token_id,)
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 9, "max_new_tokens": 5}))
    assert ends() == (9,)
    assert len(BloomCausalLM.from_preset(tmp_path).generate([70, 71], strip_prompt=True)) == 5
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 999999], "max_new_tokens": 3}')
    assert ends() == (7,)
    assert ends(eos_token_id=8) == (8,)
    assert ends(generation_config=False) == (LM.tokenizer.end_token_id,)
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 3}')
    assert ends() == (9,)
    assert len(BloomCausalLM.from_preset(tmp_path).generate([70, 71], strip_prompt=True)) == 3
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(BadWeights, match=r"generation_config\.json: expected a JSON object"):
        ends()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    LM.save_to_preset(path)
    return path


@pytest.mark.clause("GEN-16")
def test_the_command_line_says_what_comes_from_the_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = folder / "generation_config.json"
    file.write_text('{"repetition_penalty": 1.5, "max_new_tokens": 4, "do_sample": true, "eos_token_id": [2, 7]}')
    command = ["generate", PROMPT, "--model", str(folder), "--backend", "numpy"]
    assert run([*command, "--num-beams", "2"]) == 0
    output, notes = capfd.readouterr()
    assert (
        output
        == LM.generate(PROMPT, max_new_tokens=4, num_beams=2, repetition_penalty=1.5, stop_token_ids=[2, 7]) + "\n"
    )
    expected = "repetition_penalty=1.5, max_new_tokens=4, eos_token_id=[2, 7], not do_sample"
    assert f"generation_config.json: {expected} (--no-generation-config ignores it)\n" in notes
    assert run([*command, "--no-generation-config", "-n", "4", "--json"]) == 0
    output, notes = capfd.readouterr()
    assert "generation_config" not in notes
    report = json.loads(output)
    assert report["generation_config"] == {}
    assert report["continuation"] == LM.generate(PROMPT, max_new_tokens=4, strip_prompt=True)
