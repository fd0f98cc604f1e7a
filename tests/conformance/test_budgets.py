"""The budgets: sigma is the spread of real rounding, correct runs pass, and wrong ones fail."""

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomref.backbone import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle import budgets, montecarlo
from bloomref.conformance.oracle.budgets import LIMIT, TIERS, judge, sigma, tier_of
from bloomref.conformance.oracle.intermediates import per_head, per_position, visible
from bloomref.conformance.oracle.truth import truth
from bloomref.errors import InvalidInput
from tools import budget_study


def case(heads=3, head_dim=8, layers=2, time=12, **changes):
    width = heads * head_dim
    config = BloomConfig(
        vocabulary_size=50, num_layers=layers, num_heads=heads, hidden_dim=width, intermediate_dim=4 * width
    )
    return Case(config, **{"seed": 3, "kind": "left", "time": time, **changes})


def reference(case, dtype):
    model = BloomBackbone.from_params(case.config, case.params, dtype)
    return model.trace({"token_ids": case.token_ids, "padding_mask": case.is_real})


def one(case, tier, **outputs):
    [judgement] = judge(case, TIERS[tier], outputs)
    return judgement


# --- sigma -------------------------------------------------------------------------------------------------------


class Sequential(InstrumentedModel):
    """Sequential sums in the dtype."""

    def linear(self, x, weight, bias):
        return np.add.accumulate(x[..., None, :] * weight, axis=-1)[..., -1] + bias


class Backwards(InstrumentedModel):
    """Sequential sums with the terms in another order."""

    def linear(self, x, weight, bias):
        return x[..., ::-1] @ weight[:, ::-1].T + bias


ORDERINGS = {"as BLAS does": InstrumentedModel, "in turn": Sequential, "backwards": Backwards}


@pytest.mark.clause("NUM-8")
@pytest.mark.parametrize("anchor", [None, 0, 11])
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_sigma_is_the_spread_of_float32(ordering, anchor):
    """Over many models: rms(error) / sigma of every intermediate is about one, whatever the order of the sums."""
    ratios: dict[str, list[float]] = {}
    for seed in range(12):
        now = case(seed=seed)
        tested = ORDERINGS[ordering](now.config, now.params, dtype=np.float32)
        tested.anchor = anchor
        allowed, right = sigma(now, TIERS["float32"]), truth(now).values
        for name, got in tested.run(now.token_ids, now.is_real).items():
            far = per_position(name, got.astype(np.float64) - right[name], now.is_real)[now.is_real]
            where = allowed[name][now.is_real]
            ratios.setdefault(name, []).extend(far[where > 0] / where[where > 0])
    typical = {name: float(np.sqrt(np.mean(np.square(values)))) for name, values in ratios.items()}
    assert {n: r for n, r in typical.items() if n != "word_embedding" and not 0.1 < r < 1.5} == {}
    assert max(max(values) for values in ratios.values()) < LIMIT


def test_sigma_of_a_power_of_two_scale_is_proportional_to_the_roundoff():
    now = case()
    single, double = (sigma(now, TIERS[name])["logits"] for name in ("float32", "float64"))
    assert np.allclose(double, single * 2.0**-29 * np.sqrt(2.0), rtol=1e-12)
    sixteen = sigma(now, TIERS["bfloat16"])["logits"][now.is_real] / single[now.is_real]
    assert 2.0**16 / 8 < np.median(sixteen) < 2.0**16 * 2


def test_scores_in_the_model_dtype_cost_accuracy_at_late_positions():
    for time, more in ((4, (0.5, 1.5)), (200, (2.0, 30.0))):
        now = case(heads=6, head_dim=2, layers=1, time=time, kind="real", batch=1)
        ours, trained = (sigma(now, TIERS[name])["logits"][0] for name in ("bfloat16", "bfloat16-scores"))
        assert more[0] < np.median(trained[-4:] / ours[-4:]) < more[1]


@pytest.mark.clause("NUM-8")
def test_sigma_is_reproducible_and_the_larger_of_both_anchorings():
    now = case(kind="real")
    names = ["logits", "layers.1.attention.scores"]
    again = montecarlo.errors(replace(now, name="another object"), TIERS["float32"], montecarlo.affordable(now))
    squares = np.zeros((2, 2, 12))
    for anchoring, by_name in again:
        squares[anchoring] += np.square(per_position("logits", by_name["logits"], now.is_real))
    assert list(sigma(now, TIERS["float32"], names)) == names
    raw = squares.max(axis=0) / montecarlo.affordable(now)
    steady = (montecarlo.affordable(now) * raw + 2 * np.median(raw)) / (montecarlo.affordable(now) + 2)
    assert np.allclose(sigma(now, TIERS["float32"])["logits"], np.sqrt(steady), rtol=1e-12)


def test_equal_tokens_have_equal_errors_in_half_of_the_samples():
    """Equal tokens have equal errors, which attention over sixty of them does not average out."""
    now = case(time=60, kind="real", batch=1)
    now = replace(now, config=now.config.replace(vocabulary_size=1))
    for anchoring, error in montecarlo.errors(now, TIERS["float32"], 2):
        across = np.ptp(error["layers.0.attention.norm"], axis=1).max() / np.abs(error["layers.0.attention.norm"]).max()
        assert (across < 1e-6) == (anchoring == 1)


@pytest.mark.parametrize(("direction", "low", "high"), [((1.0, 1.0, 1.0), 2.0, 3.2), ((1.0, -1.0, 0.0), 0.7, 1.4)])
def test_a_large_mean_costs_layer_norm_its_digits(direction, low, high):
    """Errors of all features alike, as by a wrong mean, or of each feature, as by division before subtraction."""
    now = case(heads=1, head_dim=3)
    noise = montecarlo.Noise(TIERS["float32"], np.random.default_rng(0))
    noise.alike = np.zeros(4000, bool)
    tested = montecarlo.NoisyModel(now.config, now.params, noise)
    x = np.broadcast_to(np.array([99.0, 100.0, 101.0]), (4000, 1, 3))
    error = tested.layer_norm(x, np.ones(3), np.zeros(3)) - np.array([-1.0, 0.0, 1.0]) / np.sqrt(2 / 3 + 1e-5)
    along = (error @ direction / np.linalg.norm(direction)).std() / (2.0**-24 * 100 / np.sqrt(2 / 3) / np.sqrt(3.0))
    assert low < along < high


def test_large_cases_get_fewer_samples():
    assert montecarlo.affordable(case()) == montecarlo.SAMPLES
    assert montecarlo.affordable(case(heads=16, time=300)) == montecarlo.FEWEST


def test_an_end_anchor_costs_accuracy_at_early_positions():
    """ALiBi counted from the last column gives the first positions the largest scores; that is legal (ALI-4)."""
    now = case(heads=6, head_dim=2, layers=1, time=200, kind="real", batch=1)
    ours, trained = (sigma(now, TIERS[name])["logits"][0] for name in ("bfloat16", "bfloat16-scores"))
    assert np.median(trained[1:5] / ours[1:5]) > 3.0


def test_logits_are_rounded_like_every_stored_result():
    now = case()
    [(_, error), *_] = montecarlo.errors(now, TIERS["bfloat16"], 1)
    exact = truth(now).values
    from_hidden = (exact["final_norm"] + error["final_norm"]) @ now.params.word_embedding.T
    rounding = np.abs(exact["logits"] + error["logits"] - from_hidden) / np.abs(from_hidden)
    assert 2.0**-10 < np.sqrt(np.mean(np.square(rounding))) < 2.0**-8


# --- what can be judged ------------------------------------------------------------------------------------------


def graded_with(name, at, size=0.0, unrest=0.0, **changes):
    """Judged positions out of 6, by intermediate, if one has this sigma, or this noise in its scores."""
    now = case(kind="real", batch=1, time=6, **changes)
    right = truth(now).values
    spread = {key: np.zeros((1, 6)) for key in right}
    noise = {key: np.zeros((1, 6)) for key in right if key.endswith("scores")}
    spread[name][0, at] = size * per_position(name, right[name], now.is_real)[0, at]
    if name in noise:
        noise[name][0, at] = unrest
    return {key: "".join("-+"[int(g)] for g in value[0]) for key, value in budgets._graded(now, spread, noise).items()}


@pytest.mark.clause("NUM-10")
def test_positions_with_noise_near_the_signal_are_not_judged():
    graded = graded_with("layers.0.attention_block", 2, 0.06)
    assert graded["layers.0.attention_block"] == "++-+++"
    assert {key: g for key, g in graded.items() if g != "++++++" and key != "layers.0.attention_block"} == {}


@pytest.mark.clause("NUM-10")
def test_what_comes_of_a_lost_position_is_not_judged():
    graded = graded_with("layers.0.attention_block", 2, 0.3)
    assert graded["layers.0.attention.output"] == "++++++"
    assert {
        graded[key] for key in ("layers.0.attention_block", "layers.0.mlp.norm", "layers.1.mlp_block", "logits")
    } == {"++----"}


@pytest.mark.clause("NUM-10")
def test_scores_beyond_which_softmax_multiplies_their_noise():
    name = "layers.0.attention.scores"
    assert set(graded_with(name, 3, unrest=0.49).values()) == {"++++++"}
    graded = graded_with(name, 3, unrest=0.51)
    assert graded["layers.0.attention.value"] == "++++++"
    assert graded[name] == graded["layers.0.attention.output"] == "+++-++"
    assert graded["layers.0.attention_block"] == graded["logits"] == "+++---"


@pytest.mark.clause("NUM-10")
def test_noise_is_compared_with_the_spread_of_a_hidden_state_and_not_with_its_mean():
    assert set(graded_with("layers.0.attention_block", 2, 0.01).values()) == {"++++++"}
    graded = graded_with("layers.0.attention_block", 2, 0.01, offset=100.0)
    assert graded["layers.0.attention.output"] == "++++++"
    assert graded["layers.0.attention_block"] == graded["layers.0.mlp.norm"] == graded["logits"] == "++----"


# --- what is compared --------------------------------------------------------------------------------------------


def test_a_constant_in_a_row_of_scores_is_nothing():
    now = case()
    scores = truth(now).values["layers.0.attention.scores"]
    shifted = scores + np.arange(scores.shape[2])[:, None] * 1.5
    assert one(now, "float32", **{"layers.0.attention.scores": shifted}).verdict == "pass"
    tilted = scores + 1e-3 * np.arange(scores.shape[3])
    assert one(now, "float32", **{"layers.0.attention.scores": tilted}).verdict == "fail"


@given(st.sampled_from(sorted(truth(case()).values)), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_what_no_real_position_sees_does_not_matter(name, seed):
    """Padded positions, and keys that are not visible, may hold anything."""
    now = case(kind="holes")
    value = truth(now).values[name].copy()
    meaningless = ~budgets.observable(name, value, now.is_real)
    value[meaningless] = np.random.default_rng(seed).choice([np.nan, np.inf, 1e9], int(meaningless.sum()))
    assert one(now, "float32", **{name: value}).z == 0.0


def test_the_table_of_axes():
    now = case(heads=2, head_dim=3, time=4, kind="real", batch=1)
    ones = {name: np.ones_like(value) for name, value in truth(now).values.items()}
    for name, value in ones.items():
        assert per_position(name, value, now.is_real).shape == (1, 4)
        expected = 0.0 if name.endswith("scores") else 1.0
        assert np.allclose(per_position(name, value, now.is_real), expected)
    probabilities = np.arange(32.0).reshape(1, 2, 4, 4)
    rms = per_head("attention.probabilities", probabilities, now.is_real)
    assert rms[0, 1, 2] == np.sqrt(np.mean(np.square([24.0, 25.0, 26.0])))
    assert visible(now.is_real).sum() == 10


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("NUM-9")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_reference_passes_in_every_dtype(dtype):
    for seed in range(5):
        now = case(seed=seed)
        judgements = judge(now, tier_of(dtype), reference(now, dtype))
        assert {j.name: j.explanation for j in judgements if j.verdict != "pass"} == {}
        assert [j.name for j in judgements] == list(truth(now).values)


@pytest.mark.clause("NUM-9")
def test_an_error_beyond_the_limit_fails_where_it_is():
    now, wrong = case(), truth(case()).values["logits"].copy()
    row, column = map(int, np.argwhere(now.is_real)[-2])
    allowed = sigma(now, TIERS["float32"])["logits"][row, column]
    wrong[row, column] += 4.9 * allowed
    assert one(now, "float32", logits=wrong).verdict == "pass"
    wrong[row, column] += 0.2 * allowed
    judgement = one(now, "float32", logits=wrong)
    assert (judgement.verdict, judgement.where, round(judgement.z, 3)) == ("fail", (row, column), 5.1)
    assert judgement.explanation.startswith(f"logits at ({row}, {column}): rms error ")
    assert judgement.explanation.endswith("that rounding explains (float32; limit 5 times)")


def test_a_number_that_is_not_finite_fails():
    now, wrong = case(), truth(case()).values["layers.0.attention.query"].copy()
    row, column = map(int, np.argwhere(now.is_real)[-1])
    wrong[row, 1, column, 2] = np.nan
    judgement = one(now, "float32", **{"layers.0.attention.query": wrong})
    assert (judgement.verdict, judgement.where) == ("fail", (row, column))
    assert judgement.explanation.endswith("not finite, where the truth is")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:, :-1], "expected shape (2, 12, 50), got (2, 11, 50)"),
        (lambda x: x.astype(np.int64), "expected floating numbers, got dtype int64"),
        (lambda x: x.astype(complex), "expected floating numbers, got dtype complex128"),
    ],
)
def test_a_wrong_form_fails_with_a_sentence(change, said):
    judgement = one(case(), "float32", logits=change(truth(case()).values["logits"]))
    assert (judgement.verdict, judgement.explanation) == ("fail", f"logits: {said}")


def test_16_bit_arrays_are_taken():
    logits = truth(case()).values["logits"]
    assert one(case(), "bfloat16", logits=logits.astype(ml_dtypes.bfloat16)).verdict == "pass"
    assert one(case(), "float32", logits=logits.astype(ml_dtypes.bfloat16)).verdict == "fail"


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidInput, match="outputs: expected names of intermediates: word_embedding"):
        judge(case(), TIERS["float32"], {"logit": truth(case()).values["logits"]})


@pytest.mark.clause("NUM-10")
def test_where_rounding_decides_nothing_is_said():
    wild = case(qk_gain=60.0, gain=3.0, kind="real")
    judgements = {j.name: j for j in judge(wild, TIERS["bfloat16-scores"], reference(wild, "float32"))}
    assert judgements["layers.0.attention.query"].verdict == "pass"
    assert judgements["logits"].verdict == "inconclusive"
    assert "of the positions can be judged; at the others, rounding alone" in judgements["logits"].explanation
    assert one(wild, "float32", logits=truth(wild).values["logits"]).verdict == "pass"


@pytest.mark.clause("NUM-10")
def test_what_float16_cannot_hold_is_not_judged():
    big = case(gain=300.0)
    judgement = one(big, "float16", logits=truth(big).values["logits"])
    assert truth(big).largest > 65504.0
    assert judgement.verdict == "inconclusive"
    assert "which float16 cannot represent" in judgement.explanation


def test_a_batch_of_padding_passes():
    empty = case(kind="padding row", batch=1)
    assert not empty.is_real.any()
    assert one(empty, "float32", logits=np.full((1, 12, 50), np.nan)).verdict == "pass"


@pytest.mark.filterwarnings("error")
def test_a_wrong_number_may_be_huge():
    assert one(case(), "float32", logits=truth(case()).values["logits"] * 1e200).verdict == "fail"


@pytest.mark.clause("NUM-11")
def test_tiers():
    assert tier_of("bfloat16").name == "bfloat16"
    assert tier_of("bfloat16", "model").name == "bfloat16-scores"
    assert tier_of("float32", "model") is tier_of("float32") is TIERS["float32"]
    assert TIERS["float16"].scores < TIERS["float16-scores"].scores == TIERS["float16"].storage
    with pytest.raises(InvalidInput, match="dtype: expected one of float64"):
        tier_of("float8")
    with pytest.raises(InvalidInput, match="scores: expected 'float32' or 'model'"):
        tier_of("float16", "float16")


# --- the study ---------------------------------------------------------------------------------------------------


@pytest.mark.clause("NUM-9")
@pytest.mark.parametrize(
    "dtype",
    ["float32", *(pytest.param(name, marks=pytest.mark.slow) for name in budget_study.DTYPES if name != "float32")],
)
def test_no_false_alarm_in_a_piece_of_the_study(dtype):
    [counts] = budget_study.false_alarms(["numpy"], dtype, range(100_000, 100_010))
    assert counts["failures"] == []
    assert counts["pass"] >= (10 if dtype == "float32" else 3)


@pytest.mark.slow
def test_the_study_detects_a_mistake_and_prints_its_table(tmp_path, capsys):
    out = tmp_path / "study.json"
    budget_study.main(["--cases", "2", "--dtype", "float32", "--out", str(out)])
    budget_study.main(["--table", str(out)])
    assert "| numpy | float32 | 2 |" in capsys.readouterr().out
    caught = budget_study.detections("float32", range(100_000, 100_003))["Z > 5"]
    assert caught[max(caught, key=caught.get)] == 1.0


def test_the_page_shows_the_measured_tables():
    docs = Path(__file__).parents[2] / "docs"
    page, results = (docs / "budgets.md").read_text("utf-8"), json.loads((docs / "budgets.json").read_text("utf-8"))
    assert budget_study.table(results) in page
    assert budget_study.detection_table(results) in page
