"""Small language models for the tests of generation and scoring:
float64, random weights, with and without a tokenizer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import configs, draw_params

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, BloomTokenizer

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
MERGES = ["t h", "th e", "Ġ the", "Ġ a", "i s", "Ġ is", "æ Ħ", "æĦ ı"]  # the last two: two of the bytes, all of 意
# Most of these join what BLOOM's rule separates, and so must not be used across the edge.
MERGES += ["a ,", ", Ġ", "e .", "( a", "a |", "ã Ģ", "ãĢ Ĥ", "ı ãĢĤ", "Ġ Ġ", "Ċ Ċ", "Ġ Ċ", "ı ã"]


TOKENS = 4 + 256 + len(MERGES)


def byte_characters() -> list[str]:
    """The printable character of each byte, in the order of the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def small_vocabulary() -> dict[str, int]:
    """The special tokens at 0 ... 3, all bytes, the merges."""
    tokens = [*SPECIALS, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    return {token: i for i, token in enumerate(tokens)}


def small_tokenizer() -> BloomTokenizer:
    return BloomTokenizer(small_vocabulary(), MERGES)


def make_lm(
    config: BloomConfig, seed: int = 0, tokenizer: BloomTokenizer | None = None, scale: float = 1.0
) -> BloomCausalLM:
    """Logits are a few units apart: enough to decide, too little for probabilities that round to 1 and tie."""
    params = draw_params(config, seed, scale, embedding_std=2.0 / np.sqrt(config.hidden_dim))
    return BloomCausalLM(BloomBackbone.from_params(config, params), tokenizer)


def text_lm(seed: int = 0, vocabulary_size: int = TOKENS + 12, heads: int = 3, scale: float = 1.0) -> BloomCausalLM:
    """A model of the small tokenizer's texts, with twelve ids too many, as BLOOM has."""
    width = 4 * heads
    config = BloomConfig(
        vocabulary_size=vocabulary_size, num_layers=2, num_heads=heads, hidden_dim=width, intermediate_dim=4 * width
    )
    return make_lm(config, seed, small_tokenizer(), scale)


@dataclass(frozen=True)
class Drawn:
    """A model that is built at first use: hypothesis forbids random numbers while it draws."""

    config: BloomConfig
    seed: int
    scale: float

    @cached_property
    def lm(self) -> BloomCausalLM:
        return make_lm(self.config, self.seed, scale=self.scale)


def models() -> st.SearchStrategy[Drawn]:
    """Models that see their context.
    Those that do not (no layer, or a width that the norm makes constant) give texts of
    the same tokens in another order the same likelihood: which of them beam search returns is up to rounding."""
    seeing = configs().filter(lambda config: config.num_layers > 0 and config.hidden_dim > 2)
    return st.builds(Drawn, seeing, st.integers(0, 2**32 - 1), st.sampled_from((0.3, 1.0, 3.0)))


def id_prompts(vocabulary_size: int, max_batch: int = 4, min_length: int = 0) -> st.SearchStrategy[list[list[int]]]:
    ids = st.lists(st.integers(0, vocabulary_size - 1), min_size=min_length, max_size=6)
    return st.lists(ids, min_size=1, max_size=max_batch)


@st.composite
def deterministic_options(draw: st.DrawFn, vocabulary_size: int) -> dict[str, Any]:
    """A deterministic strategy with some processors and stop tokens."""
    ids = st.integers(0, vocabulary_size - 1)
    options: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 7))}
    strategy = draw(st.sampled_from(("greedy", "beam", "contrastive")))
    if strategy == "beam":
        options["num_beams"] = draw(st.integers(2, 4))
        options["length_penalty"] = draw(st.sampled_from((-1.0, 0.0, 0.5, 1.0, 2.0)))
    if strategy == "contrastive":
        options |= {"penalty_alpha": draw(st.sampled_from((0.0, 0.3, 0.6, 0.9))), "top_k": draw(st.integers(1, 5))}
    if draw(st.booleans()):
        options["repetition_penalty"] = draw(st.sampled_from((0.7, 1.3, 2.0)))
    if draw(st.booleans()):
        options["no_repeat_ngram_size"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        biases = st.sampled_from((-float("inf"), -3.0, 0.5, 4.0))
        options["logit_bias"] = draw(st.dictionaries(ids, biases, max_size=2))
    options["stop_token_ids"] = draw(st.one_of(st.just("auto"), st.none(), st.lists(ids, max_size=3)))
    return options
