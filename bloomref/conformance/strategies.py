"""Hypothesis strategies for configs, inputs and caches. They draw shapes, seeds and scales, never elements.

The sizes are chosen to show mistakes: numbers and widths of heads that are not powers of two, embeddings whose variance
is below epsilon, masks of every kind, rows that differ, and occasionally a long sequence. Everything shrinks towards a
small, plain case.
"""

from collections.abc import Sequence

from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.cases import MASKS, Case
from bloomref.conformance.implementation import Capabilities

HEADS = (1, 2, 3, 5, 6, 8, 9, 12, 16, 24)
HEAD_DIMS = (1, 3, 5, 6)
EPSILONS = (1e-5, 1e-6, 1e-3)
OFFSETS = (0.0,) * 6 + (100.0,)
ANYTHING = Capabilities()
LONG = (129, 260, 300)
ELEMENTS = 2**20
"""Largest number of scores in a layer of a drawn case, so that a call takes well under a second."""


@st.composite
def configs(draw: st.DrawFn, max_layers: int = 2, capabilities: Capabilities = ANYTHING) -> BloomConfig:
    """Draw configs of small models that the capabilities allow."""
    able = capabilities.features
    heads = draw(st.sampled_from(HEADS), label="heads")
    width = heads * draw(st.sampled_from(HEAD_DIMS), label="head width")
    return BloomConfig(
        vocabulary_size=draw(st.integers(3, 40), label="vocabulary"),
        num_layers=draw(st.integers(0 if "no-layers" in able else 1, max_layers), label="layers"),
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=draw(st.integers(1, 50), label="inner width") if "mlp-width" in able else 4 * width,
        layer_norm_epsilon=draw(st.sampled_from(EPSILONS)) if "epsilon" in able else 1e-5,
        apply_residual_connection_post_layernorm="post-layernorm" in able and draw(st.booleans(), label="post-norm"),
        tie_word_embeddings="untied" not in able or draw(st.booleans(), label="tied"),
    )


def schedules(time: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the cuts of a run over a cache: none, at a few positions, or at every position from some point on."""
    if time < 2:
        return st.just(())
    anywhere = st.lists(st.integers(1, time - 1), max_size=5, unique=True).map(lambda cuts: tuple(sorted(cuts)))
    first = st.integers(max(1, time - 8), time - 1)
    return st.one_of(st.just(()), anywhere, first.map(lambda cut: tuple(range(cut, time))))


def times(heads: int, usual: tuple[int, int], longest: int | None) -> st.SearchStrategy[int]:
    """Draw lengths: mostly in the usual range, occasionally one of `LONG` if the number of heads allows it."""
    least, most = usual
    short = st.integers(least, max(least, min(most, longest or most)))
    long = [time for time in LONG if heads * time * time <= ELEMENTS and most < time <= (longest or time)]
    return st.integers(0, 7).flatmap(lambda n: st.sampled_from(long) if n == 7 else short) if long else short


@st.composite
def cases(
    draw: st.DrawFn,
    capabilities: Capabilities = ANYTHING,
    *,
    min_batch: int = 1,
    max_batch: int = 3,
    min_time: int = 1,
    max_time: int = 24,
    max_layers: int = 2,
    kinds: Sequence[str] = MASKS,
    long: bool = True,
    sharp: bool = True,
) -> Case:
    """Draw models and inputs that an implementation of these capabilities must compute correctly.

    Args:
        capabilities: what the implementation supports.
        min_batch, max_batch: range of the batch size; 1 if the implementation has no batches.
        min_time, max_time: range of the length, except for long sequences.
        max_layers: largest number of layers.
        kinds: kinds of masks; those that the implementation does not support are left out, and "real" is used if none
            is left.
        long: also draw sequences of more than 256 positions.
        sharp: also draw queries and keys so large that attention selects a single key.
    """
    config = draw(configs(max_layers, capabilities))
    longest = capabilities.max_time if long else max_time
    time = draw(times(config.num_heads, (min_time, max_time), longest), label="time")
    batch = st.integers(min_batch, max_batch) if "batch" in capabilities.features else st.just(1)
    return Case(
        config,
        seed=draw(st.integers(0, 2**32 - 1), label="seed"),
        batch=draw(batch, label="rows"),
        time=time,
        kind=draw(st.sampled_from([kind for kind in kinds if kind in capabilities.masks] or ["real"]), label="mask"),
        gain=draw(st.sampled_from((1.0, 0.3, 3.0)), label="gain"),
        qk_gain=draw(st.sampled_from((1.0,) * 4 + (6.0, 60.0, 60.0)), label="gain of query and key") if sharp else 1.0,
        embedding_std=draw(st.sampled_from((1.0, 2e-3)), label="size of the embedding"),
        cuts=draw(schedules(time), label="cuts"),
        offset=draw(st.sampled_from(OFFSETS), label="mean of the embedding and of residual biases"),
    )
