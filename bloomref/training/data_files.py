"""Files of training data: text, JSON or tables. Their content decides, and their name must agree.

Clauses: TRN-1, TRN-2.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bloomref.errors import InvalidInput, describe, invalid
from bloomref.formats import recognise
from bloomref.training.records import EXPECTED, KEYS, Record, Text, formats_of, is_conversation, of_record

_JSON_NAMES = (".json", ".jsonl", ".ndjson")
_TABLE_NAMES = (".csv", ".tsv")
_DELIMITERS = (",", "\t", ";")
_JSON = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_OBJECT = re.compile(r'[\s\[]*\{\s*"(?:[^"\\]|\\.)*"\s*:')
"""The beginning of a JSON object, or of an array of such, even if its end was cut off."""


def read(paths: Sequence[Path], separator: str | None = None) -> list[Record]:
    """Read the documents of files, in order.

    Args:
        paths: `.json`, `.jsonl` and `.ndjson` files have JSON values, one after another; of an array, its items. `.csv`
            and `.tsv` files have a header. Each value or row is a record (`records.of_record`). Every other file is
            UTF-8 text.
        separator: string between two documents of a text file; None: a file is one document.

    Raises:
        InvalidInput: when a file cannot be read, has no text, is not UTF-8, has another format than its name says, or
            has an invalid record; naming the file and the line.
    """
    return [text for path in paths for text in _read_file(Path(path), separator)]


def _read_file(path: Path, separator: str | None) -> list[Record]:
    content, name = _content(path), path.suffix.lower()
    if name in _JSON_NAMES:
        records = list(_json_records(path, content))
    else:
        _check_no_json(path, content)
        records = list(_rows(path, content) if name in _TABLE_NAMES else _plain(path, content, separator))
    if not records:
        raise invalid("data", "a file with text", f"{path}, which has none")
    return records


def _content(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, and a device has no end
            raise invalid("data", "a regular file", f"{path}, which is none")
        data = path.read_bytes()
    except OSError as error:
        raise invalid("data", "a file that can be read", f"{path}: {error.strerror or error}") from None
    kind = recognise.by_content(path)
    if kind is not None and "pointer" in kind.what:
        raise InvalidInput(str(kind.refusal(path, "UTF-8 text")))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        is_wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = "it is UTF-16" if is_wide else f"it is {kind.what}" if kind else error.reason
        hint = "save it as UTF-8" if is_wide or kind is None else "write it as UTF-8 text, JSON or CSV"
        raise invalid("data", "UTF-8 text", f"{path}, line {line}: {what}", hint) from None


def _check_no_json(path: Path, content: str) -> None:
    if _OBJECT.match(content):
        hint = "name it .json or .jsonl to train on its fields"
        raise invalid("data", f"text in {path}", "JSON", hint)


# --- text --------------------------------------------------------------------------------------------------------


def _plain(path: Path, content: str, separator: str | None) -> Iterator[Text]:
    columns = max((_columns(content, delimiter) for delimiter in _DELIMITERS), key=len)
    if len(columns) > 1 and formats_of(columns) and set(columns) <= KEYS:
        hint = "name it .csv or .tsv to train on its columns"
        raise invalid("data", f"text in {path}", f"a table with the columns {', '.join(columns)}", hint)
    pieces = content.split(separator) if separator else [content]
    return (Text("", piece) for piece in pieces if piece.strip())


# --- JSON --------------------------------------------------------------------------------------------------------


def _json_records(path: Path, content: str) -> Iterator[Record]:
    line, last = 1, 0
    for position, value in _values(path, content):
        line, last = line + content.count("\n", last, position), position
        yield of_record(value, f"{path}, line {line}")


def _values(path: Path, content: str) -> Iterator[tuple[int, object]]:
    """The values of a JSON text, each with its position. An array stands for its items, unless it is a conversation."""
    position = _after_space(content, 0)
    while position < len(content):
        if content[position] == "[":
            items, end = _array(path, content, position)
            values = [value for _, value in items]
            yield from [(position, values)] if is_conversation(values) else items
        else:
            value, end = _value(path, content, position)
            yield position, value
        position = _after_space(content, end)


def _array(path: Path, content: str, start: int) -> tuple[list[tuple[int, object]], int]:
    """The items of an array that begins at `start`, each with its position, and the position behind it."""
    items: list[tuple[int, object]] = []
    position = _after_space(content, start + 1)
    while content[position : position + 1] != "]" or items:
        value, end = _value(path, content, position)
        items.append((position, value))
        position = _after_space(content, end)
        if content[position : position + 1] == "]":
            break
        if content[position : position + 1] != ",":
            raise _no_json(
                path, content, position, "an array without its end" if position == len(content) else "no comma"
            )
        position = _after_space(content, position + 1)
    return items, position + 1


def _value(path: Path, content: str, position: int) -> tuple[object, int]:
    try:
        return _JSON.raw_decode(content, position)
    except (ValueError, RecursionError) as error:
        raise _no_json(path, content, position, str(error)) from None


def _no_json(path: Path, content: str, position: int, problem: str) -> InvalidInput:
    what = recognise.HTML.what if recognise.by_content(path) is recognise.HTML else f"invalid JSON: {problem}"
    line = content.count("\n", 0, position) + 1
    return InvalidInput(describe(f"{path}, line {line}", EXPECTED, what))


def _after_space(content: str, position: int) -> int:
    match = _SPACE.match(content, position)
    return match.end() if match else position


# --- tables ------------------------------------------------------------------------------------------------------


def _rows(path: Path, content: str) -> Iterator[Record]:
    headers = {delimiter: _columns(content, delimiter) for delimiter in _DELIMITERS}
    delimiter = next((mark for mark, columns in headers.items() if formats_of(columns)), None)
    if delimiter is None:
        names = max(headers.values(), key=len)
        got = f"the columns {', '.join(names)}" if names else "an empty line"
        raise InvalidInput(describe(f"{path}, line 1", f"a header; each row is {EXPECTED}", got))
    columns, line = headers[delimiter], 1
    if len(set(columns)) < len(columns):
        raise InvalidInput(describe(f"{path}, line 1", "different names of columns", ", ".join(columns)))
    rows = _reader(content, delimiter)
    limit = csv.field_size_limit(len(content) + 1)  # a cell may be a whole book
    try:
        for cells in rows:
            place, is_header, line = f"{path}, line {line}", line == 1, rows.line_num + 1
            if cells and len(cells) != len(columns):
                hint = 'put a cell with commas, line ends or quotes into quotes, and write a quote in it as ""'
                raise InvalidInput(describe(place, f"{len(columns)} cells", f"{len(cells)}", hint))
            if cells and not is_header:
                yield of_record(dict(zip(columns, cells, strict=True)), place)
    except csv.Error as error:
        raise InvalidInput(describe(f"{path}, line {line}", "a row of a table", str(error))) from None
    finally:
        csv.field_size_limit(limit)


def _columns(content: str, delimiter: str) -> list[str]:
    """Cells of the first line; none if it is no row of a table."""
    try:
        return next(_reader(content[:10_000], delimiter), [])
    except csv.Error:
        return []


def _reader(content: str, delimiter: str) -> Any:  # the type has no public name
    return csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
