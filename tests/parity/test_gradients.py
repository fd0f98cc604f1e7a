"""Gradients against torch's autograd through transformers, in float64,
for every parameter and for the input embeddings.

As in test_transformers, softmax and slopes are lifted to float64. One more thing is replaced: the hand-written
derivative of transformers' GELU has a constant of ten digits, 0.1070322243 for 3 · 0.044715 · 0.79788456, which is
3e-12 off. Autograd through its forward replaces it. Adapters are compared with peft's, where it is installed.

Models of width 1 and 2 are left out: a layer norm over two numbers gives ±1 whatever they are, so that the gradients
below it are rounding errors of zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import pytest

if not (find_spec("torch") and find_spec("transformers")):
    pytest.skip("needs torch and transformers: pip install 'bloomref[peers]'", allow_module_level=True)

import torch
from parity import compare, hugging_face
from parity.cases import HEADS, PADDINGS, ParityCase, case, case_of
from transformers.models.bloom import modeling_bloom

from bloomref.config import IGNORED_LABEL, BloomConfig
from bloomref.conformance.properties import PROPERTIES
from bloomref.params import LoraFactors, Params, full_key, keys
from bloomref.reference import lora, loss, vjp

LIMIT = 1e-10
QUICK, ALL = range(80), range(320)


def wide_enough(seeds: range) -> list[int]:
    return [seed for seed in seeds if case(seed).config.hidden_dim > 2 and case(seed).token_ids.shape[1] > 1]


SEEDS = [seed if seed in QUICK else pytest.param(seed, marks=pytest.mark.slow) for seed in wide_enough(ALL)]


@contextmanager
def differentiable() -> Iterator[None]:
    """A context in which transformers is a float64 model and differentiates its GELU by autograd."""
    with (
        hugging_face.in_float64(),
        mock.patch.object(modeling_bloom.GeLUFunction, "apply", modeling_bloom.bloom_gelu_forward),
    ):
        yield


def draw_labels(drawn: ParityCase) -> np.ndarray:
    """Random labels, a fifth of them ignored."""
    rng = np.random.default_rng(drawn.seed)
    labels = rng.integers(0, drawn.config.vocabulary_size, drawn.token_ids.shape)
    labels[rng.random(labels.shape) < 0.2] = IGNORED_LABEL
    return labels


def theirs(model: torch.nn.Module, drawn: ParityCase, labels: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and the gradient of every parameter, by transformers' names, and of the `inputs`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    embedded: list[torch.Tensor] = []

    def retain(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = base.transformer.word_embeddings.register_forward_hook(retain)
    mask = None if drawn.mask is None else torch.from_numpy(drawn.mask)
    targets = torch.from_numpy(loss.targets(drawn.token_ids, drawn.is_real, labels, None))
    logits = model(torch.from_numpy(drawn.token_ids), attention_mask=mask).logits
    handle.remove()
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    value = total / max(1, int((targets != IGNORED_LABEL).sum()))
    value.backward()
    gradients = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
    return value.item(), gradients | {"inputs": embedded[0].grad.numpy()}


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference, relative to the largest magnitude, by name. Zeros must be zeros."""
    assert set(ours) == set(theirs)
    ratios = {}
    for key, expected in theirs.items():
        difference = np.abs(ours[key].reshape(expected.shape) - expected).max()
        largest = np.abs(expected).max()
        ratios[key] = difference / largest if largest else difference
    return ratios


def compared(drawn: ParityCase, gelu: Any = differentiable) -> tuple[list[str], dict[str, float]]:
    """torch's loss and gradients outside the kit's budget, and how much they differ from the reference's."""
    labels = draw_labels(drawn)
    with gelu():
        value, expected = theirs(hugging_face.build(drawn.config, drawn.params), drawn, labels)
    result = vjp.loss_and_gradients(drawn.params, drawn.config, drawn.token_ids, drawn.is_real, labels)
    ours = {key if key == "lm_head.weight" else f"transformer.{key}": g for key, g in result.gradients.items()}
    assert set(result.gradients) == {key for key, _ in keys(drawn.config)}
    differing = differences(ours | {"inputs": result.inputs}, expected)
    outside = []
    if drawn.token_ids.shape[1] <= PROPERTIES["gradients"].longest:
        outside = compare.outside_gradients(compare.kit_case(drawn, labels), value, expected)
    return outside, differing


@pytest.mark.clause("GRD-1", "GRD-2", "GRD-3", "GRD-4", "GRD-12")
@pytest.mark.parametrize("seed", SEEDS)
def test_every_parameter_and_the_inputs(seed: int):
    """The kit has budgets for the gradients of short texts, but not for the `inputs` of the embedding's gradient: these
    and long texts are compared with the reference."""
    outside, differing = compared(case(seed))
    assert outside == []
    assert max(differing.values()) <= LIMIT


@pytest.mark.parametrize("seeds", [QUICK, pytest.param(ALL, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_what_is_drawn(seeds: range):
    cases = [case(seed) for seed in wide_enough(seeds)]
    configs = [drawn.config for drawn in cases]
    assert len(cases) >= 50
    assert {config.num_heads for config in configs} == set(HEADS)
    assert {drawn.padding for drawn in cases} == set(PADDINGS)
    assert {config.apply_residual_connection_post_layernorm for config in configs} == {True, False}
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    assert any(drawn.token_ids.shape[1] > 257 for drawn in cases)
    counted = [(loss.targets(d.token_ids, d.is_real, draw_labels(d), None) != IGNORED_LABEL).sum() for d in cases]
    assert sum(number > 0 for number in counted) >= 50


def small(**changes: object) -> BloomConfig:
    sizes = {"vocabulary_size": 61, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "intermediate_dim": 48}
    return BloomConfig(**sizes, **changes)


def test_transformers_own_derivative_of_gelu_is_visible():
    drawn = case_of(1, small(), batch=2, time=20, padding="real")
    outside, as_it_is = compared(drawn, hugging_face.in_float64)
    assert outside
    below = {key: value for key, value in as_it_is.items() if "h.0." in key}
    assert 1e-14 < min(below.values()) < max(as_it_is.values()) < 1e-10
    assert compared(drawn)[0] == []


def test_the_comparison_sees_a_change_of_one_millionth_in_any_weight():
    drawn = case_of(3, small(tie_word_embeddings=False), batch=2, time=9, padding="mixed")
    kit_case, labels = compare.kit_case(drawn, drawn.token_ids), drawn.token_ids
    rng, blind = np.random.default_rng(0), []
    arrays = {key: array.reshape(row.hf_shape(drawn.config)) for key, row, array in drawn.params.named()}
    for key, array in arrays.items():
        nearby = Params.from_named(drawn.config, arrays | {key: array + 1e-6 * rng.standard_normal(array.shape)})
        changed = vjp.loss_and_gradients(nearby, drawn.config, drawn.token_ids, drawn.is_real, labels)
        named = {full_key(name): gradient for name, gradient in changed.gradients.items()}
        if not compare.outside_gradients(kit_case, changed.loss, named):
            blind.append(key)
    assert blind == []


# --- adapters ----------------------------------------------------------------------------------------------------

TARGETS = ("query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h", "word_embeddings")


def with_peft(drawn: ParityCase, rank: int) -> tuple[Any, Params]:
    """The same random adapters on every kind of weight: peft's model, and bloomref's weights."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    model = hugging_face.build(drawn.config, drawn.params)
    settings = peft.LoraConfig(r=rank, lora_alpha=3, target_modules=list(TARGETS), lora_dropout=0.0, bias="none")
    model = peft.get_peft_model(model, settings).double()
    rng, adapters = np.random.default_rng(drawn.seed), {}
    rows = dict(keys(drawn.config))
    for name, module in model.named_modules():
        key = f"{name.removeprefix('base_model.model.transformer.')}.weight"
        if not hasattr(module, "lora_A") or key not in rows:
            continue
        a, b = factors_of(module)
        for factor in (a, b):
            factor.data = torch.from_numpy(rng.standard_normal(factor.shape))
        arrays = a.detach().numpy(), b.detach().numpy()
        if rows[key].attribute == "word_embedding":
            adapters[key] = (LoraFactors("embedding", "default", 3 / rank, 0.0, *arrays),)
        else:
            adapters[key] = (LoraFactors("matrix", "default", 3 / rank, 0.0, *arrays),)
    assert len(adapters) == 1 + 4 * drawn.config.num_layers
    return model, lora.attach(drawn.params, adapters)


def factors_of(module: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    if len(module.lora_embedding_A):
        return module.lora_embedding_A["default"], module.lora_embedding_B["default"]
    return module.lora_A["default"].weight, module.lora_B["default"].weight


@pytest.mark.clause("GRD-3")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of peft on transformers
@pytest.mark.parametrize("seed", wide_enough(range(12, 30)))
def test_the_factors_of_adapters_on_every_weight(seed: int):
    drawn = case(seed)
    labels = draw_labels(drawn)
    model, params = with_peft(drawn, rank=1 + seed % 4)
    with differentiable():
        value, expected = theirs(model, drawn, labels)
    factors = lora.factors(params)
    result = vjp.loss_and_gradients(
        params, drawn.config, drawn.token_ids, drawn.is_real, labels, trainable=factors.__contains__
    )
    assert result.loss == pytest.approx(value, rel=1e-12)
    ours = {f"base_model.model.transformer.{key}": g for key, g in result.gradients.items()}
    worst = differences(ours | {"inputs": result.inputs}, expected)
    assert max(worst.values()) <= LIMIT, worst
