"""Mistakes in the loss and in the gradient of the embedding; the forward pass is right."""

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.conformance.mistakes.mistake import NO_INTERMEDIATE, mistake
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.shapes import Array

# --- the loss --------------------------------------------------------------------------------------------------------


@mistake(
    "loss-over-all-positions",
    "divides the loss by the number of positions instead of that of counted tokens",
    "GRD-2",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LossOverAllPositions(InstrumentedModel):
    def counted(self, targets: Array) -> int:
        return targets.size // self.samples


@mistake(
    "loss-summed",
    "sums the loss over the tokens instead of averaging",
    "GRD-2",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LossSummed(InstrumentedModel):
    def counted(self, targets: Array) -> int:  # noqa: ARG002
        return 1


@mistake(
    "loss-mean-of-rows",
    "averages the loss of each row, and then over the rows",
    "GRD-2",
    first=NO_INTERMEDIATE,
    needs="gradients rows",
)
class LossMeanOfRows(InstrumentedModel):
    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        rows = [row for row in range(len(targets)) if (targets[row] != IGNORED_LABEL).any()]
        dlogits, losses = np.zeros_like(logits), []
        for row in rows:
            value, dlogits[row] = super().cross_entropy(logits[row][None], targets[row][None])
            losses.append(value)
        return np.sum(losses, axis=0) / max(1, len(rows)), dlogits / max(1, len(rows))


@mistake(
    "loss-gradient-of-sum",
    "averages the loss but not its gradient",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LossGradientOfSum(InstrumentedModel):
    def cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        value, dlogits = super().cross_entropy(logits, targets)
        return value, dlogits * self.counted(targets)


class Targets(InstrumentedModel):
    """Other tokens are predicted."""

    def targets(self, token_ids: Array, is_real: Array, labels: Array) -> Array:  # noqa: ARG002
        targets = np.full(labels.shape, IGNORED_LABEL)
        targets[:, :-1] = self.predicted(is_real, labels)
        return targets

    def predicted(self, is_real: Array, labels: Array) -> Array:
        """The targets of all columns but the last."""
        raise NotImplementedError


@mistake(
    "labels-not-shifted",
    "has each column predict its own token instead of the next",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LabelsNotShifted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        return np.where(is_real, labels, IGNORED_LABEL)[:, :-1]


@mistake(
    "labels-shifted-twice",
    "has each column predict the token after the next",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LabelsShiftedTwice(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        shifted = np.full((len(labels), labels.shape[1] + 1), IGNORED_LABEL)
        shifted[:, :-1] = np.where(is_real, labels, IGNORED_LABEL)
        return np.where(is_real[:, :-1], shifted[:, 2:], IGNORED_LABEL)


@mistake(
    "padding-counted", "counts tokens at padded columns", "GRD-1", first=NO_INTERMEDIATE, needs="gradients padding"
)
class PaddingCounted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:  # noqa: ARG002
        return labels[:, 1:]


@mistake(
    "token-after-padding-counted",
    "counts the first token after padding, which a padded column predicts",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients padding",
)
class TokenAfterPaddingCounted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        return np.where(is_real[:, 1:], labels[:, 1:], IGNORED_LABEL)


@mistake(
    "ignored-label-counted",
    "reads a label of -100 as token 0",
    "GRD-1",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class IgnoredLabelCounted(Targets):
    def predicted(self, is_real: Array, labels: Array) -> Array:
        return np.where(is_real[:, 1:] & is_real[:, :-1], np.maximum(labels[:, 1:], 0), IGNORED_LABEL)


# --- the embedding and its tied head ---------------------------------------------------------------------------------


@mistake(
    "tied-gradient",
    "loses the part of a tied LM head in the gradient of the embedding",
    "GRD-4",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class TiedGradient(InstrumentedModel):
    def head_vjp(self, hidden: Array, dlogits: Array) -> Array:
        if not self.config.tie_word_embeddings:
            return super().head_vjp(hidden, dlogits)
        return dlogits @ self.params.word_embedding


@mistake(
    "lookup-gradient",
    "loses the part of the embedding lookup in the gradient of the embedding",
    "GRD-4",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class LookupGradient(InstrumentedModel):
    def added_rows(self, token_ids: Array, dx: Array, tokens: int) -> Array:
        return 0.0 * super().added_rows(token_ids, dx, tokens)


@mistake(
    "repeated-token-overwrites",
    "keeps the gradient of the last position of each token instead of their sum",
    "GRD-3",
    first=NO_INTERMEDIATE,
    needs="gradients",
)
class RepeatedTokenOverwrites(InstrumentedModel):
    def added_rows(self, token_ids: Array, dx: Array, tokens: int) -> Array:
        rows = np.zeros((self.samples, tokens, dx.shape[-1]), dx.dtype)
        rows[0, token_ids.reshape(-1)] = dx.reshape(-1, dx.shape[-1])
        return rows
