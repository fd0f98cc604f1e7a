"""Mutation score of the test vectors alone, without the kit's properties: `python -m tools.vector_mutation_score`."""

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


def failed_vectors(mistake: Mistake, vectors: Iterable[Vector], dtype: str = "float32") -> list[str]:
    """Return the ids of the vectors that a mutant fails."""
    subject = Subject(InstrumentedImplementation(mistake.model), dtype)
    asked = [vector for vector in vectors if vector.entry["ask"] in PROPERTY]
    return [vector.id for vector in asked if _fails(subject, vector)]


def _fails(subject: Subject, vector: Vector) -> bool:
    try:
        with np.errstate(all="ignore"):
            check(subject, vector)
    except Failure:
        return True
    except (Inconclusive, Unsupported):
        pass
    return False


def summary(mistakes: Sequence[Mistake], vectors: Sequence[Vector], dtype: str) -> str:
    """Return a line with the total, and one line for each mistake that is not detected."""
    undetected = [mistake.name for mistake in mistakes if not failed_vectors(mistake, vectors, dtype)]
    rows = [f"  not detected: {name}" for name in undetected]
    return "\n".join([f"{dtype}: {len(mistakes) - len(undetected)} of {len(mistakes)} detected", *rows])


def main() -> None:
    """Print the mutation score of the vectors in each dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of the vectors")
    vectors = read(locate(parser.parse_args().folder))
    for dtype in ("float32", "bfloat16"):
        print("mistakes in", summary(MISTAKES, vectors, dtype))
    for dtype in ("float32", "bfloat16", "float16"):
        print("equivalents in", summary(EQUIVALENTS, vectors, dtype).partition("\n")[0])


if __name__ == "__main__":
    main()
