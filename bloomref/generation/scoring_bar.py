"""Progress of scoring on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted(visible: bool, total: int) -> Iterator[Callable[[int], object]]:
    """Context manager: a function that counts tokens, shown as a bar on stderr if `visible`."""
    if not visible:
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda count: bar.update(task, advance=count)
