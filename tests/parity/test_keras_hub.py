"""bloomref against KerasHub, on the same weights, in float32: KerasHub has no float64 (see keras_hub_peer).

The bound is not picked: KerasHub's distance from bloomref's float64 model may be four times that of bloomref's own
float32 model. A wrong definition on either side is far beyond that: the control below sees one weight in 1e-4.
"""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

if not find_spec("keras_hub"):
    pytest.skip("needs keras_hub and a Keras backend, in an environment of their own", allow_module_level=True)

from parity import compare, keras_hub_peer
from parity.cases import ParityCase, case_of, with_holes

from bloomref import BloomBackbone
from bloomref.config import BloomConfig
from bloomref.params import Params, count_params

# What the imports of Keras, JAX and TensorFlow warn of is no news about the results.
pytestmark = pytest.mark.filterwarnings("ignore")

# Widths of head and MLP that transformers cannot express; 12 heads have slopes that are no powers of two.
CONFIGS = (
    BloomConfig(vocabulary_size=61, num_layers=2, num_heads=12, hidden_dim=36, intermediate_dim=50),
    BloomConfig(
        vocabulary_size=23, num_layers=3, num_heads=5, hidden_dim=20, intermediate_dim=33, layer_norm_epsilon=1e-3
    ),
)
PADDINGS = ("none", "right", "left", "mixed", "hole")


def drawn(which: int, padding: str, time: int) -> ParityCase:
    made = case_of(20 + which, CONFIGS[which], batch=3, time=time, padding="none" if padding == "hole" else padding)
    return with_holes(made) if padding == "hole" else made


@cache
def peer(which: int) -> keras_hub_peer.Peer:
    return keras_hub_peer.Peer(CONFIGS[which], drawn(which, "none", 1).params)


@pytest.mark.parametrize("time", [13, pytest.param(270, marks=pytest.mark.slow)])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("which", range(len(CONFIGS)))
def test_hidden_states_and_logits(which: int, padding: str, time: int):
    made = drawn(which, padding, time)
    truth, ours = compare.whole(made), compare.whole(made, "float32")
    theirs = {"final_norm": peer(which).hidden(made), "logits": peer(which).logits(made)}
    for name, result in theirs.items():
        at = made.is_real
        assert compare.within_float32(result[at], ours[name][at], truth[name][at]), name


@pytest.mark.clause("ALI-4")
def test_a_hole_of_the_mask_leaves_the_positions_of_the_others():
    """Deleting the masked tokens, as transformers does, is another function: KerasHub is a thousand times nearer to ours."""
    made = drawn(0, "hole", 13)
    theirs = peer(0).logits(made)
    ours = compare.whole(made)["logits"]
    for row, real in enumerate(made.is_real):
        ids = made.token_ids[row][real][None]
        deleted = replace(made, token_ids=ids, is_real=np.ones_like(ids, bool), pieces=(ids.size,))
        near = compare.rms_error(theirs[row][real], ours[row][real])
        assert 1000 * near < compare.rms_error(theirs[row][real], compare.whole(deleted)["logits"][0])


def test_the_bound_sees_a_change_of_1e_4_in_one_weight():
    made = drawn(0, "mixed", 13)
    arrays = {key: array.reshape(row.hf_shape(made.config)) for key, row, array in made.params.named()}
    arrays["h.1.mlp.dense_4h_to_h.weight"] = arrays["h.1.mlp.dense_4h_to_h.weight"] * (1 + 1e-4)
    changed = replace(made, params=Params.from_named(made.config, arrays))
    theirs, at = peer(0).hidden(made), made.is_real
    ours, truth = compare.whole(changed, "float32")["final_norm"], compare.whole(changed)["final_norm"]
    assert not compare.within_float32(theirs[at], ours[at], truth[at])


def test_without_a_mask_every_token_is_real():
    made = drawn(1, "none", 13)
    model = BloomBackbone.from_params(made.config, made.params, "float32")
    ours, truth = model({"token_ids": made.token_ids}), compare.whole(made)["final_norm"]
    assert compare.within_float32(peer(1).hidden(made), ours, truth)


def test_token_embedding_in_both_directions():
    made = drawn(1, "none", 13)
    model = BloomBackbone.from_params(made.config, made.params, "float32")
    np.testing.assert_array_equal(model.token_embedding(made.token_ids), peer(1).embed(made.token_ids))

    hidden = compare.whole(made)["final_norm"].astype(np.float32)
    truth = hidden.astype(np.float64) @ made.params.word_embedding.T
    ours = model.token_embedding(hidden, reverse=True)
    assert compare.within_float32(peer(1).unembed(hidden), ours, truth)


def test_the_table_of_weights_names_every_variable():
    assert peer(0).backbone.count_params() == count_params(CONFIGS[0])
