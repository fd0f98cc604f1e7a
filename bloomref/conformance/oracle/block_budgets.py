"""Truth and rounding budget of each block alone, on given hidden states.

The truth is the instrumented model in float64, which has no code of the reference's blocks. The budget is Monte-Carlo
arithmetic of that block alone; logits are not rounded (NUM-2). Clauses: NUM-8 ... NUM-10.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.oracle.budgets import LIMIT, MAX_NOISE, MAX_SCORE_NOISE, Judgement, smoothed, worst_position
from bloomref.conformance.oracle.intermediates import per_head, per_position
from bloomref.conformance.oracle.montecarlo import Noise, NoisyModel, affordable
from bloomref.conformance.oracle.precision import TIERS, Tier
from bloomref.conformance.oracle.truth import CACHED_CASES
from bloomref.conformance.representable import snap
from bloomref.shapes import Array, Bool, Float

SCORES = "attention.scores"
LOGITS = "logits"
ATTENTION = "attention_block"


@dataclass(frozen=True, eq=False)
class BlockBudget:
    """Results of each block of a case, and the error of each position that rounding explains.

    Args:
        exact: block -> result in float64.
        sigma: block -> rms error that rounding explains.
        graded: block -> True at positions that can be judged.
    """

    exact: dict[str, Array]
    sigma: dict[str, Float[Array, "B T"]]
    graded: dict[str, Bool[Array, "B T"]]


class _Noisy(NoisyModel):
    """Rounding errors of a backend: its logits have the accumulation dtype."""

    def head(self, hidden: Array) -> Float[Array, "B T V"]:
        return InstrumentedModel.head(self, hidden)


def hidden_states(case: Case) -> Float[Array, "B T D"]:
    """Random hidden states for the blocks of a case, exact in the dtypes in which its weights are.

    Numbers of few bits have rounding errors that repeat, and a sum in order does not average them out.
    """
    shape = (*case.token_ids.shape, case.config.hidden_dim)
    states = np.random.default_rng((case.seed, 5)).standard_normal(shape)
    return snap(states) if case.weights == "bfloat16" else states.astype(np.float32).astype(np.float64)


def layer_of(case: Case) -> int:
    """Index of the layer whose blocks are asked: the last."""
    return case.config.num_layers - 1


def _run(case: Case, model: InstrumentedModel) -> dict[str, Array]:
    """Result of each block, and the scores of attention."""
    x = hidden_states(case)
    results = {"embed": model.embed(case.token_ids), "final_norm": model.final_norm(x), LOGITS: model.head(x)}
    if not model.params.layers:
        return results
    model.index, model.prefix, model.start = layer_of(case), "", 0
    layer, cache = model.params.layers[model.index], model.new_cache(*case.token_ids.shape)
    visible, bias = model.visible(case.is_real, 0), model.bias(case.is_real, 0)
    results[ATTENTION] = model.attention_block(layer, x, cache, 0, visible, bias)
    results["mlp_block"] = model.mlp_block(layer, x)
    return results | {SCORES: model.intermediates[SCORES]}


def _positions(case: Case, name: str) -> Bool[Array, "B T"]:
    """Positions that are compared: the blocks without attention treat padding like a token."""
    return case.is_real if name == ATTENTION else np.ones_like(case.is_real)


@lru_cache(CACHED_CASES)
def block_budget(case: Case, tier: Tier) -> BlockBudget:
    """Compute the budget of each block. Deterministic: the token ids are the seed."""
    exact = _run(case, InstrumentedModel.of(case))
    spread, head_noise = _spread(case, tier, exact)
    exact.pop(SCORES, None)
    sigma, graded = {}, {}
    for name, value in exact.items():
        real = _positions(case, name)
        signal = per_position(name, value, real)
        usable = real & (head_noise <= MAX_SCORE_NOISE) if name == ATTENTION else real
        u = tier.accumulation if name == LOGITS else tier.storage
        graded[name] = usable & (spread[name] <= MAX_NOISE * signal)
        smooth = smoothed(spread[name], graded[name], affordable(case))
        sigma[name] = np.maximum(smooth, signal * (u / np.sqrt(3.0)))
    return BlockBudget(exact, sigma, graded)


def _spread(case: Case, tier: Tier, exact: Mapping[str, Array]) -> tuple[dict[str, Array], Float[Array, "B T"]]:
    """Return the rms error of each block, and that of the scores of the noisiest head; of the worse ALiBi anchor."""
    if tier.accumulation == TIERS["float64"].accumulation:  # as in montecarlo: scaled errors of float32
        ratio = tier.accumulation / TIERS["float32"].accumulation * np.sqrt(2.0)
        by_name, heads = _spread(case, TIERS["float32"], exact)
        return {name: error * ratio for name, error in by_name.items()}, heads * ratio
    model = _Noisy.of(case, Noise(tier, np.random.Generator(np.random.SFC64(zlib.crc32(case.token_ids.tobytes())))))
    squares = {name: np.zeros((2, *case.is_real.shape)) for name in exact}
    for anchor in (0, 1):
        model.anchors = np.full(len(case.token_ids), anchor * (case.token_ids.shape[1] - 1))
        model.arithmetic.alike = np.full(len(case.token_ids), anchor == 1)
        for _ in range(affordable(case)):
            for name, value in _run(case, model).items():
                squares[name][anchor] += np.square(_error(case, name, value - exact[name]))
    spread = {name: np.sqrt(total.max(axis=0) / affordable(case)) for name, total in squares.items()}
    heads = spread.pop(SCORES, np.zeros(case.is_real.shape))
    return spread, heads


def _error(case: Case, name: str, error: Array) -> Float[Array, "B T"]:
    if name == SCORES:
        return per_head(name, error, case.is_real).max(axis=1)
    return per_position(name, error, _positions(case, name))


def judge_blocks(case: Case, tier: Tier, outputs: Mapping[str, Array]) -> list[Judgement]:
    """Judge the results of blocks.

    Args:
        outputs: block -> its result on `hidden_states`, (B, T, N).
    """
    return [_judge(case, tier, name, output) for name, output in outputs.items()]


def _judge(case: Case, tier: Tier, name: str, output: Array) -> Judgement:
    budget = block_budget(case, tier)
    exact, real = budget.exact[name], _positions(case, name)
    if output.shape != exact.shape:
        return Judgement(name, "fail", np.inf, (0, 0), f"{name}: expected shape {exact.shape}, got {output.shape}")
    with np.errstate(all="ignore"):
        rms = per_position(name, np.asarray(output, np.float64) - exact, real)
    broken = real & ~np.isfinite(rms)
    if np.abs(exact).max(initial=0.0) > tier.largest:
        return Judgement(name, "inconclusive", 0.0, (0, 0), f"{name}: {tier.where} cannot represent the result")
    if broken.any():
        row, position = (int(i) for i in np.argwhere(broken)[0])
        return Judgement(name, "fail", np.inf, (row, position), f"{name} at {(row, position)}: not finite")
    z, where = worst_position(rms, budget.sigma[name], budget.graded[name])
    judgement = Judgement(name, "pass" if z <= LIMIT else "fail", z, where, "")
    if not budget.graded[name].any() and real.any():
        return replace(judgement, verdict="inconclusive", explanation=f"{name}: rounding hides every position")
    text = (
        f"{name} alone, on given hidden states, at {where}: rms error {rms[where]:.2g}, {z:.2g} times the "
        f"{budget.sigma[name][where]:.2g} that rounding explains ({tier.where}; limit {LIMIT:g} times)"
        if rms.size
        else f"{name}: no position"
    )
    return replace(judgement, explanation=text)
