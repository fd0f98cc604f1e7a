"""A vector before its numbers are computed, and how they are computed: by the reference, with sigma by the kit's budgets."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from bloomref.conformance.cases import Case
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.oracle.budgets import budget
from bloomref.conformance.oracle.precision import TIERS, Tier
from bloomref.conformance.oracle.truth import truth
from bloomref.shapes import Array, Float

TIER_NAMES = tuple(TIERS)
"""The first axis of every sigma."""
RESULTS = ("final_norm", "logits")
Answer = dict[str, tuple[Array, Array]]
"""Name of a tensor -> its value, float64, and sigma: (tiers, B, T), or (tiers,) for one number or a gradient."""


@dataclass(frozen=True, eq=False)
class Draft:
    """One vector.

    Args:
        id: never changed once published.
        ask: the question, one of `schema.ASKS`.
        expect: "valid", "invalid" or "unspecified".
        error: of what is invalid, the class.
        model, adapter: folders beside the JSON files, or "".
        given: the input, as JSON.
        output: what comes out, as JSON, where that is exact.
        answers: a note on each right answer, and what computes its tensors.
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
    given: Mapping[str, Any] = field(default_factory=dict)
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
    """A question about a model: its weights, with tokens and a mask that follow from the name where they are not given."""
    case = replace(model, batch=batch, time=time, kind=kind, cuts=cuts, name=name, seed=zlib.crc32(name.encode()))
    found: dict[str, Any] = {"params": model.params}
    if token_ids is not None:
        found["token_ids"] = np.array(token_ids)
        found["is_real"] = np.ones(found["token_ids"].shape, bool)
    if is_real is not None:
        found["is_real"] = np.array(is_real, bool)
    vars(case).update(found)
    ids, real = case.token_ids, case.is_real
    return replaced(
        replace(case, batch=ids.shape[0], time=ids.shape[1]), params=model.params, token_ids=ids, is_real=real
    )


def replaced(case: Case, **arrays: Any) -> Case:
    """The case with arrays of its own in place of those that follow from its numbers; its name must be its own, too."""
    vars(case).update(arrays)
    return case


def with_adapter(case: Case, adapter: Lora) -> Case:
    """The same question about the model with an adapter."""
    return replaced(replace(case, lora=adapter), params=case.params, token_ids=case.token_ids, is_real=case.is_real)


def answer(case: Case, names: Sequence[str] = RESULTS) -> Answer:
    """The intermediates of the case whose names match a pattern."""
    exact = truth(case).values
    chosen = [name for name in exact if any(fnmatchcase(name, pattern) for pattern in names)]
    able = {name: _holds(case, TIERS[name]) for name in TIER_NAMES}
    return {name: (exact[name], np.stack([_sigma(case, tier, name, able[tier]) for tier in able])) for name in chosen}


def _holds(case: Case, tier: Tier) -> bool:
    """Whether a model of that tier can be asked at all."""
    narrow = tier.storage > TIERS["float32"].storage
    return not (narrow and case.weights == "float32") and truth(case).largest <= tier.largest


def _sigma(case: Case, tier: str, name: str, able: bool) -> Float[Array, "B T"]:
    """NaN: not to be asked; infinity: nothing but finite numbers can be asked for."""
    if not able:
        return np.full(case.is_real.shape, np.nan)
    found = budget(case, TIERS[tier])
    return np.where(found.graded[name] & case.is_real, found.sigma[name], np.inf)


def without_padding(case: Case) -> Answer:
    """The logits of each row's real tokens alone, put back into their columns: what comes out where a hole is a deleted token."""
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
    **given: Any,
) -> Draft:
    """A vector whose answer is the reference's, of ids and mask that are handed in as they are."""
    inputs = {"token_ids": case.token_ids.tolist(), "padding_mask": case.is_real.astype(int).tolist()}
    return Draft(
        case.name,
        tuple(clauses.split()),
        comment,
        question,
        tuple(flags.split()),
        model=f"models/{model}",
        given=inputs | given,
        answers=(("the specification's", lambda: answer(case, names)),),
    )
