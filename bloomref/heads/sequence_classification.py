"""BloomForSequenceClassification: one label, several, or a number for a whole text. Clauses: HEA-3 ... HEA-7."""

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np

from bloomref.errors import invalid
from bloomref.generation.prompts import by_length
from bloomref.head_params import SEQUENCE_HEAD
from bloomref.heads.headed_model import HeadedModel, padded
from bloomref.runtime.finite_logits import check_finite_logits
from bloomref.runtime.inputs import TokenBatch, token_batch
from bloomref.shapes import Array, Float, Int
from bloomref.validation import check_integer

Text = str | dict[str, str]
"""A text, or a pair {"text": ..., "text_pair": ...}."""
Best = dict[str, Any]
"""{"label": name, "score": number}."""


class BloomForSequenceClassification(HeadedModel):
    """A BLOOM that labels whole texts; its logits are read at the last token. The arguments are those of `HeadedModel`.

    Example:
        >>> backbone = BloomBackbone.from_preset("bloom_tiny_udhr")
        >>> tokenizer = BloomTokenizer.from_preset("bloom_tiny_udhr")
        >>> model = BloomForSequenceClassification(backbone, tokenizer, id2label={0: "no", 1: "yes"})
        >>> model(["Everyone has", "Jeder hat das Recht"]).shape
        (2, 2)
        >>> model.classify("Everyone has")["label"] in ("no", "yes")
        True
    """

    kind = SEQUENCE_HEAD

    def __call__(self, inputs: Any) -> Float[Array, "B N"]:
        """Logits of each row, in float32 (float64 for a float64 model).

        Args:
            inputs: `{"token_ids": (B, T), "padding_mask": (B, T)}`, as for the backbone, padded on either side with
                `config.pad_token_id`; or a text, texts, the ids of one, or a list of these, which need no padding.

        Raises:
            InvalidInput: for wrong inputs; several rows of a model without a padding token (HEA-4); a row whose last
            token is masked (HEA-5).
        """
        if isinstance(inputs, Mapping):
            batch = token_batch(inputs, self.backbone.config.vocabulary_size)
            return self._at(batch, last_tokens(batch, self.config.pad_token_id))
        rows = self._rows("inputs", inputs)
        logits: dict[int, Array] = {}
        for group in by_length(rows):
            batch = padded([rows[i] for i in group])
            last = [int(last_tokens(padded([rows[i]]), self.config.pad_token_id)[0]) for i in group]
            logits |= dict(zip(group, self._at(batch, np.array(last)), strict=True))
        return np.stack([logits[i] for i in range(len(rows))]) if rows else self._project(np.zeros((0, self._width)))

    @overload
    def classify(self, inputs: Text, top_k: Literal["best"] = "best") -> Best: ...
    @overload
    def classify(self, inputs: Text, top_k: int | None) -> list[Best]: ...
    @overload
    def classify(self, inputs: list[Text], top_k: Literal["best"] = "best") -> list[Best]: ...
    @overload
    def classify(self, inputs: list[Text], top_k: int | None) -> list[list[Best]]: ...
    def classify(self, inputs: Text | list[Text], top_k: int | Literal["best"] | None = "best") -> Any:
        """Labels with scores, as transformers' pipeline "text-classification" gives them.

        Args:
            inputs: a text or a list of texts; {"text": ..., "text_pair": ...} in place of a text is two texts that the
                tokenizer joins.
            top_k: "best": the best label, {"label", "score"}; a number: a list of so many, the best first; None: a list
                of all.

        Returns:
            For a list of texts, a list of these. Scores are probabilities: of a softmax, or for each label alone (a
            sigmoid) if the problem is "multi_label_classification" or there is one label. They are the logits
            themselves for "regression".

        Raises:
            InvalidInput: for a wrong argument, or a text without a token; BadWeights: when a logit is not finite.
        """
        if top_k not in ("best", None):
            check_integer("top_k", top_k, 1)
        scores = self._labels.probabilities(check_finite_logits(self(self._pairs(inputs)), self.backbone.policy.name))
        ranked = [self._labels.best(row) for row in scores]
        results: list[Any] = [row[0] for row in ranked] if top_k == "best" else [row[:top_k] for row in ranked]
        return results[0] if isinstance(inputs, (str, Mapping)) else results

    def _pairs(self, inputs: Any) -> Any:
        """The inputs, with token ids in the place of texts where one of them is a pair."""
        items = [inputs] if isinstance(inputs, Mapping) else inputs
        if not isinstance(items, (list, tuple)) or not any(isinstance(item, Mapping) for item in items):
            return inputs
        return [self._pair(index, item) for index, item in enumerate(items)]

    def _pair(self, index: int, item: Any) -> list[int]:
        fields = item if isinstance(item, Mapping) else {"text": item}
        text, second = fields.get("text"), fields.get("text_pair")
        if not set(fields) <= {"text", "text_pair"} or not isinstance(text, str) or not isinstance(second, str | None):
            raise invalid(f"inputs[{index}]", "a text, or {'text': ..., 'text_pair': ...}", item)
        return [span.id for span in self._need_tokenizer("inputs").spans(text, second)]

    def _at(self, batch: TokenBatch, last: Int[Array, " B"]) -> Float[Array, "B N"]:
        every = np.arange(len(last))
        if masked := np.flatnonzero(~batch.is_real[every, last]).tolist():
            pad, position = self.config.pad_token_id, int(last[masked[0]])
            got = f"0 at position {position} of row {masked[0]}, which holds id {batch.token_ids[masked[0], position]}"
            expected = f"1 at the last token that is not pad_token_id={pad}, where the label is read"
            raise invalid("padding_mask", expected, got, "pad with that id, or pass texts or lists of ids")
        return self._project(self.backbone.engine.hidden(batch)[every, last])

    @property
    def _width(self) -> int:
        return self.backbone.config.hidden_dim


def last_tokens(batch: TokenBatch, pad_token_id: int | None) -> Int[Array, " B"]:
    """Position of the rightmost token of each row that is not the padding token; 0 if there is none (HEA-3, HEA-4).

    Raises:
        InvalidInput: rows without positions, or several rows where there is no padding token.
    """
    rows, width = batch.token_ids.shape
    if width == 0 and rows:
        raise invalid("token_ids", "at least one position", f"shape {batch.token_ids.shape}")
    if pad_token_id is None:
        if rows > 1:
            hint = "pass texts, or lists of ids, or from_preset(..., pad_token_id=3)"
            raise invalid("token_ids", "one row, since the model's config has no pad_token_id", f"{rows} rows", hint)
        return np.full(rows, width - 1)
    is_token = batch.token_ids != pad_token_id
    return (np.arange(width) * is_token).argmax(axis=1) if width else np.zeros(rows, np.int64)
