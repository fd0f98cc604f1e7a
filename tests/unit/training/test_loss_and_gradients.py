"""`loss_and_gradients` of the public classes: inputs, results and refusals. test_vjp tests the gradients."""

from typing import Any

import numpy as np
import pytest

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput, Unsupported
from bloomref.params import init_params
from bloomref.runtime.backend import API_VERSION

CONFIG = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=20)


IDS = [[1, 2, 3, 4], [5, 6, 7, 8]]


def language_model(**options: Any) -> BloomCausalLM:
    return BloomCausalLM(BloomBackbone.from_params(CONFIG, init_params(CONFIG, 0), **options))


@pytest.mark.clause("GRD-2", "GRD-4")
def test_the_public_api():
    lm, mask = language_model(), [[0, 1, 1, 1], [1, 1, 1, 1]]
    value, found = lm.loss_and_gradients({"token_ids": IDS, "padding_mask": mask})
    scores = [lm.score([2, 3, 4]), lm.score(IDS[1])]
    assert value == pytest.approx(-sum(score.log_likelihood for score in scores) / 5, rel=1e-6)
    config = lm.backbone.config
    assert {key: g.shape for key, g in found.items()} == {k: w.hf_shape(config) for k, w, _ in lm.params.named()}
    labels = [[-100, -100, 3, -100], [-100] * 4]
    only_third, _ = lm.loss_and_gradients({"token_ids": IDS, "padding_mask": mask, "labels": labels})
    assert only_third == pytest.approx(-lm.score([3], context=[2]).log_likelihood, rel=1e-6)


@pytest.mark.clause("GRD-6")
def test_the_public_api_returns_gradients_of_trainable_weights_only():
    lm = language_model()
    lm.backbone.trainable = False
    assert lm.loss_and_gradients({"token_ids": IDS})[1] == {}
    lm.enable_lora(2)
    found = lm.loss_and_gradients({"token_ids": IDS})[1]
    variables = lm.trainable_variables()
    assert variables
    assert {key: g.shape for key, g in found.items()} == {key: v.shape for key, v in variables.items()}


@pytest.mark.clause("GRD-5")
def test_a_mixed_policy_has_the_gradients_of_the_rounded_weights():
    batch = {"token_ids": IDS}
    mixed, pure = (language_model(dtype=d).loss_and_gradients(batch) for d in ("mixed_bfloat16", "bfloat16"))
    assert mixed[0] == pure[0]
    assert all(g.tobytes() == pure[1][key].tobytes() and g.dtype == np.float32 for key, g in mixed[1].items())


@pytest.mark.clause("GRD-10")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2, 3, 4]], r"labels: expected the shape of token_ids, \(2, 4\), got shape \(1, 4\)"),
        ([[1.0] * 4] * 2, "labels: expected integers, got dtype float64"),
        ([[True] * 4] * 2, "labels: expected integers, got dtype bool"),
        ([[1, 2, 3, 11]] * 2, r"labels: expected ids in \[0, 11\), or -100 to ignore one, got 11"),
        ([[1, 2, 3, -1]] * 2, "got -1"),
        (np.full((2, 4), 2**64 - 100, np.uint64), "got 18446744073709551516"),
        ([[1, 2], [3]], "labels: expected a rectangular array"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(InvalidInput, match=message):
        language_model().loss_and_gradients({"token_ids": IDS, "labels": labels})


@pytest.mark.clause("GRD-10")
@pytest.mark.parametrize("inputs", [IDS, {"labels": IDS}, {"token_ids": IDS, "label": IDS}, {"token_ids": [[99]]}])
def test_other_inputs_are_refused_as_everywhere(inputs):
    with pytest.raises(InvalidInput):
        language_model().loss_and_gradients(inputs)


@pytest.mark.clause("GRD-10")
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32])
def test_labels_of_any_integer_dtype(dtype):
    batch, lm = {"token_ids": IDS}, language_model()
    assert lm.loss_and_gradients(batch | {"labels": np.array(IDS, dtype)})[0] == lm.loss_and_gradients(batch)[0]


class FakeBackend:
    """The required methods, none of which is called."""

    name = "fake"
    api_version = API_VERSION

    def unsupported(self, *_): ...

    def prepare(self, *_): ...


@pytest.mark.clause("GRD-13")
def test_a_backend_without_gradients_refuses(monkeypatch):
    lm = language_model()
    monkeypatch.setattr(lm.backbone.engine, "runs_on", FakeBackend())
    with pytest.raises(Unsupported, match="expected a backend that has them, such as 'numpy', got 'fake'"):
        lm.loss_and_gradients({"token_ids": IDS})
