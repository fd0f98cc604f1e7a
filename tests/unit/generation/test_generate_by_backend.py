"""Tokens that a backend chooses (BKD-18) are those that the host would choose; the host makes all other choices."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import deterministic_options, id_prompts, models

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.errors import BadWeights, Unsupported
from bloomref.generation.options import GenerationOptions
from bloomref.generation.sampling import draw, truncate, uniform
from bloomref.runtime.backend import Choice, Step
from bloomref.runtime.engine import Engine


class Deciding:
    """The reference as a backend that chooses tokens; the draws of a row follow from its seed and their number."""

    def __init__(self, engine: Engine, most: int = 99) -> None:
        self._prepared, self._engine, self._most, self.asked = engine.prepared, engine, most, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prepared, name)

    def step(self, token_ids: Any, cache: Any, step: Step) -> Any:
        x = self._prepared.embed(token_ids[:, None])
        for layer in range(self._engine.config.num_layers):
            x = self._prepared.mlp_block(layer, self._prepared.attention_block(layer, x, cache, step))
        return self._prepared.logits(self._prepared.final_norm(x), True)[:, 0]

    def tokens(self, token_ids: Any, cache: Any, first: Step, choice: Choice, count: int) -> Any:
        if len(token_ids) > self._most:
            raise Unsupported("too many rows")
        self.asked.append((len(token_ids), count, choice))
        known, chosen = first.key_is_real, []
        for i in range(count):
            scores = self.step(token_ids, cache, Step.at(first.start + i, known))
            token_ids = np.array([self._one(row, choice, i, n) for row, n in enumerate(scores)])
            known = np.concatenate([known, np.ones((len(known), 1), bool)], 1)
            chosen.append(token_ids)
        return np.stack(chosen, 1)

    def _one(self, row: int, choice: Choice, i: int, scores: Any) -> int:
        if not np.isfinite(scores).all():
            raise BadWeights("logits: expected finite numbers")
        scores = np.where(False if choice.forbidden is None else choice.forbidden, -np.inf, scores.astype(np.float64))
        if choice.temperature is None:
            return int(scores.argmax())
        options = GenerationOptions(temperature=choice.temperature, top_k=choice.top_k, top_p=choice.top_p)
        return draw(truncate(scores, options), uniform(int(choice.seeds[row]), choice.drawn + i))


def deciding(lm: BloomCausalLM, most: int = 99) -> tuple[BloomCausalLM, Deciding]:
    other = BloomCausalLM(BloomBackbone.from_params(lm.backbone.config, lm.backbone.params))
    backend = other.backbone.engine.prepared = Deciding(other.backbone.engine, most)
    return other, backend


SAMPLING: Any = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**64 - 1), "max_new_tokens": st.integers(1, 12)},
    optional={"temperature": st.floats(0.3, 3.0), "top_k": st.integers(1, 9), "top_p": st.floats(0.1, 1.0)},
)


@pytest.mark.clause("BKD-18", "GEN-4", "GEN-5", "GEN-6")
@settings(max_examples=30)
@given(st.data(), models(), st.sampled_from([0, 1, 2, 99]))
def test_the_same_tokens_as_without(data: st.DataObject, drawn: Any, most: int) -> None:
    """The tokens are the same for all options, also if the backend is used only after some rows have ended. A sample is
    that of the host, too, since both draw by the same numbers."""
    lm, vocabulary = drawn.lm, drawn.config.vocabulary_size
    prompts = data.draw(id_prompts(vocabulary, min_length=1))
    options = data.draw(deterministic_options(vocabulary) | SAMPLING)
    assert deciding(lm, most)[0].generate(prompts, **options) == lm.generate(prompts, **options)


@pytest.mark.clause("BKD-18")
def test_a_call_asks_for_eight_tokens_of_the_rows_that_still_run() -> None:
    lm, backend = deciding(BloomCausalLM(BloomBackbone(500, 1, 2, 8, 16, seed=1)))
    options = {"temperature": 9.0, "seed": 1, "max_new_tokens": 20}
    first, second = lm.generate([[1, 2], [3]], stop_token_ids=None, **options)
    assert (len(first), len(second)) == (22, 21)
    assert [(rows, count) for rows, count, _ in backend.asked] == [(2, 8), (2, 8), (2, 3)]
    stop = second[6]  # the fifth token that the backend chose
    assert stop not in first + second[1:6]
    backend.asked.clear()
    assert lm.generate([[1, 2], [3]], stop_token_ids=[stop], **options) == [first, second[:7]]
    assert [(rows, count) for rows, count, _ in backend.asked] == [(2, 8), (1, 8), (1, 3)]


@pytest.mark.clause("GEN-6", "BKD-18")
def test_draws_follow_from_the_seed_and_not_from_the_batch() -> None:
    lm, backend = deciding(BloomCausalLM(BloomBackbone(50, 1, 2, 8, 16, seed=1)))
    options = {"temperature": 1.5, "top_k": 40, "max_new_tokens": 20, "stop_token_ids": None}
    both = lm.generate([[1, 2], [3]], seed=5, **options)
    assert lm.generate([[1, 2], [3]], seed=5, **options) == both
    assert lm.generate([[3]], seed=6, **options) == both[1:]
    assert lm.generate([[1, 2], [3]], seed=6, **options) != both
    assert {(how.temperature, how.top_k, how.top_p) for *_, how in backend.asked} == {(1.5, 40, 1.0)}
    assert [how.drawn for *_, how in backend.asked[:3]] == [1, 9, 17]


@pytest.mark.clause("BKD-18")
@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 2}, {"min_p": 0.1, "seed": 1}, {"logit_bias": {1: 2.0}}],
    ids=str,
)
def test_options_that_need_the_host_do_not_use_the_backend(options: dict[str, Any]) -> None:
    lm, backend = deciding(BloomCausalLM(BloomBackbone(9, 1, 2, 8, 16, seed=1)))
    lm.generate([[1, 2]], max_new_tokens=5, **options)
    assert backend.asked == []
