"""One generation to be done: what every strategy is given, and the state of one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

from bloomref.generation.decoder import Decoder
from bloomref.generation.logits_processors import Processors
from bloomref.generation.options import GenerationOptions
from bloomref.generation.prompts import Prompt
from bloomref.generation.stopping import Stopping
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Bool


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts (at least one, none empty), how many tokens may follow each, and how; `forbidden` ids are never chosen."""

    engine: Engine
    prompts: Sequence[Prompt]
    budgets: Sequence[int]
    options: GenerationOptions
    stopping: Stopping
    forbidden: Bool[Array, " V"]

    def rows(self) -> list["Row"]:
        both = zip(self.prompts, self.budgets, strict=True)
        return [Row(i, prompt.real_ids, budget) for i, (prompt, budget) in enumerate(both)]

    def decoder(self) -> Decoder:
        return Decoder(
            self.engine, self.prompts, max(self.budgets), self.forbidden, self.options.strategy == "contrastive"
        )

    def processors(self) -> Processors:
        return Processors(self.options)


@dataclass
class Row:
    """A sequence of the batch: `history` is its real tokens so far, `budget` how many may still follow."""

    index: int
    history: list[int]
    budget: int
    ended: bool = False

    def append(self, token_id: int, stopping: Stopping) -> None:
        self.history.append(token_id)
        self.budget -= 1
        self.ended = self.budget == 0 or stopping.ends(self.history)
