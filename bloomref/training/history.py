"""Records of a run: one per step, one per evaluation. They are the same for two equal runs."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bloomref.errors import BadWeights, describe


@dataclass(frozen=True)
class StepRecord:
    """One update: the mean loss in nats a token before it, over so many tokens,
    and the gradients' norm before clipping.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """Result after `step` updates: the held-out loss in nats per token, or the value of the caller's function."""

    step: int
    loss: float


@dataclass
class History:
    """The loss curve of a run, in the order of the steps; steps count from 1."""

    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.steps]

    @property
    def best(self) -> Evaluation | None:
        """The evaluation of the lowest loss, the first of equals."""
        return min(self.evaluations, key=lambda evaluation: evaluation.loss, default=None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "History":
        """Raises: BadWeights: when it is not what `to_dict` gave."""
        try:
            return cls([StepRecord(**r) for r in data["steps"]], [Evaluation(**e) for e in data["evaluations"]])
        except (KeyError, TypeError) as error:
            raise BadWeights(describe("history", "steps and evaluations", str(error))) from None

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
