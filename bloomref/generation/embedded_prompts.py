"""Prompts of vectors in place of token ids (`inputs_embeds`): they have no tokens for penalties and stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bloomref.errors import invalid
from bloomref.generation.prompts import Prompt
from bloomref.runtime.embedding_inputs import EmbeddingBatch
from bloomref.shapes import Array, Float


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt(Prompt):
    """A prompt whose ids are unknown (0), and its vectors in a floating dtype."""

    vectors: Float[Array, "T D"]

    @property
    def real_ids(self) -> list[int]:
        return []

    def followed_by(self, token_ids: Sequence[int]) -> Prompt:
        """The continuation alone, as in transformers: the prompt has no ids."""
        return Prompt.of(token_ids)


def embedded_prompts(batch: EmbeddingBatch) -> list[EmbeddedPrompt]:
    """Rows of a padded batch, each from its first to its last real position.

    Raises:
        InvalidInput: when a row has no real position.
    """
    prompts = []
    for vectors, real in zip(batch.vectors, batch.is_real, strict=True):
        positions = np.flatnonzero(real)
        if not positions.size:
            raise invalid("inputs_embeds", "a real position in every row", "a row of padding")
        span = slice(positions[0], positions[-1] + 1)
        ids = np.zeros(span.stop - span.start, np.int64)
        prompts.append(EmbeddedPrompt(ids, real[span], vectors[span]))
    return prompts


def left_padded_vectors(prompts: Sequence[Prompt]) -> Float[Array, "B T D"] | None:
    """The vectors of a batch in which every prompt ends at the last position; None for prompts of ids."""
    rows = [prompt.vectors for prompt in prompts if isinstance(prompt, EmbeddedPrompt)]
    if not rows:
        return None
    width = max(map(len, rows))
    return np.stack([np.pad(row, ((width - len(row), 0), (0, 0))) for row in rows])
