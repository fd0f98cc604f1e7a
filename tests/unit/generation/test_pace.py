"""The number of proposals follows from times and acceptance, with a clock of the test's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomref.generation.pace import LARGEST, POSITIONS, Figures, Pace, predicted


def after(acceptance: float, seconds: list[float], passes: int = 400, rows: int = 1, seed: int = 0) -> list[int]:
    """The numbers of proposals of so many passes, whose times are those of a list by number of proposals."""
    pace, random, counts = Pace(), np.random.default_rng(seed), []
    for _ in range(passes):
        counts.append(pace.count(rows, len(seconds) - 1))
        accepted = 0
        while accepted < counts[-1] and random.random() < acceptance:
            accepted += 1
        pace.record(rows, counts[-1], seconds[counts[-1]], accepted + 1)
    return counts


def speed(acceptance: float, seconds: list[float], count: int) -> float:
    return sum(acceptance**i for i in range(count + 1)) / seconds[count]


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3, 1.0])
def test_the_number_becomes_nearly_the_best_one(acceptance: float, slope: float) -> None:
    seconds = [1 + slope * count for count in range(LARGEST + 1)]
    best = max(speed(acceptance, seconds, count) for count in range(LARGEST + 1))
    reached = np.mean([speed(acceptance, seconds, count) for count in after(acceptance, seconds)[100:]])
    assert reached > 0.9 * best


def test_a_draft_that_is_never_right_is_tried_now_and_then() -> None:
    """It costs little, and a draft that becomes right is noticed."""
    counts = after(0.0, [1.0, 1.5, 2.0, 2.5])[50:]
    assert 0 < sum(count > 0 for count in counts) < 0.15 * len(counts)


def test_the_first_pass_measures_plain_decoding() -> None:
    assert after(1.0, [1.0] * 9)[0] == 0


@given(st.integers(1, 200), st.integers(0, 40), st.lists(st.tuples(st.integers(0, 15), st.floats(0, 9)), max_size=30))
def test_the_number_has_room(rows: int, most: int, passes: list[tuple[int, float]]) -> None:
    pace = Pace()
    for count, seconds in passes:
        pace.record(rows, count, seconds, count + 1)
    count = pace.count(rows, most)
    assert 0 <= count <= min(most, LARGEST)
    assert count == 0 or rows * (count + 1) <= POSITIONS


def test_times_between_measured_ones_lie_on_a_line() -> None:
    measured = {0: 1.0, 4: 3.0, 6: 3.5}
    assert [predicted(measured, count) for count in (0, 1, 4, 5, 6, 12)] == [1.0, 1.5, 3.0, 3.25, 3.5, 6.0]
    assert predicted({0: 1.0}, 5) == 1.5
    assert predicted({0: 1.0, 2: 0.5}, 4) == 0.5


def test_figures_of_nothing() -> None:
    assert (Figures().tokens_per_pass, Figures().acceptance) == (1.0, 0.0)
    assert (Figures(2, 5, 4, 3).tokens_per_pass, Figures(2, 5, 4, 3).acceptance) == (2.5, 0.75)
