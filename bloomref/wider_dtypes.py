"""Wider dtypes, for messages about numbers that are too large for a dtype."""

_WIDER = {
    "float16": "bfloat16 or float32",
    "mixed_float16": "mixed_bfloat16 or float32",
    "bfloat16": "float32",
    "mixed_bfloat16": "float32",
    "float32": "float64",
}


def overflow_hint(dtype: str) -> str:
    """The end of a message about numbers that are too large for a dtype or policy of this name: wider ones."""
    return f"; use dtype {_WIDER[dtype]} (--dtype on the command line)" if dtype in _WIDER else ""
