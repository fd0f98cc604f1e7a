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

HOLES = "transformers_hole"
FLOAT64 = [path for path in files.paths("transformers_*") if path.stem != HOLES]
FLOAT32 = files.paths("keras_hub_*")


def by_name(path: Path) -> str:
    return path.stem


def stored(golden: Golden, result: compare.Arrays, expected: compare.Arrays) -> compare.Arrays:
    """The expected arrays in full size; `result` fills the positions that the file does not store."""
    whole = {name: np.array(result[name]) for name in expected}
    for name, array in expected.items():
        whole[name][:, golden.positions] = array
    return whole


def outside(golden: Golden) -> list[str]:
    """What the file has outside the kit's budget; in both runs, if it has two."""
    kit_case, exact, dtype = compare.kit_case(golden.case), compare.whole(golden.case), golden.provenance["dtype"]
    runs = [run for run in (golden.expected, golden.expected_cached) if run]
    return [line for run in runs for line in compare.outside(kit_case, stored(golden, exact, run), dtype)]


def unnoticed(golden: Golden, by: float) -> list[str]:
    """Weights whose change by `by` keeps every stored number within the budget."""
    kit_case, dtype, blind = compare.kit_case(golden.case), golden.provenance["dtype"], []
    exact = compare.whole(golden.case)
    for key in golden.weights:
        wrong = compare.whole(changed(golden.case, key, by))
        differing = {name: wrong[name][:, golden.positions] for name in golden.expected}
        if not compare.outside(kit_case, stored(golden, exact, differing), dtype):
            blind.append(key)
    return blind


def changed(case: ParityCase, key: str, by: float) -> ParityCase:
    arrays = {name: array.reshape(row.hf_shape(case.config)) for name, row, array in case.params.named()}
    noise = np.random.default_rng(0).standard_normal(arrays[key].shape)
    return replace(case, params=Params.from_named(case.config, arrays | {key: arrays[key] + by * noise}))


@pytest.mark.parametrize("path", FLOAT64, ids=by_name)
def test_transformers_in_float64(path: Path):
    golden = files.read(path)
    assert list(golden.expected_cached) == ["final_norm", "logits"]
    assert set(golden.expected) == set(compare.names(golden.case.config))
    assert outside(golden) == []


@pytest.mark.parametrize("path", FLOAT32, ids=by_name)
def test_keras_hub_in_float32(path: Path):
    assert outside(files.read(path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("path", "by"), [(path, 1e-6) for path in FLOAT64] + [(path, 1e-3) for path in FLOAT32])
def test_a_small_change_of_any_weight_is_detected(path: Path, by: float):
    assert unnoticed(files.read(path), by) == []


@pytest.mark.clause("ALI-4")
def test_transformers_deletes_the_tokens_in_a_hole():
    golden = files.read(files.FOLDER / f"{HOLES}.safetensors")
    ours = compare.whole(golden.case)["logits"]
    for row, real in enumerate(golden.case.is_real):
        ids = golden.case.token_ids[row][real][None]
        shorter = replace(golden.case, token_ids=ids, is_real=np.ones_like(ids, bool), pieces=(ids.size,))
        theirs = {name: array[row : row + 1, real] for name, array in golden.expected.items()}
        assert compare.outside(compare.kit_case(shorter), theirs) == []
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
