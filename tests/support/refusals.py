"""Refusals: a call that raises, and what its message is like."""

from collections.abc import Callable

import pytest

from bloomref.errors import BloomrefError


def refusal(error: type[BloomrefError], call: Callable[[], object]) -> str:
    """The message with which a call is refused: one line of printable characters, not a long one."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    return message
