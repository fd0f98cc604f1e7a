"""A digest of a model: its sizes, its dtypes and every weight that it runs on, adapters included."""

from dataclasses import fields
from hashlib import blake2b

import numpy as np

from bloomref.dtypes import cast
from bloomref.reference import lora
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array


def digest(engine: Engine) -> bytes:
    """32 bytes that differ where keys and values could. All weights are read: about a second for each GB."""
    policy, params = engine.policy, engine.stored_params
    hashed = blake2b(f"{engine.config} {policy.name}".encode(), digest_size=32)

    def add(key: str, array: Array) -> None:
        rounded = np.ascontiguousarray(cast(cast(array, policy.variable_dtype), policy.compute_dtype))
        hashed.update(f"{key} {rounded.shape}".encode())
        hashed.update(rounded.reshape(-1).view(np.uint8).data)

    for key, _, array in params.named():
        add(key, array)
    for key, factors in lora.attached(params):
        for field in fields(factors):
            value = getattr(factors, field.name)
            if isinstance(value, np.ndarray):
                add(f"{key} {field.name}", value)
            elif field.name not in ("name", "dropout"):
                hashed.update(f"{key} {field.name} {value}".encode())
    return hashed.digest()
