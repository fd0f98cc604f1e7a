"""Windows over tokens that are too many for one context (SCO-7)."""

from dataclasses import dataclass

from bloomref.errors import invalid
from bloomref.generation.score_options import ScoreOptions
from bloomref.shapes import Array, Int


@dataclass(frozen=True, eq=False)
class Scored:
    """Tokens to score: those of `token_ids` from index `start` >= 1 on, each given all before it.

    Args:
        name: what messages call it, such as `text[3]`.
        token_ids: (N,) of int64.
    """

    name: str
    token_ids: Int[Array, " N"]
    start: int


def windows(item: Scored, options: ScoreOptions) -> list[Scored]:
    """The windows with tokens to score, in order, as views of the item's tokens.

    Raises:
        InvalidInput: when no token is scored: each is the first of its window, since the stride is as wide.
    """
    if options.is_whole:
        return [item]
    ids, done, parts = item.token_ids, item.start, []
    for begin in range(0, len(ids), options.step):
        end, first = min(begin + options.width, len(ids)), max(done, begin + 1)
        if first < end:
            parts.append(Scored(item.name, ids[begin:end], first - begin))
        done = max(done, end)
    if not parts:
        raise invalid("stride", f"one below the window, so that a token of {item.name} is scored", options.stride)
    return parts
