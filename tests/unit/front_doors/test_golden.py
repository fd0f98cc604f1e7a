"""bloomref compared with stored results of transformers and KerasHub; needs neither of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden import files
from golden.files import Golden
from parity import compare
from parity.cases import ParityCase

from bloomref.params import Params

LIMIT = 1e-11
HOLES = "transformers_hole"
FLOAT64 = [path for path in files.paths("transformers_*") if path.stem != HOLES]
FLOAT32 = files.paths("keras_hub_*")


def by_name(path: Path) -> str:
    return path.stem


def compare_float64(golden: Golden, case: ParityCase) -> dict[str, float]:
    """Both runs of a file from transformers, by name: the largest relative difference."""
    whole, cached = compare.whole(case), compare.pieces(case)
    differences = {}
    for label, result, expected in (("", whole, golden.expected), ("cached ", cached, golden.expected_cached)):
        ours, theirs = golden.selected(result, expected)
        differences |= {label + name: compare.relative(ours[name], theirs[name]) for name in ours}
    return differences


def within_float32(golden: Golden, case: ParityCase) -> bool:
    """The criterion of `parity.test_keras_hub`."""
    truth, theirs = golden.selected(compare.whole(case), golden.expected)
    ours, _ = golden.selected(compare.whole(case, "float32"), golden.expected)
    return all(compare.within_float32(theirs[name], ours[name], truth[name]) for name in theirs)


def changed(case: ParityCase, key: str, by: float) -> ParityCase:
    arrays = {name: array.reshape(row.hf_shape(case.config)) for name, row, array in case.params.named()}
    noise = np.random.default_rng(0).standard_normal(arrays[key].shape)
    return replace(case, params=Params.from_named(case.config, arrays | {key: arrays[key] + by * noise}))


@pytest.mark.parametrize("path", FLOAT64, ids=by_name)
def test_transformers_in_float64(path: Path):
    golden = files.read(path)
    assert list(golden.expected_cached) == ["final_norm", "logits"]
    assert set(golden.expected) == set(compare.names(golden.case.config))
    differences = compare_float64(golden, golden.case)
    assert max(differences.values()) <= LIMIT, differences


@pytest.mark.parametrize("path", FLOAT64, ids=by_name)
def test_a_weight_off_by_1e_6_is_detected(path: Path):
    golden = files.read(path)
    for key in golden.weights:
        assert max(compare_float64(golden, changed(golden.case, key, 1e-6)).values()) > LIMIT, key


@pytest.mark.parametrize("path", FLOAT32, ids=by_name)
def test_keras_hub_in_float32(path: Path):
    golden = files.read(path)
    assert within_float32(golden, golden.case)


@pytest.mark.parametrize("path", FLOAT32, ids=by_name)
def test_a_weight_off_by_1e_3_is_detected_in_float32(path: Path):
    golden = files.read(path)
    for key in golden.weights:
        assert not within_float32(golden, changed(golden.case, key, 1e-3)), key


@pytest.mark.clause("ALI-4")
def test_transformers_deletes_the_tokens_in_a_hole():
    golden = files.read(files.FOLDER / f"{HOLES}.safetensors")
    ours = compare.whole(golden.case)["logits"]
    for row, real in enumerate(golden.case.is_real):
        ids = golden.case.token_ids[row][real][None]
        shorter = replace(golden.case, token_ids=ids, is_real=np.ones_like(ids, bool), pieces=(ids.size,))
        deleted = compare.whole(shorter)
        for name, theirs in golden.expected.items():
            assert compare.relative(deleted[name][0], theirs[row][real]) <= LIMIT, name
        assert compare.relative(ours[row][real], golden.expected["logits"][row][real]) > 1e-3


def test_what_the_files_hold():
    goldens = [files.read(path) for path in files.paths()]
    cases = [golden.case for golden in goldens]
    assert {case.padding for case in cases} == {"real", "left", "right", "mixed", "holes"}
    assert {case.config.apply_residual_connection_post_layernorm for case in cases} == {True, False}
    assert {case.config.tie_word_embeddings for case in cases} == {True, False}
    assert any(case.token_ids.shape[1] > 257 and case.config.num_heads == 12 for case in cases)
    assert sum(path.stat().st_size for path in files.paths()) < 300_000


@pytest.mark.parametrize("path", files.paths(), ids=by_name)
def test_provenance(path: Path):
    golden = files.read(path)
    assert golden.provenance["weights_sha256"] == files.fingerprint(golden.weights)
    assert {"peer", "versions", "seed", "command", "dtype", "config", "pieces"} <= set(golden.provenance)
    stored = {array.dtype for array in golden.expected.values()}
    assert stored == {np.dtype(golden.provenance["dtype"])}
