"""Values of the fields of a LoraConfig: checked, null as absent, lists as tuples."""

from collections.abc import Iterable, Mapping
from typing import Any

from bloomref.errors import invalid, represented
from bloomref.formats.adapters.module_patterns import parsed


def names(name: str, value: object, absent: tuple[str, ...]) -> str | tuple[str, ...]:
    if value is None:
        return absent
    if isinstance(value, str):
        parsed(name, value)
        return value
    if not isinstance(value, list | tuple | set) or not all(isinstance(item, str) for item in value):
        raise invalid(name, "names of modules, or one regular expression", represented(value))
    return tuple(sorted(value) if isinstance(value, set) else value)


def layers(value: object) -> int | tuple[int, ...] | None:
    numbers = (value,) if not isinstance(value, Iterable) or isinstance(value, str) else tuple(value)
    if value is not None and not all(type(item) is int and item >= 0 for item in numbers):
        raise invalid("layers_to_transform", "numbers of layers", represented(value))
    return value if value is None or isinstance(value, int) else numbers


def pattern(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value):
        raise invalid(name, "a dictionary from names of modules", represented(value))
    for expression in value:
        parsed(name, expression)
    return value


def indices(value: object) -> tuple[int, ...] | Mapping[str, tuple[int, ...]] | None:
    """Token ids of `trainable_token_indices`: of the embedding, or by the name of a module."""
    if isinstance(value, Mapping):
        return {str(name): _ids(ids) for name, ids in value.items()} or None
    return None if value is None else _ids(value) or None


def _ids(value: object) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, list | tuple | set) else ()
    if (
        not all(type(item) is int and item >= 0 for item in ids)
        or len(set(ids)) < len(ids)
        or not isinstance(value, Iterable)
    ):
        raise invalid(
            "trainable_token_indices", "token ids, each once, or a dictionary of them by module", represented(value)
        )
    return ids
