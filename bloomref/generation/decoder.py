"""Sequences continued in step over one cache: what every strategy is built on."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bloomref.errors import BadWeights
from bloomref.generation.prompts import Prompt, left_pad
from bloomref.runtime.backend import Choice
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Bool, Float, Int


class Decoder:
    """n sequences that end in the same column. Ended ones are dropped, copies are made, by `advance`."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        room: int,
        forbidden: Bool[Array, " V"],
        keep_hidden: bool = False,
    ) -> None:
        """Read the prompts. `room` is the number of columns to come; `forbidden` ids never get a score.

        Hidden states are brought to the host only when `keep_hidden` asks for `last_hidden` and `take_prompt_hidden`.
        """
        batch = left_pad(prompts)
        self._engine, self._forbidden, self._keep_hidden = engine, forbidden, keep_hidden
        self._cache = engine.new_cache(len(prompts), batch.token_ids.shape[1] + room)
        self._position = 0
        self.prompt_is_real = batch.is_real
        self._prompt_hidden = self._read(batch.token_ids, batch.is_real)

    def _read(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None) -> Array | None:
        start, self._position = self._position, self._position + token_ids.shape[1]
        if not self._keep_hidden:
            self._scores = finite(self._engine, partial(self._engine.read, self._cache, start, token_ids, is_real))
            return None
        hidden = self._engine.run(self._cache, start, token_ids, is_real)
        self._scores = finite(self._engine, partial(self._engine.next_logits, hidden))
        states = self._engine.prepared.to_host(hidden)
        self.last_hidden: Array = states[:, -1]
        return states

    def take_prompt_hidden(self) -> Float[Array, "B T D"]:
        """The hidden states of the prompts, once; they are not kept any longer."""
        hidden, self._prompt_hidden = self._prompt_hidden, None
        assert hidden is not None
        return hidden

    def logits(self) -> Float[Array, "B V"]:
        """Scores of the next token, float64; -inf where forbidden. Only the last position is ever scored."""
        scores = self._scores.copy()
        scores[:, self._forbidden] = -np.inf
        return scores

    def advance(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        """Go on with the sequences `rows` (some may be left out, some repeat), each followed by its token."""
        self.select(rows)
        self._read(np.asarray(token_ids, np.int64)[:, None])

    def choose(self, token_ids: Sequence[int], choice: Choice, count: int) -> Int[Array, "B N"] | None:
        """Each sequence goes on with its token and those that the backend chooses: what it chose, of which the last is still to be
        read. None, and nothing is changed, where the backend does not choose so.
        """
        chosen = self._engine.choose(self._cache, self._position, np.asarray(token_ids, np.int64), choice, count)
        if chosen is not None:
            self._position += count
        return chosen

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order."""
        if list(rows) != list(range(len(self._scores))):
            index = np.asarray(rows, np.int64)
            self._cache = self._cache.select(index)
            self._scores = self._scores[index]
            if self._keep_hidden:
                self.last_hidden = self.last_hidden[index]


def finite(engine: Engine, compute: Callable[[], Array]) -> Array:
    """What `compute` returns, logits, in float64.

    Raises:
        BadWeights: when one of them is NaN or infinite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        logits = compute().astype(np.float64)
    if not np.isfinite(logits).all():
        raise BadWeights(
            f"logits: expected finite numbers, got {logits[~np.isfinite(logits)][0]}; the weights hold NaN or overflow "
            f"in {engine.policy.name}"
        )
    return logits
