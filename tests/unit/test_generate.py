"""generate: every strategy against plain recomputation, batch against single prompt, and each form of input."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_search import slow_generate
from small_models import (
    MERGES,
    TOKENS,
    Drawn,
    deterministic_options,
    id_prompts,
    make_lm,
    models,
    small_tokenizer,
    small_vocabulary,
    text_lm,
)

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput
from bloomref.errors import BadWeights
from bloomref.formats.tokenizer_files import bloom_tokenizer_json
from bloomref.params import Params
from bloomref.reference import model
from bloomref.runtime.beam import Beam
from bloomref.runtime.engine import Engine
from bloomref.runtime.options import GenerationArguments, GenerationOptions
from bloomref.runtime.prompts import Prompt
from bloomref.runtime.stopping import Stopping
from bloomref.runtime.task import Row, Task

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
TEXT_LM = text_lm()


# --- every strategy ------------------------------------------------------------------------------


@pytest.mark.clause("GEN-5")
@settings(max_examples=70)
@given(st.data())
def test_a_batch_is_its_prompts_one_by_one(data: st.DataObject) -> None:
    drawn = data.draw(models())
    size, lm = drawn.config.vocabulary_size, drawn.lm
    prompts, options = data.draw(id_prompts(size)), data.draw(deterministic_options(size))
    assert lm.generate(prompts, **options) == [lm.generate([prompt], **options)[0] for prompt in prompts]


@settings(max_examples=70)
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
    """So likely that they fill the best places: enough others must be kept, and the search ends early."""
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
    beam = Beam(Row(0, [9], 7), task)
    assert beam.step(np.log([[0.4, 0.3, 0.1, 0.1, 0.1]])) == [0, 0]
    stops = np.array([[-1.0, -30.0, -2.0, -3.0, -4.0], [-31.0, -32.0, -5.0, -6.0, -7.0]])
    assert beam.step(stops) == [0, 0]
    assert [h.new_ids for h in beam.running] == [(0, 0), (0, 1)]


def test_a_beam_search_as_wide_as_the_tree_finds_the_most_likely_text() -> None:
    config = BloomConfig(vocabulary_size=4, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
    for seed in range(5):
        lm = make_lm(config, seed)
        every = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
        best = max(lm.score(every, context=[1]), key=lambda score: score.log_likelihood)
        found = lm.generate([1], max_new_tokens=3, num_beams=64, stop_token_ids=None, strip_prompt=True)
        assert tuple(found) == best.token_ids


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
        found = LM.generate([5], max_new_tokens=50, no_repeat_ngram_size=1, stop_token_ids=None, **options)
        assert sorted(found) == list(range(20))


# --- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_transformers_generates_the_same(seed: int) -> None:
    """One model of each seed, alternately greedy and beam search; float64, where transformers scores beams in float32."""
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
    found = lm.generate(prompts, stop_token_ids=stops, logit_bias=bias, strip_prompt=True, **options)
    assert found == transformers_generate(lm, prompts, stops, bias, options)


def transformers_generate(
    lm: BloomCausalLM, prompts: list[list[int]], stops: list[int], bias: dict[int, float], options: dict[str, Any]
) -> list[list[int]]:
    """One prompt at a time: its n-grams would count padding. Rows are cut behind their stop token."""
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
            found = TEXT_LM.generate(ids, None, None, stop_strings=[stop, "zz"], logit_bias=likely, **options)
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
            assert found == output[0].tolist(), (prompt, stop)
            ended += len(found) < len(ids) + 8
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


STOPS = st.lists(st.sampled_from(["e", "th", "a", "the", "意", " ", "\n", "ab"]), min_size=1, max_size=2)


@settings(max_examples=25)
@given(STOPS, st.integers(0, 2**20), st.sampled_from(["", "t", "意", "The th"]))
def test_a_text_ends_behind_its_first_stop_string(stops: list[str], seed: int, prompt: str) -> None:
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
    "temperature text": ({"temperature": "hot"}, "temperature: .*got hot"),
    "temperature 0 drawn": ({"temperature": 0, "do_sample": True}, "temperature: .*> 0 with do_sample=True"),
    "top_k 0": ({"top_k": 0}, "top_k: expected an integer >= 1, got 0"),
    "top_k real": ({"top_k": 2.5}, "top_k: .*got 2.5"),
    "top_p 0": ({"top_p": 0.0}, r"top_p: expected a probability in \(0, 1\], got 0.0"),
    "top_p > 1": ({"top_p": 1.01}, "top_p: .*got 1.01"),
    "min_p < 0": ({"min_p": -0.1}, r"min_p: expected a number in \[0, 1\], got -0.1"),
    "seed < 0": ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    "seed real": ({"seed": 0.5}, "seed: .*got 0.5"),
    "do_sample text": ({"do_sample": "yes"}, "do_sample: expected True, False or None, got yes"),
    "no beams": ({"num_beams": 0}, "num_beams: expected an integer >= 1, got 0"),
    "beams and temperature": ({"num_beams": 2, "temperature": 1.0}, "temperature: expected none beside num_beams=2"),
    "beams and do_sample": ({"num_beams": 2, "do_sample": True}, "do_sample=True: expected none beside num_beams=2"),
    "beams and top_k": ({"num_beams": 2, "top_k": 3}, "top_k: expected none beside num_beams=2"),
    "beams and alpha": ({"num_beams": 2, "penalty_alpha": 0.5}, "penalty_alpha: expected none beside num_beams"),
    "length penalty alone": ({"length_penalty": 2.0}, "length_penalty: expected 1.0 without beam search, got 2.0"),
    "length penalty inf": ({"num_beams": 2, "length_penalty": float("inf")}, "length_penalty: .*finite.*got inf"),
    "alpha without top_k": ({"penalty_alpha": 0.5}, "penalty_alpha: expected top_k beside it"),
    "alpha > 1": ({"penalty_alpha": 1.5, "top_k": 4}, "penalty_alpha: .*got 1.5"),
    "alpha and top_p": ({"penalty_alpha": 0.5, "top_k": 4, "top_p": 0.9}, "top_p: expected none beside penalty_alpha"),
    "greedy with top_p": ({"do_sample": False, "top_p": 0.9}, "top_p: expected none beside do_sample=False"),
    "greedy with top_k": ({"do_sample": False, "top_k": 2}, "top_k: expected none beside do_sample=False"),
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
    "unknown": ({"max_tokens": 3}, "options: .*got max_tokens; did you mean max_new_tokens"),
    "strip_prompt": ({"strip_prompt": "no"}, "strip_prompt: expected True or False, got no"),
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
    "id -1": ([[3], [-1]], "inputs: .*got -1"),
    "texts and ids": (["a", 3], "inputs: expected a list of texts alone"),
    "rows and ids": ([[1], 2], "inputs: expected a text"),
    "three levels": ([[[1]]], "inputs: expected integers"),
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
    "large tokenizer": (
        lambda: BloomCausalLM(LM.backbone, small_tokenizer()),
        "tokenizer: expected at most.*20.*got 2",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_mistaken_constructions(case: str) -> None:
    make, message = CONSTRUCTIONS[case]
    with pytest.raises(InvalidInput, match=message):
        make()


def test_the_signature_names_every_option() -> None:
    positional = {"max_length", "stop_token_ids"}
    assert set(GenerationArguments.__annotations__) | positional == set(GenerationOptions.__dataclass_fields__)
