"""Cases that every adapter is tested on, and the failures among its answers."""

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
    """All outputs of an adapter for a case by name, except `in_pieces`."""
    model = subject.model(case)
    outputs = dict(model.trace(case.token_ids, case.is_real)) if subject.offers(case, "trace") else {}
    if subject.offers(case, "hidden"):
        outputs["final_norm"] = model.hidden(case.token_ids, case.is_real)
    return outputs | {"logits": model.logits(case.token_ids, case.is_real)}


def judged(subject: Subject, case: Case) -> list[str]:
    """Explanations of the failures."""
    judgements = judge(case, subject.tier, asked(subject, case))
    model = subject.model(case)
    if subject.offers(case, "in_pieces"):
        pieces = model.in_pieces(case.token_ids, case.is_real, case.cuts, case.time + 3)
        judgements += judge(case, subject.tier, {"logits": pieces})
    return [judgement.explanation for judgement in judgements if judgement.verdict == "fail"]
