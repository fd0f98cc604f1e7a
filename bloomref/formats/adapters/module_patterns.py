"""Regular expressions for names of modules, matched in a bounded number of steps. Clause: LRA-12.

They come from files that nobody has checked, and Python's `re` can take exponential time, uninterrupted. The names are
short. So this matcher computes which positions of the name an expression can reach from which position, each once:
the time is polynomial, and a budget of steps bounds it. Syntax and meaning are those of Python: its parser reads the
expression. Which of several matches is the first has no influence, since only "does it match" is asked.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from importlib import import_module
from operator import or_
from typing import Any

from bloomref.errors import invalid

STEPS = 2_000_000
_parser: Any = import_module("re._parser")
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda character: character.isalnum() or character == "_",
}


class Patterns:
    """Matches expressions. All calls of one object share a budget of steps.

    Args:
        name: of the argument that the expressions come from, for messages.
    """

    def __init__(self, name: str, steps: int = STEPS) -> None:
        self.name = name
        self.left = steps

    def fullmatch(self, expression: str, text: str) -> bool:
        """True if the expression matches the whole text.

        Raises:
            InvalidInput: for an expression that Python does not accept, or that needs too many steps; for a
                back-reference or another construct that depends on the order of matches.
        """
        return self._match(expression, text, 1)

    def match_end(self, expression: str, text: str) -> bool:
        r"""True if the expression matches the last parts of a name: as `^(.*\.)?(EXPRESSION)$`."""
        return self._match(expression, text, 1 | sum(2 << i for i, character in enumerate(text) if character == "."))

    def first(self, patterns: Mapping[str, Any], text: str, default: Any) -> Any:
        """The value of the first key that matches the last parts of a name, or the default."""
        return next((value for expression, value in patterns.items() if self.match_end(expression, text)), default)

    def _match(self, expression: str, text: str, starts: int) -> bool:
        tree, fold = parsed(self.name, expression)
        try:
            return bool(_Run(self, text).sequence(tree, starts, fold) >> len(text) & 1)
        except RecursionError as error:
            raise invalid(self.name, "a regular expression of fewer nested groups", repr(expression)) from error
        except _OutOfSteps as error:
            hint = "write it without nested repetition, or list the modules"
            raise invalid(
                self.name, "a regular expression that matches in few steps", repr(expression), hint
            ) from error
        except _OrderMatters as error:
            hint = "write it without back-references, conditions and possessive repetition"
            raise invalid(self.name, "a plain regular expression", repr(expression), hint) from error


@lru_cache(maxsize=1024)
def parsed(name: str, expression: str) -> tuple[Any, bool]:
    """Python's syntax tree of an expression, and whether case is ignored.

    Raises:
        InvalidInput: Python does not accept the expression.
    """
    try:
        tree = _parser.parse(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise invalid(name, "a regular expression", repr(expression), str(error)) from error
    return tree, bool(tree.state.flags & re.IGNORECASE)


class _OutOfSteps(Exception):
    pass


class _OrderMatters(Exception):
    pass


class _Run:
    """The positions that nodes of one tree reach in one text, each computed once. A set is an integer of bits."""

    def __init__(self, owner: Patterns, text: str) -> None:
        self._owner = owner
        self._text = text
        self._ends: dict[tuple[int, int], int] = {}

    def sequence(self, nodes: Iterable[Any], starts: int, fold: bool) -> int:
        """Where the nodes, one after another, can end if they begin at one of `starts`."""
        for node in nodes:
            ends = 0
            while starts:
                first = starts & -starts
                ends |= self._node(node, first.bit_length() - 1, fold)
                starts ^= first
            starts = ends
        return starts

    def _node(self, node: Any, start: int, fold: bool) -> int:
        self._owner.left -= 1
        if self._owner.left < 0:
            raise _OutOfSteps
        key = id(node), start
        if key not in self._ends:
            self._ends[key] = self._compute(str(node[0]), node[1], start, fold)
        return self._ends[key]

    def _compute(self, kind: str, value: Any, start: int, fold: bool) -> int:
        here = 1 << start
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            accepted = start < len(self._text) and _accepts(kind, value, self._text[start], fold)
            return here << 1 if accepted else 0
        if kind == "BRANCH":
            return reduce(or_, (self.sequence(branch, here, fold) for branch in value[1]))
        if kind == "SUBPATTERN":
            _, added, removed, nodes = value
            fold = bool(added & re.IGNORECASE) or (fold and not removed & re.IGNORECASE)
            return self.sequence(nodes, here, fold)
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, nodes = value
            return self._repeat(least, most, nodes, here, fold)
        if kind in ("ASSERT", "ASSERT_NOT"):
            direction, nodes = value
            return here if self._looks(direction, nodes, start, fold) == (kind == "ASSERT") else 0
        if kind == "AT":
            return here if self._at(str(value), start) else 0
        if kind == "FAILURE":
            return 0
        raise _OrderMatters

    def _repeat(self, least: int, most: int, nodes: Any, reached: int, fold: bool) -> int:
        rounds = len(self._text) + 1  # after so many, some repetition was empty, and more change nothing
        for _ in range(min(least, rounds)):
            reached = self.sequence(nodes, reached, fold)
        ends = new = reached
        for _ in range(min(most - least, rounds)):
            new = self.sequence(nodes, new, fold) & ~ends
            if not new:
                break
            ends |= new
        return ends

    def _looks(self, direction: int, nodes: Any, start: int, fold: bool) -> bool:
        if direction > 0:
            return bool(self.sequence(nodes, 1 << start, fold))
        begin = start - nodes.getwidth()[0]
        return begin >= 0 and bool(self.sequence(nodes, 1 << begin, fold) >> start & 1)

    def _at(self, kind: str, start: int) -> bool:
        if kind.startswith("AT_BEGINNING"):
            return start == 0
        if kind.startswith("AT_END"):
            return start == len(self._text)
        word = _CATEGORIES["WORD"]
        beside = [0 <= i < len(self._text) and word(self._text[i]) for i in (start - 1, start)]
        return (beside[0] != beside[1]) == (kind == "AT_BOUNDARY")


def _accepts(kind: str, value: Any, character: str, fold: bool) -> bool:
    if kind == "ANY":
        return character != "\n"
    forms = {character, character.lower(), character.upper()} if fold else {character}
    if kind in ("LITERAL", "NOT_LITERAL"):
        return (chr(value) in forms) == (kind == "LITERAL")
    members = [(str(member), content) for member, content in value]
    negated = members[0][0] == "NEGATE"
    return any(_contains(member, content, form) for member, content in members for form in forms) != negated


def _contains(member: str, content: Any, character: str) -> bool:
    if member == "LITERAL":
        return chr(content) == character
    if member == "RANGE":
        return content[0] <= ord(character) <= content[1]
    if member == "CATEGORY":
        name = str(content).removeprefix("CATEGORY_")
        return _CATEGORIES[name.removeprefix("NOT_")](character) != name.startswith("NOT_")
    return False
