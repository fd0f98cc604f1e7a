"""Embeddings in place of token ids: they give what their ids give, on every backend, with every mask."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_lm, models

from bloomref import BloomConfig, InvalidInput, Unsupported

CONFIG = BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24)
LM = make_lm(CONFIG)
IDS = np.array([[3, 4, 5], [0, 6, 7]])


@pytest.mark.clause("EMB-7")
@settings(max_examples=10)
@given(models(), st.lists(st.integers(0, 1), min_size=4, max_size=4))
def test_embeddings_of_ids_give_what_the_ids_give(drawn: Any, mask: list[int]) -> None:
    model = drawn.lm.backbone
    ids = np.arange(4)[None] % model.config.vocabulary_size
    inputs: Any = {"inputs_embeds": model.token_embedding(ids), "attention_mask": [mask]}
    np.testing.assert_array_equal(model(inputs), model({"token_ids": ids, "padding_mask": [mask]}))
    np.testing.assert_array_equal(drawn.lm.logits(inputs), drawn.lm.logits({"token_ids": ids, "padding_mask": [mask]}))


X = np.zeros((1, 3, 12))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs_embeds": X[0]}, r"shape \(batch, time, 12\), got shape \(3, 12\)"),
        ({"inputs_embeds": X[:, :, 1:]}, r"shape \(batch, time, 12\)"),
        ({"inputs_embeds": X.astype(int)}, "floating numbers, got dtype int64"),
        ({"inputs_embeds": X * np.nan}, "finite numbers"),
        ({"inputs_embeds": X, "padding_mask": [[1, 1]]}, "padding_mask: expected the shape"),
        ({"inputs_embeds": X, "token_ids": [[1, 2, 3]]}, r"also \['token_ids'\]"),
    ],
)
def test_wrong_embeddings_are_refused(inputs: Any, message: str) -> None:
    for call in (LM.backbone, LM.logits):
        with pytest.raises(InvalidInput, match=message):
            call(inputs)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"penalty_alpha": 0.5, "top_k": 3}, {"top_k": 5, "seed": 1}],
    ids=str,
)
def test_generation_after_embeddings_is_that_after_their_ids(options: Any) -> None:
    """The continuation alone, in the rows of a dictionary; a mask may have holes."""
    ids, mask = np.array([[0, 3, 4, 5], [6, 7, 8, 0]]), np.array([[0, 1, 0, 1], [1, 1, 1, 0]])
    options = options | {"max_new_tokens": 3, "stop_token_ids": None}
    vectors = LM.backbone.token_embedding(ids)
    expected = LM.generate({"token_ids": ids, "padding_mask": mask}, strip_prompt=True, **options)
    for got in (
        LM.generate({"inputs_embeds": vectors, "padding_mask": mask}, **options),
        LM.generate(inputs_embeds=vectors, attention_mask=mask, **options),
    ):
        np.testing.assert_array_equal(got["token_ids"], expected["token_ids"])
    with pytest.raises(InvalidInput, match="a real position in every row"):
        LM.generate({"inputs_embeds": vectors, "padding_mask": mask * 0})


def test_where_ids_are_needed_embeddings_are_refused_with_a_way_out() -> None:
    for call in (
        lambda: LM.loss_and_gradients({"inputs_embeds": X}),
        lambda: LM.backbone.trace({"inputs_embeds": X}),
    ):
        with pytest.raises(InvalidInput, match=r"inputs: expected token ids here, got inputs_embeds; .*lm\.logits"):
            call()
    with pytest.raises(Unsupported, match="training: expected token ids"):
        LM.backbone({"inputs_embeds": X}, training=True)
    assert LM.backbone({"inputs_embeds": None, "token_ids": IDS}).shape == (2, 3, 12)
