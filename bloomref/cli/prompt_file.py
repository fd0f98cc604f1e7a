"""Files of prompts: JSON lines, or one prompt a line."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bloomref.errors import InvalidInput, describe, invalid

_RECORD = 'a text, or an object with "prompt" or "text"'
_KEYS = ("prompt", "text")
_OWN = ("index", "continuation", "continuations", "tokens")


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file.

    Args:
        prompts: in the order of the file.
        others: the other keys of each line's object, which go into the results.
        digest: SHA-256 of the file.
    """

    prompts: list[str]
    others: list[dict[str, Any]]
    digest: str


def read(path: Path) -> PromptFile:
    """Read the prompts of a file; lines of white space are skipped.

    Args:
        path: a `.jsonl` file has a text or an object with "prompt" or "text" on each line, a `.txt` file a prompt.

    Raises:
        InvalidInput: for another ending, a file that cannot be read or has no prompt, and an invalid line.
    """
    if path.suffix not in (".jsonl", ".txt"):
        raise invalid("--input", "a file whose name ends in .jsonl or .txt", str(path))
    try:
        data = path.read_bytes()
        content = data.decode("utf-8-sig")
    except OSError as error:
        raise invalid("--input", "a file that can be read", f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise invalid("--input", "UTF-8 text", f"{path}, line {line}: {error.reason}") from None
    lines = [(i, line.removesuffix("\r")) for i, line in enumerate(content.split("\n"), 1) if line.strip()]
    parse = _record if path.suffix == ".jsonl" else _line
    records = [parse(line, f"{path}, line {i}") for i, line in lines]
    for (i, _), (prompt, _) in zip(lines, records, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InvalidInput(describe(f"{path}, line {i}", "valid Unicode", "half of a surrogate pair"))
    if not records:
        raise invalid("--input", "a file with prompts", f"{path}, which has none")
    return PromptFile([prompt for prompt, _ in records], [others for _, others in records], sha256(data).hexdigest())


def _line(line: str, _: str) -> tuple[str, dict[str, Any]]:
    return line, {}


def _record(line: str, place: str) -> tuple[str, dict[str, Any]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(describe(place, _RECORD, f"invalid JSON: {error}")) from None
    if isinstance(record, str):
        return record, {}
    if not isinstance(record, dict):
        raise InvalidInput(describe(place, _RECORD, type(record).__name__))
    names = [key for key in _KEYS if key in record]
    if len(names) != 1 or not isinstance(record[names[0]], str):
        raise InvalidInput(describe(place, _RECORD, f"an object with the keys {', '.join(record) or 'none'}"))
    return record[names[0]], {key: value for key, value in record.items() if key not in (*names, *_OWN)}
