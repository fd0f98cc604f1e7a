"""How text is to be generated: one frozen, validated object, in the words of transformers and KerasHub."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

from bloomref.errors import InvalidInput, invalid
from bloomref.validation import check_integer, check_known, check_real

DEFAULT_NEW_TOKENS = 128


class GenerationArguments(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream`, beyond KerasHub's three; the fields of `GenerationOptions`."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    num_beams: int
    length_penalty: float
    penalty_alpha: float | None
    repetition_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[int, float] | None
    stop_strings: str | Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Which tokens are chosen, and when a text ends. Every name and meaning is that of transformers, save where noted.

    Exactly one strategy is in force: greedy (the default), sampling, beam search (`num_beams` > 1) or contrastive
    search (`penalty_alpha` with `top_k`). Arguments of two strategies contradict each other and are refused.

    Raises:
        InvalidInput: naming the argument, what was expected and what came.
    """

    max_length: int | None = None
    """Most tokens of prompt and continuation together."""
    max_new_tokens: int | None = None
    """Most tokens of the continuation; 128 when neither length is given."""
    stop_token_ids: Literal["auto"] | int | Sequence[int] | None = "auto"
    """KerasHub's: ids that end a text (kept as its last id); "auto" is the end token; None is never."""
    stop_strings: str | Sequence[str] | None = None
    """Texts that end the continuation as soon as it ends with one, which may begin in the prompt. Needs a tokenizer."""
    do_sample: bool | None = None
    """Draw at random? None: as soon as one of temperature, top_k, top_p and min_p asks for it."""
    temperature: float | None = None
    """Divides the scores before sampling; 1 when None. 0 is the limit: greedy."""
    top_k: int | None = None
    """Sample among the k most likely (ties with the k-th are kept), or k candidates of contrastive search."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probabilities add up to `top_p`."""
    min_p: float | None = None
    """Sample among the tokens at least `min_p` times as likely as the likeliest."""
    seed: int | None = None
    """Row i of a batch draws as a single prompt with `seed + i` would; None is fresh entropy."""
    num_beams: int = 1
    """Hypotheses that beam search keeps."""
    length_penalty: float = 1.0
    """Exponent of the length (new tokens) that divides a finished hypothesis' sum of log-probabilities."""
    penalty_alpha: float | None = None
    """Contrastive search: weight of the degeneration penalty, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides the positive, multiplies the negative scores of tokens that occur in prompt or continuation."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this length occurs twice in prompt and continuation; 0 is off."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the scores of these ids; -inf forbids one. It is transformers' `sequence_bias` for single tokens."""

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_stops()
        self._check_numbers()
        self._check_logit_bias()
        self._check_strategy()

    @classmethod
    def create(cls, **arguments: Any) -> "GenerationOptions":
        """The options of these keyword arguments; an unknown name is `InvalidInput`, with a suggestion."""
        check_known(arguments, [field.name for field in fields(cls)], "an option of generation")
        return cls(**arguments)

    @property
    def strategy(self) -> Literal["greedy", "sample", "beam", "contrastive"]:
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
        return self.temperature != 0 and self._given("temperature", "top_k", "top_p", "min_p") != []

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    def budget(self, prompt_length: int) -> int:
        """How many tokens may follow a prompt of this length.

        Raises:
            InvalidInput: when `max_length` leaves no room for one.
        """
        if self.max_length is None:
            return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens
        if self.max_length <= prompt_length:
            hint = "it counts prompt and continuation; use max_new_tokens to count the continuation alone"
            raise invalid("max_length", f"more than the {prompt_length} tokens of the prompt", self.max_length, hint)
        return self.max_length - prompt_length

    def check_ids(self, vocabulary_size: int) -> None:
        """Refuse ids in `stop_token_ids` and `logit_bias` that the model does not have."""
        for name, ids in (("stop_token_ids", self.stop_ids or ()), ("logit_bias", self.logit_bias or ())):
            for token_id in ids:
                if not 0 <= token_id < vocabulary_size:
                    raise invalid(name, f"ids in [0, {vocabulary_size}), the vocabulary of this model", token_id)

    @property
    def stop_ids(self) -> tuple[int, ...] | None:
        """The ids given, or None when they are to be found ("auto")."""
        if isinstance(self.stop_token_ids, str):
            return None
        if self.stop_token_ids is None:
            return ()
        ids: Any = (self.stop_token_ids,) if isinstance(self.stop_token_ids, Integral) else self.stop_token_ids
        return tuple(int(token_id) for token_id in ids)

    # --- validation ------------------------------------------------------------------------------

    def _check_lengths(self) -> None:
        for name in self._given("max_length", "max_new_tokens"):
            check_integer(name, getattr(self, name), 1)
        if self.max_length is not None and self.max_new_tokens is not None:
            raise invalid("max_length", "either max_length or max_new_tokens", "both")

    def _check_stops(self) -> None:
        ids: Any = self.stop_token_ids
        if isinstance(ids, (str, bool)) or not (ids is None or isinstance(ids, Integral) or _is_collection(ids)):
            if ids != "auto":
                raise invalid("stop_token_ids", "'auto', None, an id or a list of ids", ids)
        elif _is_collection(ids):
            for token_id in ids:
                check_integer("stop_token_ids", token_id, 0)
        strings: Any = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings
        if strings is not None and not (_is_collection(strings) and all(isinstance(s, str) and s for s in strings)):
            raise invalid("stop_strings", "a text or a list of texts, none of them empty", self.stop_strings)

    def _check_numbers(self) -> None:
        if self.do_sample is not None and not isinstance(self.do_sample, bool):
            raise invalid("do_sample", "True, False or None", self.do_sample)
        check_integer("num_beams", self.num_beams, 1)
        check_integer("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        for name, minimum in (("top_k", 1), ("seed", 0)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum)
        check_real("length_penalty", self.length_penalty)
        check_real("repetition_penalty", self.repetition_penalty, "a finite number > 0", lambda x: x > 0)
        if self.temperature is not None:
            check_real("temperature", self.temperature, "a finite number >= 0 (0 is greedy)", lambda x: x >= 0)
        if self.top_p is not None:
            check_real("top_p", self.top_p, "a probability in (0, 1]", lambda x: 0 < x <= 1)
        for name in self._given("min_p", "penalty_alpha"):
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

    def _check_strategy(self) -> None:
        sampling = self._given("temperature", "top_p", "min_p")
        if self.do_sample:
            sampling.insert(0, "do_sample=True")
        if self.num_beams > 1:
            _refuse_beside(f"num_beams={self.num_beams}", sampling + self._given("top_k", "penalty_alpha"))
        elif self.length_penalty != 1.0:
            raise invalid("length_penalty", "1.0 without beam search", self.length_penalty, "set num_beams > 1")
        if self.penalty_alpha is not None:
            _refuse_beside("penalty_alpha", sampling)
            if self.top_k is None:
                raise invalid("penalty_alpha", "top_k beside it, the number of candidates", "no top_k", "e.g. top_k=4")
        elif self.do_sample is False:
            _refuse_beside("do_sample=False", sampling + self._given("top_k"))
        if self.do_sample and self.temperature == 0:
            raise invalid("temperature", "a number > 0 with do_sample=True", self.temperature)


def _refuse_beside(chosen: str, others: list[str]) -> None:
    if others:
        raise InvalidInput(
            f"{others[0]}: expected none beside {chosen}, which is another strategy; drop one of the two"
        )


def _is_collection(value: object) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, (str, bytes, Mapping))
