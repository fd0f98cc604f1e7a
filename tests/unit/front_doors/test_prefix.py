"""A prefix that is read once: what follows it is what the model gives for the whole; files; refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from small_models import make_lm, models, text_lm

from bloomref import BadWeights, BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput, LoraConfig
from bloomref.generation.scoring import Score
from bloomref.runtime.model_digest import digest

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
TEXT_LM = text_lm()
STRATEGIES: list[Any] = [
    {},
    {"temperature": 1.5, "seed": 2, "num_return_sequences": 2},
    {"num_beams": 3},
    {"penalty_alpha": 0.5, "top_k": 3},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
]
IDS = st.lists(st.integers(0, 19), max_size=6)


@pytest.mark.clause("KVC-9")
@settings(max_examples=6)
@given(IDS.filter(bool), st.lists(IDS, min_size=1, max_size=3), st.sampled_from(STRATEGIES))
def test_generation_after_a_prefix_is_that_of_the_whole(start: list[int], rows: list[list[int]], strategy: Any) -> None:
    """Rows of any lengths, an empty one too; a prefix that is itself the start of another is copied in part."""
    prefix, options = LM.prefix(start), strategy | {"max_new_tokens": 2}
    whole = [start + row for row in rows]
    assert prefix.generate(rows, **options) == LM.generate(whole, **options)
    assert LM.generate(rows, prefix=prefix, strip_prompt=True, **options) == LM.generate(
        whole, strip_prompt=True, **options
    )


@pytest.mark.parametrize("prompts", [["e", "he is"], ["", " the"], ["意a", ","]], ids=str)
@pytest.mark.parametrize("start", ["the th", "意"])
def test_texts_are_tokenized_as_a_whole(start: str, prompts: list[str]) -> None:
    """The last token of the prefix may merge with the prompt."""
    prefix = TEXT_LM.prefix(start)
    whole = [start + prompt for prompt in prompts]
    assert prefix.generate(prompts, max_new_tokens=2) == TEXT_LM.generate(whole, max_new_tokens=2)
    done = sorted(
        TEXT_LM.generate_each(prompts, prefix=prefix, max_new_tokens=2), key=lambda completion: completion.index
    )
    assert [start + prompt + c.continuations[0] for prompt, c in zip(prompts, done, strict=True)] == TEXT_LM.generate(
        whole, max_new_tokens=2
    )
    assert prefix.generate(prompts[0], max_new_tokens=2) == TEXT_LM.generate(whole[0], max_new_tokens=2)
    streamed = "".join(prefix.stream(prompts[0], max_new_tokens=2))
    assert streamed == TEXT_LM.generate(whole[0], max_new_tokens=2, strip_prompt=True)


def test_the_positions_of_the_prefix_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, shapes = LM.prefix([1, 2, 3, 4, 5]), []
    engine: Any = LM.backbone.engine
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda c, s, ids, *r: shapes.append((s, ids.shape)) or run(c, s, ids, *r))
    prefix.generate([[6, 7], [8]], max_new_tokens=1)
    assert shapes == [(5, (2, 2))]
    shapes.clear()
    prefix.generate([], max_new_tokens=1)
    prefix.generate([[]], max_new_tokens=1)
    assert shapes == [(4, (1, 1))]  # the logits after the last token are computed again


@settings(max_examples=4)
@given(models(), st.integers(1, 5))
def test_every_model_has_prefixes(drawn: Any, length: int) -> None:
    lm = drawn.lm
    prefix = lm.prefix([1] * length)
    assert prefix.generate([0, 1], max_new_tokens=3) == lm.generate([1] * length + [0, 1], max_new_tokens=3)
    config = lm.backbone.config
    assert prefix.nbytes == 2 * config.num_layers * length * config.hidden_dim * 8
    assert len(prefix) == length
    assert prefix.token_ids == [1] * length


# --- scores --------------------------------------------------------------------------------------


def same_scores(got: list[Score], expected: list[Score]) -> None:
    """Equal up to the rounding of BLAS, which may sum a product of another shape in another order."""
    for a, b in zip(got, expected, strict=True):
        assert (a.token_ids, a.is_greedy, a.num_bytes) == (b.token_ids, b.is_greedy, b.num_bytes)
        np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=1e-10, atol=0)


@settings(max_examples=6)
@given(IDS.filter(bool), st.lists(IDS.filter(bool), min_size=1, max_size=3), st.sampled_from([{}, {"window": 4}]))
def test_scores_behind_a_prefix_are_those_behind_the_context(
    start: list[int], rows: list[list[int]], options: Any
) -> None:
    prefix = LM.prefix(start)
    expected = LM.score(rows, context=[start] * len(rows), **options)
    same_scores(prefix.score(rows, **options), expected)
    same_scores([prefix.score(rows[0], **options)], expected[:1])
    more = LM.score(rows, context=[[*start, 1]] * len(rows))
    same_scores(prefix.score(rows, context=[[1]] * len(rows)), more)


@pytest.mark.parametrize("start", ["the", "th", "the  "])
def test_scores_of_texts_behind_a_prefix(start: str) -> None:
    """The text may merge with the prefix, or with the white space at its end."""
    texts = ["e is", " the", "a"]
    expected = TEXT_LM.score(texts, context=start)
    same_scores(TEXT_LM.prefix(start).score(texts), expected)
    more = TEXT_LM.score(texts[0], context=start + " a")
    same_scores([TEXT_LM.prefix(start).score(texts[0], context=" a")], [more])


def test_scoring_computes_what_follows_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, shapes = LM.prefix([1, 2, 3, 4, 5]), []
    engine: Any = LM.backbone.engine
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda c, s, ids, *r: shapes.append((s, ids.shape)) or run(c, s, ids, *r))
    prefix.score([[6, 7], [8]])
    assert shapes == [(4, (2, 3))]


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.clause("KVC-10")
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "mixed_float16"])
def test_a_saved_prefix_is_the_same(tmp_path: Path, dtype: str) -> None:
    lm = BloomCausalLM(BloomBackbone.from_params(TEXT_LM.backbone.config, TEXT_LM.backbone.params, dtype))
    lm = BloomCausalLM(lm.backbone, TEXT_LM.tokenizer)
    prefix = lm.prefix("the th")
    prefix.save(tmp_path / "a.prefix")
    loaded = lm.load_prefix(tmp_path / "a.prefix")
    assert (loaded.text, loaded.token_ids) == (prefix.text, prefix.token_ids)
    np.testing.assert_array_equal(loaded.states.keys, prefix.states.keys)
    np.testing.assert_array_equal(loaded.states.values, prefix.states.values)
    assert loaded.generate("e is", max_new_tokens=5) == lm.generate("the the is", max_new_tokens=5)


def other(**changes: Any) -> BloomCausalLM:
    params = TEXT_LM.backbone.params
    return BloomCausalLM(BloomBackbone.from_params(TEXT_LM.backbone.config, params, **changes), TEXT_LM.tokenizer)


@pytest.mark.clause("KVC-10")
def test_another_model_refuses_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.prefix"
    TEXT_LM.prefix("the").save(path)
    adapted = other()
    adapted.add_adapter(LoraConfig(r=2))
    for lm in (text_lm(seed=1), other(dtype="float32"), adapted):
        with pytest.raises(InvalidInput, match=r"a\.prefix: expected a prefix of this model"):
            lm.load_prefix(path)
    assert other().load_prefix(path).text == "the"


@pytest.mark.clause("KVC-10")
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["ln_f"]}], ids=str)
def test_every_variable_of_an_adapter_is_in_the_digest(options: Any) -> None:
    lm = make_lm(CONFIG)
    lm.add_adapter(LoraConfig(r=1, **options))
    variables, digests = lm.trainable_variables(), {digest(lm.backbone.engine)}
    for name, array in variables.items():
        lm.assign_variables({**variables, name: array + 1})
        digests.add(digest(lm.backbone.engine))
    assert len(digests) == len(variables) + 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("token_ids", lambda ids: ids + 100000),
        ("token_ids", lambda ids: ids[:0]),
        ("token_ids", lambda ids: ids.astype(np.int32)),
        ("keys", lambda keys: keys[:, :, :, :2].copy()),
        ("keys", lambda keys: keys * np.nan),
        ("values", lambda values: values.astype(np.float32)),
        ("text", lambda _: np.array([255], np.uint8)),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, change: Any) -> None:
    path = tmp_path / "a.prefix"
    TEXT_LM.prefix("the").save(path)
    arrays = load_file(path)
    save_file(arrays | {name: change(arrays[name])}, path)
    with pytest.raises(BadWeights, match=f"{name}: expected"):
        TEXT_LM.load_prefix(path)


def test_files_that_are_no_prefix(tmp_path: Path) -> None:
    path = tmp_path / "a.prefix"
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(BadWeights, match="a saved prefix"):
        TEXT_LM.load_prefix(path)
    TEXT_LM.prefix("the").save(path)
    arrays = load_file(path)
    save_file(arrays | {"text": np.frombuffer(b"is", np.uint8)}, path)
    with pytest.raises(InvalidInput, match="a prefix of this tokenizer"):
        TEXT_LM.load_prefix(path)


# --- refusals ------------------------------------------------------------------------------------


def test_a_prefix_of_changed_weights_is_refused() -> None:
    lm = other()
    prefix = lm.prefix("the")
    lm.add_adapter(LoraConfig(r=2))
    with pytest.raises(InvalidInput, match="prefix: expected one of this model as it is now"):
        prefix.generate(" a")
    with pytest.raises(InvalidInput, match="expected one of this model"):
        TEXT_LM.generate(" a", prefix=prefix)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LM.prefix([]), "text: expected a prefix of one token or more"),
        (lambda: TEXT_LM.prefix(""), "text: expected a prefix of one token or more"),
        (lambda: TEXT_LM.prefix(["a", "b"]), "text: expected one text"),
        (lambda: LM.prefix("a"), "token ids, since this model has no tokenizer"),
        (lambda: TEXT_LM.prefix([5]).generate("a"), "token ids, as the prefix was made of"),
        (lambda: LM.prefix([5]).generate({"token_ids": [[1]]}), "texts or lists of ids after a prefix"),
        (lambda: LM.generate([1], prefix="a"), "what lm.prefix"),
        (lambda: LM.score([1, 2], prefix="a"), "p.score"),
    ],
)
def test_what_is_no_prefix_or_no_prompt_after_it_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call()
