"""Settings that a model's files bring along, joined with the arguments of one call. Clauses: GEN-16 ... GEN-18.

The caller's arguments choose the decoding strategy, and without a choice the file does. Settings of the file that
belong to another strategy are left out, so that no error speaks of what nobody typed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, Literal

from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe
from bloomref.generation.options import GenerationOptions
from bloomref.validation import is_integer

Strategy = Literal["greedy", "sample", "beam", "contrastive"]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
_BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")
_CONTRASTIVE = ("penalty_alpha", "top_k")
_SEVERAL = ("num_return_sequences",)
_LENGTHS = ("max_new_tokens", "max_length")
_TOP_K = 50  # transformers samples so unless the file says otherwise, and leaves this value out of the file

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "max_new_tokens": (),
    "max_length": (),
    "stop_strings": ([],),
    "do_sample": (False,),
    "num_beams": (1,),
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "penalty_alpha": (0.0,),
    "length_penalty": (1.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "top_h": (),
    "early_stopping": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "num_return_sequences": (1,),
    "bad_words_ids": ([],),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "watermarking_config": ({},),
    "token_healing": (False,),
    "dola_layers": (),
    "eos_token_id": (),
}
"""Keys that can change the generated tokens, each with the values that change nothing. Any other key is ignored."""


@dataclass(frozen=True)
class Joined:
    """Arguments of one call after the file's settings were added.

    Args:
        arguments: keyword arguments of `GenerationOptions`.
        used: the settings that came from the file, as it names them.
        unused: keys of the file that belong to another decoding strategy than the caller chose.
    """

    arguments: dict[str, Any]
    used: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelDefaults:
    """Settings of generation from the files of a model.

    Args:
        values: name -> value, in transformers' names.
        vocabulary_size: ids of the file from here on are ignored, since the model cannot generate them.
        ends_of_config: the end tokens of the model's config.
        end_of_tokenizer: the end token of its tokenizer.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    vocabulary_size: int = 2**63
    ends_of_config: tuple[int, ...] = ()
    end_of_tokenizer: int | None = None

    @property
    def source(self) -> str:
        """The name of their file."""
        return getattr(self.values, "source", "generation_config")

    def options(self, arguments: Mapping[str, Any]) -> GenerationOptions:
        """The options of one call: its arguments, and of the file what they leave open.

        Raises:
            InvalidInput: when an argument is wrong; BadWeights: when a value of the file is; Unsupported: when the
                file asks for something that changes the result and that bloomref does not have.
        """
        joined = self.join(arguments)
        try:
            return GenerationOptions.create(**joined.arguments)
        except InvalidInput as error:
            GenerationOptions.create(**arguments)  # a mistake of the caller is reported as such
            raise BadWeights(f"{self.source}: {error}; {_IGNORE}") from None

    def join(self, arguments: Mapping[str, Any]) -> Joined:
        """The arguments of one call with the file's settings added.

        Raises:
            Unsupported, BadWeights: as `options`.
        """
        arguments = {name: value for name, value in arguments.items() if not _is_open(name, value)}
        stated = {key: value for key, value in self.values.items() if _acts(key, value)}
        strategy = _chosen(arguments) or _of_file(stated, arguments)
        used = {key: value for key, value in stated.items() if _is_of(key, strategy) and not _is_set(key, arguments)}
        unused = tuple(key for key in stated if not _is_of(key, strategy))
        if "max_new_tokens" in used:
            used.pop("max_length", None)
        results = used.get("num_return_sequences")
        if is_integer(results) and _is_above_one(arguments.get("num_beams")):
            used["num_return_sequences"] = min(results, arguments["num_beams"])  # no more than the caller's beams have
        if _samples(stated, arguments) and "num_beams" in used:
            raise self._unsupported("do_sample with num_beams", used["num_beams"])
        open_top_k = "top_k" not in arguments and self.values.get("top_k") is None
        if strategy == "sample" and _samples(stated, arguments) and open_top_k:
            used["top_k"] = _TOP_K
        return Joined(self._arguments(used, arguments), used, unused)

    def end_ids(self) -> tuple[int, ...]:
        """The end tokens: those of the settings; else the config's list; else the tokenizer's or the config's one."""
        if ids := self.ids("eos_token_id"):
            return ids
        own = self.end_of_tokenizer
        ids = self.ends_of_config if own is None or len(self.ends_of_config) > 1 else (own,)
        return tuple(token_id for token_id in ids if token_id < self.vocabulary_size)

    def stored(self) -> Mapping[str, Any] | None:
        """The settings to be stored in `generation_config.json`; None if those of the other files say the same."""
        if self.values:
            return None if self.source == "config.json" else self.values
        ends = self.end_ids()
        return None if set(ends) == set(self.ends_of_config) or not ends else {"eos_token_id": list(ends)}

    def ids(self, name: str) -> tuple[int, ...]:
        """The ids of a key that has an id or a list of ids; empty without the key.

        Raises:
            BadWeights: when one is not an integer >= 0.
        """
        value = self.values.get(name)
        ids = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
        for token_id in ids:
            if not is_integer(token_id) or token_id < 0:
                raise self._damaged(name, "ids >= 0", token_id)
        return tuple(int(token_id) for token_id in ids if token_id < self.vocabulary_size)

    def _arguments(self, used: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        known = {option.name for option in fields(GenerationOptions)}
        for key, value in used.items():
            if key not in known and key not in _TRANSLATED:
                raise self._unsupported(key, value)
        added = {key: value for key, value in used.items() if key in known}
        for name in used.keys() & {"suppress_tokens", "begin_suppress_tokens"}:
            added[name] = self.ids(name)
        if "bad_words_ids" in used:
            added["bad_words_ids"] = self._possible(used["bad_words_ids"])
        if "sequence_bias" in used:
            added["logit_bias"] = self._bias(used["sequence_bias"])
        return {**arguments, **added}

    def _possible(self, words: Any) -> Any:
        """The sequences of ids without those that the model cannot generate; what is no such list is left as it is."""
        try:
            return [word for word in words if all(token_id < self.vocabulary_size for token_id in word)] or None
        except TypeError:
            return words

    def _bias(self, pairs: Any) -> dict[int, Any]:
        """`logit_bias` of a `sequence_bias`, which a file has as pairs of a list of ids and a number."""
        try:
            bias = {tuple(ids): value for ids, value in (pairs.items() if isinstance(pairs, Mapping) else pairs)}
        except (TypeError, ValueError):
            raise self._damaged("sequence_bias", "pairs of a list of ids and a number", pairs) from None
        for ids in bias:
            if len(ids) != 1:
                raise self._unsupported("sequence_bias of several ids", ids)
        return {ids[0]: value for ids, value in bias.items()}

    def _damaged(self, key: str, expected: str, value: Any) -> BadWeights:
        return BadWeights(describe(f"{self.source}: {key}", expected, value, _IGNORE))

    def _unsupported(self, key: str, value: Any) -> Unsupported:
        return Unsupported(describe(f"{self.source}: {key}", "a setting that bloomref has", value, _IGNORE))


_IGNORE = "--no-generation-config, or generation_config=False in Python, ignores it"
_TRANSLATED = ("eos_token_id", "sequence_bias")
_SAME_AS = {
    "eos_token_id": ("stop_token_ids", "eos_token_id"),
    "sequence_bias": ("logit_bias",),
    **dict.fromkeys(_LENGTHS, _LENGTHS),
}


def _acts(key: str, value: Any) -> bool:
    """True if this value of the file can change the generated tokens."""
    return key in NEUTRAL and value is not None and value not in NEUTRAL[key]


def _is_open(name: str, value: Any) -> bool:
    """True if an argument is passed with the value that leaves it open."""
    if name == "stop_token_ids":
        return isinstance(value, str) and value == "auto"
    return value is None and name in ("do_sample", *_LENGTHS)


def _is_set(key: str, arguments: Mapping[str, Any]) -> bool:
    """True if the caller has set what this key of the file sets."""
    return any(name in arguments for name in _SAME_AS.get(key, (key,)))


def _chosen(arguments: Mapping[str, Any]) -> Strategy | None:
    """The decoding strategy that the caller's arguments choose; None where they leave it to the model."""
    if _is_above_one(arguments.get("num_beams")):
        return "beam"
    if arguments.get("penalty_alpha") is not None:
        return "contrastive"
    if arguments.get("do_sample") is True:
        return "sample"
    temperature = arguments.get("temperature")
    if isinstance(temperature, Real) and temperature == 0:
        return "greedy"
    draws = any(arguments.get(name) is not None for name in _SAMPLING) or _is_above_one(arguments.get("best_of"))
    return "sample" if arguments.get("do_sample") is None and draws else None


def _of_file(stated: Mapping[str, Any], arguments: Mapping[str, Any]) -> Strategy:
    """The file's decoding strategy, or greedy search where the caller has switched it off."""
    if "num_beams" in stated and "num_beams" not in arguments:
        return "beam"
    if _samples(stated, arguments):
        return "sample"
    return "contrastive" if "penalty_alpha" in stated and "top_k" in stated else "greedy"


def _samples(stated: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """True if the file asks for sampling and the caller has not switched it off."""
    return bool(stated.get("do_sample")) and arguments.get("do_sample", True)


def _is_of(key: str, strategy: Strategy) -> bool:
    """True if a key acts under this strategy."""
    groups = {"sample": ("do_sample", *_SAMPLING, *_SEVERAL), "beam": (*_BEAMS, *_SEVERAL), "contrastive": _CONTRASTIVE}
    return key in groups.get(strategy, ()) or not any(key in group for group in groups.values())


def _is_above_one(value: Any) -> bool:
    return is_integer(value) and value > 1
