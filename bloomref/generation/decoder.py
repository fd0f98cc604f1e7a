"""The sequences of a batch over one KV cache: prefill, then one step a token. Every decoding strategy uses it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bloomref.generation.embedded_prompts import left_padded_vectors
from bloomref.generation.prompts import Prompt, left_pad
from bloomref.runtime.backend import Choice, Hidden
from bloomref.runtime.embedding_inputs import EmbeddingBatch, run_vectors
from bloomref.runtime.engine import Engine
from bloomref.runtime.finite_logits import finite_logits
from bloomref.runtime.prefix_states import PrefixStates, load_prefix
from bloomref.shapes import Array, Bool, Float, Int


class Decoder:
    """B sequences, left-padded, so that all of them end at the same cache position.

    Args:
        prompts: prefilled at once.
        num_new_tokens: cache positions that follow the longest prompt.
        forbidden: ids whose logit is always -inf.
        keep_hidden: True to bring hidden states to the host, for `last_hidden` and `take_prompt_hidden`.
        prefix: states of what the prompts begin with, which are copied, not computed again. Not with `keep_hidden`.

    Raises:
        BadWeights: when a logit is NaN or infinite; also raised by `advance`.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        num_new_tokens: int,
        forbidden: Bool[Array, " V"],
        keep_hidden: bool = False,
        prefix: PrefixStates | None = None,
    ) -> None:
        batch = left_pad(prompts)
        self._engine, self._keep_hidden = engine, keep_hidden
        self._forbidden_ids = np.flatnonzero(forbidden)
        self._cache = engine.new_cache(len(prompts), batch.token_ids.shape[1] + num_new_tokens)
        self._position = 0
        if prefix is not None and not keep_hidden:
            last = batch.token_ids.shape[1] - 1  # the logits after it are needed
            self._position = load_prefix(engine, self._cache, batch, prefix, last)
        self.prompt_is_real = batch.is_real
        ids, is_real = batch.token_ids[:, self._position :], batch.is_real[:, self._position :]
        vectors = left_padded_vectors(prompts)
        if vectors is None:
            self._prompt_hidden = self._read(ids, is_real)
        else:
            self._position = ids.shape[1]
            hidden = run_vectors(engine, self._cache, EmbeddingBatch(vectors, is_real))
            self._prompt_hidden = self._take(hidden, ids)

    def _read(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"] | None = None) -> Array | None:
        """Run the model on the next T positions; returns their hidden states if `keep_hidden`."""
        start, self._position = self._position, self._position + token_ids.shape[1]
        if not self._keep_hidden:
            self._score(partial(self._engine.read, self._cache, start, token_ids, is_real))
            return None
        return self._take(self._engine.run(self._cache, start, token_ids, is_real), token_ids)

    def _take(self, hidden: Hidden, token_ids: Int[Array, "B T"]) -> Array | None:
        """The next logits from final hidden states, which are returned if `keep_hidden`."""
        self._score(partial(self._engine.next_logits, hidden))
        if not self._keep_hidden:
            return None
        states = self._engine.to_host(hidden, token_ids)
        self.last_hidden: Array = states[:, -1]
        return states

    def _score(self, compute: Callable[[], Array]) -> None:
        self._logits = forbid(finite_logits(self._engine, compute), self._forbidden_ids)

    def take_prompt_hidden(self) -> Float[Array, "B T D"]:
        """Hidden states of the prompts. The decoder releases them: a second call fails."""
        hidden, self._prompt_hidden = self._prompt_hidden, None
        assert hidden is not None
        return hidden

    def logits(self) -> Float[Array, "B V"]:
        """Logits of the next token in the accumulation dtype, -inf where forbidden. Not a copy: read only."""
        return self._logits

    def advance(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        """Keep the sequences `rows` (as `arrange`), append its token to each, and compute the next logits."""
        self.arrange(rows)
        self._read(np.asarray(token_ids, np.int64)[:, None])

    @property
    def position(self) -> int:
        """Number of columns in the cache."""
        return self._position

    def append(self, token_ids: Int[Array, "B T"]) -> None:
        """Append tokens to each sequence, and compute the logits after the last."""
        self._read(token_ids)

    def rewind(self, position: int) -> None:
        """Forget the columns from this one on. `logits` are those from before, until the next `append`."""
        self._cache.forget(position)
        self._position = position

    def logits_after(
        self, token_ids: Int[Array, "B T"], rows: Sequence[int], columns: Sequence[int]
    ) -> Float[Array, "N V"]:
        """Logits after some of the next T tokens of each sequence, as they are: not checked, no id forbidden.

        The position stays: what was read is behind it, until `rewind` sets it.

        Args:
            rows, columns: of the N tokens in `token_ids`.
        """
        hidden = self._engine.extend(self._cache, self._position, token_ids)
        return self._engine.logits(hidden[np.asarray(rows), np.asarray(columns)][None])[0]

    def checked(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        """Logits that a token is chosen from: finite, and -inf where forbidden.

        Raises:
            BadWeights: when a logit is NaN or infinite.
        """
        return forbid(finite_logits(self._engine, lambda: logits[None]), self._forbidden_ids)[0]

    def choose(self, token_ids: Sequence[int], choice: Choice, count: int) -> Int[Array, "B N"] | None:
        """Append its token to each sequence, then `count` tokens that the backend chooses.

        Returns:
            The chosen tokens; the last of each row is not in the cache yet. None, without any change, if the backend
            cannot make this choice.
        """
        chosen = self._engine.choose(self._cache, self._position, np.asarray(token_ids, np.int64), choice, count)
        if chosen is not None:
            self._position += count
        return chosen

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order. Those left out are dropped; one that occurs twice is copied."""
        if list(rows) != list(range(len(self._logits))):
            index = np.asarray(rows, np.int64)
            self.arrange(rows)
            self._logits = self._logits[index]
            if self._keep_hidden:
                self.last_hidden = self.last_hidden[index]

    def arrange(self, rows: Sequence[int], is_same_before: bool = False) -> None:
        """As `select`, but `logits` and `last_hidden` stay as they are until the next `advance`.

        Args:
            is_same_before: True if each sequence differs from the one that replaces it in the last position alone.
        """
        index = np.asarray(rows, np.int64)
        if not np.array_equal(index, np.arange(len(self._cache.is_real))):
            start = self._position - 1 if is_same_before else 0
            self._cache = self._cache.rearranged(index, start, self._position)


def forbid(logits: Float[Array, "N V"], token_ids: Int[Array, " M"]) -> Float[Array, "N V"]:
    """The logits with -inf at these ids: in place, unless the array is read-only."""
    if token_ids.size:
        logits = np.require(logits, requirements="W")
        logits[:, token_ids] = -np.inf
    return logits
