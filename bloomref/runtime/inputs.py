"""Checks of model inputs. All later code receives valid arrays of one form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomref.config import IGNORED_LABEL
from bloomref.dtypes import floating_dtype
from bloomref.errors import InvalidInput, invalid
from bloomref.shapes import Array, Bool, Int

_KEYS = ("token_ids", "padding_mask")
_OTHER_NAMES = {"input_ids": "token_ids", "attention_mask": "padding_mask"}
"""transformers' names of the keys."""
_NAMES_OF_PROMPTS = ("prompt", "prompts", "text", "text_inputs", "messages")


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Checked token ids (B, T) of int64, and their mask (B, T) of bool: True for a real token."""

    token_ids: Int[Array, "B T"]
    is_real: Bool[Array, "B T"]


def token_batch(inputs: object, vocabulary_size: int) -> TokenBatch:
    """Check the dictionary input of a model: `token_ids`, and optionally `padding_mask` (1 real, 0 padding).

    transformers' names `input_ids` and `attention_mask` are accepted too. A mask that is None is absent.

    Raises:
        InvalidInput: names the key, the expected and the actual value. Clauses: EMB-1, EMB-2, ATT-11, ATT-12, MOD-1.
    """
    if not isinstance(inputs, Mapping):
        raise invalid(
            "inputs",
            "a dictionary {'token_ids': ..., 'padding_mask': ...}",
            type(inputs).__name__,
            "wrap the ids: model({'token_ids': ids})",
        )
    inputs = own_names(inputs)
    if inputs.get("inputs_embeds") is not None:
        raise _no_embeddings()
    unknown = [key for key in inputs if key not in (*_KEYS, "inputs_embeds")]
    if unknown:
        raise invalid("inputs", "the keys token_ids and padding_mask", f"also {unknown}")
    if "token_ids" not in inputs:
        raise invalid("inputs", "a key 'token_ids'", sorted(inputs))
    token_ids = check_token_ids(inputs["token_ids"], vocabulary_size)
    return TokenBatch(token_ids, check_padding_mask(inputs.get("padding_mask"), token_ids.shape))


def own_names(inputs: Mapping[Any, Any]) -> dict[Any, Any]:
    """The dictionary with transformers' names replaced.

    Raises:
        InvalidInput: when a key has both of its names.
    """
    for other, own in _OTHER_NAMES.items():
        if other in inputs and own in inputs:
            raise invalid("inputs", f"either {own} or {other}, two names of one key", "both")
    return {_OTHER_NAMES.get(key, key): value for key, value in inputs.items()}


def named_inputs(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into a dictionary input (`input_ids=...`, `attention_mask=...`) and the others.

    Raises:
        InvalidInput: without token ids or embeddings.
    """
    names = {*_KEYS, *_OTHER_NAMES, "inputs_embeds"}
    inputs = {name: value for name, value in arguments.items() if name in names}
    if all(inputs.get(name) is None for name in ("token_ids", "input_ids", "inputs_embeds")):
        named = next((name for name in _NAMES_OF_PROMPTS if name in arguments), None)
        got, hint = ("nothing", "") if named is None else (f"{named}=...", f"pass it as inputs: inputs={named}")
        raise invalid("inputs", "a text, token ids or a dictionary of them", got, hint)
    return inputs, {name: value for name, value in arguments.items() if name not in names}


def _no_embeddings() -> InvalidInput:
    hint = "the backbone, `logits` and `generate` take embeddings: lm.logits({'inputs_embeds': x})"
    return invalid("inputs", "token ids here", "inputs_embeds", hint)


def labelled_batch(inputs: object, vocabulary_size: int) -> tuple[TokenBatch, Int[Array, "B T"] | None]:
    """Check a dictionary input with an optional third key, `labels` (B, T); return the batch, and the labels or None.

    Raises:
        InvalidInput: names the key, the expected and the actual value. Clause: GRD-10.
    """
    if not isinstance(inputs, Mapping) or "labels" not in inputs:
        return token_batch(inputs, vocabulary_size), None
    batch = token_batch({key: value for key, value in inputs.items() if key != "labels"}, vocabulary_size)
    return batch, check_labels(inputs["labels"], batch.token_ids.shape, vocabulary_size)


def check_labels(labels: object, shape: tuple[int, ...], vocabulary_size: int) -> Int[Array, "B T"]:
    """Check labels: integers in the shape of the ids, each in [0, vocabulary_size) or -100. Returns int64."""
    array = to_array("labels", labels)
    if array.shape != shape:
        raise invalid("labels", f"the shape of token_ids, {shape}", f"shape {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise invalid("labels", "integers", f"dtype {array.dtype}")
    wrong = array[((array < 0) | (array >= vocabulary_size)) & (array != IGNORED_LABEL)]
    if wrong.size:
        raise invalid("labels", f"ids in [0, {vocabulary_size}), or {IGNORED_LABEL} to ignore one", str(wrong[0]))
    return array.astype(np.int64)


def check_token_ids(token_ids: object, vocabulary_size: int) -> Int[Array, "B T"]:
    """Check token ids: integers of shape (B, T), each in [0, vocabulary_size). Returns int64."""
    array = to_array("token_ids", token_ids)
    if array.size == 0 and array.ndim == 2:
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "iu":
        raise invalid("token_ids", "integers", f"dtype {array.dtype}")
    if array.ndim != 2:
        hint = "put a single sequence in a list: [ids]" if array.ndim == 1 else ""
        raise invalid("token_ids", "shape (batch, time)", f"shape {array.shape}", hint)
    check_within("token_ids", array, vocabulary_size)
    return array.astype(np.int64)


def check_within(
    name: str, numbers: Int[Array, "*B"], count: int, meaning: str = "ids in {}, the vocabulary of this model"
) -> None:
    """Refuse numbers outside [0, count). A backend's kernels use them as indices, and check nothing (BKD-14)."""
    if not numbers.size:
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        raise invalid(name, meaning.format(f"[0, {count})"), str(low if low < 0 else high))


def check_padding_mask(mask: object, shape: tuple[int, ...]) -> Bool[Array, "B T"]:
    """Check a padding mask: 0 and 1 of any number type or bool, in the shape of the ids. None gives all ones."""
    if mask is None:
        return np.ones(shape, bool)
    array = to_array("padding_mask", mask)
    if array.shape != shape:
        raise invalid("padding_mask", f"the shape of token_ids, {shape}", f"shape {array.shape}")
    if array.dtype.kind not in "biuf" and array.dtype != floating_dtype("bfloat16"):
        raise invalid("padding_mask", "numbers or bools", f"dtype {array.dtype}")
    ones = array == 1
    if not np.all(ones | (array == 0)):
        offender = array[~(ones | (array == 0))].flat[0]
        raise invalid("padding_mask", "only 0 (padding) and 1 (real)", str(offender))
    return ones


def to_array(name: str, value: object) -> np.ndarray[Any, np.dtype[Any]]:
    """Convert to an array. A ragged nesting raises InvalidInput with the argument's name."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"{name}: expected a rectangular array, got one that is not; pad the rows ({error})"
        ) from None
