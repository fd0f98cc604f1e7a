"""Mutation score of the test vectors alone, without the kit's properties: `python -m tools.vector_mutation_score`.

Writes docs/proof/vectors.json and a table of docs/proof.md.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.mistakes import EQUIVALENTS, MISTAKES, Mistake
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import PROPERTY, check
from bloomref.conformance.vectors.read import Vector, locate, read
from bloomref.errors import Unsupported
from tools.spec_tables import ROOT, fill

JSON = Path("docs/proof/vectors.json")
PAGE = Path("docs/proof.md")
DTYPES = ("float32", "bfloat16", "float16")


def failed_vectors(mistake: Mistake, vectors: Iterable[Vector], dtype: str = "float32") -> Iterator[str]:
    """Yield the ids of the vectors that a mutant fails."""
    subject = Subject(InstrumentedImplementation(mistake.model), dtype)
    asked = (vector for vector in vectors if vector.entry["ask"] in PROPERTY)
    return (vector.id for vector in asked if _fails(subject, vector))


def _fails(subject: Subject, vector: Vector) -> bool:
    try:
        with np.errstate(all="ignore"):
            check(subject, vector)
    except Failure:
        return True
    except (Inconclusive, Unsupported):
        pass
    return False


def score(dtype: str, vectors: Sequence[Vector]) -> dict[str, Any]:
    """Return the number of mistakes, the names of those that no vector detects, and the names of the equivalents that a
    vector rejects."""
    mistakes = [known for known in MISTAKES if known.dtype == "float32"]
    return {
        "mistakes": len(mistakes),
        "undetected": [known.name for known in mistakes if not any(failed_vectors(known, vectors, dtype))],
        "equivalents": len(EQUIVALENTS),
        "rejected": [known.name for known in EQUIVALENTS if any(failed_vectors(known, vectors, dtype))],
    }


def table(scores: Mapping[str, dict[str, Any]]) -> str:
    """The scores as a Markdown table."""
    lines = ["| dtype | mistakes detected | equivalents rejected |", "| --- | --- | --- |"]
    for dtype, each in scores.items():
        detected = each["mistakes"] - len(each["undetected"])
        rejected = f"{len(each['rejected'])} of {each['equivalents']}"
        lines.append(f"| {dtype} | {detected} of {each['mistakes']} | {rejected} |")
    return "\n".join(lines) + "\n"


def write(scores: Mapping[str, dict[str, Any]], root: Path = ROOT) -> None:
    """Write the JSON file and the table of the page."""
    (root / JSON).write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    (root / PAGE).write_text(fill((root / PAGE).read_text("utf-8"), "vectors", table(scores)), "utf-8")


def main() -> None:
    """Measure each dtype, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of the vectors")
    vectors = read(locate(parser.parse_args().folder))
    scores = {dtype: score(dtype, vectors) for dtype in DTYPES}
    write(scores)
    print(table(scores))
    for dtype, each in scores.items():
        print(f"not detected in {dtype}:", *each["undetected"])


if __name__ == "__main__":
    main()
