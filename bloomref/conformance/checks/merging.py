"""Merging a LoRA adapter into the weights, and taking it out again. Clauses: LRA-6, LRA-7."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.checks.rerun import run, same, verdict
from bloomref.conformance.oracle.budgets import Judgement, judge
from bloomref.conformance.subject import Subject
from bloomref.dtypes import cast, floating_dtype
from bloomref.reference import lora


def merge(subject: Subject, case: Case) -> Iterable[Judgement]:
    """Judge the merged model by its own weights, and in 32 and 64 bits by the adapted model, too.

    Unmerged, it must have the bits from before.
    """
    before = run(subject, case)
    try:
        subject.exchange(case, "merge")
        merged = run(subject, case)
        subject.exchange(case, "unmerge")
        after = run(subject, case)
    finally:
        subject.forget()
    yield from judge(merged_case(case, subject.dtype), subject.tier, {"logits": merged})
    if subject.dtype in ("float32", "float64"):
        yield from judge(case, subject.tier, {"logits": merged})
    if subject.implementation.capabilities.repeatable:
        equal = before[case.is_real].tobytes() == after[case.is_real].tobytes()
        yield verdict(equal, "after merge and unmerge, the logits have other bits than before")
    else:
        yield same(subject, case, before, after, "merge and unmerge")


def merged_case(case: Case, dtype: str) -> Case:
    """The case without its adapter, on the weights W + sum of scale B A, rounded once to a dtype (LRA-6)."""
    assert case.adapter is not None
    params = lora.merged(lora.attach(case.params.astype(np.dtype(np.float64)), case.adapter.parts))
    rounded = params.map(lambda array: cast(array, floating_dtype(dtype)).astype(np.float64))
    config = case.config if params.lm_head is None else case.config.replace(tie_word_embeddings=False)
    return replace(case, config=config, lora=None, arrays=Arrays(rounded, case.token_ids, case.is_real))
