"""Write the generated tables of specs/, or check that they are current: `python -m tools.spec_tables [--check]`.

The table of coverage links the clause ids in specs/*.md with the ids in the tests' `@pytest.mark.clause(...)`.
"""

import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bloomref.conformance.vectors.author.clauses import specified
from bloomref.params import INPUT_WEIGHTS, LAYER_WEIGHTS, LM_HEAD, OUTPUT_WEIGHTS, Weight
from bloomref.presets.preset_registry import PRESETS

ROOT = Path(__file__).parents[1]


# --- clauses and tests -------------------------------------------------------------------------------------------


def marked_clauses(source: str) -> set[str]:
    """Clause ids in a test file's `@pytest.mark.clause(...)`, including those in `pytestmark` and `pytest.param`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    marks = (call for call in calls if ast.unparse(call.func).endswith("mark.clause"))
    arguments = (argument for call in marks for argument in call.args)
    return {str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)}


def files_by_clause(root: Path = ROOT) -> dict[str, list[str]]:
    """Map each clause id to the test files that mark it."""
    files: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for name in marked_clauses(path.read_text("utf-8")):
            files.setdefault(name, []).append(path.relative_to(root).as_posix())
    return files


# --- tables ------------------------------------------------------------------------------------------------------


def weight_table() -> str:
    """Table of the weights and their names in both layouts."""
    rows = [_weight_row(w, "layers", "") for w in INPUT_WEIGHTS]
    rows += [_weight_row(w, "layers/bloom_decoder{i}", "h.i.") for w in LAYER_WEIGHTS]
    rows += [_weight_row(w, "layers", "") for w in OUTPUT_WEIGHTS]
    rows += [_weight_row(LM_HEAD, "", "")]
    return _table(("attribute", "axes", "Hugging Face key", "axes", "Keras path", "axes"), rows)


def _weight_row(weight: Weight, keras_prefix: str, hf_prefix: str) -> tuple[str, ...]:
    keras = f"`{keras_prefix}/{weight.keras_path}`" if weight.keras_path else "none"
    key = f"`{hf_prefix}{weight.hf_key}`"
    return (f"`{weight.attribute}`", weight.axes, key, weight.hf_axes, keras, weight.keras_axes)


def preset_table() -> str:
    """Table of the built-in presets."""
    rows = [
        (f"`{name}`", f"{preset.parameters:,}", preset.description, preset.source, preset.licence)
        for name, preset in PRESETS.items()
    ]
    return _table(("preset", "parameters", "description", "source", "licence of the weights"), rows)


def coverage_table(root: Path = ROOT) -> str:
    """Table of the clauses and the test files that mark them."""
    files = files_by_clause(root)
    rows = [(name, ", ".join(f"`{file}`" for file in files.get(name, ["none"]))) for name in specified(root)]
    return _table(("clause", "test files"), rows)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# --- files -------------------------------------------------------------------------------------------------------


def tables(root: Path = ROOT) -> dict[Path, tuple[str, str]]:
    """Map each file to (name of its generated section, current contents of the section)."""
    return {
        root / "specs/80-weights.md": ("weights", weight_table()),
        root / "specs/85-presets.md": ("presets", preset_table()),
        root / "specs/coverage.md": ("coverage", coverage_table(root)),
    }


def fill(text: str, name: str, table: str) -> str:
    """Return `text` with the generated section `name` replaced.

    Raises:
        ValueError: when the text has no such section.
    """
    opening, closing = f"<!-- generated: {name} -->\n", "<!-- end generated -->"
    before, _, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not end:
        raise ValueError(f"no generated section {name!r}")
    return f"{before}{opening}{table}{closing}{after}"


def stale(sections: Mapping[Path, tuple[str, str]]) -> dict[Path, str]:
    """Map each file whose generated section is out of date to its current text."""
    filled = {path: fill(path.read_text("utf-8"), *section) for path, section in sections.items()}
    return {path: text for path, text in filled.items() if text != path.read_text("utf-8")}


def main(arguments: list[str]) -> int:
    """Write the tables that are out of date; with `--check`, only name them. Returns the exit code."""
    old = stale(tables())
    for path, text in old.items():
        print(f"{path.relative_to(ROOT)}: {'out of date' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
    return int(bool(old) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
