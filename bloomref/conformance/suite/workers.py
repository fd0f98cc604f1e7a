"""Ask the questions of a run, in this process or in several at once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from bloomref.conformance.suite.asking import Answer, Question
from bloomref.conformance.suite.kit import Kit, Options

Task = tuple[str, Question]
"""A dtype and a question."""
Progress = Callable[[Task, float | None], None]
"""Called with a task and None when it begins, and with its seconds when it ends."""
_kits: list[Kit] = []
"""The kit of a process that asks for another one."""


def answers(kit: Kit, tasks: Sequence[Task], jobs: int, progress: Progress) -> Iterator[Answer]:
    """Yield the answers in the order of the tasks.

    Args:
        jobs: number of processes. Each of several makes its own kit, from the options of this one.
    """
    if jobs == 1:
        for task in tasks:
            progress(task, None)
            dtype, question = task
            answer = kit.ask(kit.subjects[dtype], question)
            progress(task, answer.total)
            yield answer
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (kit.options,)) as pool:
        futures = {pool.submit(_ask, *task): task for task in tasks}
        for future in as_completed(futures):
            progress(futures[future], future.result().total)
    yield from (future.result() for future in futures)


def _start(options: Options) -> None:
    _kits[:] = [Kit(options)]


def _ask(dtype: str, question: Question) -> Answer:
    [kit] = _kits
    return kit.ask(kit.subjects[dtype], question)
