"""Decoding: the logits of steps, and the tokens that a choice takes. Clauses: BKD-17, BKD-18, GEN-1 ... GEN-10.

Tokens are asked of two models. One has exact scores, the highest of them twice, so every draw is certain. The other is
the case's own: the scores after each token come from the oracle on the tokens so far, and near a boundary several
tokens pass.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.model.decoding_hooks import uniform
from bloomref.conformance.oracle.budgets import LIMIT, Judgement, budget, judge
from bloomref.conformance.oracle.choices import possible
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.subject import Subject
from bloomref.runtime.backend import Choice
from bloomref.shapes import Array, Float, Int

LONGEST = 16
"""Most positions that are decoded one by one."""
CHOSEN = 5
"""Tokens that are chosen at a time."""
DISTINCT = 64
"""Most different values of exact scores, so that bfloat16 represents them."""
SPREAD = 2.0 * LIMIT
"""Largest error of a single score in units of sigma, the root mean square that rounding explains."""


# --- steps -----------------------------------------------------------------------------------------------------------


def steps(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge the logits of positions that are decoded one by one, after a prompt whose length the seed determines."""
    start = max(1 + case.seed % (case.time - 1), case.time - LONGEST)
    capacity = case.time + case.seed % 3
    logits = np.array(subject.ask(case, "step", case.token_ids, case.is_real, start, capacity))
    exact = truth(case).values["logits"]
    if logits.shape != exact[:, start:].shape:
        text = f"step: expected logits of shape {exact[:, start:].shape}, got {logits.shape}"
        yield Judgement("logits", "fail", np.inf, (0, start), text)
        return
    [judgement] = judge(case, subject.tier, {"logits": np.concatenate([exact[:, :start], logits], axis=1)})
    graded = budget(case, subject.tier).graded["logits"] if judgement.verdict == "pass" else case.is_real
    if case.is_real[:, start:].any() and not graded[:, start:].any():
        text = f"step: rounding alone may change the logits of every position from {start} on"
        judgement = replace(judgement, verdict="inconclusive", explanation=text)
    yield judgement


# --- tokens ----------------------------------------------------------------------------------------------------------


def tokens(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge greedy tokens and draws: of exact scores, and of the case's own model."""
    exact = with_exact_scores(case)
    scores, no_error = exact_scores(case), np.zeros((1, 1))
    for choice in choices(case, 1.0):
        chosen, problem = ask(subject, exact, choice)
        alike = np.broadcast_to(scores, (*chosen.shape, len(scores)))
        yield problem or judge_tokens(exact, choice, chosen, alike, no_error)
    if truth(case).largest > subject.tier.largest:
        yield Judgement("tokens", "inconclusive", 0.0, (0, 0), f"{subject.dtype} cannot represent the case")
        return
    spread = float(np.std(truth(case).values["logits"][:, -1])) or 1.0
    choice = choices(case, spread)[case.seed % 5]
    chosen, problem = ask(subject, case, choice)
    yield problem or _continued(subject, case, choice, chosen)


def _continued(subject: Subject, case: Case, choice: Choice, chosen: Int[Array, "B N"]) -> Judgement:
    """Judge tokens by the oracle on the tokens that were chosen before."""
    longer = continuation(case, chosen[:, :-1])
    scores = truth(longer).values["logits"][:, case.time - 1 :]
    allowed = budget(longer, subject.tier)
    graded = allowed.graded["logits"][:, case.time - 1 :]
    error = np.where(graded, SPREAD * allowed.sigma["logits"][:, case.time - 1 :], np.inf)
    return judge_tokens(case, choice, chosen, scores, error)


def continuation(case: Case, token_ids: Int[Array, "B N"]) -> Case:
    """The case with these tokens after its own."""
    ids = np.concatenate([case.token_ids, token_ids], axis=1)
    real = np.concatenate([case.is_real, np.ones(token_ids.shape, bool)], axis=1)
    params = case.arrays.params if case.arrays else None
    return replace(case, time=ids.shape[1], arrays=Arrays(params, ids, real))


def ask(subject: Subject, case: Case, choice: Choice) -> tuple[Int[Array, "B N"], Judgement | None]:
    """Return the tokens, and a judgement if they are none."""
    chosen = np.asarray(subject.ask(case, "tokens", case.token_ids, case.is_real, choice, CHOSEN))
    size, shape = case.config.vocabulary_size, (case.batch, CHOSEN)
    if chosen.shape != shape or chosen.dtype.kind not in "iu":
        problem = f"expected integers of shape {shape}, got {chosen.dtype} of shape {chosen.shape}"
    elif chosen.size and not 0 <= chosen.min() <= chosen.max() < size:
        problem = f"expected ids in [0, {size}), got {chosen.min()} to {chosen.max()}"
    else:
        return chosen.astype(np.int64), None
    return chosen, Judgement("tokens", "fail", np.inf, (0, case.time), f"tokens: {problem}")


def judge_tokens(
    case: Case, choice: Choice, chosen: Int[Array, "B N"], scores: Float[Array, "B N V"], error: Float[Array, "#B #N"]
) -> Judgement:
    """Judge each token by the scores that it was chosen from.

    Args:
        error: largest error of a score, at each position.
    """
    errors, certain = np.broadcast_to(error, chosen.shape), 0
    for row, n in np.ndindex(*chosen.shape):
        seed = 0 if choice.seeds is None else int(choice.seeds[row])
        number = uniform(seed, choice.drawn + n)
        may = possible(scores[row, n], float(errors[row, n]), choice, number)
        if not may[chosen[row, n]]:
            rule = _describe(choice, number)
            text = f"token {n} of row {row} is {chosen[row, n]}; {rule}, it can only be {_some(np.flatnonzero(may))}"
            return Judgement("tokens", "fail", np.inf, (row, case.time + n), text)
        certain += may.sum() == 1
    if chosen.size and not certain:
        return Judgement("tokens", "inconclusive", 0.0, (0, 0), "tokens: rounding alone may change every choice")
    return Judgement("tokens", "pass", 0.0, (0, 0), "")


def _describe(choice: Choice, number: float) -> str:
    forbidden = "" if choice.forbidden is None else f", without the ids {_some(np.flatnonzero(choice.forbidden))}"
    if choice.temperature is None:
        return f"by greedy search{forbidden}"
    rule = f"temperature {choice.temperature:.4g}, top_k {choice.top_k}, top_p {choice.top_p}{forbidden}"
    return f"drawn by u = {number:.6f} with {rule}"


def _some(token_ids: Int[Array, " N"]) -> str:
    shown = ", ".join(str(i) for i in token_ids[:5])
    return shown if len(token_ids) <= 5 else f"{shown} and {len(token_ids) - 5} others"


def choices(case: Case, spread: float) -> list[Choice]:
    """Greedy search, and draws with every combination of truncations, determined by the seed of the case.

    Args:
        spread: standard deviation of the scores, by which the temperature is chosen.
    """
    rng, size = np.random.default_rng([case.seed, 4]), case.config.vocabulary_size
    forbidden = rng.random(size) < 0.25
    forbidden[rng.integers(size)] = False

    def draw(top_k: int | None, top_p: float) -> Choice:
        return Choice(
            temperature=spread * float(rng.choice((0.5, 0.8, 1.5))),
            top_k=top_k,
            top_p=top_p,
            forbidden=None if rng.random() < 0.5 else forbidden,
            seeds=rng.integers(0, 2**64, case.batch, np.uint64),
            drawn=int(rng.choice((0, 1, 7, 1000))),
        )

    k, p = int(rng.choice((1, 2, 5, size + 3))), float(rng.choice((0.95, 0.8, 0.6, 0.3)))
    return [Choice(forbidden=forbidden), draw(None, 1.0), draw(None, p), draw(max(k, 2), 1.0), draw(max(k, 4), p)]


def exact_scores(case: Case) -> Float[Array, " V"]:
    """Multiples of 1/8 in the order of a permutation; two ids share the highest, and the others are distinct."""
    rng, size = np.random.default_rng([case.seed, 5]), case.config.vocabulary_size
    return np.minimum(rng.permutation(size), size - 2) % DISTINCT / 8.0


def with_exact_scores(case: Case) -> Case:
    """The case with weights by which every position has the logits `exact_scores`, in every dtype.

    The final norm multiplies by zero and adds a unit vector; the head's first column has the scores.
    """
    plain = replace(case, gain=1.0, qk_gain=1.0, embedding_std=1.0, arrays=None)
    params, unit = plain.params, np.eye(1, case.config.hidden_dim)[0]
    name = "word_embedding" if params.lm_head is None else "lm_head"
    head = np.array(getattr(params, name))
    head[:, 0] = exact_scores(case)
    matrix: dict[str, Any] = {name: head}
    changed = replace(params, ln_final_weight=0.0 * unit, ln_final_bias=unit, **matrix)
    return replace(plain, arrays=Arrays(changed, case.token_ids, case.is_real))
