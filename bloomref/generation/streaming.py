"""Text from tokens as they arrive: a token may end within a character, so UTF-8 is decoded incrementally."""

from codecs import getincrementaldecoder
from collections.abc import Generator, Sequence
from typing import Any

from bloomref.generation.prompts import Prompt, Request, right_pad
from bloomref.generation.search import tokens
from bloomref.generation.task import Results, Task
from bloomref.shapes import Array


class CharacterStream:
    """Incremental UTF-8 decoder: an incomplete character waits for its remaining bytes.

    Invalid bytes become U+FFFD, as in a tokenizer's decoding.
    """

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)


def whole_characters(data: bytes) -> str:
    """The text of `data` without an incomplete character at its end."""
    return CharacterStream().push(data)


def pieces(task: Task) -> Generator[str, None, int]:
    """The continuation of the task's only prompt, in non-empty pieces of text that are final.

    Returns:
        As the generator's return value, the number of generated tokens, including the stop token.
    """
    history, characters = task.prompts[0].real_ids, CharacterStream()
    prompt_length = len(history)
    for _, token_id in tokens(task):
        history.append(token_id)
        end = task.stopping.match_end(history)
        if piece := characters.push(task.stopping.token_bytes(token_id)[:end]):
            yield piece
    return len(history) - prompt_length


def as_texts(texts: Sequence[str], task: Task, results: Results, strip_prompt: bool) -> list[str]:
    """The text of each result, behind that of its prompt unless `strip_prompt`; `texts` are the prompts."""
    continuations = [whole_characters(task.stopping.text(prompt.real_ids, new)) for prompt, new in results]
    if strip_prompt:
        return continuations
    count = task.options.num_return_sequences
    return [texts[i // count] + continuation for i, continuation in enumerate(continuations)]


def as_rows(request: Request, task: Task, results: Results, strip_prompt: bool) -> list[Any]:
    """Each result in the form of the request: a text, or a list of ids."""
    if request.kind == "text":
        return as_texts(request.rows, task, results, strip_prompt)
    return [([] if strip_prompt else prompt.real_ids) + new for prompt, new in results]


def as_dictionary(results: Results, pad_id: int, strip_prompt: bool) -> dict[str, Array]:
    """Each result as a row of `{"token_ids": (B, T), "padding_mask": (B, T)}`, padded on the right."""
    rows = [Prompt.of(new) if strip_prompt else prompt.followed_by(new) for prompt, new in results]
    batch = right_pad(rows, pad_id)
    return {"token_ids": batch.token_ids, "padding_mask": batch.is_real}
