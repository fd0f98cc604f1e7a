"""Logits between backend and decoding strategy: checked once, copied only where needed, float64 only where summed."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import deterministic_options, id_prompts, models

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.generation.decoder import Decoder, forbid
from bloomref.generation.logits_processors import LogitsProcessors
from bloomref.generation.options import GenerationOptions
from bloomref.generation.prompts import Prompt
from bloomref.generation.row_scores import Scores

SAMPLING: list[Any] = [
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.8, "temperature": 1.7},
    {"min_p": 0.1, "repetition_penalty": 1.3},
]


def converted(lm: BloomCausalLM, convert: Any) -> BloomCausalLM:
    """The float32 model of the same weights, its logits converted."""
    narrow = BloomCausalLM(BloomBackbone.from_params(lm.backbone.config, lm.backbone.params, "float32"))
    engine: Any = narrow.backbone.engine
    next_logits = engine.next_logits
    engine.next_logits = lambda hidden: convert(next_logits(hidden))
    return narrow


def read_only(logits: Any) -> Any:
    logits.setflags(write=False)
    return logits


@settings(max_examples=25)
@given(st.data(), models())
def test_the_dtype_of_the_logits_changes_nothing(data: st.DataObject, drawn: Any) -> None:
    """Every strategy gives the same tokens from float32 logits, the same numbers in float64, and a read-only array."""
    size = drawn.config.vocabulary_size
    prompts = data.draw(id_prompts(size, min_length=1))
    sampling = st.sampled_from(SAMPLING).map(lambda options: options | {"seed": 3, "max_new_tokens": 4})
    options = data.draw(deterministic_options(size) | sampling)
    as_float64 = converted(drawn.lm, lambda logits: logits.astype(np.float64)).generate(prompts, **options)
    assert converted(drawn.lm, lambda logits: logits).generate(prompts, **options) == as_float64
    assert converted(drawn.lm, read_only).generate(prompts, **options) == as_float64


def test_logits_are_not_copied() -> None:
    """The greedy choice uses the array of the backend, since logits of 16 rows of BLOOM are 16 MB."""
    arrays: list[Any] = []
    lm = converted(BloomCausalLM(BloomBackbone(9, 1, 2, 8, 16, seed=1)), lambda x: arrays.append(x) or x)
    decoder = Decoder(lm.backbone.engine, [Prompt.of([1, 2])], 3, np.arange(9) > 7)
    decoder.advance([0], [3])
    logits = decoder.logits()
    assert logits.dtype == np.float32
    assert np.shares_memory(logits, arrays[-1])
    assert logits[0, 8] == -np.inf
    row = Scores(logits[0])
    assert LogitsProcessors(GenerationOptions())(row, [1], 1) is row
    options = GenerationOptions(no_repeat_ngram_size=1, repetition_penalty=1.5)
    assert np.shares_memory(LogitsProcessors(options)(row, [1], 1).plain, row.plain)


def test_a_read_only_row_is_copied_by_processors() -> None:
    row = Scores(read_only(np.ones(3, np.float32)))
    options = GenerationOptions(repetition_penalty=2.0)
    np.testing.assert_array_equal(LogitsProcessors(options)(row, [1], 1).dense(), [1, 0.5, 1])
    np.testing.assert_array_equal(row.plain, [1, 1, 1])


def test_forbidden_ids_of_a_read_only_array() -> None:
    logits = read_only(np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(forbid(logits, np.array([1])), [[0, -np.inf, 0]] * 2)
    np.testing.assert_array_equal(logits, np.zeros((2, 3)))
    assert forbid(logits, np.array([], np.int64)) is logits
