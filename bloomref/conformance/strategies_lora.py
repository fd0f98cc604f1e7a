"""Hypothesis strategies for LoRA adapters. They draw modules, ranks, scales and seeds, never elements."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.cases import MASKS, Case
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import FORMS, Lora
from bloomref.conformance.strategies import ANYTHING, cases
from bloomref.formats.adapters.peft_config import EMBEDDING, LINEARS
from bloomref.lora.adapter import DENSE_LAYERS

RANKS = (1, 2, 3, 4, 8)
ALPHAS = (8.0, 1.0, 3.5, 16.0, 32.0)
DROPOUTS = (0.0, 0.1, 0.5)
T = TypeVar("T")
WHERE = ("query_key_value", "h.0.self_attention.dense", r"h\.\d+\.mlp\..*", "dense_4h_to_h", EMBEDDING)
"""Keys of rank_pattern and alpha_pattern: ends of module names, and a regular expression."""


@st.composite
def adapters(draw: st.DrawFn, config: BloomConfig, form: str | None = None) -> Lora:
    """Draw adapters for a model of this config.

    Args:
        form: "peft" or "keras"; None: either. A model without layers has only "peft" adapters, of its embedding.
    """
    forms = FORMS if config.num_layers else FORMS[:1]
    if (form or draw(st.sampled_from(forms), label="form of the adapter")) == "keras":
        return draw(of_heads())
    linears = LINEARS if config.num_layers else ()
    return Lora(
        targets=draw(_some((*linears, EMBEDDING)), label="adapted modules"),
        rank=draw(st.sampled_from(RANKS), label="rank"),
        alpha=draw(st.sampled_from(ALPHAS), label="alpha"),
        rslora=draw(st.booleans(), label="rslora"),
        dropout=draw(st.sampled_from(DROPOUTS), label="dropout of the adapter"),
        ranks=draw(_pattern(RANKS), label="rank pattern"),
        alphas=draw(_pattern(ALPHAS), label="alpha pattern"),
        seed=draw(st.integers(0, 2**32 - 1), label="seed of the adapter"),
    )


def of_heads() -> st.SearchStrategy[Lora]:
    """Draw adapters of the form "keras", for a model that has layers."""
    targets, ranks, seeds = _some(tuple(DENSE_LAYERS)), st.sampled_from(RANKS), st.integers(0, 2**32 - 1)
    return st.builds(Lora, targets=targets, form=st.just("keras"), rank=ranks, seed=seeds)


@st.composite
def adapted_cases(
    draw: st.DrawFn,
    capabilities: Capabilities = ANYTHING,
    form: str | None = None,
    *,
    kinds: Sequence[str] = MASKS,
    max_time: int = 12,
) -> Case:
    """Draw models with a LoRA adapter, and inputs. Sequences are short, and attention is never sharp.

    Args:
        form: "peft" or "keras"; None: either.
        kinds, max_time: as in `strategies.cases`.
    """
    without = cases(capabilities, kinds=kinds, max_time=max_time, long=False, sharp=False)
    if form == "keras":
        without = without.filter(lambda case: case.config.num_layers > 0)
    case = draw(without)
    return replace(case, lora=draw(adapters(case.config, form)))


def _some(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    """Draw a non-empty subset, in the given order."""
    subsets = st.sets(st.sampled_from(names), min_size=1)
    return subsets.map(lambda subset: tuple(name for name in names if name in subset))


def _pattern(values: tuple[T, ...]) -> st.SearchStrategy[tuple[tuple[str, T], ...]]:
    """Draw a rank_pattern or alpha_pattern, often empty."""
    entry = st.tuples(st.sampled_from(WHERE), st.sampled_from(values))
    return st.one_of(st.just(()), st.lists(entry, max_size=2, unique_by=lambda pair: pair[0]).map(tuple))
