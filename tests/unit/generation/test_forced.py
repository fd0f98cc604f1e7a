"""Ids that are forced, or forbidden, at one place: the first and the last new token, and stop tokens too early."""

from typing import Any

import pytest
from small_models import make_lm

from bloomref import BloomConfig, InvalidInput

LM = make_lm(BloomConfig(vocabulary_size=20, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=24))
STRATEGIES = [{}, {"num_beams": 3}, {"temperature": 2.0, "seed": 1}]


def new_ids(prompt: list[int], **options: Any) -> list[int]:
    return LM.generate(prompt, strip_prompt=True, **({"stop_token_ids": None, "max_new_tokens": 6} | options))


@pytest.mark.clause("GEN-20")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("last", [7, 13])
def test_the_last_token_is_forced_and_no_other(strategy: dict[str, Any], last: int) -> None:
    free = new_ids([5, 6], **strategy)
    forced = new_ids([5, 6], forced_eos_token_id=last, **strategy)
    assert (len(forced), forced[-1]) == (6, last)
    if "num_beams" not in strategy:  # the sum of a hypothesis counts its last token
        assert forced[:-1] == free[:-1]
    assert new_ids([5, 6], forced_eos_token_id=[last, 8], **strategy)[-1] in (last, 8)


@pytest.mark.clause("GEN-20")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("first", [7, 13])
def test_the_first_token_is_forced_behind_a_single_one(strategy: dict[str, Any], first: int) -> None:
    assert new_ids([5], forced_bos_token_id=first, **strategy)[0] == first
    assert new_ids([5, 6], forced_bos_token_id=first, **strategy) == new_ids([5, 6], **strategy)


@pytest.mark.clause("GEN-20")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ids_are_forbidden_at_the_beginning(strategy: dict[str, Any]) -> None:
    first = new_ids([5, 6], **strategy)[0]
    assert new_ids([5, 6], begin_suppress_tokens=[first], **strategy)[0] != first
    assert new_ids([5, 6], begin_suppress_tokens=[], **strategy)[0] == first


@pytest.mark.clause("GEN-20")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stop_token_waits_for_the_least_length(strategy: dict[str, Any]) -> None:
    everything = [*range(1, 20)]
    ids = new_ids([5, 6], stop_token_ids=everything, min_length=5, **strategy)
    assert ids[:3] == [0, 0, 0]
    assert len(ids) > 3
    assert ids == new_ids([5, 6], stop_token_ids=everything, min_new_tokens=3, **strategy)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("min_length", -1),
        ("begin_suppress_tokens", 3),
        ("begin_suppress_tokens", [20]),
        ("forced_bos_token_id", 20),
        ("forced_eos_token_id", "a"),
        ("forced_eos_token_id", [-1]),
        ("forced_eos_token_id", 20),
    ],
)
def test_mistakes_are_named(option: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"^{option}: expected"):
        new_ids([5], **{option: value})
