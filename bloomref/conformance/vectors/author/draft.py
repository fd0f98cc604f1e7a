"""Drafts of vectors: the question, and functions that compute its answers from the truth and the budgets of the kit."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.oracle.budgets import budget
from bloomref.conformance.oracle.precision import TIERS, Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Float

TIER_NAMES = tuple(TIERS)
"""Names along the first axis of every sigma."""
RESULTS = ("final_norm", "logits")
Answer = dict[str, tuple[Array, Array]]
"""Name of a tensor -> its float64 value, and sigma: (tiers, B, T), or (tiers,) for the loss and gradients."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A vector whose numbers are not yet computed.

    Args:
        id: never changes once published.
        clauses: the clauses that it checks.
        comment: what it checks, in words.
        ask: the question, one of `schema.ASKS`.
        flags: why the vector exists, names of `notes.NOTES`.
        expect: "valid", "invalid" or "unspecified".
        error: the class of the refusal, if `expect` is "invalid".
        model, adapter: folders next to the JSON files, or "".
        arguments: the input, as JSON.
        output: the output as JSON, if it is exact.
        answers: a note on each right answer, and a function that computes its tensors.
    """

    id: str
    clauses: tuple[str, ...]
    comment: str
    ask: str
    flags: tuple[str, ...] = ()
    expect: str = "valid"
    error: str = ""
    model: str = ""
    adapter: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[tuple[str, Callable[[], Answer]], ...] = ()


def case_of(
    model: Case,
    name: str,
    batch: int = 2,
    time: int = 6,
    kind: str = "real",
    cuts: tuple[int, ...] = (),
    token_ids: Sequence[Sequence[int]] | None = None,
    is_real: Sequence[Sequence[int]] | None = None,
) -> Case:
    """Return a case with the weights of a model. Its name seeds token ids and mask that are None."""
    seed = zlib.crc32(name.encode())
    weights = Arrays(params=model.params)
    case = replace(model, batch=batch, time=time, kind=kind, cuts=cuts, name=name, seed=seed, arrays=weights)
    ids, real = case.token_ids, case.is_real
    if token_ids is not None:
        ids = np.array(token_ids)
        real = np.ones(ids.shape, bool)
    if is_real is not None:
        real = np.array(is_real, bool)
    return replace(case, batch=ids.shape[0], time=ids.shape[1], arrays=Arrays(model.params, ids, real))


def with_adapter(case: Case, adapter: Lora) -> Case:
    """Return the case with an adapter on its model."""
    return replace(case, lora=adapter)


def answer(case: Case, names: Sequence[str] = RESULTS) -> Answer:
    """Compute the intermediates whose names match one of the patterns."""
    exact = truth(case).values
    chosen = [name for name in exact if any(fnmatchcase(name, pattern) for pattern in names)]
    able = {name: _holds(case, TIERS[name]) for name in TIER_NAMES}
    return {name: (exact[name], np.stack([_sigma(case, tier, name, able[tier]) for tier in able])) for name in chosen}


def _holds(case: Case, tier: Tier) -> bool:
    """True if a model of the tier can represent the weights and all intermediates of the case."""
    narrow = tier.storage > TIERS["float32"].storage
    return not (narrow and case.weights == "float32") and truth(case).largest <= tier.largest


def _sigma(case: Case, tier: str, name: str, able: bool) -> Float[Array, "B T"]:
    """Sigma in a tier: NaN if the tier cannot represent the case, infinite at positions that are not judged."""
    if not able:
        return np.full(case.is_real.shape, np.nan)
    rounding = budget(case, TIERS[tier])
    return np.where(rounding.graded[name] & case.is_real, rounding.sigma[name], np.inf)


def without_padding(case: Case) -> Answer:
    """Compute logits with every padded position deleted: the other reading of a hole in the mask."""
    logits = np.zeros_like(truth(case).values["logits"])
    sigma = np.full((len(TIER_NAMES), *case.is_real.shape), np.inf)
    for i, real in enumerate(case.is_real):
        columns = np.flatnonzero(real)
        row = case_of(case, f"{case.name}, row {i} alone", token_ids=[case.token_ids[i, columns].tolist()])
        value, allowed = answer(row, ["logits"])["logits"]
        logits[i, columns], sigma[:, i, columns] = value[0], allowed[:, 0]
    return {"logits": (logits, sigma)}


def ask(
    case: Case,
    model: str,
    clauses: str,
    comment: str,
    flags: str = "",
    names: Sequence[str] = RESULTS,
    question: str = "logits",
    **arguments: Any,
) -> Draft:
    """Draft a vector with the token ids and mask of a case, whose answer the reference computes."""
    inputs = {"token_ids": case.token_ids.tolist(), "padding_mask": case.is_real.astype(int).tolist()}
    return Draft(
        case.name,
        tuple(clauses.split()),
        comment,
        question,
        tuple(flags.split()),
        model=f"models/{model}",
        arguments=inputs | arguments,
        answers=(("the specification's", lambda: answer(case, names)),),
    )
