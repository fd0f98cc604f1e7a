"""A handful of cases that every adapter is asked about, and what the judge says of all that it answers."""

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.oracle.budgets import judge
from bloomref.conformance.subject import Subject
from bloomref.shapes import Array

SIX = BloomConfig(vocabulary_size=31, num_layers=2, num_heads=6, hidden_dim=36, intermediate_dim=144)
TWELVE = BloomConfig(vocabulary_size=23, num_layers=1, num_heads=12, hidden_dim=24, intermediate_dim=96)

CASES = (
    Case(SIX, batch=2, time=9, cuts=(1, 2, 6), name="no padding"),
    Case(TWELVE, seed=1, batch=3, time=12, kind="left", cuts=(5,), name="left padding"),
    Case(SIX, seed=2, batch=3, time=8, kind="right", cuts=(3,), embedding_std=3e-3, name="right padding"),
    Case(TWELVE, seed=3, batch=2, time=11, kind="holes", cuts=(7,), name="holes"),
    Case(SIX, seed=4, batch=2, time=7, kind="padding row", cuts=(4,), name="a row of padding"),
)


def asked(subject: Subject, case: Case) -> dict[str, Array]:
    """Everything that the adapter can say of a case but `in_pieces`, by name."""
    model = subject.model(case)
    found = dict(model.trace(case.token_ids, case.is_real)) if hasattr(model, "trace") else {}
    if hasattr(model, "hidden"):
        found["final_norm"] = model.hidden(case.token_ids, case.is_real)
    return found | {"logits": model.logits(case.token_ids, case.is_real)}


def judged(subject: Subject, case: Case) -> list[str]:
    """Why, of each answer that is not right."""
    judgements = judge(case, subject.tier, asked(subject, case))
    model = subject.model(case)
    if hasattr(model, "in_pieces"):
        pieces = model.in_pieces(case.token_ids, case.is_real, case.cuts, case.time + 3)
        judgements += judge(case, subject.tier, {"logits": pieces})
    return [found.explanation for found in judgements if found.verdict == "fail"]
