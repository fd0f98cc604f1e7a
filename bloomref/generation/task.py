"""Task: the arguments that every decoding strategy takes. Row: the state of one of its sequences. Draft: proposes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from bloomref.generation.decoder import Decoder
from bloomref.generation.logits_processors import LogitsProcessors
from bloomref.generation.options import GenerationOptions
from bloomref.generation.pace import Figures, Pace
from bloomref.generation.partial_selection import Sums, exponential_sums
from bloomref.generation.prompts import Prompt
from bloomref.generation.sampling import row_seeds
from bloomref.generation.stopping import Stopping
from bloomref.machine_memory import check_memory
from bloomref.runtime.backend import SupportsVocabularySums
from bloomref.runtime.engine import Engine
from bloomref.runtime.prefix_states import PrefixStates
from bloomref.shapes import Array, Bool, Int

Results = Sequence[tuple[Prompt, list[int]]]
"""Prompt and new ids of each result."""


@dataclass(frozen=True, eq=False)
class Task:
    """One generation.

    Args:
        prompts: none of them empty.
        budgets: the largest number of new tokens of each prompt.
        forbidden: ids that are never chosen.
        prefix: states of a sequence that prompts begin with, which need not be computed again.
        places: the place of each prompt in the request, which decides its seeds; None: their order.
        draft: proposes tokens in greedy search and sampling; it changes no result.
    """

    engine: Engine
    prompts: Sequence[Prompt]
    budgets: Sequence[int]
    options: GenerationOptions
    stopping: Stopping
    forbidden: Bool[Array, " V"]
    places: Sequence[int] | None = None
    prefix: PrefixStates | None = None
    draft: "Draft | None" = None

    def seeds(self) -> Int[Array, " B"]:
        """The seed of each of `rows` (GEN-9, GEN-11)."""
        count, seed = self.options.sequences, self.options.seed
        places = range(len(self.prompts)) if self.places is None else self.places
        return row_seeds(None if seed is None else int(seed), [i * count + j for i in places for j in range(count)])

    def check_memory(self) -> None:
        """Refuse a cache that does not fit into this machine.

        Raises:
            Unsupported: with both sizes.
        """
        candidates = int(self.options.top_k or 1) if self.options.strategy == "contrastive" else 1
        sequences = len(self.prompts) * max(self.options.sequences, self.options.num_beams, candidates)
        positions = max((len(p) + n for p, n in zip(self.prompts, self.budgets, strict=True)), default=0)
        hint = "fewer max_new_tokens, num_beams, sequences or prompts at once need less"
        check_memory("the cache", self.engine.cache_bytes(sequences, positions), hint)

    def rows(self) -> list["Row"]:
        """The initial state of every sequence: `options.sequences` of each prompt, side by side."""
        both = zip(self.prompts, self.budgets, strict=True)
        starts = [(prompt.real_ids, budget) for prompt, budget in both for _ in range(self.options.sequences)]
        return [Row(i, ids.copy(), budget, len(ids)) for i, (ids, budget) in enumerate(starts)]

    def decoder(self) -> Decoder:
        """A decoder that has prefilled the prompts, each once, for the sequences of `rows`."""
        keep_hidden = self.options.strategy == "contrastive"
        decoder = Decoder(self.engine, self.prompts, max(self.budgets), self.forbidden, keep_hidden, self.prefix)
        decoder.select([i for i in range(len(self.prompts)) for _ in range(self.options.sequences)])
        return decoder

    def results(self, new_ids: Sequence[list[int]]) -> "Results":
        """Each result's prompt and new ids: `num_return_sequences` of each prompt, side by side."""
        count = self.options.num_return_sequences
        return [(self.prompts[i // count], new) for i, new in enumerate(new_ids)]

    def sums(self) -> Sums:
        """Sums over the vocabulary, by the backend if it has a faster way."""
        prepared = self.engine.prepared
        return prepared.exponential_sums if isinstance(prepared, SupportsVocabularySums) else exponential_sums

    def processors(self) -> LogitsProcessors:
        return LogitsProcessors(self.options, self.stopping.token_ids)


@dataclass
class Row:
    """A sequence of the batch.

    Args:
        index: its place among the sequences.
        history: its real tokens so far, prompt and continuation.
        budget: the largest number of tokens that may still follow.
        prompt_length: number of tokens of the prompt.
    """

    index: int
    history: list[int]
    budget: int
    prompt_length: int
    ended: bool = False

    @property
    def new_ids(self) -> list[int]:
        """The continuation so far."""
        return self.history[self.prompt_length :]

    def append(self, token_id: int, stopping: Stopping) -> None:
        """Add a new token; `ended` becomes True at a stop or when the budget is spent."""
        self.history.append(token_id)
        self.budget -= 1
        self.ended = self.budget == 0 or stopping.ends(self.history)


class Proposals(ABC):
    """The proposals of a draft for the rows of one generation."""

    @abstractmethod
    def propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[list[int]]:
        """Tokens that may follow each row: as many as `counts` says, or fewer, or none.

        Args:
            rows: in the order of the last `select`, each with a new token at least.
            counts: larger where a row is shorter: count plus length is the same for all rows with a count above 0.
        """

    @abstractmethod
    def select(self, indices: Sequence[int]) -> None:
        """Keep the rows at these indices; the others have ended."""


class Draft(ABC):
    """A source of tokens for the model to check (`lm.draft`). It may serve several calls, one after the other.

    Attributes:
        figures: what was proposed and accepted so far.
        pace: chooses the number of proposals.
    """

    def __init__(self) -> None:
        self.figures, self.pace = Figures(), Pace()

    @abstractmethod
    def open(self, task: Task) -> Proposals:
        """Begin one generation."""
