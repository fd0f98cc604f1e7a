"""Unknown options of the command line: what they are called here, if they are those of another tool."""

import re
from typing import Any

from typer.core import TyperCommand

from bloomref.generation.other_tools import HINTS


class Command(TyperCommand):
    """A subcommand whose message for an unknown option names the option that has its meaning."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            is_unknown = hasattr(error, "possibilities")  # it is NoSuchOption; typer has its own copy of click, or none
            name = error.option_name if is_unknown else None  # type: ignore[attr-defined]
            hint = None if name is None else hint_of(name, self._spellings())
            if hint is not None:
                error.message = f"No such option: {name}; {hint}"  # type: ignore[attr-defined]
                error.possibilities = []  # type: ignore[attr-defined]
            raise

    def _spellings(self) -> dict[str, str]:
        """Name of a parameter -> its option."""
        options = (parameter for parameter in self.params if parameter.param_type_name == "option")
        return {str(option.name): max(option.opts, key=len) for option in options}


def hint_of(option: str, spellings: dict[str, str]) -> str | None:
    """One sentence about an unknown option; None if it is no known name of another tool, or of none here.

    Args:
        option: as typed, such as `--max_tokens`.
        spellings: name of each parameter of the command -> its option.
    """
    name = option.lstrip("-").replace("-", "_")
    if name in spellings:
        return f"here it is {spellings[name]}"
    words = re.compile(r"\w+_\w+|temperature|seed")
    hint = words.sub(lambda word: spellings.get(word[0], word[0]), HINTS.get(name, ""))
    return hint if "--" in hint else None
