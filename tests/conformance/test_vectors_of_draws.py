"""The vectors of draws: an independent generator gives the same, last bits decide nothing, and each mistake shows."""

from pathlib import Path

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.mistakes import get_mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.vectors.read import Vector, read
from bloomref.runtime.backend import Choice

CASE = Case(BloomConfig(vocabulary_size=6, num_layers=0, num_heads=1, hidden_dim=1, intermediate_dim=1))
DRAWS = [v for v in read(Path(__file__).parents[2] / "specs/vectors") if v.entry["ask"] == "draw"]
TOKENS = [vector for vector in DRAWS if "scores" in vector.arguments]
NUMBERS = [vector for vector in DRAWS if "scores" not in vector.arguments]
MISTAKES = (
    "forbidden-chosen", "sampling-is-greedy", "top-p-before-temperature", "top-p-before-top-k", "top-p-one-too-few",
    "top-k-one-more", "draw-in-the-order-of-scores", "draws-restarted", "seed-of-32-bits",
)  # fmt: skip


def answer(vector: Vector, model: type[InstrumentedModel] = InstrumentedModel, shift: float = 0.0) -> dict[str, object]:
    """The output by the rules of an instrumented model, whose numbers are shifted."""

    class Shifted(model):  # type: ignore[misc, valid-type]
        def uniform(self, seed: int, drawn: int) -> float:
            return super().uniform(seed, drawn) + shift

    asked, chooser = vector.arguments, Shifted.of(CASE)
    number = chooser.uniform(asked["seed"], asked["drawn"])
    if "scores" not in asked:
        return {"number": number}
    scores = np.array(asked["scores"])
    forbidden = np.isin(np.arange(scores.size), asked.get("forbidden", []))
    seeds = np.array([asked["seed"]], np.uint64)
    top_k, top_p = asked.get("top_k"), asked.get("top_p", 1.0)
    choice = Choice(asked["temperature"], top_k, top_p, forbidden, seeds, asked["drawn"])
    return {"number": number, "token": chooser.choose(scores, choice, 0, 0)}


@pytest.mark.clause("GEN-9", "GEN-10")
@pytest.mark.parametrize("vector", DRAWS, ids=lambda vector: vector.id)
def test_an_independent_generator_and_chooser_give_the_same(vector: Vector) -> None:
    """Where scores tie at the border of top-k, this one drops the higher ids, and the engine keeps them."""
    assert answer(vector) == vector.entry["output"]


@pytest.mark.parametrize("vector", TOKENS, ids=lambda vector: vector.id)
def test_no_rounding_of_probabilities_changes_a_token(vector: Vector) -> None:
    for shift in (-1e-3, 1e-3):
        assert answer(vector, shift=shift)["token"] == vector.entry["output"]["token"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_draw_fails_a_vector(name: str) -> None:
    assert any(answer(vector, get_mistake(name).model) != vector.entry["output"] for vector in TOKENS)


def test_of_another_generator_every_number_is_wrong() -> None:
    for vector in NUMBERS:
        seed = vector.arguments["seed"]
        assert np.random.default_rng(seed).random() != vector.entry["output"]["number"]
