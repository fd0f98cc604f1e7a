"""The identity of a case, and the words of capabilities."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.installed_backend import Backend
from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.implementation import Capabilities
from bloomref.conformance.lora_cases import Lora
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.subject import Subject
from bloomref.errors import InvalidInput, Unsupported
from bloomref.formats.adapters import keras_lora

CASE = Case(
    BloomConfig(vocabulary_size=7, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=8), batch=1, time=4
)


def as_arrays(case: Case) -> Arrays:
    return Arrays(case.params.map(np.copy), case.token_ids.copy(), case.is_real.copy(), case.labels.copy())


def test_equal_bytes_make_equal_cases():
    one, two = replace(CASE, arrays=as_arrays(CASE)), replace(CASE, arrays=as_arrays(CASE))
    assert one == two
    assert hash(one) == hash(two)
    assert truth(one) is truth(two)
    assert one.model_key == two.model_key


@pytest.mark.parametrize("name", ["params", "token_ids", "is_real", "labels"])
def test_another_byte_makes_another_case(name: str):
    changed: dict[str, Any] = {
        "params": CASE.params.map(lambda array: array + 1.0),
        "token_ids": CASE.token_ids + 1,
        "is_real": ~CASE.is_real,
        "labels": CASE.labels + 1,
    }
    one = replace(CASE, arrays=as_arrays(CASE))
    two = replace(CASE, arrays=replace(as_arrays(CASE), **{name: changed[name]}))
    assert one != two
    assert (one.model_key == two.model_key) == (name != "params")


def test_a_subject_loads_each_of_two_models_that_differ_in_their_arrays_alone():
    one = replace(CASE, arrays=Arrays(CASE.params))
    two = replace(CASE, arrays=Arrays(CASE.params.map(lambda array: array * 2.0)))
    subject = Subject(Backend("numpy"), "float64")
    logits = [np.asarray(subject.ask(case, "logits", case.token_ids, case.is_real)) for case in (one, two)]
    for case, result in zip((one, two), logits, strict=True):
        np.testing.assert_allclose(result, truth(case).values["logits"], rtol=1e-12)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"masks": ("rigth",)}, "did you mean right"),
        ({"features": frozenset({"postln"})}, "post-layernorm"),
        ({"dtypes": ("float23",)}, "did you mean float32"),
        ({"dtypes": "float32"}, "a tuple of"),
        ({"gradients": ("fp32",)}, "capabilities: gradients"),
        ({"adapters": ("lora",)}, "some of peft, keras"),
        ({"scores": "fp32"}, "some of float32, model"),
        ({"products": "tf32"}, "some of float32, model"),
        ({"max_time": "x"}, "capabilities: max_time"),
        ({"repeatable": 1}, "True or False"),
    ],
)
def test_a_misspelt_capability_is_refused(declared: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        Capabilities(**declared)


def test_gradients_are_asked_in_every_dtype_unless_declared():
    assert Capabilities(("float32", "bfloat16")).trains_in == ("float32", "bfloat16")
    assert Capabilities(("float32", "bfloat16"), gradients=("float32",)).trains_in == ("float32",)


def test_a_package_that_the_kit_lacks_is_no_refusal_by_the_implementation(monkeypatch: pytest.MonkeyPatch):
    def without_h5py(*_: Any) -> None:
        raise Unsupported("expected the package h5py, got none")

    monkeypatch.setattr(keras_lora, "save", without_h5py)
    subject, counts = Subject(Backend("numpy"), "float32"), Counts("lora-heads", "float32")
    case = replace(CASE, lora=Lora(("query_dense",), form="keras"))
    counts.record(lambda: PROPERTIES["lora-heads"].check(subject, case), [])
    assert (counts.refused, counts.not_asked) == (0, 1)
    assert counts.reasons == {"not_asked": {"expected the package h5py, got none": 1}}
