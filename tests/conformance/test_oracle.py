"""The error bound of the oracle: ball arithmetic proves it on small models, and longdouble estimates it."""

from dataclasses import replace

import numpy as np
import pytest

from bloomref import alibi
from bloomref.backbone import BloomBackbone
from bloomref.conformance.oracle.truth import truth

pytest.importorskip("flint", reason="python-flint is not installed: pip install bloomref[test]")

from conformance import ball_arithmetic
from conformance.certify import CASES, PROMISED, certificate, small

LONGDOUBLE_IS_WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


@pytest.mark.clause("NUM-7")
@pytest.mark.parametrize("name", CASES)
def test_the_error_of_every_intermediate_is_proven(name):
    proven, estimated, _ = certificate(CASES[name])
    assert set(proven) == set(truth(CASES[name]).values)
    assert {k: error for k, error in proven.items() if not error <= PROMISED} == {}
    if LONGDOUBLE_IS_WIDER:  # an estimate, so neither much too small nor much too large
        assert {k: e for k, e in proven.items() if not 0.5 * e <= estimated[k] + 1e-17 <= 2.0 * e + 2e-17} == {}


def test_the_slopes_are_the_exact_ones_correctly_rounded():
    ball_arithmetic.flint.ctx.prec = 128
    for heads in (1, 2, 3, 5, 6, 12, 24, 71, 112):
        for head, slope in enumerate(alibi.slopes(heads, np.dtype(np.float64))):
            exact = ball_arithmetic.exact_slope(head, heads)
            assert float(abs(exact - ball_arithmetic.arb(float(slope))).upper()) <= np.spacing(slope) / 2


def test_precision_is_doubled_where_it_must_be():
    assert certificate(small(2, 3, 9, 4, gain=4.0))[2] > ball_arithmetic.FIRST


@pytest.mark.parametrize("wrong", [2e-13, np.nan])
def test_a_wrong_number_is_detected(wrong):
    case = CASES["5 heads, holes"]
    values = dict(truth(case).values)
    logits = values["logits"].copy()
    row, column = np.argwhere(case.is_real)[3]
    logits[row, column, 5] += wrong * np.abs(logits).max()
    proven, _ = ball_arithmetic.enclose(case, {**values, "logits": logits})
    assert not proven["logits"] <= PROMISED
    assert proven["final_norm"] <= PROMISED


def test_another_constant_is_detected(monkeypatch):
    def exact_gelu(x):
        constant = (2 / ball_arithmetic.arb.pi()).sqrt()
        return x / 2 * (1 + (constant * x * (1 + x * x * ball_arithmetic.fmpq(44715, 10**6))).tanh())

    monkeypatch.setattr(ball_arithmetic, "gelu", exact_gelu)
    assert certificate(CASES["3 heads, 40 positions"])[0]["layers.0.mlp.gelu"] > 1e-11


def test_the_truth_is_the_reference_and_is_remembered():
    case = CASES["2 heads, left padding"]
    results = truth(case)
    model = BloomBackbone.from_params(case.config, case.params, "float64")
    again = model.trace({"token_ids": case.token_ids, "padding_mask": case.is_real})
    assert list(results.values) == list(again)
    assert all(results.values[name].tobytes() == again[name].tobytes() for name in again)
    assert truth(replace(case)) is results
    with pytest.raises(ValueError, match="read-only"):
        results.values["logits"][0, 0, 0] = 1.0


def test_what_is_computed_in_vain_counts_for_the_range_only():
    results = truth(CASES["2 heads, left padding"])
    scores = results.values["layers.1.attention.scores"]
    assert (
        results.reach["layers.1.attention.scores"]
        == np.abs(scores).max()
        > results.magnitudes["layers.1.attention.scores"]
    )
    assert results.magnitudes["logits"] == np.abs(results.values["logits"][results.case.is_real]).max()
    assert results.largest == max(np.abs(value).max() for value in results.values.values())
