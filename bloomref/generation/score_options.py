"""Options of scoring, as one validated object."""

from dataclasses import dataclass
from typing import Any, TypedDict

from bloomref.errors import invalid
from bloomref.runtime.prefix_states import PrefixStates
from bloomref.validation import check_bool, check_integer, check_known

DEFAULT_WINDOW = 2048
"""Tokens in the contexts that BLOOM was trained on: the window of a stride without one."""


class ScoreArguments(TypedDict, total=False):
    """Keyword-only arguments of `score`: the fields of `ScoreOptions`."""

    window: int | None
    stride: int | None
    top_logprobs: int
    progress: bool
    prefix: PrefixStates | None


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The options of `BloomCausalLM.score`.

    Raises:
        InvalidInput: names the argument, the expected and the actual value.
    """

    window: int | None = None
    """Tokens of a window, at least 2. None without a stride: a text is one context."""
    stride: int | None = None
    """Tokens between the starts of two windows, at most the window. None: half a window."""
    top_logprobs: int = 0
    """Number of the likeliest tokens to return in the place of each scored token."""
    progress: bool = False
    """Show a bar on stderr."""
    prefix: PrefixStates | None = None
    """States of what contexts begin with: `Prefix.score` passes them."""

    @classmethod
    def create(cls, **arguments: Any) -> "ScoreOptions":
        """The options, from arguments whose names are not checked yet."""
        check_known(arguments, list(cls.__dataclass_fields__), "an argument of score")
        return cls(**arguments)

    def __post_init__(self) -> None:
        if self.window is not None:
            check_integer("window", self.window, 2)
        if self.stride is not None:
            check_integer("stride", self.stride, 1)
            if self.stride > self.width:
                raise invalid("stride", f"at most the window's {self.width} tokens", self.stride)
        check_integer("top_logprobs", self.top_logprobs, 0)
        check_bool("progress", self.progress)
        if self.prefix is not None and not isinstance(self.prefix, PrefixStates):
            raise invalid("prefix", "None", type(self.prefix).__name__, "score with p = lm.prefix(...); p.score(text)")

    @property
    def is_whole(self) -> bool:
        """True if every text is one context."""
        return self.window is None and self.stride is None

    @property
    def width(self) -> int:
        """Tokens of a window."""
        return DEFAULT_WINDOW if self.window is None else self.window

    @property
    def step(self) -> int:
        """Tokens between the starts of two windows."""
        return self.width // 2 if self.stride is None else self.stride
