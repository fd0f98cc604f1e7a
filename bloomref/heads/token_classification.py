"""BloomForTokenClassification: a label for each token. Clauses: HEA-2, HEA-6, HEA-8."""

from collections.abc import Mapping, Sequence
from typing import Any

from bloomref.argument_kinds import check_collection
from bloomref.errors import invalid
from bloomref.head_params import TOKEN_HEAD
from bloomref.heads.headed_model import HeadedModel, padded
from bloomref.heads.labels import softmax
from bloomref.runtime.finite_logits import check_finite_logits
from bloomref.runtime.inputs import token_batch
from bloomref.shapes import Array, Float


class BloomForTokenClassification(HeadedModel):
    """A BLOOM that labels every token, as for named entities. The arguments are those of `HeadedModel`.

    Example:
        >>> backbone = BloomBackbone.from_preset("bloom_tiny_udhr")
        >>> tokenizer = BloomTokenizer.from_preset("bloom_tiny_udhr")
        >>> model = BloomForTokenClassification(backbone, tokenizer, num_labels=3)
        >>> model({"token_ids": [[5, 6, 7, 8]]}).shape
        (1, 4, 3)
        >>> model.classify("Everyone")[0]["start"]
        0
    """

    kind = TOKEN_HEAD

    def __call__(self, inputs: Any) -> Float[Array, "B T N"]:
        """Logits of each token, in float32 (float64 for a float64 model). There is no dropout.

        Args:
            inputs: `{"token_ids": (B, T), "padding_mask": (B, T)}`, as for the backbone, padded in any way; or a text,
                texts, the ids of one, or a list of these, which are padded on the right to the longest.

        Raises:
            InvalidInput: for wrong inputs.
        """
        if isinstance(inputs, Mapping):
            batch = token_batch(inputs, self.backbone.config.vocabulary_size)
        else:
            batch = padded(self._rows("inputs", inputs))
        return self._project(self.backbone.engine.hidden(batch))

    def classify(self, inputs: str | list[str], ignore_labels: Sequence[str] = ("O",)) -> list[Any]:
        """The labelled tokens of a text, as transformers' pipeline "token-classification" gives them.

        Args:
            inputs: a text, or a list of texts.
            ignore_labels: tokens of these labels are left out.

        Returns:
            For a text, a list of {"entity": label, "score": probability, "index": of the token, "word": the token in
            the tokenizer's spelling, "start", "end": its characters}; for a list of texts, a list of these.

        Raises:
            InvalidInput: for a wrong argument, or a text without a token; BadWeights: when a logit is not finite.
        """
        if isinstance(inputs, str):
            return self._entities(inputs, ignore_labels)
        if not isinstance(inputs, (list, tuple)) or not all(isinstance(text, str) for text in inputs):
            raise invalid("inputs", "a text or a list of texts", inputs)
        return [self._entities(text, ignore_labels) for text in inputs]

    def _entities(self, text: str, ignore_labels: Sequence[str]) -> list[dict[str, Any]]:
        check_collection("ignore_labels", ignore_labels, "a list of labels")
        tokenizer = self._need_tokenizer("inputs")
        spans = tokenizer.spans(text)
        logits = check_finite_logits(self([[span.id for span in spans]]), self.backbone.policy.name)
        scores = softmax(logits[0])
        entities = []
        for index, (span, row) in enumerate(zip(spans, scores, strict=True)):
            label = self.labels[int(row.argmax())]
            if span.part is not None and label not in ignore_labels:
                place = {"word": tokenizer.id_to_token(span.id), "start": span.start, "end": span.stop}
                entities.append({"entity": label, "score": float(row.max()), "index": index, **place})
        return entities
