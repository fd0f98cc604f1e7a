"""BloomForQuestionAnswering: the part of a text that answers a question. Clauses: HEA-8, HEA-9."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bloomref.errors import invalid
from bloomref.head_params import QUESTION_HEAD
from bloomref.heads.headed_model import HeadedModel, padded
from bloomref.heads.labels import softmax
from bloomref.runtime.finite_logits import check_finite_logits
from bloomref.runtime.inputs import token_batch
from bloomref.shapes import Array, Bool, Float
from bloomref.tokenizer import TokenSpan
from bloomref.validation import check_integer


class BloomForQuestionAnswering(HeadedModel):
    """A BLOOM that marks the answer to a question within a context. The arguments are those of `HeadedModel`.

    Example:
        >>> backbone = BloomBackbone.from_preset("bloom_tiny_udhr")
        >>> tokenizer = BloomTokenizer.from_preset("bloom_tiny_udhr")
        >>> model = BloomForQuestionAnswering(backbone, tokenizer)
        >>> start, end = model({"token_ids": [[5, 6, 7, 8]]})
        >>> start.shape, end.shape
        ((1, 4), (1, 4))
        >>> context = "The mask is causal."
        >>> answer = model.answer("What is the mask?", context)
        >>> answer["answer"] == context[answer["start"] : answer["end"]]
        True
    """

    kind = QUESTION_HEAD

    def __call__(self, inputs: Any) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """Logits of the answer's first and of its last token, in float32 (float64 for a float64 model).

        Args:
            inputs: `{"token_ids": (B, T), "padding_mask": (B, T)}`, as for the backbone, padded in any way; or the ids
                of a question followed by a context, or a list of these, which are padded on the right to the longest.

        Raises:
            InvalidInput: for wrong inputs.
        """
        if isinstance(inputs, Mapping):
            batch = token_batch(inputs, self.backbone.config.vocabulary_size)
        else:
            batch = padded(self._rows("inputs", inputs))
        logits = self._project(self.backbone.engine.hidden(batch))
        return logits[..., 0], logits[..., 1]

    def answer(self, question: str, context: str, max_answer_length: int = 15) -> dict[str, Any]:
        """The best answer within the context: {"answer", "score", "start", "end"}.

        Args:
            question: a text; the tokenizer joins it with the context as transformers' does.
            context: the text that holds the answer.
            max_answer_length: in tokens, before the answer is widened to whole words.

        Returns:
            `start` and `end` are characters of the context: the answer is `context[start:end]`, without white space
            around it. `score` is the product of the probabilities of its first and its last token (HEA-9).

        Raises:
            InvalidInput: for a wrong argument, or a context without a token; BadWeights: when a logit is not finite.
        """
        check_integer("max_answer_length", max_answer_length, 1)
        for name, text in (("question", question), ("context", context)):
            if not isinstance(text, str):
                raise invalid(name, "a text", text)
        spans = self._need_tokenizer("question").spans(question, context)
        in_context = np.array([span.part == 1 for span in spans], bool)
        if not in_context.any():
            raise invalid("context", "at least one token", repr(context))
        logits = self([[span.id for span in spans]])
        [start_logits], [end_logits] = (check_finite_logits(x, self.backbone.policy.name) for x in logits)
        first, last, score = best_span(start_logits, end_logits, in_context, max_answer_length)
        start, end = _characters(spans, first, last)
        while start < end and context[start].isspace():
            start += 1
        while start < end and context[end - 1].isspace():
            end -= 1
        return {"answer": context[start:end], "score": score, "start": start, "end": end}


def best_span(
    start: Float[Array, " T"], end: Float[Array, " T"], in_context: Bool[Array, " T"], max_length: int
) -> tuple[int, int, float]:
    """The first token s, the last token e and the score p(s)·q(e) of the best answer (HEA-9).

    p and q are softmaxes over the tokens of the context, and s ≤ e < s + max_length. Among equal scores, the lowest s
    and then the lowest e is chosen.
    """
    places = np.flatnonzero(in_context)
    p, q = softmax(start[places]), softmax(end[places])
    length = min(max_length, len(places))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(q, (0, length - 1)), length)
    products = p[:, None] * windows  # [s, d]: p(s)·q(s + d), 0 past the end
    s, d = np.unravel_index(products.argmax(), products.shape)
    return int(places[s]), int(places[s + d]), float(products[s, d])


def _characters(spans: Sequence[TokenSpan], first: int, last: int) -> tuple[int, int]:
    """The characters from the beginning of the first token's word to the end of the last token's."""
    words = (spans[first].word, spans[last].word)
    start, end = spans[first].start, spans[last].stop
    for span in spans:
        if span.part == 1 and span.word is not None:
            start = min(start, span.start) if span.word == words[0] else start
            end = max(end, span.stop) if span.word == words[1] else end
    return start, end
