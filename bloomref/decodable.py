"""The text of the ids of a model: their bytes, and the ids without any."""

from collections.abc import Sequence

import numpy as np

from bloomref.shapes import Array, Bool
from bloomref.tokenizer import BloomTokenizer


class Vocabulary:
    """The bytes of each id, and the ids that may not be chosen.

    Without a tokenizer, every id may be chosen and none has text.
    """

    def __init__(self, tokenizer: BloomTokenizer | None, size: int) -> None:
        self._tokenizer = tokenizer
        self.forbidden: Bool[Array, " V"] = np.zeros(size, bool)
        if tokenizer is not None:
            self.forbidden[:] = [not tokenizer.has_token(token_id) for token_id in range(size)]

    def token_bytes(self, token_id: int) -> bytes:
        if self._tokenizer is None or self.forbidden[token_id]:
            return b""
        return self._tokenizer.token_bytes(token_id)

    def count_bytes(self, token_ids: Sequence[int]) -> int | None:
        """UTF-8 bytes of these tokens; None when one has no known text."""
        if self._tokenizer is None or self.forbidden[list(token_ids)].any():
            return None
        return sum(map(len, map(self._tokenizer.token_bytes, token_ids)))
