"""Scores of long texts in windows: by the definition, by transformers, and how a text that is too long is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TOKENS, text_lm

from bloomref import Unsupported
from bloomref.generation import prompts
from bloomref.runtime.engine import Engine

LM = text_lm()
LONG = np.random.default_rng(0).integers(4, TOKENS, 60).tolist()


@pytest.mark.clause("SCO-7")
@settings(max_examples=30)
@given(st.data())
def test_each_token_is_scored_in_the_first_window_that_has_it(data: st.DataObject) -> None:
    ids = LONG[: data.draw(st.integers(2, 24))]
    start = data.draw(st.integers(1, len(ids) - 1))
    window = data.draw(st.integers(2, len(ids) + 2))
    stride = data.draw(st.integers(1, window))
    begins = {i: next(b for b in range(0, len(ids), stride) if b + window > i) for i in range(start, len(ids))}
    scored = [i for i, begin in begins.items() if begin < i]
    if scored:
        score = LM.score(ids[start:], context=ids[:start], window=window, stride=stride)
        alone = LM.score([[ids[i]] for i in scored], context=[ids[begins[i] : i] for i in scored])
        assert score.token_ids == tuple(ids[i] for i in scored)
        np.testing.assert_allclose(score.log_probs, [one.log_likelihood for one in alone], rtol=1e-9)
    if stride < window:
        assert len(scored) == len(ids) - start


@pytest.mark.clause("SCO-7")
def test_half_a_window_and_2048_tokens_are_the_defaults() -> None:
    assert LM.score(LONG, window=10) == LM.score(LONG, window=10, stride=5) != LM.score(LONG, window=10, stride=4)
    assert LM.score(LONG, stride=7) == LM.score(LONG, window=2048, stride=7) == LM.score(LONG)
    assert LM.score([LONG, LONG[:5]], window=10)[0].token_ids == tuple(LONG[1:])


def sliding_window(model: Any, ids: Any, max_length: int, stride: int) -> list[tuple[float, int, int]]:
    """The windows of the page "Perplexity of fixed-length models": mean loss, tokens in it, and its weight there.

    The weight is one token too small for a window behind the first, unless the stride is the window.
    """
    windows, done = [], 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        new = end - done
        labels = ids[:, begin:end].clone()
        labels[:, :-new] = -100
        loss = float(model(ids[:, begin:end], labels=labels).loss)
        windows.append((loss, int((labels[:, 1:] != -100).sum()), new - 1))
        done = end
        if end == ids.shape[1]:
            break
    return windows


@pytest.mark.clause("SCO-7")
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 8), (16, 5), (16, 1), (64, 8)])
def test_transformers_sliding_window(window: int, stride: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from parity.hugging_face import build, in_float64

    ids = torch.tensor([LONG])
    with in_float64(), torch.no_grad():
        model = build(LM.backbone.config, LM.backbone.params)
        windows = sliding_window(model, ids, window, stride)
    score = LM.score(LONG, window=window, stride=stride)
    counts = [count for _, count, _ in windows]
    assert len(score.token_ids) == sum(counts)
    total = sum(loss * count for loss, count, _ in windows if count)
    assert math.isclose(score.perplexity, math.exp(total / sum(counts)), rel_tol=1e-6)
    ours = np.split(score.log_probs, np.cumsum(counts)[:-1])
    for part, (loss, count, _) in zip(ours, windows, strict=True):
        assert count == 0 or math.isclose(-part.mean(), loss, rel_tol=1e-6)


def test_a_text_that_is_too_long_for_one_context_is_refused_before_anything_is_computed() -> None:
    message = (
        r"text\[1\]: expected at most 16384 tokens without a window, got 20000: keys and values of 0.00768 GB, "
        r"2.0e\+08 pairs .*; score it in windows, window=2048 \(--window 2048\), or as one context, window=20000"
    )
    with pytest.raises(Unsupported, match=message):
        LM.score([[5, 6], [5] * 20_000])


def test_memory_that_ends_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_cache(*_sizes: int) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "new_cache", new_cache)
    with pytest.raises(
        Unsupported, match=r"text: expected a context that fits into memory, got 60: keys and .*window="
    ):
        LM.score(LONG)


def test_a_window_needs_no_more_memory_for_a_longer_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    new_cache = Engine.new_cache
    monkeypatch.setattr(Engine, "new_cache", lambda self, *shape: shapes.append(shape) or new_cache(self, *shape))
    monkeypatch.setattr(prompts, "POSITIONS_AT_ONCE", 16)
    LM.score(LONG, window=8)
    assert max(rows * time for rows, time in shapes) == 16


def test_progress_is_a_bar_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    LM.score(LONG, window=8, progress=True)
    assert "59/59 tokens" in capsys.readouterr().err
    LM.score(LONG, window=8)
    assert capsys.readouterr() == ("", "")
