"""Each block alone, and the bits of a position."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from bloomref.conformance.backends.tested import Tested, condition, declared
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.block_budgets import (
    ATTENTION,
    LOGITS,
    block_budget,
    hidden_states,
    judge_blocks,
    layer_of,
)
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import NotAsked, Subject
from bloomref.runtime.backend import Step
from bloomref.shapes import Array

SPARE = (0, 1, 130)
"""Unused positions of caches."""


def blocks(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge every block on random hidden states, and the logits of the last position alone."""
    tested = Tested.of(subject, case)
    prepared, x = tested.prepared, hidden_states(case).astype(tested.compute)
    there = prepared.from_host(x)
    outputs = {
        "embed": prepared.to_host(prepared.embed(case.token_ids)),
        "final_norm": prepared.to_host(prepared.final_norm(there)),
        LOGITS: tested.logits(there),
    }
    if case.config.num_layers:
        outputs[ATTENTION] = _attention(tested, x)
        outputs["mlp_block"] = prepared.to_host(prepared.mlp_block(layer_of(case), there))
    yield from judge_blocks(case, subject.tier, outputs)
    last = tested.logits(there, True)
    yield condition(LOGITS, last.shape[1] == 1, f"logits(x, True): expected one position, got {last.shape[1]}")
    filled = block_budget(case, subject.tier).exact[LOGITS].copy()
    filled[:, -1:] = last
    yield from judge_blocks(case, subject.tier, {LOGITS: filled})


def _attention(tested: Tested, x: Array) -> Array:
    """The attention block in two calls, so that the second reads keys and values of the first from the cache."""
    case, prepared = tested.case, tested.prepared
    cache, cut = tested.new_cache(case.batch, case.time + 2), case.time // 3
    parts = []
    for a, b in ((0, cut), (cut, case.time)):
        step = Step.at(a, case.is_real[:, :b])
        part = tested.attention_block(layer_of(case), prepared.from_host(x[:, a:b]), cache, step)
        parts.append(prepared.to_host(part))
    return np.concatenate(parts, axis=1)


def bits(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Compare the bits of one call with those of several calls, of a larger cache, of each row, and of `last_only`."""
    tested, real = Tested.of(subject, case), case.is_real
    hidden = tested.whole(case.token_ids, real)
    once = np.asarray(tested.prepared.to_host(hidden))
    for spare in SPARE:
        cache = tested.new_cache(case.batch, case.time + spare)
        parts = [
            tested.prepared.to_host(tested.extend(cache, a, case.token_ids[:, a:b], real[:, :b]))
            for a, b in pairwise((0, *case.cuts, case.time))
        ]
        what = f"calls that start at {(0, *case.cuts)} over a cache of {case.time + spare} positions"
        yield _equal("hidden", once, np.concatenate(parts, axis=1), real, what)
    alone = [
        tested.prepared.to_host(tested.whole(case.token_ids[i : i + 1], real[i : i + 1])) for i in range(case.batch)
    ]
    yield _equal("hidden", once, np.concatenate(alone), real, "each row alone")
    logits = tested.logits(hidden)
    yield _equal(LOGITS, logits[:, -1:], tested.logits(hidden, True), real[:, -1:], "the logits of the last position")


def _equal(name: str, one: Array, two: Array, real: Array, what: str) -> Judgement:
    """Judge that the bits of two results are equal at the real positions."""
    holds = one.shape == two.shape and one[real].tobytes() == two[real].tobytes()
    return condition(name, holds, f"{what}: other bits than in one call, which `bit_equal` promises")


def unequal(subject: Subject) -> NotAsked | None:
    """Return why bits are not compared in the dtype, or None."""
    if subject.dtype in declared(subject).bit_equal:
        return None
    reason = f"{subject.implementation.name} does not declare equal bits in {subject.dtype} (bit_equal)"
    return NotAsked(reason, bounds=False)  # BKD-22 leaves it free
