"""Links of specification, code and tests: every clause has a test, and every cited id exists."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from bloomref.conformance.vectors.author.clauses import clauses, specified
from tools.spec_tables import files_by_clause, marked_clauses

ROOT = Path(__file__).parents[1]
UNTESTABLE: dict[str, str] = {}  # id -> reason

ID = re.compile(r"\b[A-Z]{3}-\d+\b")
RANGE = re.compile(r"\b([A-Z]{3})-(\d+) (?:\.\.\.|…|to) (?:\1-)?(\d+)")


def citations(text: str, topics: set[str]) -> set[str]:
    """The ids in a text, `ATT-1 ... ATT-4` spelled out; UTF-8 and its like are of no topic."""
    spans = {f"{topic}-{n}" for topic, low, high in RANGE.findall(text) for n in range(int(low), int(high) + 1)}
    return {name for name in spans | set(ID.findall(text)) if name[:3] in topics}


def duplicates(ids: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(ids).items() if count > 1]


def untested(ids: Iterable[str], marked: Iterable[str], excused: Mapping[str, str]) -> list[str]:
    return [name for name in ids if name not in set(marked) and name not in excused]


def unknown(cited: Iterable[str], ids: Iterable[str]) -> list[str]:
    return sorted(set(cited) - set(ids))


def ill_worded(text: str) -> list[str]:
    """Clauses without exactly one MUST."""
    return [name for name, body in clauses(text) if len(re.findall(r"\bMUST\b", body)) != 1]


IDS = specified(ROOT)
TOPICS = {name[:3] for name in IDS}
SPECS = sorted((ROOT / "specs").glob("*.md"))
SOURCES = [
    path
    for folder, pattern in (
        ("bloomref", "*.py"),
        ("accel", "*.py"),
        ("tests", "*.py"),
        ("specs", "*.md"),
        ("docs", "*.md"),
    )
    for path in sorted((ROOT / folder).rglob(pattern))
    if path != Path(__file__)
]


def test_there_is_a_specification():
    assert len(IDS) > 80
    assert {
        "CFG",
        "EMB",
        "ALI",
        "ATT",
        "MLP",
        "MOD",
        "HEA",
        "KVC",
        "GEN",
        "SCO",
        "GRD",
        "LRA",
        "TRN",
        "WGT",
        "PRE",
        "NUM",
        "BKD",
        "CNF",
        "PRG",
        "VEC",
    } == TOPICS


def test_no_id_is_defined_twice():
    assert duplicates(IDS) == []


@pytest.fixture(scope="module")
def marked():
    return files_by_clause()


def test_every_clause_has_a_test(marked):
    assert untested(IDS, marked, UNTESTABLE) == []


def test_no_test_marks_an_unknown_clause(marked):
    assert unknown(marked, IDS) == []


def test_excuses_are_needed(marked):
    assert unknown(UNTESTABLE, IDS) == []
    assert set(UNTESTABLE).isdisjoint(marked)


def test_every_cited_clause_exists():
    found = {path.relative_to(ROOT): unknown(citations(path.read_text("utf-8"), TOPICS), IDS) for path in SOURCES}
    assert {path: ids for path, ids in found.items() if ids} == {}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_a_clause_holds_exactly_one_requirement(path):
    assert ill_worded(path.read_text("utf-8")) == []


SECTIONS = ("**Meaning.**", "**Inputs.**", "**Output.**", "## Clauses", "## Example")


@pytest.mark.parametrize("path", [p for p in SPECS if list(clauses(p.read_text("utf-8")))], ids=lambda path: path.name)
def test_a_topic_has_its_sections_in_order(path):
    text = path.read_text("utf-8")
    places = [text.find(section) for section in SECTIONS]
    assert -1 not in places
    assert places == sorted(places)
    listed = (ROOT / "specs/README.md").read_text("utf-8")
    assert f"[{path.name}]({path.name})" in listed


LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def test_links_between_files_lead_somewhere():
    pages = [path for path in SOURCES if path.suffix == ".md"]
    links = [(path, link) for path in pages for link in LINK.findall(path.read_text("utf-8"))]
    assert [(path.relative_to(ROOT), link) for path, link in links if not (path.parent / link).exists()] == []


# --- each check can fail -----------------------------------------------------------------------------------------

PLANTED = """# Topic
- **ATT-1** One thing MUST hold,
  over two lines.
- **ATT-2** Two MUST and MUST.

  | a | table |
- **ATT-2** Nothing holds.
## Example
text MUST not count
"""


def test_clauses_are_parsed():
    assert [name for name, _ in clauses(PLANTED)] == ["ATT-1", "ATT-2", "ATT-2"]
    assert dict(clauses(PLANTED))["ATT-1"] == "One thing MUST hold,\n  over two lines."


def test_a_duplicate_is_found():
    assert duplicates(name for name, _ in clauses(PLANTED)) == ["ATT-2"]


def test_a_clause_without_a_test_is_found():
    assert untested(["ATT-1", "ATT-2", "ATT-3"], {"ATT-1": []}, {"ATT-3": "why"}) == ["ATT-2"]


def test_two_requirements_or_none_are_found():
    assert ill_worded(PLANTED) == ["ATT-2", "ATT-2"]


def test_marks_are_read_from_the_syntax_not_from_the_text():
    source = """
pytestmark = pytest.mark.clause("ATT-9")
@pytest.mark.clause("ATT-1", "ATT-2")
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.clause("ATT-3"))])
def test_something(): 'pytest.mark.clause("ATT-4")'  # pytest.mark.clause("ATT-5")
"""
    assert marked_clauses(source) == {"ATT-1", "ATT-2", "ATT-3", "ATT-9"}


def test_an_unknown_id_is_found():
    cited = citations("ATT-1, ATT-3 ... ATT-5 and UTF-8", {"ATT"})
    assert cited == {"ATT-1", "ATT-3", "ATT-4", "ATT-5"}
    assert unknown(cited, ["ATT-1", "ATT-3", "ATT-5"]) == ["ATT-4"]
