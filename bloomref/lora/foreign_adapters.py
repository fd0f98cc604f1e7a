"""Facts of an adapter of PEFT of any method, for people: also of those that bloomref cannot run."""

import math
from pathlib import Path
from typing import Any

from bloomref.errors import BloomrefError
from bloomref.formats.adapters import peft
from bloomref.formats.files import MAX_CONFIG_BYTES, read_json


def facts(folder: Path) -> dict[str, Any]:
    """Every key of adapter_config.json that says something, the number of stored scalars, and kinds of tensors.

    Raises:
        BadWeights: adapter_config.json is damaged.
    """
    config = read_json(folder / peft.CONFIG, MAX_CONFIG_BYTES)
    said = {name: value for name, value in sorted(config.items()) if value not in (None, "", [], {}, False)}
    return {"format": "PEFT", "method": config.get("peft_type"), **said, **_tensors(folder)}


def _tensors(folder: Path) -> dict[str, Any]:
    try:
        entries = peft.open_file(folder).entries
    except BloomrefError:
        return {"parameters": None}
    kinds = sorted({".".join(name.split(".")[-2:]) for name in entries})
    return {
        "tensors": len(entries),
        "kinds": kinds,
        "parameters": sum(math.prod(e.shape) for e in entries.values()),
    }
