"""bloomref's results for a comparison, the kit's verdict on those of a peer, and the size of a difference."""

from collections.abc import Mapping

import numpy as np
from parity.cases import ParityCase

from bloomref import BloomBackbone, BloomCausalLM
from bloomref.config import BloomConfig
from bloomref.conformance.cases import Arrays as KitArrays
from bloomref.conformance.cases import Case
from bloomref.conformance.checks import gradients
from bloomref.conformance.oracle.budgets import judge, tier_of
from bloomref.conformance.vectors.read import kind
from bloomref.dtypes import dtype_policy
from bloomref.params import Params, full_key, keys
from bloomref.reference import trace
from bloomref.runtime.engine import Engine

Arrays = dict[str, np.ndarray]


def names(config: BloomConfig) -> list[str]:
    """Compared tensors: the state after the embedding,
    after each half of each block, after the final norm; and logits.
    """
    blocks = [f"layers.{i}.{half}" for i in range(config.num_layers) for half in ("attention_block", "mlp_block")]
    return ["embedding_norm", *blocks, "final_norm", "logits"]


def whole(case: ParityCase, dtype: str = "float64", params: Params | None = None) -> Arrays:
    """One forward pass over all positions."""
    return pieces(case, ((0, case.token_ids.shape[1]),), dtype, params)


def pieces(case: ParityCase, intervals: object = None, dtype: str = "float64", params: Params | None = None) -> Arrays:
    """A forward pass over a cache, chunk by chunk; the results are concatenated along time."""
    engine = Engine(case.params if params is None else params, case.config, dtype_policy(dtype))
    cache = engine.new_cache(*case.token_ids.shape)
    recorded, parts = names(case.config), []
    for start, stop in case.intervals() if intervals is None else intervals:
        with trace.record(lambda name: name in recorded) as states:
            hidden = engine.extend(cache, start, case.token_ids[:, start:stop], case.is_real[:, start:stop])
            engine.logits(hidden)
        parts.append(states)
    return join(parts)


def join(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], is_real: np.ndarray
) -> dict[str, float]:
    """Largest difference over the real positions, relative to the largest magnitude there, by name."""
    assert list(ours) == list(theirs)
    return {name: relative(ours[name][is_real], theirs[name][is_real]) for name in ours}


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def rms_error(values: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square error, relative to the root mean square of the reference. NaN counts as infinite."""
    assert values.shape == reference.shape
    error = values.astype(np.float64) - reference
    ratio = float(np.sqrt(np.square(error).mean() / np.square(reference).mean()))
    return ratio if np.isfinite(ratio) else np.inf


def kit_case(drawn: ParityCase, labels: np.ndarray | None = None) -> Case:
    """The case of the conformance kit with the same model and input, and with the labels of a loss."""
    return case_of_arrays(drawn.config, drawn.params, drawn.token_ids, drawn.is_real, labels)


def case_of_arrays(
    config: BloomConfig, params: Params, token_ids: np.ndarray, is_real: np.ndarray, labels: np.ndarray | None = None
) -> Case:
    """The case of the conformance kit with these arrays."""
    batch, time = token_ids.shape
    arrays = KitArrays(params.astype(np.dtype(np.float64)), token_ids, is_real, labels)
    return Case(config, batch=batch, time=time, kind=kind(is_real), arrays=arrays)


def case_of_adapted(model: BloomBackbone | BloomCausalLM, token_ids: np.ndarray) -> Case:
    """The case of the weights that the model's active adapters are added to, in float64."""
    return case_of_arrays(*model.adapter_set.merged(), token_ids, np.ones(token_ids.shape, bool))


def outside(case: Case, results: Mapping[str, np.ndarray], dtype: str = "float64") -> list[str]:
    """What is outside the rounding budget of the kit (NUM-8 ... NUM-10): one sentence for each wrong tensor.

    Args:
        case: `kit_case` of the model and input.
        results: tensors of an implementation, by their names in bloomref.
        dtype: in which it computed.
    """
    judgements = judge(case, tier_of(dtype), results)
    assert any(judgement.verdict != "inconclusive" for judgement in judgements)
    return [judgement.explanation for judgement in judgements if judgement.verdict == "fail"]


def outside_gradients(case: Case, loss: float, by_name: Mapping[str, np.ndarray], dtype: str = "float64") -> list[str]:
    """What of a loss and of gradients by Hugging Face key is outside the rounding budget of the kit."""
    shapes = {full_key(key): weight.hf_shape(case.config) for key, weight in keys(case.config)}
    reshaped = {name: array.reshape(shapes[name]) for name, array in by_name.items() if name in shapes}
    return [j.explanation for j in gradients.judged(case, dtype, loss, reshaped) if j.verdict == "fail"]
