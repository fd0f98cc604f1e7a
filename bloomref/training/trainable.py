"""Trainable variables of a model, as separate arrays: all of its weights, or the factors of its active adapters."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bloomref.config import BloomConfig
from bloomref.dtypes import cast
from bloomref.errors import InvalidInput, Unsupported, describe
from bloomref.params import Params, Weight, keys
from bloomref.reference import lora
from bloomref.runtime import engine
from bloomref.runtime.inputs import TokenBatch
from bloomref.shapes import Array
from bloomref.training.batches import fingerprint
from bloomref.training.packing import Batch
from bloomref.training.settings import Settings

if TYPE_CHECKING:
    from bloomref.backbone import BloomBackbone

Rng = np.random.Generator | None


@dataclass(frozen=True, eq=False)
class Gradients:
    """Loss of a batch and its gradients.

    Args:
        loss: mean loss in nats per counted token.
        counted: number of counted tokens.
        of: name of a variable -> gradient of the loss, in the variable's shape and dtype.
    """

    loss: float
    counted: int
    of: Mapping[str, Array]


GradientFunction = Callable[[Batch, Rng], Gradients]
"""Forward and backward pass over a batch, with the current values of the variables."""


@dataclass(frozen=True, eq=False)
class Trainable:
    """Trained part of a model.

    Args:
        variables: name -> array, which training changes in place.
        decays: names of the variables with weight decay.
        gradients: computes loss and gradients of a batch.
        commit: makes the model use the current values of the variables.
        drops: True if the model has dropout, so that steps need random generators.
        identity: fingerprint of the model without its variables.
    """

    variables: dict[str, Array]
    decays: frozenset[str]
    gradients: GradientFunction
    commit: Callable[[], None]
    drops: bool
    identity: str


def trainable(backbone: "BloomBackbone", settings: Settings) -> Trainable:
    """Trainable part of a model: the factors of its active adapters, or else all of its weights. Clause: TRN-18.

    Raises:
        InvalidInput: when all variables are frozen; Unsupported: when the trained weights are stored in 16 bits.
    """
    variables = backbone.trainable_variables()
    if not variables:
        hint = "set_adapter or unmerge_adapter, or set backbone.trainable = True"
        raise InvalidInput(describe("model", "something to train", "frozen weights", hint))
    is_full = variables.keys() == {key for key, _ in keys(backbone.config)}
    return full(backbone, settings) if is_full else adapters(backbone, settings)


def full(backbone: "BloomBackbone", settings: Settings) -> Trainable:
    """All weights of a model as trainable variables.

    Biases and LayerNorm weights do not decay. With `settings.decay_embedding`, the embedding does, as in Megatron.

    Raises:
        Unsupported: when the weights are stored in 16 bits, because rounding would lose most updates.
    """
    policy = backbone.policy
    if policy.variable_dtype.name not in ("float32", "float64"):
        hint = "load the model in mixed_bfloat16 or float32, or train adapters"
        raise Unsupported(describe("dtype", "weights stored in float32 or float64", policy.name, hint))
    params = backbone.params.map(_own)
    config = with_dropout(backbone.config, settings)
    variables = {key: array for key, _, array in params.named()}
    gradients = gradient_function(backbone, lambda: params.astype(policy.compute_dtype), config, variables)
    return Trainable(
        variables,
        frozenset(key for key, weight, _ in params.named() if _decays(weight, settings)),
        gradients,
        lambda: backbone.replace_params(params),
        config.attention_dropout > 0 or config.hidden_dropout > 0,
        _identity(backbone, variables, []),
    )


def adapters(backbone: "BloomBackbone", settings: Settings) -> Trainable:
    """Factors of the active adapters as trainable variables. All factors decay, and the weights are read-only."""
    if backbone.adapter_set.changes_weights:
        return adapters_of_weights(backbone, settings)
    stored, policy = backbone.engine.stored_params, backbone.policy
    variables = {name: _own(array) for name, array in lora.factors(stored).items()}
    rounded = stored.map(lambda array: cast(cast(array, policy.variable_dtype), policy.compute_dtype))
    params = lora.with_factors(rounded, variables)
    config = with_dropout(backbone.config, settings)
    parts = [part for _, part in lora.attached(params)]
    rates = [config.attention_dropout, config.hidden_dropout, *(part.dropout for part in parts)]
    return Trainable(
        variables,
        frozenset(variables),
        gradient_function(backbone, lambda: params, config, variables),
        lambda: backbone.assign_variables(variables),
        any(rate > 0 for rate in rates),
        _identity(
            backbone, variables, (array for _, _, array in stored.named()), [(p.scale, p.dropout) for p in parts]
        ),
    )


def adapters_of_weights(backbone: "BloomBackbone", settings: Settings) -> Trainable:
    """Variables of active adapters that also change weights (LRA-26).

    Vectors do not decay, nor do parts of the embedding without `settings.decay_embedding`.
    """
    start, policy = backbone.adapter_set, backbone.policy
    sources = start.gradient_sources()
    variables = {name: _own(array) for name, array in start.factors().items()}
    config = with_dropout(backbone.config, settings)
    config_of = {tied: config.replace(tie_word_embeddings=tied) for tied in (True, False)}

    def gradients(batch: Batch, rng: Rng) -> Gradients:
        now = start.assign(variables)
        params = now.params().astype(policy.compute_dtype)
        tokens, runs_on = TokenBatch(batch.token_ids, batch.is_real), backbone.engine.runs_on
        loss, counted, of = engine.gradients(
            runs_on,
            params,
            config_of[params.lm_head is None],
            tokens,
            batch.labels,
            trainable=sources.__contains__,
            rng=rng,
            document=batch.document,
        )
        by_name = now.gradients(of)
        return Gradients(loss, counted, {name: cast(by_name[name], array.dtype) for name, array in variables.items()})

    parts = [part for adapter in start.loaded.values() for factors in adapter.parts.values() for part in factors]
    rates = [config.attention_dropout, config.hidden_dropout, *(part.dropout for part in parts)]
    facts = [(part.name, part.scale, part.dropout) for part in parts]
    return Trainable(
        variables,
        frozenset(
            name
            for name, array in variables.items()
            if array.ndim > 1 and (settings.decay_embedding or not name.startswith("word_embeddings."))
        ),
        gradients,
        lambda: backbone.assign_variables(variables),
        any(rate > 0 for rate in rates),
        _identity(backbone, variables, (array for _, _, array in start.base.named()), facts),
    )


def _own(array: Array) -> Array:
    return np.array(array, order="C")


def _decays(weight: Weight, settings: Settings) -> bool:
    if weight.attribute == "word_embedding":
        return settings.decay_embedding
    return weight.axes != "D" and not weight.attribute.endswith("bias")


def _identity(
    backbone: "BloomBackbone", variables: Mapping[str, Array], frozen: Iterable[Array], facts: object = None
) -> str:
    """Fingerprint that a resumed run must share: config, dtype policy, names and shapes, frozen weights, `facts`."""
    shapes = {name: array.shape for name, array in variables.items()}
    texts = [backbone.config.to_dict(), backbone.policy.name, shapes, facts]
    return fingerprint(frozen, json.dumps(texts, sort_keys=True))


def with_dropout(config: BloomConfig, settings: Settings) -> BloomConfig:
    """Return the config with the dropout rates of the settings; a rate of None leaves the config's rate."""
    rates = {name: getattr(settings, name) for name in ("attention_dropout", "hidden_dropout")}
    return config.replace(**{name: rate for name, rate in rates.items() if rate is not None})


def gradient_function(
    backbone: "BloomBackbone", params: Callable[[], Params], config: BloomConfig, variables: Mapping[str, Array]
) -> GradientFunction:
    """Return a function that computes gradients on the model's backend, each in the dtype of its variable.

    Args:
        backbone: the model; its backend is used.
        params: returns the weights in the compute dtype, with the current values of the variables.
        config: config of the model, with the dropout rates of the run.
        variables: name -> array.
    """

    def gradients(batch: Batch, rng: Rng) -> Gradients:
        tokens = TokenBatch(batch.token_ids, batch.is_real)
        loss, counted, of = engine.gradients(
            backbone.engine.runs_on,
            params(),
            config,
            tokens,
            batch.labels,
            trainable=variables.__contains__,
            rng=rng,
            document=batch.document,
        )
        return Gradients(loss, counted, {name: cast(of[name], array.dtype) for name, array in variables.items()})

    return gradients
