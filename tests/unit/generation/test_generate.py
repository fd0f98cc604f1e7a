"""generate: every strategy against recomputation without a cache and against transformers; batches; stops."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_search import slow_generate
from small_models import (
    MERGES,
    Drawn,
    deterministic_options,
    id_prompts,
    make_lm,
    models,
    small_vocabulary,
    text_lm,
)

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig
from bloomref.formats.tokenizers.tokenizer_files import bloom_tokenizer_json
from bloomref.generation.beam import Beam, places_of
from bloomref.generation.options import GenerationOptions
from bloomref.generation.prompts import Prompt
from bloomref.generation.row_scores import Scores
from bloomref.generation.stopping import Stopping
from bloomref.generation.task import Row, Task
from bloomref.reference import model
from bloomref.runtime.engine import Engine

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
TEXT_LM = text_lm()


# --- every strategy ------------------------------------------------------------------------------


@pytest.mark.clause("GEN-5")
@settings(max_examples=30)
@given(st.data())
def test_a_batch_is_its_prompts_one_by_one(data: st.DataObject) -> None:
    drawn = data.draw(models())
    size, lm = drawn.config.vocabulary_size, drawn.lm
    prompts, options = data.draw(id_prompts(size)), data.draw(deterministic_options(size))
    assert lm.generate(prompts, **options) == [lm.generate([prompt], **options)[0] for prompt in prompts]


@settings(max_examples=30)
@given(st.data())
def test_the_cache_changes_nothing(data: st.DataObject) -> None:
    drawn = data.draw(models())
    size, lm = drawn.config.vocabulary_size, drawn.lm
    prompts, options = data.draw(id_prompts(size, max_batch=2, min_length=1)), data.draw(deterministic_options(size))
    assert lm.generate(prompts, **options) == [prompt + slow_generate(lm, prompt, **options) for prompt in prompts]


@settings(max_examples=25)
@given(st.data(), st.integers(0, 2**32), st.sampled_from((0.5, 1.0, 2.0)), st.sampled_from((None, 3)))
def test_a_sampled_batch_is_its_prompts_one_by_one(
    data: st.DataObject, seed: int, temperature: float, top_k: int | None
) -> None:
    drawn = data.draw(models())
    prompts, lm = data.draw(id_prompts(drawn.config.vocabulary_size)), drawn.lm
    options: Any = {"temperature": temperature, "top_k": top_k, "max_new_tokens": 5}
    alone = [lm.generate([prompt], seed=seed + i, **options)[0] for i, prompt in enumerate(prompts)]
    assert lm.generate(prompts, seed=seed, **options) == alone


@settings(max_examples=15)
@given(models(), st.integers(1, 6), st.integers(1, 5))
def test_limits_of_the_strategies_are_greedy(drawn: Drawn, length: int, k: int) -> None:
    lm = drawn.lm
    greedy = lm.generate([1, 2], max_new_tokens=length)
    assert lm.generate([1, 2], max_new_tokens=length, temperature=0) == greedy
    assert lm.generate([1, 2], max_new_tokens=length, temperature=0, top_k=3) == greedy
    assert lm.generate([1, 2], max_new_tokens=length, top_k=1) == greedy
    assert lm.generate([1, 2], max_new_tokens=length, top_p=1e-9) == greedy
    assert lm.generate([1, 2], max_new_tokens=length, min_p=1.0) == greedy
    assert lm.generate([1, 2], max_new_tokens=length, penalty_alpha=0.0, top_k=k) == greedy
    assert lm.generate([1, 2], max_new_tokens=length, penalty_alpha=1.0, top_k=1) == greedy


@pytest.mark.parametrize("seed", range(24))
def test_beams_end_at_likely_stop_tokens(seed: int) -> None:
    """Likely stop tokens take the best places: the search must keep enough other hypotheses, and ends early."""
    options: dict[str, Any] = {"num_beams": 2 + seed % 3, "length_penalty": (-1.0, 0.0, 1.0, 3.0)[seed % 4]}
    options |= {"stop_token_ids": [4, 5, 6], "max_new_tokens": 8}
    options["logit_bias"] = dict.fromkeys((4, 5, 6), (1.0, 3.0, 9.0)[seed // 8])
    lm = make_lm(CONFIG, seed)
    assert lm.generate([[1, 2], [3]], strip_prompt=True, **options) == [
        slow_generate(lm, p, **options) for p in ([1, 2], [3])
    ]


def test_as_many_beams_go_on_even_when_stop_tokens_take_the_best_places() -> None:
    options, stopping = GenerationOptions(num_beams=2), Stopping(frozenset({2, 3, 4}))
    task = Task(LM.backbone.engine, [Prompt.of([9])], [7], options, stopping, np.zeros(5, bool))
    beam = Beam(Row(0, [9], 7, 1), task)
    assert beam.step([Scores(np.log([0.4, 0.3, 0.1, 0.1, 0.1]))]) == [0, 0]
    stops = np.array([[-1.0, -30.0, -2.0, -3.0, -4.0], [-31.0, -32.0, -5.0, -6.0, -7.0]])
    assert beam.step([Scores(row) for row in stops]) == [0, 0]
    assert [h.new_ids for h in beam.running] == [(0, 0), (0, 1)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_a_child_stays_in_the_place_of_its_parent(parents: list[int]) -> None:
    places = places_of(parents)
    assert sorted(places) == list(range(len(parents)))
    stayed = {parent for parent, place in zip(parents, places, strict=True) if parent == place}
    assert stayed == {parent for parent in parents if parent < len(parents)}


def test_a_beam_search_as_wide_as_the_tree_finds_the_most_likely_text() -> None:
    config = BloomConfig(vocabulary_size=4, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
    for seed in range(5):
        lm = make_lm(config, seed)
        every = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
        best = max(lm.score(every, context=[1]), key=lambda score: score.log_likelihood)
        generated = lm.generate([1], max_new_tokens=3, num_beams=64, stop_token_ids=None, strip_prompt=True)
        assert tuple(generated) == best.token_ids


@pytest.mark.clause("GEN-1")
def test_among_equals_the_lowest_id_is_taken() -> None:
    config = BloomConfig(
        vocabulary_size=7, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, initializer_range=0.0
    )
    lm = BloomCausalLM(BloomBackbone(7, 1, 1, 4, 4, initializer_range=0.0))
    assert lm.backbone.config == config
    strategies: list[Any] = [{}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 3}]
    for options in strategies:
        assert lm.generate([5], max_new_tokens=3, **options) == [5, 0, 0, 0]
    # with alpha=1 the probabilities only say who is a candidate
    options = {"penalty_alpha": 1.0, "top_k": 3, "logit_bias": {6: 2.0, 4: 1.0}}
    assert lm.generate([5], max_new_tokens=2, **options) == [5, 0, 0]


def test_a_row_that_may_choose_nothing_ends() -> None:
    nothing: Any = dict.fromkeys(range(20), -float("inf"))
    for options in ({}, {"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 4}, {"temperature": 1.0, "seed": 0}):
        assert LM.generate([[5], [6, 7]], max_new_tokens=3, logit_bias=nothing, **options) == [[5], [6, 7]]
    for options in ({}, {"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 4}):
        generated = LM.generate([5], max_new_tokens=50, no_repeat_ngram_size=1, stop_token_ids=None, **options)
        assert sorted(generated) == list(range(20))


# --- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_transformers_generates_the_same(seed: int) -> None:
    """One model a seed, alternately greedy and beam search; in float64, while transformers scores beams in float32."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    heads, width, size = int(rng.choice([1, 3, 9])), int(rng.choice([3, 4])), int(rng.integers(6, 40))
    config = BloomConfig(
        vocabulary_size=size,
        num_layers=2,
        num_heads=heads,
        hidden_dim=heads * width,
        intermediate_dim=4 * heads * width,
        apply_residual_connection_post_layernorm=bool(seed % 3 == 0),
    )
    lm = make_lm(config, seed)
    prompts = [[int(i) for i in rng.integers(0, size, n)] for n in rng.integers(1, 6, 3)]
    options: dict[str, Any] = {"max_new_tokens": int(rng.integers(1, 9))}
    if seed % 2:
        options |= {"num_beams": int(rng.integers(2, 5)), "length_penalty": float(rng.choice([-1.0, 0.0, 1.0, 2.0]))}
    if seed % 5:
        options |= {
            "repetition_penalty": float(rng.choice([0.7, 1.3])),
            "no_repeat_ngram_size": int(rng.integers(0, 4)),
        }
    bias = {int(i): float(rng.normal()) for i in rng.integers(0, size, seed % 4)}
    stops = sorted({int(i) for i in rng.integers(0, size, seed % 3)})
    generated = lm.generate(prompts, stop_token_ids=stops, logit_bias=bias, strip_prompt=True, **options)
    assert generated == transformers_generate(lm, prompts, stops, bias, options)


def transformers_generate(
    lm: BloomCausalLM, prompts: list[list[int]], stops: list[int], bias: dict[int, float], options: dict[str, Any]
) -> list[list[int]]:
    """One prompt at a time: n-grams of transformers would count padding. Rows are cut after their stop token."""
    import torch
    from parity.hugging_face import build, in_float64

    model = build(lm.backbone.config, lm.backbone.params)
    sequence_bias = {(i,): value for i, value in bias.items()} or None
    ends: Any = {"eos_token_id": stops or None, "pad_token_id": 0}
    rows = []
    for prompt in prompts:
        ids, mask = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
        with in_float64(), torch.no_grad():
            output = model.generate(
                ids, attention_mask=mask, do_sample=False, sequence_bias=sequence_bias, **ends, **options
            )
        new = output[0, len(prompt) :].tolist()
        rows.append(new[: next((i + 1 for i, token_id in enumerate(new) if token_id in stops), len(new))])
    return rows


def test_transformers_ends_at_the_same_stop_strings(tmp_path: Any) -> None:
    """Ids, which keep the whole of the last token; also where the string begins in the prompt."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from parity.hugging_face import build, in_float64

    (tmp_path / "tokenizer.json").write_text(json.dumps(bloom_tokenizer_json(small_vocabulary(), MERGES)))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    model = build(TEXT_LM.backbone.config, TEXT_LM.backbone.params)
    likely = {TEXT_LM.tokenizer.token_to_id(token): 30.0 for token in ("t", "h", "e", "Ġ", "the", "is", "Ġis")}
    sequence_bias = {(i,): value for i, value in likely.items()}
    ended = 0
    for prompt in ("a", "t", "h", "is", " ", "意"):
        for stop in ("h", "th", "e t", "s", "i", " i", "tt"):
            ids = TEXT_LM.tokenizer(prompt)
            options: Any = {"max_new_tokens": 8, "no_repeat_ngram_size": 2}
            generated = TEXT_LM.generate(ids, None, None, stop_strings=[stop, "zz"], logit_bias=likely, **options)
            ends: Any = {"eos_token_id": None, "pad_token_id": 3, "stop_strings": [stop, "zz"], "tokenizer": tokenizer}
            with in_float64(), torch.no_grad():
                output = model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    do_sample=False,
                    sequence_bias=sequence_bias,
                    **ends,
                    **options,
                )
            assert generated == output[0].tolist(), (prompt, stop)
            ended += len(generated) < len(ids) + 8
    assert ended > 10


# --- memory --------------------------------------------------------------------------------------


def test_only_the_last_position_of_a_prompt_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda params, x: shapes.append(x.shape[:2]) or logits(params, x))
    LM.generate([[1] * 9, [2] * 4], max_new_tokens=3, stop_token_ids=None)
    assert shapes == [(2, 1)] * 3


def test_ended_rows_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    run = Engine.run

    def spy(self: Engine, cache: Any, start: int, ids: Any, *rest: Any) -> Any:
        shapes.append(ids.shape)
        return run(self, cache, start, ids, *rest)

    monkeypatch.setattr(Engine, "run", spy)
    LM.generate([[1] * 9, [2] * 4], max_length=11, stop_token_ids=None)
    assert shapes == [(2, 9), (2, 1), *[(1, 1)] * 5]


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.clause("GEN-3")
def test_max_length_counts_the_prompt_and_max_new_tokens_does_not() -> None:
    prompts = [[1, 2, 3], [4]]
    assert [len(ids) for ids in LM.generate(prompts, 6, stop_token_ids=None)] == [6, 6]
    assert [len(ids) for ids in LM.generate(prompts, max_new_tokens=2, stop_token_ids=None)] == [5, 3]
    assert len(LM.generate([1], stop_token_ids=None)) == 1 + 128


@pytest.mark.clause("GEN-4")
def test_stop_tokens_end_a_row_and_are_kept() -> None:
    free = LM.generate([3, 4], max_new_tokens=12, stop_token_ids=None, strip_prompt=True, seed=1, temperature=3.0)
    for stop in (free[4], [free[4]], (free[4], 19)):
        got = LM.generate([3, 4], max_new_tokens=12, stop_token_ids=stop, strip_prompt=True, seed=1, temperature=3.0)
        expected = free[: next(i for i, t in enumerate(free) if t in np.atleast_1d(stop)) + 1]
        assert got == expected


def test_auto_stops_at_the_end_token_of_tokenizer_or_config() -> None:
    bias = {2: 100.0}
    assert LM.generate([5], logit_bias=bias) == [5, 2]
    other = make_lm(CONFIG.replace(eos_token_id=None))
    assert len(other.generate([5], logit_bias=bias, max_new_tokens=4)) == 5
    assert TEXT_LM.generate("th", logit_bias=bias) == "th"


@pytest.mark.clause("CFG-11")
@pytest.mark.parametrize("end", [2, 7, 9])
@pytest.mark.parametrize("lm", [LM, TEXT_LM], ids=["ids", "text"])
def test_auto_stops_at_each_end_token_of_the_config(lm: BloomCausalLM, end: int) -> None:
    config = lm.backbone.config.replace(eos_token_id=[2, 7, 9, 10**6])
    several = BloomCausalLM(BloomBackbone.from_params(config, lm.params), lm.tokenizer)
    assert several.generate([5], logit_bias={end: 100.0}, max_new_tokens=4) == [5, end]


STOPS = st.lists(st.sampled_from(["e", "th", "a", "the", "意", " ", "\n", "ab"]), min_size=1, max_size=2)


@settings(max_examples=25)
@given(STOPS, st.integers(0, 2**20), st.sampled_from(["", "t", "意", "The th"]))
def test_a_text_ends_after_its_first_stop_string(stops: list[str], seed: int, prompt: str) -> None:
    likely = {TEXT_LM.tokenizer.token_to_id(token): 6.0 for token in ("t", "h", "e", "Ġ", "a", "æĦı", "the", "Ċ")}
    options: Any = {
        "seed": seed,
        "temperature": 1.5,
        "max_new_tokens": 12,
        "logit_bias": likely,
        "stop_token_ids": None,
    }
    free = TEXT_LM.generate(prompt, **options)
    ends = [
        at + len(s) for s in stops for at in range(len(free)) if free.startswith(s, at) and at + len(s) > len(prompt)
    ]
    assert TEXT_LM.generate(prompt, stop_strings=stops, **options) == free[: min(ends, default=len(free))]


def test_the_first_stop_string_within_a_token_ends_the_text() -> None:
    the = {TEXT_LM.tokenizer.token_to_id("the"): 100.0}
    assert TEXT_LM.generate("a", stop_strings=["the", "th"], logit_bias=the) == "ath"
    assert TEXT_LM.generate("a", stop_strings=["he", "t"], logit_bias=the) == "at"
    assert TEXT_LM.generate("a", stop_strings=["at", "the"], logit_bias=the, strip_prompt=True) == "t"


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3, "length_penalty": 0.0}, {"penalty_alpha": 0.9, "top_k": 5}])
def test_stop_strings_hold_for_every_strategy_and_for_ids(strategy: Any) -> None:
    bias = {TEXT_LM.tokenizer.token_to_id(token): 30.0 for token in ("t", "h", "e", "Ġ")}
    options: Any = strategy | {"logit_bias": bias, "max_new_tokens": 30, "stop_strings": "e", "no_repeat_ngram_size": 2}
    text = TEXT_LM.generate("a", **options)
    assert text.endswith("e")
    assert text.count("e") == 1
    assert TEXT_LM.tokenizer.detokenize(TEXT_LM.generate(TEXT_LM.tokenizer("a"), **options)) == text
