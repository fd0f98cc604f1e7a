"""Sequences continued in step over one cache: what every strategy is built on."""

from collections.abc import Sequence

import numpy as np

from bloomref.errors import BadWeights
from bloomref.runtime.engine import Engine
from bloomref.runtime.prompts import Prompt, left_pad
from bloomref.shapes import Array, Bool, Float


class Decoder:
    """n sequences that end in the same column. Ended ones are dropped, copies are made, by `advance`."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], room: int, forbidden: Bool[Array, " V"]) -> None:
        """Read the prompts. `room` is the number of columns to come; `forbidden` ids never get a score."""
        batch = left_pad(prompts)
        self._engine, self._forbidden = engine, forbidden
        self._position = batch.token_ids.shape[1]
        self._cache = engine.new_cache(len(prompts), self._position + room)
        self.prompt_is_real = batch.is_real
        self.prompt_hidden: Array | None = engine.extend(self._cache, 0, batch.token_ids, batch.is_real)
        self.last_hidden: Array = self.prompt_hidden[:, -1]

    def take_prompt_hidden(self) -> Float[Array, "B T D"]:
        """The hidden states of the prompts, once; they are not kept any longer."""
        hidden, self.prompt_hidden = self.prompt_hidden, None
        assert hidden is not None
        return hidden

    def logits(self) -> Float[Array, "B V"]:
        """Scores of the next token, float64; -inf where forbidden. Only the last position is ever scored.

        Raises:
            BadWeights: when the model returns NaN or infinity.
        """
        scores = finite_logits(self._engine, self.last_hidden[:, None])[:, 0]
        scores[:, self._forbidden] = -np.inf
        return scores

    def advance(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        """Go on with the sequences `rows` (some may be left out, some repeat), each followed by its token."""
        self.select(rows)
        column = np.asarray(token_ids, np.int64)[:, None]
        self.last_hidden = self._engine.extend(self._cache, self._position, column)[:, 0]
        self._position += 1

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order."""
        if list(rows) != list(range(len(self.last_hidden))):
            index = np.asarray(rows, np.int64)
            self._cache = self._cache.select(index)
            self.last_hidden = self.last_hidden[index]


def finite_logits(engine: Engine, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Scores in float64.

    Raises:
        BadWeights: when one of them is NaN or infinite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        logits = engine.logits(hidden).astype(np.float64)
    if not np.isfinite(logits).all():
        raise BadWeights(
            f"logits: expected finite numbers, got {logits[~np.isfinite(logits)][0]}; the weights hold NaN or overflow "
            f"in {engine.policy.name}"
        )
    return logits
