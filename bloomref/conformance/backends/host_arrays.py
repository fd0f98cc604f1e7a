"""Arrays on the host: dtypes and shapes, arguments that stay unchanged, results that are new, weights that are rounded
once."""

from collections.abc import Callable, Iterable

import numpy as np

from bloomref.conformance.backends.tested import Tested, condition, protocol
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.block_budgets import hidden_states, layer_of
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import Subject
from bloomref.dtypes import POLICIES, DType, DTypePolicy
from bloomref.params import Params
from bloomref.runtime.backend import Hidden, Step, SupportsStep
from bloomref.shapes import Array

MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7}
"""Bits after the point of a dtype."""


def host(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Look at the dtypes and shapes of results, of empty ones too, and copy hidden states to the host and back."""
    tested = Tested.of(subject, case)
    for shape in (case.token_ids.shape, (0, case.time), (case.batch, 0)):
        ids, real = case.token_ids[: shape[0], : shape[1]], case.is_real[: shape[0], : shape[1]]
        hidden = tested.whole(ids, real)
        expected = (*shape, case.config.hidden_dim)
        yield _array("to_host", tested.prepared.to_host(hidden), expected, tested.compute)
        for last_only, time in ((False, shape[1]), (True, min(shape[1], 1))):
            logits = tested.prepared.logits(hidden, last_only)
            yield _array("logits", logits, (shape[0], time, case.config.vocabulary_size), tested.wide)
    x = hidden_states(case).astype(tested.compute)
    back = tested.bits(tested.prepared.from_host(x))
    yield condition("to_host", back == x.tobytes(), "to_host(from_host(x)): other numbers than x")
    whole = np.asarray(tested.prepared.to_host(tested.whole(case.token_ids, case.is_real)))
    yield condition("hidden", bool(np.isfinite(whole).all()), "a padded position is not finite")


def _array(method: str, result: object, shape: tuple[int, ...], dtype: DType) -> Judgement:
    expected = f"{method}: expected a NumPy array of shape {shape} and dtype {dtype}"
    if not isinstance(result, np.ndarray):
        return condition(method, False, f"{expected}, got {type(result).__module__}.{type(result).__name__}")
    holds = result.shape == shape and result.dtype == dtype
    return condition(method, holds, f"{expected}, got shape {result.shape} and dtype {result.dtype}")


def arguments(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Compare the bytes of arguments and of returned hidden states before and after other calls; write to logits."""
    tested = Tested.of(subject, case)
    weights = case.params.astype(tested.policy.variable_dtype).map(np.copy)
    ids, real, x = case.token_ids.copy(), case.is_real.copy(), hidden_states(case).astype(tested.compute)
    given = {"token_ids": ids, "key_is_real": real, "x of from_host": x}
    given |= {f"weight {key}": array for key, _, array in weights.named()}
    before = {name: array.tobytes() for name, array in given.items()}
    again = tested.prepare(weights)
    states = [(name, state, again.bits(state)) for name, state in _states(again, ids, real, x)]
    for change in (1, 2):  # other tokens, over a cache of its own
        again.whole((ids + change) % case.config.vocabulary_size, real)
    again.logits(states[-1][1])
    for name, state, bits in states:
        yield condition("hidden", again.bits(state) == bits, f"the hidden states of {name} change in a later call")
    for name, array in given.items():
        yield condition(name, array.tobytes() == before[name], f"a call changes its argument: {name}")
    yield from _written(again, "logits", lambda: again.prepared.logits(states[-1][1], True))
    if protocol(again.prepared, SupportsStep):
        cache, step = again.new_cache(len(ids), 1), Step.at(0, np.ones((len(ids), 1), bool))
        yield from _written(again, "step", lambda: again.prepared.step(ids[:, 0], cache.target, step))


def _states(tested: Tested, ids: Array, real: Array, x: Array) -> Iterable[tuple[str, Hidden]]:
    """Hidden states that each method returns."""
    prepared, layer = tested.prepared, layer_of(tested.case)
    yield "embed", prepared.embed(ids)
    there = prepared.from_host(x)
    yield "from_host", there
    if layer >= 0:
        cache, step = tested.new_cache(*ids.shape), Step.at(0, real)
        yield "attention_block", tested.attention_block(layer, there, cache, step)
        yield "mlp_block", prepared.mlp_block(layer, there)
    yield "final_norm", prepared.final_norm(there)


def _written(tested: Tested, method: str, call: Callable[[], Array]) -> Iterable[Judgement]:
    """Write to a result, and call again."""
    result = np.asarray(call())
    expected = result.copy()
    yield condition(method, result.flags.writeable, f"{method}: the result is read-only; the caller may write to it")
    if result.flags.writeable:
        result[...] = 0.0
        if tested.declared.repeatable:
            same = np.array_equal(np.asarray(call()), expected)
            yield condition(method, same, f"{method}: writing to the result changes that of the next call")


def rounding(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Prepare weights of wider dtypes, and weights that were rounded once before: the bits of logits are equal.

    Just off the middle between two numbers, float64 weights are on the middle in float32: rounding twice shows.
    """
    tested = Tested.of(subject, case)
    yield _numbers_of_the_dtype(tested)
    for policy in POLICIES.values():
        if policy.compute_dtype == tested.compute and tested.backend.unsupported(case.config, policy) is None:
            for weights in _wider(case, policy):
                yield _rounds_once(tested, policy, weights)


def _wider(case: Case, policy: DTypePolicy) -> list[Params]:
    """Weights of more digits than the compute dtype, as the engine passes them to `prepare`."""
    if policy.variable_dtype != policy.compute_dtype:
        return [case.params.map(lambda w: w * (1 + 0.7 * 2.0**-9)).astype(policy.variable_dtype)]
    middle = (1.0 + 2.0 ** -(MANTISSA[policy.compute_dtype.name] + 1)) * (1 + 2.0**-40)
    return [case.params.map(lambda w: np.where(w > 0, middle * _power_of_two(w), w))]


def _power_of_two(w: Array) -> Array:
    """The largest power of two up to a positive number."""
    return np.ldexp(1.0, np.frexp(np.maximum(w, 2.0**-12))[1] - 1)


def _rounds_once(tested: Tested, policy: DTypePolicy, weights: Params) -> Judgement:
    def bits(params: Params) -> bytes:
        model = tested.prepare(params, policy)
        return model.logits(model.whole(tested.case.token_ids, tested.case.is_real)).tobytes()

    wide = weights.word_embedding.dtype.name
    once, given = bits(weights.astype(policy.compute_dtype)), bits(weights)
    reason = f"{wide} weights, policy {policy.name}: other logits than with weights that are rounded before"
    if given != once and wide == "float64":
        twice = weights.astype(np.dtype(np.float32)).map(lambda w: w.astype(policy.compute_dtype))
        reason += "; they are rounded twice, through float32 (use dtypes.cast)" * (bits(twice) == given)
    return condition("weights", given == once, reason)


def _numbers_of_the_dtype(tested: Tested) -> Judgement:
    """Compare a run with one in which all hidden states are copied to the host and back: they are rounded already."""
    case, prepared = tested.case, tested.prepared

    def run(through: Callable[[Hidden], Hidden]) -> bytes:
        cache, step = tested.new_cache(*case.token_ids.shape), Step.at(0, case.is_real)
        x = through(prepared.embed(case.token_ids))
        for layer in range(case.config.num_layers):
            x = through(tested.attention_block(layer, x, cache, step))
            x = through(prepared.mlp_block(layer, x))
        return tested.logits(through(prepared.final_norm(x))).tobytes()

    same = run(lambda x: prepared.from_host(prepared.to_host(x))) == run(lambda x: x)
    text = f"hidden states are not numbers of {tested.compute}: a copy to the host and back changes the logits (NUM-2)"
    return condition("hidden", same, text)
