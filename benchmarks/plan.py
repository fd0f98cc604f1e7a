"""The arguments of a run of `benchmarks.run`, and the jobs that follow from them."""

from dataclasses import dataclass

from benchmarks.floors import cores
from benchmarks.model import PROMPT

DECODED = 16  # tokens of a timed decoding
LONG = 1024


@dataclass(frozen=True)
class Job:
    """A measurement: `rows` prompts of `context` tokens each, followed by decoding if `decodes`."""

    rows: int
    context: int
    decodes: bool

    def in_round(self, number: int) -> bool:
        """True if this round runs the job: long jobs run in every second round."""
        return self.context < LONG or number == 0 or number % 2 == 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Arguments of a run; see `benchmarks.run --help`."""

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
        """All jobs. One job times both the prefill of a prompt and the decoding after it."""
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
