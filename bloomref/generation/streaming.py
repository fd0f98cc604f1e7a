"""Text from tokens that arrive one by one, none of which need end where a character ends."""

from codecs import getincrementaldecoder
from collections.abc import Generator

from bloomref.generation.search import tokens
from bloomref.generation.task import Task


class CharacterStream:
    """Bytes in, whole characters out: the first bytes of a character wait for the rest.

    Bytes that cannot become a character turn into U+FFFD, as a tokenizer decodes them.
    """

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)


def whole_characters(data: bytes) -> str:
    """The text of `data` without an incomplete character at its end."""
    return CharacterStream().push(data)


def pieces(task: Task) -> Generator[str, None, None]:
    """The text that continues the only prompt of `task`, in pieces that are certain; none is empty."""
    history, characters = task.prompts[0].real_ids, CharacterStream()
    for _, token_id in tokens(task):
        history.append(token_id)
        end = task.stopping.match_end(history)
        if piece := characters.push(task.stopping.token_bytes(token_id)[:end]):
            yield piece
