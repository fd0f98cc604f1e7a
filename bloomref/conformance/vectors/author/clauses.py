"""The numbered clauses of specs/*.md in a checkout of the repository."""

import re
from collections.abc import Iterator
from pathlib import Path

CLAUSE_OR_HEADING = re.compile(r"^(?:- \*\*([A-Z]{3}-\d+)\*\*|#+ .*$)", re.MULTILINE)


def clauses(text: str) -> Iterator[tuple[str, str]]:
    """(id, text) of every clause that a specification file defines, in order."""
    _, *pieces = CLAUSE_OR_HEADING.split(text)
    for name, body in zip(pieces[::2], pieces[1::2], strict=True):
        if name is not None:
            yield name, body.strip()


def specified(root: Path) -> list[str]:
    """Every clause id of the specification, in the order of the files; a duplicate shows twice."""
    return [name for path in sorted((root / "specs").glob("*.md")) for name, _ in clauses(path.read_text("utf-8"))]
