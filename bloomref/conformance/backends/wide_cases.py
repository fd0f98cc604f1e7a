"""Cases whose sizes do not fit tiles: heads, vectors and matrices that kernels compute in a remainder.

Beside the kinds of masks and scales of `strategies.cases`, with heads up to 80 wide and lengths around 32 and 128.
"""

from hypothesis import strategies as st

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.strategies import EPSILONS, schedules

HEADS = (1, 2, 3, 5, 8, 9, 12, 16)
WIDTHS = (1, 3, 7, 16, 33, 80)
LARGEST = 256
"""Largest hidden size: a case takes some 10 ms."""
EDGES = (31, 32, 33, 127, 129, 140)


@st.composite
def wide_cases(draw: st.DrawFn, capabilities: Capabilities, dtype: str) -> Case:
    """Draw models and inputs, with the masks that the capabilities allow, and weights of all bits of the dtype."""
    heads = draw(st.sampled_from(HEADS), label="heads")
    config = BloomConfig(
        vocabulary_size=draw(st.integers(3, 70), label="vocabulary"),
        num_layers=draw(st.integers(0, 2), label="layers"),
        num_heads=heads,
        hidden_dim=heads * draw(st.sampled_from([w for w in WIDTHS if heads * w <= LARGEST]), label="head width"),
        intermediate_dim=draw(st.integers(1, 150), label="inner width"),
        layer_norm_epsilon=draw(st.sampled_from(EPSILONS)),
        apply_residual_connection_post_layernorm=draw(st.booleans(), label="post-norm"),
        tie_word_embeddings=draw(st.booleans(), label="tied"),
    )
    time = draw(st.one_of(st.integers(1, 24), st.sampled_from(EDGES)), label="time")
    return Case(
        config,
        seed=draw(st.integers(0, 2**32 - 1), label="seed"),
        batch=draw(st.integers(1, 3), label="rows"),
        time=time,
        kind=draw(st.sampled_from(capabilities.masks), label="mask"),
        gain=draw(st.sampled_from((1.0, 0.3)), label="gain"),
        embedding_std=draw(st.sampled_from((1.0, 2e-3)), label="size of the embedding"),
        cuts=draw(schedules(time), label="cuts"),
        weights="float32" if dtype in ("float32", "float64") else "bfloat16",
    )
