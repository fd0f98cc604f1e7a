"""What must hold of every implementation, one function each: (subject, case) -> a judgement of each thing it looked at.

`parity` compares with the truth; `invariances` and `front_door` compare an implementation with itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from bloomref.conformance.cases import MASKS, Case
from bloomref.conformance.checks import gradients, invariants, parity, public_api
from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.oracle.budgets import Judgement
from bloomref.conformance.subject import Raised, Subject

FRONT_DOOR = 4
AT_ENDS = ("real", "left", "right")
"""Without holes: what an adapter does has nothing to do with them, and implementations have other ideas of them."""
PADDED = ("left", "right", "holes", "padding row")


@dataclass(frozen=True)
class Property:
    """One requirement.

    Args:
        says: what must hold, in a sentence.
        clauses: of the specification.
        needs: the methods of `implementation.Model` beside `logits` that it calls.
        kinds: the masks for which it says something.
        rows, time: the smallest batch and length for which it does.
        longest: the longest sequence that it is asked about; None: any.
        adapter: the form of LoRA that its cases have (`lora.FORMS`); "": none.
        share: gets one drawn case where others get so many: the model hardly matters to what it asks.
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

    def check(self, subject: Subject, case: Case) -> float:
        """The worst Z found.

        Raises:
            Failure: it does not hold; Inconclusive: no number of the case can be judged; Unsupported: by the adapter.
        """
        judgements = self._judgements(subject, case)
        for found in judgements:
            if found.verdict == "fail":
                raise Failure(self.name, self.says, self.clauses, subject.dtype, case, found)
        if judgements and all(found.verdict == "inconclusive" for found in judgements):
            raise Inconclusive(judgements[-1].explanation)
        return max((found.z for found in judgements), default=0.0)

    def _judgements(self, subject: Subject, case: Case) -> list[Judgement]:
        """An implementation that raises has failed."""
        try:
            return list(self.look(subject, case))
        except Raised as error:
            raised = Judgement("result", "fail", np.inf, (0, 0), str(error))
            raise Failure(self.name, self.says, self.clauses, subject.dtype, case, raised) from error.__cause__


_ALL = (
    Property("logits", "the logits are those of the specification", ("MOD-5", "MOD-6"), parity.logits),
    Property("hidden", "so are the final hidden states", ("MOD-4",), parity.hidden, needs=("hidden",)),
    Property("intermediates", "so is every named intermediate", ("MOD-8",), parity.intermediates, needs=("trace",)),
    Property("pieces", "so are the logits of calls over a cache", ("KVC-7",), parity.pieces, needs=("in_pieces",)),
    Property(
        "cache",
        "neither the division into calls nor the length of the cache changes the logits",
        ("KVC-2", "KVC-7"),
        invariants.cache,
        needs=("in_pieces",),
        time=2,
    ),
    Property("causality", "no position sees a later one", ("ATT-5",), invariants.causality, time=2),
    Property("padding", "no real position sees padding", ("ATT-7", "ATT-8"), invariants.padding, kinds=PADDED),
    Property("rows", "no row of a batch sees another", ("MOD-9",), invariants.rows, rows=2),
    Property(
        "shift",
        "padding before or behind a text moves its columns, not its logits",
        ("ALI-4",),
        invariants.shift,
        kinds=("left", "right"),
        time=2,
    ),
    Property("hole", "padding inside a text keeps its column", ("ALI-4",), invariants.hole, kinds=("holes",), time=6),
    Property(
        "repeat",
        "a call made again gives the same bits, and leaves its arguments alone",
        ("BKD-2", "BKD-3"),
        invariants.repeat,
        share=FRONT_DOOR,
    ),
    Property(
        "masks",
        "a mask of any number type is taken; no mask means no padding",
        ("ATT-11", "ATT-12"),
        public_api.masks,
        needs=("call",),
        longest=9,
        share=FRONT_DOOR,
    ),
    Property(
        "id-dtypes",
        "ids of every integer type mean the same",
        ("EMB-1",),
        public_api.id_dtypes,
        needs=("call",),
        longest=9,
        share=FRONT_DOOR,
    ),
    Property(
        "empty",
        "an empty batch and an empty sequence give empty logits",
        ("EMB-6", "MOD-1"),
        public_api.empty,
        needs=("call",),
        longest=9,
        share=FRONT_DOOR,
    ),
    Property(
        "refusals",
        "what is illegal is refused",
        ("EMB-2", "ATT-11"),
        public_api.refusals,
        needs=("call",),
        longest=9,
        share=FRONT_DOOR,
    ),
    Property(
        "lora",
        "with an adapter of PEFT, logits, intermediates and calls over a cache are those of the specification",
        ("LRA-1", "LRA-12", "LRA-16"),
        parity.adapted,
        needs=("adapted",),
        kinds=AT_ENDS,
        longest=12,
        adapter="peft",
    ),
    Property(
        "lora-heads",
        "so are they with one of KerasHub, whose factors are those of each head",
        ("LRA-1", "LRA-11", "LRA-16"),
        parity.adapted,
        needs=("adapted",),
        kinds=AT_ENDS,
        longest=12,
        adapter="keras",
        share=FRONT_DOOR,
    ),
    Property(
        "lora-itself",
        "an adapter whose B is zero changes nothing, and the same product at twice the rank is the same adapter",
        ("LRA-2", "LRA-12"),
        invariants.adapted,
        needs=("adapted",),
        kinds=AT_ENDS,
        longest=12,
        adapter="peft",
        share=FRONT_DOOR,
    ),
    Property(
        "gradients",
        "the loss and its gradient by every weight are those of the specification",
        ("GRD-1", "GRD-2"),
        gradients.gradients,
        needs=("loss_and_gradients",),
        time=2,
        longest=64,
    ),
)
PROPERTIES: dict[str, Property] = {found.name: found for found in _ALL}
"""By name, in the order of a report."""
