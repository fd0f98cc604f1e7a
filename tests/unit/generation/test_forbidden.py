"""What is not generated: sequences, ids, early stop tokens, untypical tokens; and the names of these options."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_lm, text_lm

from bloomref import BloomConfig, GenerationOptions, InvalidInput
from bloomref.generation.logits_processors import completing_ids
from bloomref.generation.other_tools import HINTS
from bloomref.generation.sampling import softmax, typical

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
TEXT_LM = text_lm()
STRATEGIES: list[Any] = [{}, {"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 3}, {"temperature": 1.5, "seed": 1}]


def contains(row: list[int], word: list[int]) -> bool:
    return any(row[i : i + len(word)] == word for i in range(len(row)))


@pytest.mark.clause("GEN-14")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_no_forbidden_sequence_is_generated(strategy: Any) -> None:
    """Nor one that begins in the prompt."""
    options = {"max_new_tokens": 6, "stop_token_ids": None} | strategy
    free = LM.generate([1, 2], **options)
    words = [free[1:3], free[3:6], free[4:5]]
    row = LM.generate([1, 2], bad_words_ids=words, **options)
    assert row != free
    assert not any(contains(row, word) for word in words)
    assert free[3] not in LM.generate([1, 2], suppress_tokens=free[2:4], strip_prompt=True, **options)


@pytest.mark.clause("GEN-14")
@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 4), max_size=5), st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=3), max_size=3)
)
def test_a_sequence_forbids_its_last_id_where_the_row_ends_with_the_others(
    history: list[int], words: list[list[int]]
) -> None:
    expected = {w[-1] for w in words if len(history) >= len(w) - 1 and history[len(history) - len(w) + 1 :] == w[:-1]}
    assert set(completing_ids(history, words)) == expected


@pytest.mark.clause("GEN-14")
def test_a_stop_token_is_no_bad_word() -> None:
    bias: Any = {7: 100.0}
    assert LM.generate([5], bad_words_ids=[[7]], stop_token_ids=7, logit_bias=bias) == [5, 7]
    assert 7 not in LM.generate([5], bad_words_ids=[[7]], stop_token_ids=8, logit_bias=bias, max_new_tokens=3)
    assert 7 not in LM.generate([5], suppress_tokens=[7], stop_token_ids=7, logit_bias=bias, max_new_tokens=3)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_no_stop_token_before_min_new_tokens(strategy: Any) -> None:
    options = {"stop_token_ids": [7], "logit_bias": {7: 100.0}, "max_new_tokens": 6} | strategy
    row = LM.generate([7, 5], min_new_tokens=3, strip_prompt=True, **options)
    assert row.index(7) == 3


@pytest.mark.clause("GEN-13")
@settings(max_examples=25)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=9), st.floats(0.01, 0.99), st.integers(0, 3))
def test_typical_tokens(values: list[float], mass: float, forbidden: int) -> None:
    """From the definition: what stays is nearer to the entropy than what goes, and is the least that has the mass."""
    scores = np.array([*values, *[-np.inf] * forbidden])
    p = softmax(scores)
    alive = p > 0
    distance = np.abs(-np.log(p[alive]) - np.sum(-p[alive] * np.log(p[alive])))
    kept = typical(scores, mass)[alive] > -np.inf
    assert kept.any()
    assert max(distance[kept]) <= min(distance[~kept], default=np.inf) + 1e-9
    assert p[alive][kept].sum() >= mass - 1e-9
    inner = distance < max(distance[kept]) - 1e-9
    assert p[alive][inner].sum() < mass + 1e-9
    assert np.isinf(typical(scores, mass)[~alive]).all()


def test_typical_one_is_off_and_top_k_zero_is_off() -> None:
    options: Any = {"seed": 3, "max_new_tokens": 5, "temperature": 1.3}
    free = LM.generate([1, 2], **options)
    assert LM.generate([1, 2], typical_p=1.0, top_k=0, **options) == free
    assert LM.generate([1, 2], top_k=0, max_new_tokens=5) == LM.generate([1, 2], max_new_tokens=5)
    assert GenerationOptions(typical_p=0.9).strategy == "sample"
    with pytest.raises(InvalidInput, match="top_k as well"):
        LM.generate([1], penalty_alpha=0.5, top_k=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_words_ids": [5]}, "a word is a list of its ids"),
        ({"bad_words_ids": [[]]}, "none of them empty"),
        ({"bad_words_ids": [[20]]}, r"bad_words_ids: expected ids in \[0, 20\)"),
        ({"bad_words_ids": [[1.5]]}, "an integer"),
        ({"suppress_tokens": 5}, "suppress_tokens: expected a list of ids"),
        ({"suppress_tokens": [-1]}, "an integer >= 0"),
        ({"typical_p": 0}, "typical_p: expected a probability"),
        ({"min_new_tokens": -1}, "min_new_tokens: expected an integer >= 0"),
        ({"pad_token_id": 20}, "pad_token_id: expected ids in"),
        ({"eos_token_id": 3, "stop_token_ids": 4}, "either eos_token_id or stop_token_ids"),
    ],
)
def test_wrong_values_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        LM.generate([1], max_new_tokens=2, **options)


# --- names of other tools ------------------------------------------------------------------------


def test_eos_token_id_is_stop_token_ids() -> None:
    bias: Any = {7: 100.0}
    for value in (7, [7, 3]):
        assert LM.generate([5], eos_token_id=value, logit_bias=bias) == [5, 7]
    assert len(LM.generate([5], eos_token_id=None, logit_bias={2: 100.0}, max_new_tokens=3)) == 4


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("stop", ["\n"], "stop_strings"),
        ("stop_sequence", "\n", "stop_strings"),
        ("max_tokens", 5, "max_new_tokens"),
        ("n_predict", 5, "max_new_tokens"),
        ("n", 2, "num_return_sequences"),
        ("repeat_penalty", 1.1, "repetition_penalty"),
        ("past_key_values", [1], "lm.prefix"),
        ("streamer", object(), "lm.stream"),
        ("output_scores", True, "lm.score"),
        ("attention_mask", [1], "dictionary of inputs"),
    ],
)
def test_an_option_of_another_tool_is_answered_by_its_meaning(name: str, value: Any, meaning: str) -> None:
    arguments: Any = {name: value}
    with pytest.raises(InvalidInput, match=f"^{name}: expected an option of generation, .*{meaning}"):
        TEXT_LM.generate("a", **arguments)


def test_options_of_other_tools_that_ask_for_nothing_are_absent() -> None:
    for name in HINTS:
        GenerationOptions.create(**{name: None})
        with pytest.raises(InvalidInput, match=name):
            GenerationOptions.create(**{name: 5})


def test_the_cache_may_be_named_since_it_changes_nothing() -> None:
    assert GenerationOptions.create(use_cache=True, logits_processor=[], max_new_tokens=3).max_new_tokens == 3


def test_transformers_names_of_inputs() -> None:
    ids, mask = [[3, 4, 5], [0, 6, 7]], [[1, 1, 1], [0, 1, 1]]
    own = LM.generate({"token_ids": ids, "padding_mask": mask}, max_new_tokens=2)
    for result in (
        LM.generate({"input_ids": ids, "attention_mask": mask}, max_new_tokens=2),
        LM.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2),
    ):
        np.testing.assert_array_equal(result["token_ids"], own["token_ids"])
    hidden = LM.backbone({"token_ids": ids, "padding_mask": mask})
    np.testing.assert_array_equal(LM.backbone({"input_ids": ids, "attention_mask": mask}), hidden)
    with pytest.raises(InvalidInput, match="either token_ids or input_ids"):
        LM.backbone({"input_ids": ids, "token_ids": ids})
    with pytest.raises(InvalidInput, match="inputs: expected a text"):
        LM.generate(max_new_tokens=2)
    with pytest.raises(InvalidInput, match="pass it as inputs"):
        LM.generate(prompt="a")
