"""Questions of the test vectors to implementations that are not finished."""

from pathlib import Path

import pytest

from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import NAME, ask_all, check
from bloomref.conformance.vectors.read import read
from bloomref.errors import Unsupported

FOLDER = Path(__file__).parents[2] / "specs/vectors"
VECTORS = {vector.id: vector for vector in read(FOLDER)}


@pytest.mark.clause("VEC-12")
def test_intermediates_are_judged_before_there_are_logits():
    """A port that has the embedding only."""

    class Begun(InstrumentedImplementation):
        def load(self, config, weights, dtype):
            model = super().load(config, weights, dtype)
            model.logits, model.hidden = refuse, refuse
            model.trace = lambda ids, real, trace=model.trace: {"word_embedding": trace(ids, real)["word_embedding"]}
            return model

    def refuse(*_):
        raise Unsupported("not yet")

    subject = Subject(Begun(), "float32")
    assert check(subject, VECTORS["emb-rows-and-norm"]) < 5
    with pytest.raises(Unsupported, match="not yet"):
        check(subject, VECTORS["att-left-padding"])


@pytest.mark.clause("VEC-10")
def test_unsupported_is_no_refusal_of_what_is_wrong():
    class Lazy(InstrumentedImplementation):
        def __init__(self):
            super().__init__()
            self.answers = {"config": self.no}

        def no(self, _):
            raise Unsupported("not yet")

    counts = Counts(NAME, "float32")
    ask_all(Subject(Lazy(), "float32"), "config", Waivers(), counts, FOLDER)
    assert (counts.refused, counts.passed, counts.failed) == (18, 0, 0)
