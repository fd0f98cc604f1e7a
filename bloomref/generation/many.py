"""Many prompts in batches of similar length. No prompt's result depends on its batch."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

from bloomref.generation import search
from bloomref.generation.task import Results, Task


@dataclass(frozen=True)
class Completion:
    """The results of one prompt.

    Args:
        index: its place among the prompts.
        continuations: text of each result, without the prompt.
        tokens: number of new tokens of each result, including a stop token.
    """

    index: int
    continuations: list[str]
    tokens: list[int]


def in_batches(task: Task, size: int, skip: Container[int]) -> Iterator[tuple[list[int], Task, Results]]:
    """Generate the prompts but those in `skip`, `size` at a time, the longest first: memory is at its largest at once.

    Yields:
        The places of the batch's prompts, their part of the task, and their results.
    """
    left = [i for i in range(len(task.prompts)) if i not in skip]
    left.sort(key=lambda i: -len(task.prompts[i]))
    for first in range(0, len(left), size):
        places = left[first : first + size]
        prompts, budgets = [task.prompts[i] for i in places], [task.budgets[i] for i in places]
        part = replace(task, prompts=prompts, budgets=budgets, places=places)
        yield places, part, part.results(search.generate(part))
