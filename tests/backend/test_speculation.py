"""A draft changes no bit, on every backend that declares equal bits; it is refused on the others."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from constructed_draft import ConstructedDraft, ErraticPace
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TOKENS, make_lm, small_tokenizer

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig
from bloomref.errors import Unsupported
from bloomref.generation import search
from bloomref.generation.decoder import Decoder
from bloomref.generation.prompts import Prompt
from bloomref.generation.task import Draft, Row, Task
from bloomref.runtime.backend import Declaration, SupportsCacheCopy
from bloomref.runtime.engine import Engine, EngineCache
from bloomref.runtime.registry import load

DTYPES = ("float32", "bfloat16", "float16")
SIZE = TOKENS + 12
LETTERS = range(69, 95)
"""Ids of some bytes that are letters: texts in which stop strings occur."""


@cache
def model(backend: str, dtype: str, seed: int) -> BloomCausalLM:
    config = BloomConfig(vocabulary_size=SIZE, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=40)
    params = make_lm(config, seed, scale=2.0).params
    return BloomCausalLM(BloomBackbone.from_params(config, params, dtype, backend=backend), small_tokenizer())


def declared(backend: str) -> tuple[str, ...]:
    return getattr(load(backend), "declaration", Declaration()).bit_equal


@pytest.fixture(scope="module", params=[*DTYPES[:2], pytest.param(DTYPES[2], marks=pytest.mark.slow)])
def equal(backend: str, request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param not in declared(backend):
        pytest.skip(f"{backend} does not declare equal bits in {request.param}")
    return backend, request.param


IDS = st.integers(0, SIZE - 13)
SAMPLING = st.fixed_dictionaries(
    {"temperature": st.floats(0.3, 2.0), "seed": st.integers(0, 2**64 - 1)},
    optional={
        "top_k": st.integers(1, 40),
        "top_p": st.floats(0.3, 1.0),
        "min_p": st.floats(0.0, 0.3),
        "typical_p": st.floats(0.3, 1.0),
        "num_return_sequences": st.integers(1, 3),
    },
)
PROCESSORS = st.fixed_dictionaries(
    {"stop_token_ids": st.sampled_from(("auto", None, [70, 75, 80], list(LETTERS)[:20:3]))},
    optional={
        "repetition_penalty": st.sampled_from((0.7, 1.3)),
        "no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.lists(st.lists(IDS, min_size=1, max_size=2), max_size=3),
        "stop_strings": st.lists(st.sampled_from(["a", "e", "th", "ab", "the"]), min_size=1, max_size=3),
        "min_new_tokens": st.integers(0, 5),
        "logit_bias": st.just(dict.fromkeys(LETTERS, 9.0)),  # few likely ids: stops, penalties and bans act
    },
)


@st.composite
def requests(draw: st.DrawFn, most: int = 4) -> tuple[list[list[int]], dict[str, Any]]:
    """Prompts of different lengths, and options of greedy search or sampling, whose texts end in every possible way."""
    prompts = draw(st.lists(st.lists(IDS, min_size=1, max_size=6), min_size=1, max_size=most))
    name, shortest = draw(st.sampled_from((("max_new_tokens", 1), ("max_length", 1 + max(map(len, prompts))))))
    length = {name: draw(st.integers(shortest, shortest + 13))}
    return prompts, length | draw(st.just({}) | SAMPLING) | draw(PROCESSORS)


def task_of(lm: BloomCausalLM, prompts: list[list[int]], options: dict[str, Any]) -> Task:
    return lm._task([Prompt.of(ids) for ids in prompts], lm._options(**options))


def observed(task: Task) -> list[list[tuple[int, bytes]]]:
    """The tokens of each sequence, and the bits of the logits that each was chosen from."""
    rows: list[list[tuple[int, bytes]]] = [[] for _ in task.rows()]

    def observe(row: Row, token_id: int, logits: Any) -> None:
        rows[row.index].append((token_id, logits.tobytes()))

    yielded: list[list[int]] = [[] for _ in rows]
    for row, token_id in search.next_token_search(task, observe):
        yielded[row].append(token_id)
    assert yielded == [[token_id for token_id, _ in row] for row in rows]
    return rows


def with_draft(task: Task, p: float, seed: int, complete: bool = True) -> Task:
    """The task with a draft that knows its result."""
    truth = search.generate(replace(task, options=replace(task.options, best_of=None)))
    draft = ConstructedDraft(truth, p, task.engine.config.vocabulary_size, seed, complete)
    draft.pace = ErraticPace(seed)
    return replace(task, draft=draft)


EXAMPLES: dict[str, tuple[list[list[int]], dict[str, Any]]] = {
    "greedy, rows that end at different places": (
        [[5, 6, 7], [8], [70, 71]],
        {"max_length": 15, "stop_token_ids": [70, 75], "logit_bias": dict.fromkeys(LETTERS, 9.0)},
    ),
    "sampling with everything": (
        [[5, 6], [9, 9, 9, 9]],
        {
            "max_new_tokens": 12,
            "temperature": 0.9,
            "seed": 7,
            "top_k": 30,
            "top_p": 0.9,
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "stop_strings": ["th", "a"],
            "num_return_sequences": 2,
        },
    ),
}


@pytest.mark.clause("GEN-21", "GEN-9")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_the_tokens_and_the_bits_of_plain_decoding(equal: tuple[str, str], name: str) -> None:
    task = task_of(model(*equal, 0), *EXAMPLES[name])
    expected = observed(task)
    for p in (0.0, 0.7, 1.0):
        assert observed(with_draft(task, p, seed=1)) == expected


@pytest.mark.clause("GEN-21")
def test_the_shortest_row_ends_while_the_other_is_ahead(equal: tuple[str, str]) -> None:
    """The next pass begins with tokens of the other row that were never read: it reads all of them."""
    task = task_of(model(*equal, 0), [[5, 6, 7, 8, 9], [8]], {"max_length": 8, "stop_token_ids": None})
    truth = search.generate(task)
    assert [len(ids) for ids in truth] == [3, 7]
    draft = ConstructedDraft([[(token_id + 1) % SIZE for token_id in truth[0]], truth[1]], 1.0, SIZE, 0)
    counts = iter([3, 0, 0, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft.pace, "count", lambda *_: next(counts))
        assert observed(replace(task, draft=draft)) == observed(task)
    assert not list(counts)


@pytest.mark.slow
@pytest.mark.clause("GEN-21", "GEN-9")
@settings(max_examples=40)
@given(st.data())
def test_the_tokens_and_the_bits_of_plain_decoding(equal: tuple[str, str], data: st.DataObject) -> None:
    lm = model(*equal, data.draw(st.integers(0, 2)))
    task = task_of(lm, *data.draw(requests()))
    p, complete = data.draw(st.sampled_from((0.0, 0.5, 0.8, 1.0))), data.draw(st.booleans())
    drafted = with_draft(task, p, data.draw(st.integers(0, 2**32)), complete)
    assert observed(drafted) == observed(task)
    figures = drafted.draft.figures
    assert figures.accepted <= figures.proposed
    assert figures.accepted <= figures.tokens <= figures.accepted + figures.passes
    if p == 0:
        assert figures.accepted == 0


@pytest.mark.slow
@pytest.mark.clause("GEN-21")
@settings(max_examples=15)
@given(st.data())
def test_a_model_and_the_prompt_as_drafts(equal: tuple[str, str], data: st.DataObject) -> None:
    """Whatever the draft is: the prompt, the model itself, another model, another dtype, the reference."""
    lm, (prompts, options) = model(*equal, 0), data.draw(requests())
    others = {"prompt": "prompt", "itself": lm, "another": model(*equal, 1), "numpy": model("numpy", "float32", 0)}
    draft = lm.draft(others[data.draw(st.sampled_from(sorted(others)))])
    draft.pace = ErraticPace(data.draw(st.integers(0, 2**32)))
    assert lm.generate(prompts, draft=draft, **options) == lm.generate(prompts, **options)


@pytest.mark.clause("GEN-21", "GEN-12")
def test_the_best_candidates_are_the_same(equal: tuple[str, str]) -> None:
    lm = model(*equal, 0)
    options: dict[str, Any] = {"best_of": 3, "temperature": 1.0, "seed": 4, "max_new_tokens": 6}
    assert lm.generate([[5, 6], [7]], draft=lm, **options) == lm.generate([[5, 6], [7]], **options)


@pytest.mark.clause("GEN-21")
def test_a_model_that_drafts_for_itself_is_always_right(equal: tuple[str, str]) -> None:
    """Also in sampling, with penalties: it draws with the same numbers."""
    lm = model(*equal, 0)
    options: dict[str, Any] = {"temperature": 1.0, "repetition_penalty": 1.2, "stop_token_ids": None}
    for seed in (None, 3):
        draft = lm.draft(lm)
        draft.pace = ErraticPace(1)
        lm.generate([[5, 6, 7], [8]], draft=draft, max_new_tokens=30, seed=seed, **options)
        assert draft.figures.accepted == draft.figures.proposed > 20


@pytest.mark.clause("GEN-21")
def test_streams_prefixes_dictionaries_and_files(equal: tuple[str, str]) -> None:
    lm, prefix = model(*equal, 0), model(*equal, 0).prefix("the a ")
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.7, "seed": 2}
    text = lm.generate("the a is", **options)
    assert lm.generate("is", prefix=prefix, draft="prompt", **options) == text
    assert "the a is" + "".join(lm.stream("the a is", draft=lm, **options)) == text
    (done,) = lm.generate_each(["the a is"], draft="prompt", **options)
    assert ["the a is" + continuation for continuation in done.continuations] == [text]
    holes = {"token_ids": [[5, 6, 7, 8], [0, 9, 9, 0]], "padding_mask": [[1, 0, 1, 1], [0, 1, 1, 0]]}
    vectors = {"inputs_embeds": lm.backbone.token_embedding([[5, 6, 7]])}
    for inputs, draft in ((holes, lm), (holes, "prompt"), (vectors, "prompt")):
        plain, drafted = lm.generate(inputs, **options), lm.generate(inputs, draft=draft, **options)
        assert plain["token_ids"].tolist() == drafted["token_ids"].tolist()


@pytest.mark.clause("GEN-23")
@settings(max_examples=5)
@given(st.data())
def test_the_cache_is_that_of_plain_decoding(equal: tuple[str, str], data: st.DataObject) -> None:
    """After each pass: the keys, values and mask of what was read in single steps, and nothing behind."""
    (prompt,), options = data.draw(requests(most=1))
    plain = task_of(model(*equal, 0), [prompt], options | {"num_return_sequences": 1})
    task = with_draft(plain, 0.6, data.draw(st.integers(0, 2**32)))
    after: dict[int, bytes] = {}
    original = Decoder.rewind

    def rewind(decoder: Decoder, position: int) -> None:
        original(decoder, position)
        assert decoder._cache.is_real[0].tolist() == [i < position for i in range(decoder._cache.capacity)]
        after[position] = copied(task.engine, decoder._cache, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "rewind", rewind)
        [new_ids] = search.generate(task)
    decoder = plain.decoder()
    for position, token_id in enumerate(new_ids[:-1], len(prompt) + 1):
        decoder.advance([0], [token_id])
        if position in after:
            assert copied(task.engine, decoder._cache, position) == after[position]


def copied(engine: Engine, cache_of_row: EngineCache, stop: int) -> bytes:
    prepared = engine.prepared
    assert isinstance(prepared, SupportsCacheCopy)
    keys, values = prepared.copy_from_cache(cache_of_row.blocks, 0, stop)
    return keys.tobytes() + values.tobytes()


class Unused(Draft):
    def open(self, task: Task) -> Any:  # noqa: ARG002
        raise AssertionError("a refused draft is not opened")


@pytest.mark.clause("GEN-22")
@pytest.mark.parametrize("dtype", ["float64", *DTYPES])
def test_it_is_refused_without_equal_bits(backend: str, dtype: str) -> None:
    if dtype in declared(backend):
        pytest.skip("the backend declares equal bits")
    lm = BloomCausalLM(BloomBackbone(9, 1, 2, 8, 16, dtype=dtype, backend=backend))
    message = f"draft: expected a backend on which .* got '{backend}' in {dtype}; load the model with backend='numba'"
    with pytest.raises(Unsupported, match=message):
        lm.generate([1, 2], max_new_tokens=2, draft=Unused())


@pytest.mark.clause("GEN-22")
def test_whole_steps_of_a_backend_are_not_covered(equal: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, dtype = equal
    lm = BloomCausalLM(BloomBackbone(9, 1, 2, 8, 16, dtype=dtype, backend=backend))
    monkeypatch.setattr(type(lm.backbone.engine.prepared), "step", lambda *_: np.zeros((1, 9)), raising=False)
    with pytest.raises(Unsupported, match="whose whole steps may have other bits"):
        lm.generate([1, 2], max_new_tokens=2, draft=Unused())
