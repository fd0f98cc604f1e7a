"""bloomref against KerasHub, on the same weights, in float32: KerasHub has no float64 (see keras_hub_peer).

The limit is the kit's rounding budget. A wrong definition on either side exceeds it by far: the control below detects a
change of 1e-4 in one weight.
"""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

if not find_spec("keras_hub"):
    pytest.skip("needs keras_hub and a Keras backend, in a separate environment", allow_module_level=True)

from parity import compare, keras_hub_peer
from parity.cases import ParityCase, case_of, with_holes

from bloomref import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.params import Params, count_params

# Warnings of the imports of Keras, JAX and TensorFlow say nothing about the results.
pytestmark = pytest.mark.filterwarnings("ignore")

# Widths of head and MLP that transformers cannot express; 12 heads have slopes that are no powers of two.
CONFIGS = (
    BloomConfig(vocabulary_size=61, num_layers=2, num_heads=12, hidden_dim=36, intermediate_dim=50),
    BloomConfig(
        vocabulary_size=23, num_layers=3, num_heads=5, hidden_dim=20, intermediate_dim=33, layer_norm_epsilon=1e-3
    ),
)
PADDINGS = ("real", "right", "left", "mixed", "holes")


def drawn(which: int, padding: str, time: int) -> ParityCase:
    batch = case_of(20 + which, CONFIGS[which], batch=3, time=time, padding="real" if padding == "holes" else padding)
    return with_holes(batch) if padding == "holes" else batch


@cache
def peer(which: int) -> keras_hub_peer.Peer:
    return keras_hub_peer.Peer(CONFIGS[which], drawn(which, "real", 1).params)


@pytest.mark.parametrize("time", [13, pytest.param(270, marks=pytest.mark.slow)])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("which", range(len(CONFIGS)))
def test_hidden_states_and_logits(which: int, padding: str, time: int):
    batch = drawn(which, padding, time)
    theirs = {"final_norm": peer(which).hidden(batch), "logits": peer(which).logits(batch)}
    assert compare.outside(compare.kit_case(batch), theirs, "float32") == []


@pytest.mark.clause("ALI-4")
def test_a_hole_of_the_mask_leaves_the_positions_of_the_others():
    """Deleting the masked tokens, as transformers does, is another function:
    KerasHub is a thousand times nearer to ours.
    """
    batch = drawn(0, "holes", 13)
    theirs = peer(0).logits(batch)
    ours = compare.whole(batch)["logits"]
    for row, real in enumerate(batch.is_real):
        ids = batch.token_ids[row][real][None]
        deleted = replace(batch, token_ids=ids, is_real=np.ones_like(ids, bool), pieces=(ids.size,))
        near = compare.rms_error(theirs[row][real], ours[row][real])
        assert 1000 * near < compare.rms_error(theirs[row][real], compare.whole(deleted)["logits"][0])


def test_the_bound_sees_a_change_of_1e_4_in_one_weight():
    batch = drawn(0, "mixed", 13)
    arrays = {key: array.reshape(row.hf_shape(batch.config)) for key, row, array in batch.params.named()}
    arrays["h.1.mlp.dense_4h_to_h.weight"] = arrays["h.1.mlp.dense_4h_to_h.weight"] * (1 + 1e-4)
    changed = replace(batch, params=Params.from_named(batch.config, arrays))
    assert compare.outside(compare.kit_case(changed), {"final_norm": peer(0).hidden(batch)}, "float32")


def test_without_a_mask_every_token_is_real():
    batch = drawn(1, "real", 13)
    assert compare.outside(compare.kit_case(batch), {"final_norm": peer(1).hidden(batch)}, "float32") == []


def test_token_embedding_in_both_directions():
    batch = drawn(1, "real", 13)
    model = BloomBackbone.from_params(batch.config, batch.params, "float32")
    np.testing.assert_array_equal(model.token_embedding(batch.token_ids), peer(1).embed(batch.token_ids))

    hidden = compare.whole(batch)["final_norm"].astype(np.float32)
    logits = {"ours": model.token_embedding(hidden, reverse=True), "theirs": peer(1).unembed(hidden)}
    for name, result in logits.items():
        assert compare.outside(compare.kit_case(batch), {"logits": result}, "float32") == [], name


def test_the_table_of_weights_names_every_variable():
    assert peer(0).backbone.count_params() == count_params(CONFIGS[0])
