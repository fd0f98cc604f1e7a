"""Text files and JSON lines to documents: token ids, and which of them count in the loss."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomref.errors import InvalidInput, describe, invalid
from bloomref.shapes import Array, Bool, Int

if TYPE_CHECKING:
    from bloomref.tokenizer import BloomTokenizer

_RECORD = 'a text, or an object with "text", or with "prompt" and "completion"'


@dataclass(frozen=True)
class Text:
    """Text of one document. `prompt` is empty unless the document is a pair of prompt and completion."""

    prompt: str
    completion: str


@dataclass(frozen=True, eq=False)
class Document:
    """Token ids of one document, including its end token."""

    token_ids: Int[Array, " N"]
    is_target: Bool[Array, " N"]
    """True for tokens that count in the loss."""


def read(paths: Sequence[Path], separator: str | None = None) -> list[Text]:
    """Read the documents of files, in order. Clauses: TRN-1, TRN-2.

    Args:
        paths: `.jsonl` files have one object per line, {"text"} or {"prompt", "completion"}; other keys are ignored.
            Every other file is UTF-8 text.
        separator: string between two documents of a text file; None: a file is one document.

    Raises:
        InvalidInput: when a file cannot be read, has no text, is not UTF-8, or has an invalid line; naming the file
            and the line.
    """
    return [text for path in paths for text in _read_file(Path(path), separator)]


def _read_file(path: Path, separator: str | None) -> list[Text]:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, and a device has no end
            raise invalid("data", "a regular file", f"{path}, which is none")
        content = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise invalid("data", "a file that can be read", f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise invalid("data", "UTF-8 text", f"{path}, line {line}: {error.reason}") from None
    texts = list(_json_lines(path, content) if path.suffix == ".jsonl" else _plain(content, separator))
    if not texts:
        raise invalid("data", "a file with text", f"{path}, which has none")
    return texts


def _plain(content: str, separator: str | None) -> Iterator[Text]:
    pieces = content.split(separator) if separator else [content]
    return (Text("", piece) for piece in pieces if piece.strip())


def _json_lines(path: Path, content: str) -> Iterator[Text]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield _record(line, f"{path}, line {number}")


def _record(line: str, place: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(describe(place, _RECORD, f"invalid JSON: {error}")) from None
    return of_record(record, place)


def of_record(record: object, place: str) -> Text:
    """Return the document of a string, or of a mapping with the keys of a line of a `.jsonl` file.

    Args:
        record: the string or mapping.
        place: name of the record in error messages.

    Raises:
        InvalidInput: when the record is neither a string nor such a mapping.
    """
    if isinstance(record, str):
        record = {"text": record}
    if not isinstance(record, Mapping):
        raise InvalidInput(describe(place, _RECORD, type(record).__name__))
    if "text" in record and {"prompt", "completion"} & record.keys():
        raise InvalidInput(describe(place, _RECORD, "both"))
    names = ("text",) if "text" in record else ("prompt", "completion")
    for name in names:
        if not isinstance(record.get(name), str):
            raise InvalidInput(describe(place, _RECORD, f"{name} = {record.get(name)!r}"))
        if (place_of := _lone_surrogate(record[name])) is not None:
            raise InvalidInput(describe(place, f"{name} in valid Unicode", f"a lone surrogate at {place_of}"))
    if not record[names[-1]]:
        raise InvalidInput(describe(place, f"a {names[-1]} that is not empty", "an empty one"))
    return Text("" if len(names) == 1 else record["prompt"], record[names[-1]])


def _lone_surrogate(text: str) -> int | None:
    """Index of the first character that UTF-8 cannot encode, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def tokenize(texts: Sequence[Text], tokenizer: "BloomTokenizer", completion_only: bool = False) -> list[Document]:
    """Tokenise texts and append the end token to each. Clauses: TRN-3, TRN-4.

    Prompt and completion are tokenised as one text. The prompt's part of the result is its longest common prefix with
    the tokens of the prompt alone, so a token that spans the boundary belongs to the completion.

    Args:
        texts: the documents.
        tokenizer: has an end token.
        completion_only: only tokens after the prompt's part count in the loss.

    Raises:
        InvalidInput: when the tokenizer has no end token.
    """
    end = tokenizer.end_token_id
    if end is None:
        raise invalid("tokenizer", "an end token </s>", "none")
    rows = tokenizer.tokenize([text.prompt + text.completion for text in texts])
    prompts = tokenizer.tokenize([text.prompt for text in texts]) if completion_only else [[] for _ in texts]
    return [_document([*row, end], prompt) for row, prompt in zip(rows, prompts, strict=True)]


def _document(row: Sequence[int], prompt: Sequence[int]) -> Document:
    ids = np.array(row, np.int64)
    length = next((i for i, (a, b) in enumerate(zip(row, prompt, strict=False)) if a != b), min(len(row), len(prompt)))
    return Document(ids, np.arange(len(ids)) >= length)


def split(documents: Sequence[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split documents at random into (training, held-out) documents, each in the original order. Clause: TRN-7.

    Args:
        documents: all documents.
        share: share that is held out, in [0, 1); 0 holds out nothing, any other share at least one document.
        seed: seed of the draw.

    Raises:
        InvalidInput: when no document is left for training.
    """
    if share == 0.0:
        return list(documents), []
    count = max(1, round(share * len(documents)))
    if count >= len(documents):
        raise invalid("held_out", f"a share that leaves some of the {len(documents)} documents", share)
    drawn = set(np.random.default_rng([seed, 2]).permutation(len(documents))[:count].tolist())
    training = [document for i, document in enumerate(documents) if i not in drawn]
    return training, [documents[i] for i in sorted(drawn)]
