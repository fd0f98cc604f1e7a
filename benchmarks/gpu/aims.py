"""Performance targets of the CuPy backend on an H200 in bfloat16, with random weights at real dimensions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Entry = dict[str, Any]
"""Figures of one preset, as `figures.judged` returns them."""
DTYPE = "bfloat16"
ROWS = 32
LARGEST = "bloom_7b_multi"
FRACTIONS = {
    "bloom_560m_multi": 0.60,
    "bloom_1.1b_multi": 0.70,
    "bloom_1.7b_multi": 0.75,
    "bloom_3b_multi": 0.80,
    "bloom_7b_multi": 0.85,
}
"""Target fraction of the memory floor, when one row is decoded."""


@dataclass(frozen=True)
class Aim:
    """A target for one figure of a preset.

    Args:
        what: Name of the figure.
        preset: The preset.
        target: Lowest value that meets the target, or the highest if `at_most`.
        value: Computes the figure from the preset's entry; None if something was not measured.
    """

    what: str
    preset: str
    target: float
    value: Callable[[Entry], float | None]
    at_most: bool = False

    def judge(self, entry: Entry | None) -> dict[str, Any]:
        """Compare the measured figure with the target. The keys are those of the committed reports."""
        measured = None if entry is None else self.value(entry)
        holds = None if measured is None else measured <= self.target if self.at_most else measured >= self.target
        bound = "at most" if self.at_most else "at least"
        return {
            "aim": self.what,
            "preset": self.preset,
            "bound": bound,
            "wanted": self.target,
            "measured": measured,
            "holds": holds,
        }


def judge(entries: Iterable[Entry], dtype: str) -> list[dict[str, Any]]:
    """Return each target with its measured figure, and whether it holds (None if not measured).

    Other dtypes have no targets.
    """
    by_preset = {entry["preset"]: entry for entry in entries}
    return [aim.judge(by_preset.get(aim.preset)) for aim in AIMS] if dtype == DTYPE else []


# --- figures -----------------------------------------------------------------------------------------------------


def step_seconds(entry: Entry, name: str, rows: int = 1) -> float | None:
    return entry["participants"].get(name, {}).get("step_seconds", {}).get(str(rows))


def figure(entry: Entry, name: str, what: str) -> float | None:
    return entry["participants"].get(name, {}).get(what)


def of_the_floor(entry: Entry) -> float | None:
    return entry["fractions"].get("bloomref", {}).get("1")


def over_transformers(entry: Entry) -> float | None:
    """Speedup over the fastest mode of transformers that was measured."""
    names = ("transformers", "transformers-compiled")
    modes = [seconds for name in names if (seconds := step_seconds(entry, name))]
    return _ratio(min(modes, default=None), step_seconds(entry, "bloomref"))


def over_one_row(entry: Entry) -> float | None:
    """Tokens per second of ROWS rows over those of one row."""
    ratio = _ratio(step_seconds(entry, "bloomref"), step_seconds(entry, "bloomref", ROWS))
    return None if ratio is None else ROWS * ratio


def of_the_products(entry: Entry) -> float | None:
    return _ratio(figure(entry, "cublas", "prefill_seconds"), figure(entry, "bloomref", "prefill_seconds"))


def over_the_transfer(entry: Entry) -> float | None:
    """Loading time over the time to copy the same bytes from pinned memory."""
    start, rate = entry["participants"].get("start", {}), figure(entry, "host-copy", "bytes_per_second")
    floor = None if rate is None or "weight_bytes" not in start else start["weight_bytes"] / rate
    return _ratio(start.get("load_seconds"), floor)


def first_token(entry: Entry) -> float | None:
    """Seconds to the first token; None if kernels were compiled meanwhile, which happens once per machine."""
    compiled = figure(entry, "start", "first_token_compiled")
    return figure(entry, "start", "first_token_seconds") if compiled == 0 else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


AIMS = (
    *(Aim("1 row, fraction of the memory floor", name, target, of_the_floor) for name, target in FRACTIONS.items()),
    *(Aim("1 row, times transformers' best mode", name, 2.0, over_transformers) for name in FRACTIONS),
    *(Aim(f"{ROWS} rows, times the tokens/s of 1", name, 10.0, over_one_row) for name in FRACTIONS),
    *(Aim("prompt, fraction of its products' rate", name, 0.60, of_the_products) for name in FRACTIONS),
    Aim("loading, times the transfer's seconds", LARGEST, 1.5, over_the_transfer, at_most=True),
    Aim("first token, seconds", LARGEST, 0.1, first_token, at_most=True),
)
