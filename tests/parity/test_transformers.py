"""bloomref against transformers, on the same weights.

In float64 every state must be within the kit's rounding budget. transformers has no float64 BLOOM as installed: the
softmax and the ALiBi slopes of a float64 model are float32. Both are lifted to float64 for the comparison, by
`hugging_face.in_float64`, and a test below shows the result without it. In 16 bits transformers rounds after every
operation, and attention scores, too: there bloomref must be the more accurate of the two.
"""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers")):
    pytest.skip("needs torch and transformers: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
from parity import compare, hugging_face
from parity.cases import HEADS, PADDINGS, ParityCase, case, case_of, with_holes

from bloomref.config import BloomConfig
from bloomref.dtypes import floating_dtype
from bloomref.params import Params

QUICK, ALL = range(40), range(240)
SEEDS = [seed if seed in QUICK else pytest.param(seed, marks=pytest.mark.slow) for seed in ALL]


def small(num_heads: int, head_dim: int, **changes: object) -> BloomConfig:
    width = num_heads * head_dim
    sizes = {"vocabulary_size": 61, "num_layers": 2, "num_heads": num_heads, "hidden_dim": width}
    return BloomConfig(**sizes, intermediate_dim=4 * width, **changes)


@pytest.mark.clause("MOD-3")
@pytest.mark.parametrize("seed", SEEDS)
def test_every_state_and_the_logits(seed: int):
    """In one pass, and over a cache."""
    drawn = case(seed)
    with hugging_face.in_float64():
        model = hugging_face.build(drawn.config, drawn.params)
        results = hugging_face.whole(model, drawn), hugging_face.pieces(model, drawn)
    kit_case = compare.kit_case(drawn)
    assert [compare.outside(kit_case, result) for result in results] == [[], []]


@pytest.mark.parametrize("seeds", [QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_what_is_drawn(seeds: range):
    cases = [case(seed) for seed in seeds]
    configs = [drawn.config for drawn in cases]
    assert {config.num_heads for config in configs} == set(HEADS)
    assert {config.num_heads for drawn, config in zip(cases, configs, strict=True) if is_long(drawn)} >= {3, 9, 12, 24}
    assert {drawn.padding for drawn in cases} == set(PADDINGS)
    assert {drawn.padding for drawn in cases if is_long(drawn)} == set(PADDINGS)
    assert {config.apply_residual_connection_post_layernorm for config in configs} == {True, False}
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    assert {config.layer_norm_epsilon for config in configs} == {1e-12, 1e-6, 1e-5, 1e-3}
    assert {drawn.params.word_embedding.std() < 4e-3 for drawn in cases} == {True, False}
    assert all(np.any(array) for drawn in cases for key, _, array in drawn.params.named() if key.endswith("bias"))
    assert sum(len(drawn.pieces) > 1 for drawn in cases) > 0.8 * len(cases)


def is_long(drawn: ParityCase) -> bool:
    return drawn.token_ids.shape[1] > 257


def test_weights_are_exact_in_16_bits():
    drawn = case(11)
    for dtype in ("bfloat16", "float16", "float32"):
        rounded = drawn.params.astype(floating_dtype(dtype))
        for (key, _, exact), (_, _, narrow) in zip(drawn.params.named(), rounded.named(), strict=True):
            np.testing.assert_array_equal(exact, narrow.astype(np.float64), key)


def test_without_the_patch_transformers_is_not_float64():
    drawn = case_of(1, small(12, 4), batch=2, time=20, padding="real")
    model = hugging_face.build(drawn.config, drawn.params)
    theirs, kit_case = hugging_face.whole(model, drawn), compare.kit_case(drawn)
    assert len(compare.outside(kit_case, theirs)) == len(theirs) - 1
    assert compare.outside(kit_case, {"embedding_norm": theirs["embedding_norm"]}) == []  # no softmax, no slope so far
    differences = compare.differences(compare.whole(drawn), theirs, drawn.is_real)
    assert max(differences.values()) < 1e-5, differences


def test_without_the_patch_left_padding_gives_nan():
    drawn = case_of(2, small(3, 4), batch=2, time=9, padding="left")
    model = hugging_face.build(drawn.config, drawn.params)
    padded = ~drawn.is_real.all(axis=1)
    assert padded.any()
    assert np.isnan(hugging_face.whole(model, drawn)["logits"][padded][drawn.is_real[padded]]).all()
    with hugging_face.in_float64():
        assert compare.outside(compare.kit_case(drawn), hugging_face.whole(model, drawn)) == []


def test_the_comparison_sees_a_change_of_one_millionth_in_any_weight():
    drawn = case_of(3, small(3, 4, tie_word_embeddings=False), batch=2, time=9, padding="mixed")
    kit_case, rng = compare.kit_case(drawn), np.random.default_rng(0)
    arrays = {key: array.reshape(row.hf_shape(drawn.config)) for key, row, array in drawn.params.named()}
    for key, array in arrays.items():
        nearby = arrays | {key: array + 1e-6 * rng.standard_normal(array.shape)}
        changed = compare.whole(drawn, params=Params.from_named(drawn.config, nearby))
        assert compare.outside(kit_case, changed), key


# --- interior holes of the mask ------------------------------------------------------------------


def compacted(holed: ParityCase, row: int) -> ParityCase:
    """One row of a case with its masked tokens deleted."""
    ids = holed.token_ids[row][holed.is_real[row]][None]
    return replace(holed, token_ids=ids, is_real=np.ones_like(ids, bool), padding="real", pieces=(ids.size,))


@pytest.mark.clause("ALI-4")
@pytest.mark.parametrize("num_heads", [3, 12])
def test_transformers_answers_the_text_without_the_masked_tokens(num_heads: int):
    """A hole shifts nothing in bloomref (nor in KerasHub: see test_keras_hub); in transformers it deletes the token."""
    holed = with_holes(case_of(4, small(num_heads, 4), batch=3, time=14, padding="real"))
    model = hugging_face.build(holed.config, holed.params)
    with hugging_face.in_float64():
        theirs = hugging_face.whole(model, holed)
    ours = compare.whole(holed)
    for row, real in enumerate(holed.is_real):
        deleted = compare.kit_case(compacted(holed, row))
        assert compare.outside(deleted, {name: value[row : row + 1, real] for name, value in theirs.items()}) == []
        assert compare.relative(ours["logits"][row][real], theirs["logits"][row][real]) > 1e-3


# --- 16 bits -------------------------------------------------------------------------------------

NARROW = [case_of(5, small(12, 4), 2, 300, "right"), case_of(6, small(16, 4), 1, 600, "real")]
NARROW += [case(seed) for seed in range(0, 60, 3)]
NARROW[8:] = [pytest.param(drawn, marks=pytest.mark.slow) for drawn in NARROW[8:]]


@pytest.mark.clause("NUM-2")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("drawn", NARROW, ids=lambda drawn: f"{drawn.config.num_heads}x{drawn.token_ids.shape[1]}")
def test_in_16_bits_bloomref_is_nearer_to_float64(drawn: ParityCase, dtype: str):
    truth, ours = compare.whole(drawn), compare.whole(drawn, dtype)
    theirs = hugging_face.whole(hugging_face.build(drawn.config, drawn.params, getattr(torch, dtype)), drawn)
    for name in ("final_norm", "logits"):
        at = drawn.is_real
        our_error = compare.rms_error(ours[name][at], truth[name][at])
        assert our_error <= compare.rms_error(theirs[name][at], truth[name][at])


@pytest.mark.clause("NUM-2")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_in_16_bits_are_what_costs_transformers_its_accuracy(dtype: str):
    """The bias grows with the length, and with it the rounding of the scores: bloomref's error does not grow."""
    errors = []
    for time in (30, 600):
        drawn = case_of(6, small(16, 4), batch=1, time=time, padding="real")
        truth = compare.whole(drawn)["logits"]
        theirs = hugging_face.whole(hugging_face.build(drawn.config, drawn.params, getattr(torch, dtype)), drawn)
        errors.append(
            [compare.rms_error(logits, truth) for logits in (compare.whole(drawn, dtype)["logits"], theirs["logits"])]
        )
    (ours_short, theirs_short), (ours_long, theirs_long) = errors
    assert ours_long < 1.5 * ours_short
    assert theirs_long > 4 * theirs_short
