"""What a known mistake is, and how one is planted."""

from collections.abc import Callable
from dataclasses import dataclass

from bloomref.conformance.model.instrumented import Lab
from bloomref.conformance.tags import FLAGS

OTHER_NEEDS = {
    "heads": "at least two heads",
    "even-heads": "an even number of heads",
    "rows": "several rows, whose masks may differ",
    "deep": "at least two layers",
    "padding": "padding of any kind",
    "last-id": "the highest token id",
    "pad-id": "the id of the pad token among the tokens",
    "rslora": "an adapter that is scaled by the root of its rank",
    "lora-embedding": "an adapter of the embedding",
    "lora-heads": "an adapter in KerasHub's form",
    "front-door": "inputs that have to be refused",
}
"""What an input must have to show a mistake, beside the flags of `conformance.flags`."""
FRONT_DOOR = "none"
"""In place of the first intermediate: the mistake is in what is accepted, and changes no result."""


@dataclass(frozen=True)
class Mistake:
    """One way in which implementations of BLOOM have been wrong, or could be; or one in which they may differ.

    Args:
        name: short, in kebab case.
        sentence: what was done instead of what is right, to stand behind "matches: ".
        clauses: what it breaks; of an equivalent, what allows it.
        first: the first intermediate that it changes, by its name (clause MOD-8).
        lab: the model that makes it.
        needs: what an input must have to show it, names of `FLAGS` or `OTHER_NEEDS`.
        equivalent: it is right: no check may object.
    """

    name: str
    sentence: str
    clauses: tuple[str, ...]
    first: str
    lab: type[Lab]
    needs: frozenset[str] = frozenset()
    equivalent: bool = False

    @property
    def is_of_adapters(self) -> bool:
        """Whether it is none, to the last bit, in a model without an adapter."""
        return "lora" in self.needs


PLANTED: list[Mistake] = []
"""In the order in which the modules of this package define them."""


def mistake(
    name: str, sentence: str, *clauses: str, first: str, needs: str = "", equivalent: bool = False
) -> Callable[[type[Lab]], type[Lab]]:
    """Decorates the lab that makes the mistake.

    Args:
        first: without "layers.0." in front where it is the one of the first layer.
        needs: names with spaces between.
    """
    asked = frozenset(needs.split())
    unknown = asked - FLAGS.keys() - OTHER_NEEDS.keys()
    if unknown:
        raise ValueError(f"needs: expected names of FLAGS or OTHER_NEEDS, got {sorted(unknown)}")
    in_layer = first.startswith(("attention", "mlp"))

    def plant(lab: type[Lab]) -> type[Lab]:
        where = f"layers.0.{first}" if in_layer else first
        PLANTED.append(Mistake(name, sentence, clauses, where, lab, asked, equivalent))
        return lab

    return plant
