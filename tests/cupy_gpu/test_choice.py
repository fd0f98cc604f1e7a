"""The kernels that choose the next token, against NumPy's argmax, sorting and Philox."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_draws import seeds

from accel.cupy_gpu import launches, sources

vocabularies = st.one_of(st.integers(1, 70), st.sampled_from((255, 511, 512, 1000, 4097)))
temperatures = st.sampled_from((0.25, 1.0, 4.0))
shares = st.sampled_from((1.0, 0.9, 0.5, 0.01))
ROOM = 3


@dataclass
class Choosing:
    """Scores between -3 and 3, many of them equal, and the state of a generation that has chosen `before` tokens.

    Args:
        seed: Seed of the scores.
        rows, vocabulary: Shape of the scores.
        before: Number of tokens that each row has drawn.
        some_forbidden: True to forbid 30 % of the tokens.
        values: Number of different scores.
        device: The device.
    """

    seed: int
    rows: int
    vocabulary: int
    before: int = 1
    some_forbidden: bool = True
    values: int = 24
    device: EmulatedDevice = field(default_factory=EmulatedDevice)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.scores = (rng.integers(self.values, size=(self.rows, self.vocabulary)) * 6 / self.values - 3).astype(
            np.float32
        )
        self.forbidden = (rng.random(self.vocabulary) < 0.3).astype(np.uint8)
        self.forbidden[rng.integers(self.vocabulary)] = 0
        if not self.some_forbidden:
            self.forbidden[:] = 0
        self.keys = rng.integers(0, 2**64, self.rows, np.uint64)
        put = self.device.upload
        self.ids = put(np.full(self.rows, -1, np.int32))
        self.chosen = put(np.full((self.rows, ROOM), -1, np.int32))
        self.drawn = put(np.full(self.rows, self.before, np.int32))
        self.position = put(np.array([41], np.int32))

    @property
    def record(self) -> tuple[Any, ...]:
        return self.ids, self.chosen, self.drawn, self.position, ROOM

    @property
    def mask(self) -> Any:
        return self.device.upload(self.forbidden) if self.some_forbidden else None

    @property
    def allowed(self) -> Any:
        """Scores in float64, -inf for forbidden tokens."""
        return np.where(self.forbidden, -np.inf, self.scores.astype(np.float64))

    def uniform(self, row: int) -> float:
        """Return NumPy's random number for this draw."""
        bits = np.random.Philox(key=int(self.keys[row]), counter=self.before)
        return float(np.random.Generator(bits).random())

    def check_record(self) -> list[int]:
        """Return the chosen tokens, and assert that everything that is recorded with them is right."""
        tokens: list[int] = self.ids.tolist()
        expected = np.full((self.rows, ROOM), -1)
        expected[:, self.before % ROOM] = tokens
        assert self.chosen.tolist() == expected.tolist()
        assert self.drawn.tolist() == [self.before + 1] * self.rows
        assert self.position.tolist() == [42]
        return tokens


def top(problem: Choosing, k: int, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Any, Any]:
    """Run top_parts and choose_top, and return the best scores and tokens (rows, k)."""
    device, rows, lists = problem.device, problem.rows, launches.top_lists(problem.vocabulary)
    part_score, part_token = device.empty((rows, lists, k), np.float32), device.empty((rows, lists, k), np.int32)
    score, token = device.empty((rows, k), np.float32), device.empty((rows, k), np.int32)
    device.launch(
        launches.top_parts(rows, problem.vocabulary), device.upload(problem.scores), problem.mask, part_score, part_token,
        problem.vocabulary, k,
    )  # fmt: skip
    device.launch(
        launches.choose_top(rows, k), part_score, part_token, device.upload(problem.keys), score, token, *problem.record,
        lists, k, temperature, top_p,
    )  # fmt: skip
    return score, token


def any_of(problem: Choosing, temperature: float, top_p: float) -> None:
    device, rows, vocabulary = problem.device, problem.rows, problem.vocabulary
    parts = launches.any_parts(vocabulary)
    scores = device.upload(problem.scores), problem.mask
    best = device.empty((rows, parts), np.float32), device.empty((rows, parts), np.int32)
    by_digit = device.empty((rows, 4, 256), np.uint64)
    kept = device.empty((rows, parts), np.uint64), device.empty((rows,), np.int32)
    sizes = rows, vocabulary
    device.launch(launches.any_best(*sizes), *scores, *best, by_digit, vocabulary)
    for digit in range(4 if top_p < 1 else 0):
        device.launch(launches.any_digits(*sizes), *scores, *best, by_digit, vocabulary, digit, temperature, top_p)
    device.launch(launches.any_sums(*sizes), *scores, *best, by_digit, *kept, vocabulary, temperature, top_p)
    device.launch(
        launches.choose_any(rows), *scores, device.upload(problem.keys), *best, *kept, *problem.record, parts, vocabulary,
        temperature,
    )  # fmt: skip


def weights(scores: Any, temperature: float) -> Any:
    exponentials = np.exp((scores - scores.max()) / temperature)
    return exponentials / exponentials.sum()


def is_drawn(weight: Any, token: int, uniform: float) -> bool:
    """True if the cumulative sum of the weights passes the random number at this token, up to float32 errors."""
    after = np.cumsum(weight) / weight.sum()
    return weight[token] > 0 and after[token] - weight[token] / weight.sum() - 1e-5 <= uniform <= after[token] + 1e-5


def best_first(problem: Choosing, row: int) -> Any:
    order = np.lexsort((np.arange(problem.vocabulary), -problem.allowed[row]))
    return order[: problem.vocabulary - problem.forbidden.sum()]


def check_best(problem: Choosing, k: int) -> None:
    score, token = top(problem, k)
    for row in range(problem.rows):
        expected = best_first(problem, row)[:k]
        assert token[row, : len(expected)].tolist() == expected.tolist()
        assert score[row, : len(expected)].tolist() == problem.scores[row, expected].tolist()
        assert (token[row, len(expected) :] == 2**31 - 1).all()
    problem.check_record()


def check_top(problem: Choosing, k: int, temperature: float, top_p: float) -> None:
    top(problem, k, temperature, top_p)
    for row, token in enumerate(problem.check_record()):
        tokens = best_first(problem, row)[:k]
        weight = weights(problem.allowed[row, tokens], temperature)
        before = np.cumsum(weight) - weight
        weight[before >= top_p] = 0  # outside of the smallest set that reaches top_p
        if top_p < 1 and abs(before - top_p).min() < 1e-9:
            continue  # a sum equals top_p up to its last bits, so either set is right
        by_id = np.zeros(problem.vocabulary)
        by_id[tokens] = weight
        assert is_drawn(by_id, token, problem.uniform(row))


def check_any(problem: Choosing, temperature: float, top_p: float) -> None:
    any_of(problem, temperature, top_p)
    for row, token in enumerate(problem.check_record()):
        allowed = problem.allowed[row]
        weight = weights(allowed, temperature)
        better = np.array([weight[allowed > score].sum() for score in allowed])
        assert better[token] < top_p + 1e-5
        weight[better >= top_p] = 0  # tokens that equal the last one are kept
        if abs(better[allowed > -np.inf] - top_p).min() > 1e-5:
            assert is_drawn(weight, token, problem.uniform(row))


# --- random problems ---------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(1, 3), vocabulary=vocabularies, k=st.sampled_from((1, 2, 5, 33)))
def test_the_k_best_tokens_come_best_first(
    emulator: type[EmulatedDevice], seed: int, rows: int, vocabulary: int, k: int
) -> None:
    check_best(Choosing(seed, rows, vocabulary, device=emulator()), k)


@settings(max_examples=15)
@given(seed=seeds, vocabulary=vocabularies, k=st.sampled_from((1, 4, 64)), temperature=temperatures, top_p=shares)
def test_a_draw_among_the_k_best_follows_its_random_number(
    emulator: type[EmulatedDevice], seed: int, vocabulary: int, k: int, temperature: float, top_p: float
) -> None:
    check_top(Choosing(seed, 2, vocabulary, device=emulator()), k, temperature, top_p)


@settings(max_examples=15)
@given(seed=seeds, vocabulary=vocabularies, temperature=temperatures, top_p=shares, masked=st.booleans())
def test_a_draw_among_all_follows_its_random_number(
    emulator: type[EmulatedDevice], seed: int, vocabulary: int, temperature: float, top_p: float, masked: bool
) -> None:
    check_any(Choosing(seed, 2, vocabulary, 0, masked, device=emulator()), temperature, top_p)


def test_draws_have_the_frequencies_of_their_weights(emulator: type[EmulatedDevice]) -> None:
    problem = Choosing(3, 400, 6, 0, False, device=emulator(seed=0))
    problem.scores[:] = [0.0, 1.0, 2.0, -1.0, -40.0, 2.0]
    expected = 400 * weights(problem.scores[0].astype(np.float64), 1.0)
    for draw in (lambda: any_of(problem, 1.0, 1.0), lambda: top(problem, 6)):
        draw()
        counts = np.bincount(problem.ids, minlength=6)
        problem.drawn[:] = 1
        assert counts[4] == 0
        assert (np.abs(counts - expected) <= 4 * np.sqrt(expected) + 1).all()


@pytest.mark.parametrize("broken", [np.nan, -np.inf])
def test_nan_scores_still_give_a_valid_token(emulator: type[EmulatedDevice], broken: float) -> None:
    """The LM head reports them in `broken`, but the next step must still find a row of the embedding."""
    for k in (None, 1, 8):
        problem = Choosing(1, 2, 50, device=emulator())
        problem.scores[:] = broken
        if k is None:
            any_of(problem, 1.0, 0.9)
        else:
            top(problem, k)
        assert problem.check_record() == [0, 0]


def test_there_are_at_most_as_many_lists_as_can_be_merged() -> None:
    lists = {size: launches.top_lists(size) for size in (1, 256, 4096, 50_000, 250_880, 10**7)}
    assert lists == {1: 8, 256: 8, 4096: 16, 50_000: 192, 250_880: 256, 10**7: 256}


# --- known mistakes ----------------------------------------------------------------------------------------------

BEST, TOP, ANY, PARTS = (
    partial(check_best, k=33),
    partial(check_top, k=64, temperature=1.0, top_p=0.9),
    partial(check_any, temperature=4.0, top_p=0.5),
    partial(check_any, temperature=4.0, top_p=1.0),
)
FAULTS = {
    "the token that was taken is taken again": ("taken.is_better_than(row[n], n) &&", "!(row[n] > taken.score) &&", BEST),
    "equal scores are lost": ("taken.is_better_than(row[n], n) &&", "row[n] < taken.score &&", BEST),
    "the last token of a chunk left out": ("n < last; n += WARP", "n < last - 1; n += WARP", BEST),
    "forbidden tokens among the best": ("!(forbidden && forbidden[n])) mine", "true) mine", BEST),
    "a list that skips a token": ("best.token == head.token) ++at", "best.token == head.token) at += 2", BEST),
    "no barrier before the lists of the warps are merged": ("    __syncthreads();\n    if (warp > 0) return;", "    if (warp > 0) return;", BEST),
    "weights read before they are written": ("    __syncwarp();\n    double total", "    double total", TOP),
    "drawn in the order of scores": ("best_token[to + j] < best_token[to + i] ? weights[j]", "j < i ? weights[j]", TOP),
    "the token after the draw": ("rank + 1 == passed", "rank == passed", TOP),
    "temperature forgotten": (") / temperature)", "))", partial(TOP, temperature=0.01, top_p=1.0)),
    "the last token of the top-p set left out": ("top_p_total < top_p * total", "top_p_total + weights[count] < top_p * total", partial(TOP, top_p=0.02)),
    "another key schedule": ("k1 += 0xBB67AE8584CAA73Bull", "k1 += 0xBB67AE8584CAA73Aull", TOP),
    "the counter of the draw before": ("c0 = number + 1", "c0 = number", TOP),
    "the highest digit alone": ("BINS, DIGITS, top_p", "BINS, 1, top_p", ANY),
    "a digit too high": ("digit = threadIdx.x;", "digit = min(threadIdx.x + 1, BINS - 1u);", ANY),
    "scores that begin with other digits": ("digit == 0 || (score ^ lowest) >> (shift + 8) == 0", "true", ANY),
    "the weights above forgotten": ("above = above_next;", "", ANY),
    "the sums of the step before": ("by_digit[size_t(row) * DIGITS * BINS + i] = 0;", ";", ANY),
    "no barrier before the digit is read": ("        __syncthreads();\n        above", "        above", ANY),
    "no barrier before the sums by digit are added": ("    __syncthreads();\n    if (bins", "    if (bins", ANY),
    "no barrier before the sums are added": ("        __syncthreads();\n        for (int i = 0; i < THREADS / WARP; ++i) {", "        for (int i = 0; i < THREADS / WARP; ++i) {", ANY),
    "no barrier before the part is read": ("    __syncthreads();\n    const Part part(drawn", "    const Part part(drawn", PARTS),
    "the warps before forgotten": ("before += i < warp", "before += false", ANY),
    "the parts before forgotten": ("rest = threshold - in_parts.before", "rest = min(threshold, of_part - 1)", PARTS),
    "not counted": ("++drawn[row];", "", TOP),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_known_mistake_is_detected(emulator: type[EmulatedDevice], name: str) -> None:
    old, new, run = FAULTS[name]
    assert old in sources.source("choice")
    several_warps_merge = "warps are merged" in name or run is PARTS
    vocabulary, values = (12_000, 4000) if several_warps_merge else (1000, 60)
    problem = partial(Choosing, rows=3, vocabulary=vocabulary, values=values)
    for seed in (1, 2, 3):
        run(problem(seed, device=emulator(seed=seed)))
    with pytest.raises(AssertionError):  # noqa: PT012  # any draw may be the one that detects it
        for seed in (1, 2, 3):
            run(problem(seed, device=emulator(seed=seed, change=lambda text: text.replace(old, new))))
