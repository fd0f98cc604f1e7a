"""The emulated profiles against the installed transformers:
how many numbers are the same, operation by operation and end to end.
"""

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.transformers import Transformers
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.rounding_profiles import HuggingFaceEagerBfloat16, agreement, emulate
from bloomref.conformance.subject import named_weights
from bloomref.errors import InvalidInput

EACH, WHOLE = 0.995, 0.75
"""Shares of identical bfloat16 numbers: in every operation on transformers' own intermediates (measured: 99.9 %), and
in the logits of a whole model (80 to 100 %; one number that differs early changes many later)."""


def case(heads, head_dim, layers, time, kind="real", **changes):
    width = heads * head_dim
    config = BloomConfig(
        vocabulary_size=97,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        pad_token_id=3,
        **changes,
    )
    return Case(config, seed=5, time=time, kind=kind)


CASES = (
    case(2, 32, 2, 16),
    case(3, 16, 2, 33),
    case(4, 16, 3, 64),
    case(16, 8, 2, 64, apply_residual_connection_post_layernorm=True),
    case(3, 8, 2, 20, "left"),
    case(5, 8, 2, 20, "right", tie_word_embeddings=False),
    case(5, 8, 1, 600),
)


def shown_by_transformers(case, dtype):
    pytest.importorskip("torch", reason="torch is not installed: pip install bloomref[peers]")
    pytest.importorskip("transformers", reason="transformers is not installed: pip install bloomref[peers]")
    model = Transformers().load(case.config, named_weights(case.config, case.params), dtype)
    return model.trace(case.token_ids, case.is_real)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.config.num_heads} heads, {c.time} {c.kind}")
def test_transformers_bfloat16_is_emulated(case):
    shown = shown_by_transformers(case, "bfloat16")
    each = agreement(case, "hf-eager-bfloat16", shown)
    assert {name: share for name, share in each.items() if share < EACH} == {}
    assert agreement(case, "hf-eager-bfloat16", {"logits": shown["logits"]})["logits"] >= WHOLE


def test_most_operations_agree_in_float16():
    shares = [agreement(c, "hf-eager-float16", shown_by_transformers(c, "float16")) for c in CASES[:6]]
    assert min(share for by_name in shares for share in by_name.values()) >= 0.99


def test_another_gelu_is_detected_in_bfloat16(monkeypatch):
    """The emulation detects a difference below any tolerance of bfloat16."""
    shown = shown_by_transformers(CASES[1], "bfloat16")
    monkeypatch.setattr(HuggingFaceEagerBfloat16, "gelu", lambda self, x: self.arithmetic.stored(_erf_gelu(x)))
    assert agreement(CASES[1], "hf-eager-bfloat16", shown)["layers.0.mlp.gelu"] < 0.9


def _erf_gelu(x):
    import torch

    return torch.nn.functional.gelu(torch.tensor(x)).numpy()


def test_exact_slopes_are_detected():
    """transformers' slopes of 16 heads are powers of 0.70710677, which bfloat16 shows far from the start."""
    far = case(16, 4, 1, 600)
    slopes = HuggingFaceEagerBfloat16(far.config, far.params).slopes()
    assert 0.0 < np.abs(slopes[1::2] / 2.0 ** -np.arange(1, 9) - 1).max() < 1e-6


def test_an_unknown_profile_is_refused():
    with pytest.raises(InvalidInput, match="profile: expected one of hf-eager-bfloat16"):
        emulate(CASES[0], "hf-flash")
