"""JSON Schema (draft 2020-12) of the files, a validator for the keywords that it uses, and the writer of JSON."""

import json
import re
from collections.abc import Iterator
from typing import Any

from bloomref.conformance.vectors.author.draft import TIER_NAMES

ASKS = (
    "logits", "in_pieces", "call", "loss_and_gradients",
    "config", "slopes", "load", "adapter", "generate", "choose", "draw", "round", "policy",
)  # fmt: skip
"""Kinds of questions; the first four are requests of specs/97-program-protocol.md."""
FOLDER = {"type": "string", "pattern": r"^[a-z]+/[\w-]+$"}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["note", "tensors"],
    "additionalProperties": False,
    "properties": {
        "note": {"type": "string", "minLength": 1},
        "tensors": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
TEST: dict[str, Any] = {
    "type": "object",
    "required": ["id", "clauses", "comment", "flags", "ask", "expect"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "pattern": r"^[a-z]{3}-[a-z0-9-]+$"},
        "clauses": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^[A-Z]{3}-[0-9]+$"}},
        "comment": {"type": "string", "minLength": 1},
        "flags": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "ask": {"enum": list(ASKS)},
        "expect": {"enum": ["valid", "invalid", "unspecified"]},
        "error": {"enum": ["InvalidInput", "BadWeights", "Unsupported"]},
        "model": FOLDER,
        "adapter": FOLDER,
        "input": {"type": "object"},
        "output": {"type": "object"},
        "answers": {"type": "array", "minItems": 1, "items": ANSWER},
    },
}
NOTE: dict[str, Any] = {
    "type": "object",
    "required": ["bug", "effect", "mistakes"],
    "additionalProperties": False,
    "properties": {
        "bug": {"type": "string", "minLength": 1},
        "effect": {"type": "string", "minLength": 1},
        "mistakes": {"type": "array", "items": {"type": "string"}},
    },
}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Test vectors of BLOOM: one topic (specs/98-vectors.md)",
    "type": "object",
    "required": ["version", "topic", "tiers", "notes", "tests"],
    "additionalProperties": False,
    "properties": {
        "version": {"enum": [1]},
        "topic": {"type": "string", "pattern": "^[a-z]+$"},
        "tiers": {"enum": [list(TIER_NAMES)]},
        "expected": {"type": "string", "pattern": r"^expected/[a-z]+\.safetensors$"},
        "notes": {"type": "object", "additionalProperties": NOTE},
        "tests": {"type": "array", "minItems": 1, "items": TEST},
    },
}
_TYPES = {"object": dict, "array": list, "string": str}


def problems(value: Any, schema: dict[str, Any], where: str = "file") -> Iterator[str]:
    """Yield a sentence on each violation of the schema."""
    if "type" in schema and not isinstance(value, _TYPES[schema["type"]]):
        yield f"{where}: expected {schema['type']}, got {type(value).__name__}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: expected one of {schema['enum']}, got {value!r}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: expected a text like {schema['pattern']}, got {value!r}"
    if len(value) < schema.get("minItems", schema.get("minLength", 0)) if isinstance(value, str | list) else False:
        yield f"{where}: it is empty"
    if isinstance(value, dict):
        yield from _of_object(value, schema, where)
    for i, item in enumerate(value if isinstance(value, list) and "items" in schema else []):
        yield from problems(item, schema["items"], f"{where}[{i}]")


def _of_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    yield from (f"{where}: {key} is missing" for key in schema.get("required", []) if key not in value)
    for key, item in value.items():
        if key not in known and others is False:
            yield f"{where}: {key} is not known"
        else:
            yield from problems(item, known.get(key, others) or {}, f"{where}.{key}")


def dumps(value: Any, indent: int = 0) -> str:
    """Return JSON with one line for each key of an object and each object of a list; other lists are on one line."""
    inner = " " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(key)}: {dumps(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(inner + dumps(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
