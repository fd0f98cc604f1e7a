"""The properties of a correct implementation: each judges the answers of a subject about a case.

`checks.parity` and `checks.gradients` compare with the oracle; `checks.invariants` and `checks.public_api` compare an
implementation with itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypothesis import strategies as st

from bloomref.conformance.cases import MASKS, Case
from bloomref.conformance.checks import decoding, gradients, invariants, merging, parity, public_api
from bloomref.conformance.checks.outcome import Failure, conclude
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import NotAsked, Subject

RARELY = 4
"""The `share` of properties that hardly depend on the model."""
AT_ENDS = ("real", "left", "right")
"""Masks without holes. LoRA does not depend on holes, and implementations disagree about them."""
PADDED = ("left", "right", "holes", "padding row")


def _without_gradients(subject: Subject) -> str | None:
    declared = subject.implementation.capabilities.trains_in
    return (
        None if subject.dtype in declared else f"{subject.implementation.name} declares no gradients in {subject.dtype}"
    )


def _not_repeatable(subject: Subject) -> str | None:
    able = subject.implementation.capabilities
    return None if able.repeatable else f"{subject.implementation.name} declares that it is not repeatable"


@dataclass(frozen=True)
class Property:
    """One requirement.

    Args:
        says: the requirement, as a sentence that stands alone.
        clauses: clauses of the specification that it tests.
        look: asks the subject and judges its answers.
        needs: optional methods of `implementation.Model` that it calls.
        kinds: masks for which it is defined.
        rows, time: smallest batch size and length for which it is defined.
        longest: length of the longest sequence; None: no limit.
        adapter: format of the case's LoRA adapter (`lora_cases.FORMS`); "": no adapter.
        share: divides the number of drawn cases.
        strategy: draws cases for given capabilities and a dtype; None: `strategies.cases`.
        unasked: returns why a subject is not asked, or None. A `NotAsked` may say that this does not bound the claim.
        fixed: it is also asked on the fixed cases.
    """

    name: str
    says: str
    clauses: tuple[str, ...]
    look: Callable[[Subject, Case], Iterable[Judgement]]
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = MASKS
    rows: int = 1
    time: int = 1
    longest: int | None = None
    adapter: str = ""
    share: int = 1
    strategy: Callable[[Capabilities, str], st.SearchStrategy[Case]] | None = None
    unasked: Callable[[Subject], str | NotAsked | None] | None = None
    fixed: bool = True

    def check(self, subject: Subject, case: Case) -> float:
        """Return the largest Z.

        Raises:
            Failure: the implementation does not have the property, or raised.
            Inconclusive: no number of the case can be judged.
            Unsupported: the implementation cannot answer.
        """

        def failure(judgement: Judgement) -> Failure:
            return Failure(self.name, self.says, self.clauses, subject.dtype, case, judgement)

        return conclude(lambda: self.look(subject, case), failure)


_ALL = (
    Property("logits", "logits equal the oracle's within the rounding budget", ("MOD-5", "MOD-6"), parity.logits),
    Property(
        "hidden",
        "final hidden states equal the oracle's within the rounding budget",
        ("MOD-4",),
        parity.hidden,
        needs=("hidden",),
    ),
    Property(
        "intermediates",
        "every named intermediate equals the oracle's within the rounding budget",
        ("MOD-8",),
        parity.intermediates,
        needs=("trace",),
    ),
    Property(
        "pieces",
        "logits computed over a cache equal the oracle's within the rounding budget",
        ("KVC-7",),
        parity.pieces,
        needs=("in_pieces",),
    ),
    Property(
        "cache",
        "neither the number of calls nor the capacity of the cache changes the logits",
        ("KVC-2", "KVC-7"),
        invariants.cache,
        needs=("in_pieces",),
        time=2,
    ),
    Property(
        "trace-pieces",
        "every named intermediate of calls over a cache equals the oracle's within the rounding budget",
        ("KVC-7", "MOD-8"),
        parity.trace_in_pieces,
        needs=("trace_in_pieces",),
        time=2,
        share=RARELY,
    ),
    Property(
        "step",
        "logits of decoding step by step equal the oracle's within the rounding budget",
        ("BKD-17", "KVC-7"),
        decoding.steps,
        needs=("step",),
        time=2,
    ),
    Property(
        "tokens",
        "tokens are chosen by greedy search and by the draw of the specification, unless rounding may change the choice",
        ("BKD-18", "GEN-1", "GEN-7", "GEN-9", "GEN-10"),
        decoding.tokens,
        needs=("tokens",),
        kinds=("real", "left"),
        longest=12,
    ),
    Property("causality", "no position attends to a later position", ("ATT-5",), invariants.causality, time=2),
    Property("padding", "no real position attends to padding", ("ATT-7", "ATT-8"), invariants.padding, kinds=PADDED),
    Property("rows", "no row of a batch depends on another row", ("MOD-9",), invariants.rows, rows=2),
    Property(
        "shift",
        "padding before or after a text does not change its logits",
        ("ALI-4",),
        invariants.shift,
        kinds=("left", "right"),
        time=2,
    ),
    Property("hole", "padding inside a text keeps its position", ("ALI-4",), invariants.hole, kinds=("holes",), time=6),
    Property(
        "repeat",
        "a repeated call returns the same bits, and no call changes its arguments",
        ("BKD-2", "BKD-3"),
        invariants.repeat,
        share=RARELY,
        unasked=_not_repeatable,
    ),
    Property(
        "masks",
        "a mask of any numeric dtype is accepted; no mask means no padding",
        ("ATT-11", "ATT-12"),
        public_api.masks,
        needs=("call",),
        longest=9,
        share=RARELY,
    ),
    Property(
        "id-dtypes",
        "token ids of every integer dtype give the same logits",
        ("EMB-1",),
        public_api.id_dtypes,
        needs=("call",),
        longest=9,
        share=RARELY,
    ),
    Property(
        "empty",
        "an empty batch and an empty sequence give empty logits",
        ("EMB-6", "MOD-1"),
        public_api.empty,
        needs=("call",),
        longest=9,
        share=RARELY,
    ),
    Property(
        "refusals",
        "illegal token ids and masks are refused",
        ("EMB-2", "ATT-11"),
        public_api.refusals,
        needs=("call",),
        longest=9,
        share=RARELY,
    ),
    Property(
        "lora",
        "with a LoRA adapter of PEFT, all outputs equal the oracle's within the rounding budget",
        ("LRA-1", "LRA-12", "LRA-16"),
        parity.adapted,
        needs=("adapted",),
        kinds=AT_ENDS,
        longest=12,
        adapter="peft",
    ),
    Property(
        "lora-heads",
        "with a LoRA adapter of KerasHub (factors per head), all outputs equal the oracle's within the rounding budget",
        ("LRA-1", "LRA-11", "LRA-16"),
        parity.adapted,
        needs=("adapted",),
        kinds=AT_ENDS,
        longest=12,
        adapter="keras",
        share=RARELY,
    ),
    Property(
        "lora-itself",
        "a LoRA adapter with B = 0 changes no logits, nor does the same product written at twice the rank",
        ("LRA-2", "LRA-12"),
        invariants.adapted,
        needs=("adapted",),
        kinds=AT_ENDS,
        longest=12,
        adapter="peft",
        share=RARELY,
    ),
    Property(
        "merge",
        "a merged LoRA adapter gives the model of the summed weights, and unmerging restores every bit",
        ("LRA-6", "LRA-7"),
        merging.merge,
        needs=("adapted", "merge", "unmerge"),
        kinds=AT_ENDS,
        longest=12,
        adapter="peft",
        share=2,
    ),
    Property(
        "gradients",
        "the loss and the gradient of every weight equal the oracle's within the rounding budget",
        ("GRD-1", "GRD-2", "GRD-3", "GRD-4", "GRD-5"),
        gradients.gradients,
        needs=("loss_and_gradients",),
        time=2,
        longest=64,
        unasked=_without_gradients,
    ),
    Property(
        "lora-gradients",
        "with a LoRA adapter of PEFT, the gradient of every factor equals the oracle's within the rounding budget",
        ("GRD-3", "GRD-4", "LRA-9", "LRA-15"),
        gradients.gradients,
        needs=("adapted", "loss_and_gradients"),
        kinds=AT_ENDS,
        time=2,
        longest=12,
        adapter="peft",
        share=RARELY,
        unasked=_without_gradients,
    ),
    Property(
        "lora-heads-gradients",
        "with a LoRA adapter of KerasHub, the gradient of every factor equals the oracle's within the rounding budget",
        ("GRD-3", "GRD-4", "LRA-9", "LRA-15"),
        gradients.gradients,
        needs=("adapted", "loss_and_gradients"),
        kinds=AT_ENDS,
        time=2,
        longest=12,
        adapter="keras",
        share=RARELY,
        unasked=_without_gradients,
    ),
)
PROPERTIES: dict[str, Property] = {prop.name: prop for prop in _ALL}
"""Properties by name, in the order of a report."""
