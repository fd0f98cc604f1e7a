"""Prompt lookup proposes what followed the longest n-gram at the end, at its latest place."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.generation.proposals import LONGEST_NGRAM, PromptLookup
from bloomref.generation.task import Row

LOOKUP = PromptLookup()


def slow_lookup(history: list[int], count: int) -> list[int]:
    for size in range(LONGEST_NGRAM, 0, -1):
        for end in range(len(history) - 1, size - 1, -1):
            if history[end - size : end] == history[len(history) - size :]:
                text = [*history]
                while len(text) < end + count + len(history):
                    text.append(text[end + len(text) - len(history)])
                return text[end : end + count] if end + count <= len(history) else text[end:][:count]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 9), st.data())
def test_it_is_the_slow_search(history: list[int], count: int, data: st.DataObject) -> None:
    """However the row has grown between the calls."""
    proposals = LOOKUP.open(None)  # type: ignore[arg-type]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(history)), max_size=4)) | {len(history)})
    for _, cut in pairwise([0, *cuts]):
        row = Row(5, history[:cut], 9, 1)
        assert proposals.propose([row], [count]) == [slow_lookup(history[:cut], count)]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([1, 2, 3], []),
        ([1, 2, 9, 1], [2, 9, 1, 2]),
        ([7, 7], [7, 7, 7, 7]),
        ([1, 2, 5, 3, 2, 6, 1, 2], [5, 3, 2, 6]),
        ([4, 8, 4, 9, 4], [9, 4, 9, 4]),
    ],
)
def test_examples(history: list[int], expected: list[int]) -> None:
    assert LOOKUP.open(None).propose([Row(0, history, 9, 1)], [4]) == [expected]  # type: ignore[arg-type]
