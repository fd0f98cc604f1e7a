"""Options of text generation, as one frozen, validated object. Names are those of transformers and KerasHub."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from bloomref.argument_kinds import check_unicode
from bloomref.errors import InvalidInput, invalid, represented
from bloomref.generation.other_tools import translate
from bloomref.validation import check_integer, check_known, check_real

DEFAULT_NEW_TOKENS = 128
_COLLECTIONS = (
    "stop_token_ids",
    "stop_strings",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_eos_token_id",
)
"""Options that may be a collection."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "best_of")
"""Options that select sampling."""


class GenerationArguments(TypedDict, total=False):
    """Keyword-only arguments of `generate` and `stream`: fields of `GenerationOptions` that KerasHub does not have."""

    max_new_tokens: int | None
    min_new_tokens: int
    min_length: int
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    seed: int | None
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"] | None
    num_return_sequences: int
    best_of: int | None
    penalty_alpha: float | None
    repetition_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    stop_strings: str | Sequence[str] | None
    pad_token_id: int | None


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Decoding strategy, logits processors and stops. Names and meanings are those of transformers, unless noted.

    There are four decoding strategies: greedy search (the default), sampling, beam search (`num_beams` > 1) and
    contrastive search (`penalty_alpha` with `top_k`). Arguments of two strategies are refused.

    Raises:
        InvalidInput: naming the argument, the expected value and the value that was passed.
    """

    max_length: int | None = None
    """Largest number of tokens of prompt and continuation together (GEN-3)."""
    max_new_tokens: int | None = None
    """Largest number of new tokens; 128 if `max_length` is None too."""
    min_new_tokens: int = 0
    """No stop token is generated before so many new tokens. A stop string may end the row earlier."""
    min_length: int = 0
    """No stop token is generated before prompt and continuation together have so many tokens."""
    stop_token_ids: Literal["auto"] | int | Sequence[int] | None = "auto"
    """Ids that end a row, which keeps the id (KerasHub's argument, GEN-4). "auto": the end token; None: no id."""
    stop_strings: str | Sequence[str] | None = None
    """Stop strings: a row ends as soon as its text contains one, which may begin in the prompt. Needs a tokenizer."""
    pad_token_id: int | None = None
    """Pads the rows of a dictionary result on the right. None: the model's padding token."""
    do_sample: bool | None = None
    """True: sample; False: do not; None: sample if `temperature`, `top_k`, `top_p`, `min_p`, `typical_p` or `best_of`
    is set."""
    temperature: float | None = None
    """Divides the logits before sampling; None is 1. The limit 0 is greedy search."""
    top_k: int | None = None
    """Sample among the k likeliest tokens, and those equal to the k-th; contrastive search: number of candidates.
    0 is off."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probabilities sum to `top_p` (GEN-7)."""
    min_p: float | None = None
    """Sample among the tokens at least `min_p` times as likely as the likeliest one."""
    typical_p: float | None = None
    """Sample among the most typically surprising tokens that sum to `typical_p` (GEN-13); 1 is off."""
    seed: int | None = None
    """Row i of a batch draws as a single prompt with `seed + i` would; None: fresh entropy."""
    num_beams: int = 1
    """Number of hypotheses of beam search; 1 is no beam search."""
    length_penalty: float = 1.0
    """Beam search scores hypotheses by log-probability / (number of new tokens) ** length_penalty, in [-30, 30]."""
    early_stopping: bool | Literal["never"] | None = False
    """Beam search ends when `num_beams` hypotheses have ended and: True: at once; False: the best running one scores
    below all of them now; "never": it could not score above them at its full length either. None is False."""
    num_return_sequences: int = 1
    """Number of results of each prompt: draws, or the best hypotheses of beam search (GEN-11)."""
    best_of: int | None = None
    """Draw so many candidates, and return the `num_return_sequences` of the highest mean log-probability (GEN-12);
    1 is off."""
    penalty_alpha: float | None = None
    """Contrastive search: weight of the degeneration penalty, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or continuation (GEN-8); 1 is off."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this length occurs twice in prompt and continuation; 0 is off."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these ids; -inf forbids an id. transformers' `sequence_bias` for single tokens."""
    bad_words_ids: Sequence[Sequence[int]] | None = None
    """Sequences of ids that are not generated (GEN-14)."""
    suppress_tokens: Sequence[int] | None = None
    """Ids that are not generated."""
    begin_suppress_tokens: Sequence[int] | None = None
    """Ids that are not generated right behind the prompt."""
    forced_bos_token_id: int | None = None
    """The id that follows a prompt of a single token."""
    forced_eos_token_id: int | Sequence[int] | None = None
    """The id at the largest length, or the ids of which one stands there."""

    def __post_init__(self) -> None:
        for name in _COLLECTIONS:
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        self._check_lengths()
        self._check_stops()
        self._check_numbers()
        self._check_logit_bias()
        self._check_forbidden()
        for name, off in (("top_k", 0), ("best_of", 1)):
            if getattr(self, name) == off:
                object.__setattr__(self, name, None)
        self._check_strategy()
        self._check_results()

    @classmethod
    def create(cls, **arguments: Any) -> "GenerationOptions":
        """The options of these keyword arguments; an unknown name is `InvalidInput`, with a suggestion."""
        known = [field.name for field in fields(cls)]
        arguments = translate(arguments, known)
        check_known(arguments, known, "an option of generation")
        return cls(**arguments)

    @property
    def strategy(self) -> Literal["greedy", "sample", "beam", "contrastive"]:
        """The decoding strategy."""
        if self.num_beams > 1:
            return "beam"
        if self.penalty_alpha is not None:
            return "contrastive"
        return "sample" if self._samples else "greedy"

    @property
    def stop_bytes(self) -> tuple[bytes, ...]:
        """The stop strings in UTF-8."""
        strings = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings or ()
        return tuple(text.encode() for text in strings)

    @property
    def _samples(self) -> bool:
        if self.do_sample is not None:
            return self.do_sample
        return self.temperature != 0 and self._set(*_SAMPLING) != []

    @property
    def sequences(self) -> int:
        """Number of sequences that are decoded for each prompt, besides the beams."""
        return 1 if self.num_beams > 1 else self.best_of or self.num_return_sequences

    def _set(self, *names: str) -> list[str]:
        """Return the names whose value is not None."""
        return [name for name in names if getattr(self, name) is not None]

    def budget(self, prompt_length: int) -> int:
        """Largest number of new tokens after a prompt of this length.

        Raises:
            InvalidInput: when `max_length` is not above the prompt's length.
        """
        if self.max_length is None:
            return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        if self.max_length <= prompt_length:
            hint = "it counts prompt and continuation; use max_new_tokens to count the continuation alone"
            raise invalid("max_length", f"more than the {prompt_length} tokens of the prompt", self.max_length, hint)
        return self.max_length - prompt_length

    def check_ids(self, vocabulary_size: int) -> None:
        """Refuse ids that are not in the vocabulary."""
        named: dict[str, Iterable[int]] = {
            "stop_token_ids": self.stop_ids or (),
            "logit_bias": self.logit_bias or (),
            "bad_words_ids": chain.from_iterable(self.bad_words_ids or ()),
            "suppress_tokens": self.suppress_tokens or (),
            "begin_suppress_tokens": self.begin_suppress_tokens or (),
            "forced_bos_token_id": as_ids(self.forced_bos_token_id),
            "forced_eos_token_id": as_ids(self.forced_eos_token_id),
            "pad_token_id": () if self.pad_token_id is None else (self.pad_token_id,),
        }
        for name, ids in named.items():
            for token_id in ids:
                if not 0 <= token_id < vocabulary_size:
                    raise invalid(name, f"ids in [0, {vocabulary_size}), the vocabulary of this model", token_id)

    @property
    def stop_ids(self) -> tuple[int, ...] | None:
        """The ids of `stop_token_ids`; None for "auto"."""
        if isinstance(self.stop_token_ids, str):
            return None
        if self.stop_token_ids is None:
            return ()
        ids: Any = (self.stop_token_ids,) if isinstance(self.stop_token_ids, Integral) else self.stop_token_ids
        return tuple(int(token_id) for token_id in ids)

    # --- validation ------------------------------------------------------------------------------

    def _check_lengths(self) -> None:
        for name in self._set("max_length", "max_new_tokens"):
            check_integer(name, getattr(self, name), 1)
        if self.max_length is not None and self.max_new_tokens is not None:
            raise invalid("max_length", "either max_length or max_new_tokens", "both")

    def _check_stops(self) -> None:
        ids: Any = self.stop_token_ids
        if isinstance(ids, (str, bool)) or not (ids is None or isinstance(ids, Integral | tuple)):
            if not isinstance(ids, str) or ids != "auto":
                raise invalid("stop_token_ids", "'auto', None, an id or a list of ids", ids)
        elif isinstance(ids, tuple):
            for token_id in ids:
                check_integer("stop_token_ids", token_id, 0)
        strings: Any = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings
        if strings is not None and not (isinstance(strings, tuple) and all(isinstance(s, str) and s for s in strings)):
            raise invalid("stop_strings", "a text or a list of texts, none of them empty", self.stop_strings)
        for text in strings or ():
            check_unicode("stop_strings", text)

    def _check_numbers(self) -> None:
        if self.do_sample is not None and not isinstance(self.do_sample, bool):
            raise invalid("do_sample", "True, False or None", self.do_sample)
        check_integer("num_beams", self.num_beams, 1)
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        check_integer("min_new_tokens", self.min_new_tokens, 0)
        check_integer("min_length", self.min_length, 0)
        check_integer("num_return_sequences", self.num_return_sequences, 1)
        for name, minimum in (("top_k", 0), ("seed", 0), ("best_of", 1), ("pad_token_id", 0)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum)
        in_range = "a finite number in [-30, 30]"  # the power of a length stays a float64 up to 2^31 tokens
        check_real("length_penalty", self.length_penalty, in_range, lambda x: -30 <= x <= 30)
        check_real("repetition_penalty", self.repetition_penalty, "a finite number > 0", lambda x: x > 0)
        if self.temperature is not None:
            check_real("temperature", self.temperature, "a finite number >= 0 (0 is greedy)", lambda x: x >= 0)
        for name in self._set("top_p", "typical_p"):
            check_real(name, getattr(self, name), "a probability in (0, 1]", lambda x: 0 < x <= 1)
        for name in self._set("min_p", "penalty_alpha"):
            check_real(name, getattr(self, name), "a number in [0, 1]", lambda x: 0 <= x <= 1)

    def _check_logit_bias(self) -> None:
        bias: Any = self.logit_bias
        if bias is None:
            return
        if not isinstance(bias, Mapping):
            raise invalid("logit_bias", "a dictionary {token id: number}", bias)
        for token_id, value in bias.items():
            check_integer("logit_bias", token_id, 0)
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) < math.inf:
                raise invalid("logit_bias", "finite numbers or -inf", {token_id: value})

    def _check_forbidden(self) -> None:
        words: Any = self.bad_words_ids
        if words is not None:
            read = tuple(_word(word) for word in (words if isinstance(words, tuple) else (words,)))
            object.__setattr__(self, "bad_words_ids", read)
        for name in self._set("suppress_tokens", "begin_suppress_tokens"):
            if not isinstance(getattr(self, name), tuple):
                raise invalid(name, "a list of ids", getattr(self, name))
        for name, ids in (
            ("suppress_tokens", () if self.suppress_tokens is None else self.suppress_tokens),
            ("begin_suppress_tokens", () if self.begin_suppress_tokens is None else self.begin_suppress_tokens),
            ("forced_bos_token_id", () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)),
            ("forced_eos_token_id", _members(self.forced_eos_token_id)),
        ):
            for token_id in ids:
                check_integer(name, token_id, 0)

    def _check_strategy(self) -> None:
        sampling = self._set("temperature", "top_p", "min_p", "typical_p")
        if self.do_sample:
            sampling.insert(0, "do_sample=True")
        if not (
            self.early_stopping is None
            or isinstance(self.early_stopping, bool)
            or (isinstance(self.early_stopping, str) and self.early_stopping == "never")
        ):
            raise invalid("early_stopping", "True, False or 'never'", represented(self.early_stopping))
        if self.num_beams > 1:
            _refuse(sampling + self._set("top_k", "penalty_alpha"), f"num_beams={self.num_beams}")
        elif self.length_penalty != 1.0:
            raise invalid("length_penalty", "1.0 without beam search", self.length_penalty, "set num_beams > 1")
        elif self.early_stopping:
            raise invalid("early_stopping", "none without beam search", self.early_stopping, "set num_beams > 1")
        if self.penalty_alpha is not None:
            _refuse(sampling, "penalty_alpha")
            if self.top_k is None:
                raise invalid("penalty_alpha", "top_k as well, the number of candidates", "no top_k", "e.g. top_k=4")
        elif self.do_sample is False:
            _refuse(sampling + self._set("top_k"), "do_sample=False")
        if self.do_sample and self.temperature == 0:
            raise invalid("temperature", "a number > 0 with do_sample=True", self.temperature)

    def _check_results(self) -> None:
        """Several results or candidates need a strategy that has them."""
        count, strategy = self.num_return_sequences, self.strategy
        if self.best_of is not None and strategy != "sample":
            hint = "beam search returns its best hypothesis anyway" if strategy == "beam" else "remove one of the two"
            raise invalid("best_of", "sampling, which draws the candidates", f"{strategy} search", hint)
        if strategy == "beam" and count > self.num_beams:
            raise invalid("num_return_sequences", f"at most num_beams={self.num_beams}", count)
        if self.best_of is not None and count > self.best_of:
            raise invalid("num_return_sequences", f"at most best_of={self.best_of}", count)
        if strategy in ("greedy", "contrastive") and count > 1:
            hint = "set do_sample=True, or num_beams"
            raise invalid("num_return_sequences", f"1 with {strategy} search, which has one result", count, hint)


def _refuse(others: list[str], chosen: str) -> None:
    """Refuse arguments of another decoding strategy than the one that `chosen` selects."""
    if others and chosen.startswith("num_beams"):
        raise InvalidInput(
            f"{others[0]}: expected none with {chosen}, since beam search draws nothing; remove one of the two"
        )
    if others:
        raise InvalidInput(
            f"{others[0]}: expected none with {chosen}, which selects another decoding strategy; remove one of the two"
        )


def as_ids(value: Any) -> tuple[Any, ...]:
    """An id or a list of ids as a tuple; empty for None."""
    return () if value is None else tuple(value) if _is_collection(value) else (value,)


def _word(value: object) -> tuple[int, ...]:
    """The checked ids of one sequence of `bad_words_ids`."""
    word = _frozen(value)
    if not isinstance(word, tuple) or not word:
        hint = "a word is a list of its ids: [[5], [8, 9]]"
        raise invalid("bad_words_ids", "a list of lists of ids, none of them empty", value, hint)
    for token_id in word:
        check_integer("bad_words_ids", token_id, 0)
    return word


def _members(value: object) -> tuple[Any, ...]:
    """The members of an option that may be a collection or one id; None is none."""
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _frozen(value: object) -> object:
    """A collection as a tuple: an array has no truth value, and an iterator is read once.

    What is no collection, or cannot be read, stays as it is for the checks to refuse.
    """
    if not _is_collection(value):
        return value
    items: Any = value
    try:
        return tuple(items)
    except Exception:  # of the object that was passed
        return value


def _is_collection(value: object) -> bool:
    is_scalar = getattr(value, "ndim", 1) == 0  # an array without axes has the method, and cannot be iterated
    return hasattr(value, "__iter__") and not is_scalar and not isinstance(value, (str, bytes, Mapping, type))
