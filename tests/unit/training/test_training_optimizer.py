"""AdamW, clipping and the schedule; where torch is installed, against torch."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.errors import BadWeights, InvalidInput
from bloomref.training.optimizer import AdamW, clip_by_norm, learning_rate
from bloomref.training.settings import Settings

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: pip install 'bloomref[peers]'")
SHAPES = {"matrix": (300, 70), "cube": (4, 3, 5), "bias": (7,), "empty": (0, 3)}


def drawn(rng: np.random.Generator, dtype: str = "float64") -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def make(variables: dict[str, np.ndarray], **changes: float) -> AdamW:
    settings = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.2} | changes
    return AdamW.create(variables, frozenset({"matrix", "cube"}), **settings)


@needs_torch
@pytest.mark.clause("TRN-9", "TRN-11")
@pytest.mark.parametrize(("beta1", "beta2", "epsilon", "decay"), [(0.9, 0.999, 1e-8, 0.01), (0.8, 0.95, 1e-4, 0.2)])
def test_the_update_is_that_of_torch(beta1: float, beta2: float, epsilon: float, decay: float) -> None:
    import torch

    rng = np.random.default_rng(0)
    ours = drawn(rng)
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in ours.items()}
    groups = [
        {"params": [theirs["matrix"], theirs["cube"]], "weight_decay": decay},
        {"params": [theirs["bias"], theirs["empty"]], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=epsilon)
    optimizer = make(ours, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay)
    for step in range(20):
        gradients, rate = drawn(rng), 10.0 ** -rng.integers(1, 4)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradients[name].copy())
        for group in peer.param_groups:
            group["lr"] = rate
        limit = [0.5, 1e6][step % 2]
        norm = float(torch.nn.utils.clip_grad_norm_(list(theirs.values()), limit))
        assert clip_by_norm(gradients, limit) == pytest.approx(norm, rel=1e-14)
        peer.step()
        optimizer.update(ours, gradients, rate)
        for name, array in ours.items():
            np.testing.assert_allclose(array, theirs[name].detach().numpy(), rtol=1e-13, atol=1e-14)


@pytest.mark.clause("TRN-9")
def test_decay_acts_on_the_named_alone_and_apart_from_the_gradient() -> None:
    variables = {name: np.ones(shape) for name, shape in SHAPES.items()}
    make(variables).update(variables, {name: np.zeros(shape) for name, shape in SHAPES.items()}, 0.1)
    assert np.allclose(variables["matrix"], 1 - 0.1 * 0.2)
    assert np.array_equal(variables["bias"], np.ones(7))


@pytest.mark.clause("TRN-9")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_keep_their_place_and_their_dtype(dtype: str) -> None:
    variables = drawn(np.random.default_rng(1), dtype)
    before = dict(variables)
    optimizer = make(variables)
    optimizer.update(variables, drawn(np.random.default_rng(2), dtype), 0.1)
    assert all(variables[name] is before[name] for name in before)
    assert {array.dtype.name for pair in optimizer.moments.values() for array in (*pair, *variables.values())} == {
        dtype
    }


@pytest.mark.clause("TRN-9")
def test_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for piece in (7, 1 << 20):
        monkeypatch.setattr("bloomref.training.optimizer._CHUNK", piece)
        variables, rng = drawn(np.random.default_rng(3)), np.random.default_rng(4)
        optimizer = make(variables)
        for _ in range(3):
            optimizer.update(variables, drawn(rng), 0.1)
        results.append(variables)
    assert all(np.array_equal(results[0][name], results[1][name]) for name in SHAPES)


# --- clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("TRN-11")
@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_the_norm_after_clipping_is_at_most_the_limit(limit: float, seed: int) -> None:
    gradients = drawn(np.random.default_rng(seed))
    before = {name: array.copy() for name, array in gradients.items()}
    norm = clip_by_norm(gradients, limit)
    assert norm == pytest.approx(math.sqrt(sum(np.square(array).sum() for array in before.values())))
    assert clip_by_norm(gradients, None) <= limit * (1 + 1e-12) or norm <= limit
    scale = min(1.0, limit / (norm + 1e-6))
    assert all(np.allclose(gradients[name], before[name] * scale, rtol=1e-12) for name in before)


@pytest.mark.clause("TRN-11")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_is_refused(value: float) -> None:
    gradients = drawn(np.random.default_rng(0))
    gradients["cube"][1, 1, 1] = value
    with pytest.raises(BadWeights, match="gradients: expected a finite norm"):
        clip_by_norm(gradients, None)


# --- schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("TRN-10")
def test_warm_up_then_cosine() -> None:
    settings = Settings(learning_rate=4.0, warmup=4, final_rate=0.05)
    rates = [learning_rate(step, 104, settings) for step in range(104)]
    assert rates[:5] == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert rates[54] == pytest.approx(4.0 * (0.05 + 0.95 * 0.5))
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(4.0 * 0.05, rel=0.01)


@pytest.mark.clause("TRN-10")
def test_a_constant_rate() -> None:
    settings = Settings(learning_rate=0.5, final_rate=1.0)
    assert {learning_rate(step, 9, settings) for step in range(9)} == {0.5}


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.clause("TRN-17")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("epochs", 0.0),
        ("epochs", math.inf),
        ("batch", True),
        ("batch", None),
        ("accumulate", 1.0),
        ("context", 1),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("warmup", -1),
        ("final_rate", 1.1),
        ("weight_decay", "0.1"),
        ("beta1", 1.0),
        ("clip", 0.0),
        ("hidden_dropout", 1.0),
        ("seed", None),
        ("held_out", 1.0),
        ("keep_best", 1),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"^{name}: expected "):
        Settings.create(**{name: value})


@pytest.mark.clause("TRN-17")
def test_an_unknown_setting_is_named_with_its_neighbour() -> None:
    with pytest.raises(InvalidInput, match=r"learning_rat: .* did you mean learning_rate"):
        Settings.create(learning_rat=1.0)
