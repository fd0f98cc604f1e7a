"""Task: the arguments that every decoding strategy takes. Row: the state of one of its sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from bloomref.generation.decoder import Decoder
from bloomref.generation.logits_processors import LogitsProcessors
from bloomref.generation.options import GenerationOptions
from bloomref.generation.prompts import Prompt
from bloomref.generation.stopping import Stopping
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Bool


@dataclass(frozen=True, eq=False)
class Task:
    """One generation.

    Args:
        prompts: none of them empty.
        budgets: the largest number of new tokens of each prompt.
        forbidden: ids that are never chosen.
    """

    engine: Engine
    prompts: Sequence[Prompt]
    budgets: Sequence[int]
    options: GenerationOptions
    stopping: Stopping
    forbidden: Bool[Array, " V"]

    def rows(self) -> list["Row"]:
        """The initial state of every sequence."""
        both = zip(self.prompts, self.budgets, strict=True)
        return [Row(i, prompt.real_ids, budget) for i, (prompt, budget) in enumerate(both)]

    def decoder(self) -> Decoder:
        """A decoder that has prefilled the prompts."""
        keep_hidden = self.options.strategy == "contrastive"
        return Decoder(self.engine, self.prompts, max(self.budgets), self.forbidden, keep_hidden)

    def processors(self) -> LogitsProcessors:
        return LogitsProcessors(self.options)


@dataclass
class Row:
    """A sequence of the batch.

    Args:
        index: its place among the prompts.
        history: its real tokens so far, prompt and continuation.
        budget: the largest number of tokens that may still follow.
    """

    index: int
    history: list[int]
    budget: int
    ended: bool = False

    def append(self, token_id: int, stopping: Stopping) -> None:
        """Add a new token; `ended` becomes True at a stop or when the budget is spent."""
        self.history.append(token_id)
        self.budget -= 1
        self.ended = self.budget == 0 or stopping.ends(self.history)
