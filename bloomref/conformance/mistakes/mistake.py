"""A known mistake as data, and the decorator that adds one to the catalogue."""

from collections.abc import Callable
from dataclasses import dataclass

from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.conformance.tags import TAGS

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
    "gradients": "the loss and its gradients",
    "invalid-input": "input that must be refused",
    "decoding": "decoding: steps, or the choice of tokens",
    "merge": "an adapter that is merged into the weights",
}
"""Conditions under which an input shows a mistake, in addition to the tags of `conformance.tags`."""
NO_INTERMEDIATE = "none"
"""Value of `Mistake.first` for a mistake of input validation, the backward pass, decoding or merging: it changes no
intermediate of a forward pass."""


@dataclass(frozen=True)
class Mistake:
    """A mutant of BLOOM: a mistake that implementations make, or an equivalent that is right.

    Args:
        name: in kebab case; it never changes.
        sentence: what the implementation does wrong, without a full stop; reports print it after "matches: ".
        clauses: the clauses that it breaks; for an equivalent, the clauses that allow it.
        first: name of the first intermediate that it changes (MOD-8), or `NO_INTERMEDIATE`.
        model: the instrumented model that makes the mistake.
        needs: names of `TAGS` or `OTHER_NEEDS` that apply to an input that shows it.
        equivalent: True if the model is right, so that no check may object.
        dtype: the dtype in which a mistake must be detected; a narrower one may hide it.
    """

    name: str
    sentence: str
    clauses: tuple[str, ...]
    first: str
    model: type[InstrumentedModel]
    needs: frozenset[str] = frozenset()
    equivalent: bool = False
    dtype: str = "float32"

    @property
    def is_of_adapters(self) -> bool:
        """True if a model without an adapter is unchanged, bit for bit."""
        return "lora" in self.needs

    @property
    def is_of_gradients(self) -> bool:
        """True if every intermediate of the forward pass is right."""
        return "gradients" in self.needs


REGISTRY: list[Mistake] = []
"""Every registered mistake, in the order of import."""


def mistake(
    name: str,
    sentence: str,
    *clauses: str,
    first: str,
    needs: str = "",
    equivalent: bool = False,
    dtype: str = "float32",
) -> Callable[[type[InstrumentedModel]], type[InstrumentedModel]]:
    """Class decorator: register an instrumented model as a known mistake.

    Args:
        name: see `Mistake`, as for `sentence`, `clauses`, `equivalent` and `dtype`.
        first: as `Mistake.first`; "layers.0." may be left out.
        needs: as `Mistake.needs`, separated by spaces.

    Raises:
        ValueError: a name in `needs` is unknown.
    """
    conditions = frozenset(needs.split())
    unknown = conditions - TAGS.keys() - OTHER_NEEDS.keys()
    if unknown:
        raise ValueError(f"needs: expected names of TAGS or OTHER_NEEDS, got {sorted(unknown)}")
    intermediate = f"layers.0.{first}" if first.startswith(("attention", "mlp")) else first

    def register(model: type[InstrumentedModel]) -> type[InstrumentedModel]:
        REGISTRY.append(Mistake(name, sentence, clauses, intermediate, model, conditions, equivalent, dtype))
        return model

    return register
