"""How many of the known mistakes the vectors find by themselves: `python -m tools.vector_mutation_score`."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.checks.outcome import Failure, Inconclusive
from bloomref.conformance.mistakes import EQUIVALENTS, MISTAKES, Mistake
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import PROPERTY, check
from bloomref.conformance.vectors.read import Vector, locate, read
from bloomref.errors import Unsupported


def found_by(mistake: Mistake, vectors: Iterable[Vector], dtype: str = "float32") -> list[str]:
    """The ids of the vectors that object to a model with the mistake."""
    subject = Subject(InstrumentedImplementation(mistake.model), dtype)
    asked = [vector for vector in vectors if vector.entry["ask"] in PROPERTY]
    return [vector.id for vector in asked if _objects(subject, vector)]


def _objects(subject: Subject, vector: Vector) -> bool:
    try:
        with np.errstate(all="ignore"):
            check(subject, vector)
    except Failure:
        return True
    except (Inconclusive, Unsupported):
        pass
    return False


def summary(mistakes: Sequence[Mistake], vectors: Sequence[Vector], dtype: str) -> str:
    """One line, and a line for each mistake that is not found."""
    missed = [mistake.name for mistake in mistakes if not found_by(mistake, vectors, dtype)]
    rows = [f"  not found: {name}" for name in missed]
    return "\n".join([f"{dtype}: {len(mistakes) - len(missed)} of {len(mistakes)} found", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="of the vectors")
    vectors = read(locate(parser.parse_args().folder))
    for dtype in ("float32", "bfloat16"):
        print("mistakes in", summary(MISTAKES, vectors, dtype))
    for dtype in ("float32", "bfloat16", "float16"):
        print("equivalents in", summary(EQUIVALENTS, vectors, dtype).partition("\n")[0])


if __name__ == "__main__":
    main()
