"""Logits processors and whole generations against transformers as installed."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from parity.hugging_face import build, in_float64
from small_models import make_lm
from transformers.generation import logits_process as peer

from bloomref import BloomConfig, GenerationOptions
from bloomref.generation.logits_processors import LogitsProcessors
from bloomref.generation.row_scores import Scores
from bloomref.generation.sampling import softmax, truncate

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=48)
SEEDS = range(4)


def peer_generate(lm: Any, prompt: list[int], **options: Any) -> list[list[int]]:
    """New ids of every result; what follows a stop token is cut."""
    stops = options.get("eos_token_id") or []
    ids, mask = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
    with in_float64(), torch.no_grad():
        output = build(lm.backbone.config, lm.backbone.params).generate(
            ids, attention_mask=mask, **({"pad_token_id": 0, "eos_token_id": None, "do_sample": False} | options)
        )
    rows = output[:, len(prompt) :].tolist()
    return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [
        {"bad_words_ids": [[3], [4, 5], [1, 2, 6], [7]]},
        {"suppress_tokens": [1, 2, 3]},
        {"min_new_tokens": 3, "bad_words_ids": [[1], [2, 2]], "repetition_penalty": 1.3},
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 2, "bad_words_ids": [[3], [4, 4]], "length_penalty": 2.0},
        {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0, "num_return_sequences": 2},
        {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
        {"num_beams": 2, "early_stopping": "never", "length_penalty": -1.0, "num_return_sequences": 2},
        {"num_beams": 3, "min_new_tokens": 4},
    ],
    ids=str,
)
def test_greedy_and_beam_search_give_the_same(options: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lm, prompt = make_lm(CONFIG, seed), [int(i) for i in rng.integers(0, 20, 3)]
    stops = sorted({int(i) for i in rng.integers(0, 20, 7)})
    both: Any = options | {"max_new_tokens": 7, "eos_token_id": stops}
    own = lm.generate([prompt], strip_prompt=True, **both)
    assert own == peer_generate(lm, prompt, **both)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9, 0.99])
def test_typical_sampling_has_the_same_distribution(mass: float, seed: int) -> None:
    """After temperature and top-k too, and with forbidden tokens."""
    scores = np.random.default_rng(seed).normal(size=50) * 3
    scores[3] = -np.inf
    tensor = torch.from_numpy(scores)[None]
    warped = peer.TemperatureLogitsWarper(0.7)(None, tensor)
    warped = peer.TypicalLogitsWarper(mass=mass)(None, peer.TopKLogitsWarper(top_k=20)(None, warped))
    own = truncate(scores, GenerationOptions(temperature=0.7, top_k=20, typical_p=mass))
    np.testing.assert_allclose(softmax(own), torch.softmax(warped, -1)[0].numpy(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_forbidden_sequences_and_ids_have_the_same_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [[int(i) for i in rng.integers(0, 4, n)] for n in (1, 2, 2, 3, 4, 5)] + [[2]]
    history, scores = [int(i) for i in rng.integers(0, 4, 4)], rng.normal(size=20)
    ids, tensor = torch.tensor([history]), torch.from_numpy(scores)[None]
    expected = peer.NoBadWordsLogitsProcessor(words, eos_token_id=[2, 3])(ids, tensor)
    expected = peer.SuppressTokensLogitsProcessor([9, 11])(ids, expected)
    expected = peer.MinNewTokensLengthLogitsProcessor(2, 3, [2, 3])(ids, expected)
    options = GenerationOptions(bad_words_ids=words, suppress_tokens=[9, 11], min_new_tokens=3)
    processed = LogitsProcessors(options, {2, 3})(Scores(scores.copy()), history, 2)
    np.testing.assert_array_equal(processed.dense(), expected[0].numpy())


def test_draws_have_the_distribution_of_the_processors() -> None:
    """500 results of one prompt: each token as often as its probability says, within five standard deviations."""
    lm = make_lm(CONFIG, 1)
    logits = lm.logits({"token_ids": [[5, 6]]})[0, -1]
    warped = peer.TypicalLogitsWarper(mass=0.8)(None, torch.from_numpy(logits)[None])
    p = torch.softmax(warped, -1)[0].numpy()
    rows = lm.generate([5, 6], num_return_sequences=500, typical_p=0.8, max_new_tokens=1, strip_prompt=True, seed=0)
    counts = np.bincount([row[0] for row in rows], minlength=20)
    assert (np.abs(counts - 500 * p) <= 5 * np.sqrt(500 * p * (1 - p)) + 1e-9).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_embeddings_in_place_of_ids_give_the_same_logits(seed: int) -> None:
    lm, rng = make_lm(CONFIG, seed), np.random.default_rng(seed)
    vectors, mask = rng.normal(size=(2, 5, 12)), np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    with in_float64(), torch.no_grad():
        model = build(CONFIG, lm.backbone.params)
        expected = model(inputs_embeds=torch.from_numpy(vectors), attention_mask=torch.from_numpy(mask)).logits.numpy()
    logits = lm.logits({"inputs_embeds": vectors, "attention_mask": mask})
    np.testing.assert_allclose(logits[mask == 1], expected[mask == 1], rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"bad_words_ids": [[19], [3, 3]]}], ids=str
)
def test_generation_after_embeddings_is_the_same(options: Any) -> None:
    lm, rng = make_lm(CONFIG, 2), np.random.default_rng(2)
    vectors, mask = rng.normal(size=(2, 4, 12)), np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    both: Any = options | {"max_new_tokens": 5}
    with in_float64(), torch.no_grad():
        expected = build(CONFIG, lm.backbone.params).generate(
            inputs_embeds=torch.from_numpy(vectors),
            attention_mask=torch.from_numpy(mask),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **both,
        )
    own = lm.generate(inputs_embeds=vectors, attention_mask=mask, eos_token_id=None, **both)
    assert own["token_ids"].tolist() == expected.tolist()
