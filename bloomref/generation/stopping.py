"""The end of a continuation: at a stop token, or as soon as its text contains a stop string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


def _no_text(_: int) -> bytes:
    return b""


@dataclass(frozen=True)
class Stopping:
    """Stop tokens and stop strings of one generation.

    Args:
        strings: in UTF-8.
        token_bytes: the text of an id in UTF-8, which may end within a character.
    """

    token_ids: frozenset[int] = frozenset()
    strings: tuple[bytes, ...] = ()
    token_bytes: Callable[[int], bytes] = _no_text

    def ends(self, history: Sequence[int]) -> bool:
        """True if the last token of `history`, a new one, is a stop token or completes a stop string."""
        return history[-1] in self.token_ids or self.match_end(history) is not None

    def match_end(self, history: Sequence[int]) -> int | None:
        """Number of bytes of the last token up to the end of the first stop string that it completes; None without one.

        As in transformers, the match may begin in earlier tokens, including those of the prompt.
        """
        if not self.strings:
            return None
        last = self.token_bytes(history[-1])
        before = self._text_before(history, max(map(len, self.strings)) - 1)
        text = before + last
        ends = []
        for string in self.strings:
            at = text.find(string, max(0, len(before) - len(string) + 1))
            if at >= 0:
                ends.append(at + len(string) - len(before))
        return min(ends, default=None)

    def _text_before(self, history: Sequence[int], length: int) -> bytes:
        """At least the last `length` bytes before the last token, if there are that many."""
        text = b""
        for token_id in reversed(history[:-1]):
            if len(text) >= length:
                break
            text = self.token_bytes(token_id) + text
        return text

    def text(self, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> bytes:
        """Text of the continuation in UTF-8, cut after the stop string that ended it."""
        if not new_ids:
            return b""
        end = self.match_end([*prompt_ids, *new_ids])
        last = self.token_bytes(new_ids[-1])[:end]
        return b"".join(map(self.token_bytes, new_ids[:-1])) + last
