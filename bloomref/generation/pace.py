"""The number of tokens that a draft proposes for a pass, which changes no result; and counts of the accepted ones."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter

LARGEST = 15
"""Largest number of proposals of a pass."""
POSITIONS = 64
"""Largest number of positions of a pass over all rows: their logits take 64 MB in BLOOM's vocabulary."""
_GUESS = 0.1
"""The time of one more position, as a part of a pass without proposals, before any is measured."""
_PASSES = 256
"""Passes whose times are remembered."""
_FEWEST = 3
"""Passes after which a time counts as measured: the first one may have compiled or allocated something."""
_FORGETTING = 0.95
"""Weight of earlier proposals, once more for each pass: about the last 20 passes count."""


@dataclass
class Figures:
    """Counts of all rows together. A pass of three rows is three passes; the prefill, which gives a first token, none.

    Args:
        passes: of the model.
        tokens: that passes gave.
        proposed: tokens that the draft proposed and the model read.
        accepted: those that are the model's own choice.
    """

    passes: int = 0
    tokens: int = 0
    proposed: int = 0
    accepted: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Plain decoding has 1; also the value without any pass."""
        return self.tokens / self.passes if self.passes else 1.0

    @property
    def acceptance(self) -> float:
        """The share of accepted proposals; 0 without any."""
        return self.accepted / self.proposed if self.proposed else 0.0


class Pace:
    """Chooses the number of proposals from the times of passes and from the share of proposals that were accepted.

    A pass with k proposals, each of which is accepted with the probability a if those before it are, gives
    1 + a + ... + a^k tokens. The k with the most tokens in a second is chosen; of equal ones the smallest.

    Args:
        clock: the present time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self._times: deque[tuple[int, int, float]] = deque(maxlen=_PASSES)
        self._accepted = self._proposed = 0.0

    @property
    def acceptance(self) -> float:
        """The share of accepted proposals, of late. Without any it is 1/2: so a draft is tried, and tried again."""
        return (self._accepted + 0.5) / (self._proposed + 1.0)

    def count(self, rows: int, most: int) -> int:
        """The number of proposals of the next pass.

        Args:
            rows: of the pass.
            most: what the lengths of the rows leave room for.
        """
        most = min(most, LARGEST, POSITIONS // rows - 1)
        measured = self._measured(rows)
        if most <= 0 or 0 not in measured:
            return 0
        chosen, fastest, expected, chance = 0, 0.0, 0.0, 1.0
        for count in range(most + 1):
            expected, chance = expected + chance, chance * self.acceptance
            speed = expected / predicted(measured, count)
            if speed > fastest:
                chosen, fastest = count, speed
        return chosen

    def _measured(self, rows: int) -> dict[int, float]:
        """Seconds of a pass of so many rows, by its number of proposals."""
        samples: dict[int, list[float]] = {}
        for of, count, seconds in self._times:
            if of == rows:
                samples.setdefault(count, []).append(seconds)
        fewest = {count: 1 if count == 0 else _FEWEST for count in samples}
        return {count: median(times) for count, times in samples.items() if len(times) >= fewest[count]}

    def record(self, rows: int, count: int, seconds: float, advance: int) -> None:
        """Take note of a pass.

        Args:
            count: its number of proposals.
            seconds: its time, with that of the draft.
            advance: number of positions that it added to all rows, at most count + 1.
        """
        self._times.append((rows, count, max(seconds, 1e-9)))
        self._accepted = _FORGETTING * self._accepted + max(advance - 1, 0)
        self._proposed = _FORGETTING * self._proposed + min(advance, count)


def predicted(measured: Mapping[int, float], count: int) -> float:
    """Seconds of a pass with so many proposals: on the line through its neighbours, or on that from 0 to the last.

    Args:
        measured: seconds by number of proposals; 0 is among them.
    """
    below = max(known for known in measured if known <= count)
    above = min((known for known in measured if known > count), default=None)
    if above is not None:
        slope = (measured[above] - measured[below]) / (above - below)
    elif below:
        slope = max(0.0, measured[below] - measured[0]) / below
    else:
        slope = _GUESS * measured[0]
    return measured[below] + slope * (count - below)
