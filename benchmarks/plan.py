"""What a run of `benchmarks.run` is asked for, and the jobs that follow from it."""

from dataclasses import dataclass

from benchmarks.floors import cores
from benchmarks.model import PROMPT

DECODED = 16  # tokens of a timed decoding
LONG = 1024


@dataclass(frozen=True)
class Job:
    """So many rows read prompts of so many tokens, and perhaps decode."""

    rows: int
    context: int
    decodes: bool

    def in_round(self, number: int) -> bool:
        """Whether the round has it: long ones are left out of every second round."""
        return self.context < LONG or number == 0 or number % 2 == 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for; see `benchmarks.run --help`."""

    preset: str
    dtype: str
    participants: list[str]
    pythons: dict[str, str]
    prefill: list[int]
    decode: list[int]
    context: list[int]
    rounds: int
    starts: int
    layers: int | None = None

    def jobs(self) -> list[Job]:
        """A prompt is read once for its own time and for the decoding behind it."""
        lengths = {*self.prefill, *self.context}
        short = {*self.decode, *([1] if PROMPT in lengths else [])}
        jobs = [Job(rows, PROMPT, True) for rows in sorted(short)]
        return jobs + [Job(1, tokens, tokens in self.context) for tokens in sorted(lengths - {PROMPT})]

    @property
    def longest(self) -> int:
        return max([*self.prefill, *self.context, PROMPT])

    def describe(self) -> str:
        depth = f" cut to {self.layers} layers" if self.layers else ""
        return f"{self.preset} dimensions{depth}, random weights, {self.dtype}, {cores()} threads"
