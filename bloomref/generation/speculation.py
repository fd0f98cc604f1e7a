"""Speculative search: a draft proposes tokens, and the model checks several positions of each row in one pass.

A proposal is accepted where it is the token that plain decoding chooses, from the same bits and with the same number of
the draw; behind the first other one everything is computed again. So the result is that of plain decoding (GEN-21), and
the draft decides the time alone. It needs a backend on which the bits of a position do not depend on the pass.

All rows share the first column of a pass, that of the shortest row. A row that is ahead knows its next tokens: it reads
them again, and they are certain. So no row has holes, whose distances ALiBi would count (ALI-4).

Sources: Leviathan et al. (arXiv:2211.17192), Chen et al. (arXiv:2302.01318); here equality decides, not a ratio.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from bloomref.errors import Unsupported, describe, invalid
from bloomref.generation.chooser import Chooser
from bloomref.generation.options import GenerationOptions
from bloomref.generation.sampling import row_seeds
from bloomref.generation.task import Draft, Row, Task
from bloomref.runtime.backend import Declaration, SupportsStep, SupportsTokens
from bloomref.runtime.engine import Engine
from bloomref.shapes import Array, Float

Observe = Callable[[Row, int, Float[Array, " V"]], None]


def check_speculation(engine: Engine, options: GenerationOptions) -> None:
    """Refuse a draft where the result could differ from plain decoding (GEN-22).

    Raises:
        InvalidInput: for beam search and contrastive search, which choose no token at once. Unsupported: for a backend
            or a dtype without equal bits.
    """
    if options.strategy not in ("greedy", "sample"):
        raise invalid("draft", "greedy search or sampling", f"{options.strategy} search", "remove one of the two")
    dtype = engine.policy.compute_dtype.name
    expected = "a backend on which the bits of a row do not depend on the pass (bit_equal)"
    hint = "load the model with backend='numba' in float32, bfloat16 or float16, or leave draft out"
    declaration = getattr(engine.runs_on, "declaration", Declaration())
    if dtype not in declaration.bit_equal:
        raise Unsupported(describe("draft", expected, f"{engine.backend!r} in {dtype}", hint))
    if isinstance(engine.prepared, SupportsStep | SupportsTokens):
        shown = f"{engine.backend!r}, whose whole steps may have other bits (BKD-17, BKD-18)"
        raise Unsupported(describe("draft", expected, shown, hint))


def speculative_search(task: Task, observe: Observe | None = None) -> Iterator[tuple[int, int]]:
    """(row, new token id) of greedy search or sampling with the task's draft.

    Args:
        observe: called with each new token and the logits that it was chosen from.
    """
    if task.options.seed is None:  # the draft draws with the same numbers
        task = replace(task, options=replace(task.options, seed=int(row_seeds(None, [0])[0])))
    assert task.draft is not None
    search = _Search(task, task.draft, observe)
    yield from search.first_tokens()
    yield from search.passes()


class _Search:
    """The rows that still run, and their cache.

    Attributes:
        _read: number of new tokens that are in the cache, the same for all rows and below the length of each.
    """

    def __init__(self, task: Task, draft: Draft, observe: Observe | None) -> None:
        self._task, self._draft, self._observe = task, draft, observe
        self._rows, self._decoder, self._chooser = task.rows(), task.decoder(), Chooser(task)
        self._first, self._read = self._decoder.position, 0

    def first_tokens(self) -> Iterator[tuple[int, int]]:
        """The token of each row that follows from the prompt alone."""
        logits = self._decoder.logits()
        for i, row in enumerate(self._rows):
            self._extend(row, [], logits[i : i + 1])
            yield from ((row.index, token_id) for token_id in row.new_ids)
        running = self._running()
        if running:
            self._decoder.select(running)
        self._rows = [self._rows[i] for i in running]

    def passes(self) -> Iterator[tuple[int, int]]:
        """The tokens of one pass after the other, until all rows have ended."""
        if not self._rows:
            return
        self._proposals, pace = self._draft.open(self._task), self._draft.pace
        self._proposals.select([row.index for row in self._rows])
        while self._rows:
            began, rows, before = pace.clock(), self._rows, [len(row.history) for row in self._rows]
            count, advance = self._run_pass()
            pace.record(len(rows), count, pace.clock() - began, advance)
            for row, length in zip(rows, before, strict=True):
                yield from ((row.index, token_id) for token_id in row.history[length:])

    def _run_pass(self) -> tuple[int, int]:
        """Propose, check, and append to the rows.

        Returns:
            The number of proposals behind the shortest row, and the number of tokens that it gained.
        """
        rows, figures = self._rows, self._draft.figures
        shortest = min(len(row.new_ids) for row in rows)
        proposed = self._propose(shortest)
        both = [(row.new_ids[self._read :], more) for row, more in zip(rows, proposed, strict=True)]
        certain = shortest - self._read  # one column or more: a row that was shorter may have ended
        width = max([certain, *(len(known) + len(more) for known, more in both if more)])
        logits = self._logits(both, width)
        for row, more, own in zip(rows, proposed, logits, strict=True):
            length = len(row.history)
            figures.accepted += self._extend(row, more, map(self._decoder.checked, own))
            figures.proposed += len(more)
            figures.tokens += len(row.history) - length
            figures.passes += 1
        running = self._running()
        self._rows = [rows[i] for i in running]
        self._read = min([self._read + width, *(len(row.new_ids) - 1 for row in self._rows or rows)])
        self._decoder.rewind(self._first + self._read)
        if running:
            self._decoder.select(running)
            self._proposals.select(running)
        return width - certain, self._read + 1 - shortest

    def _propose(self, shortest: int) -> list[list[int]]:
        """Proposals of the draft for each row: as many as the pace allows behind the shortest one."""
        rows = self._rows
        room = max(len(row.new_ids) + row.budget for row in rows) - 1 - shortest  # the last token is not read
        count = self._draft.pace.count(len(rows), room)
        counts = [max(0, shortest + count - len(row.new_ids)) for row in rows]
        proposed = self._proposals.propose(rows, counts) if count else [[] for _ in rows]
        return [list(ids[:most]) for ids, most in zip(proposed, counts, strict=True)]

    def _logits(self, tokens: Sequence[tuple[list[int], list[int]]], width: int) -> list[Float[Array, "N V"]]:
        """Logits after the last known token of each row and after its proposals; none for a row that is ahead.

        Args:
            tokens: known and proposed tokens of each row. The columns behind them are filled; nothing reads them.
            width: number of columns.
        """
        ids = np.zeros((len(tokens), width), np.int64)
        places: list[tuple[int, int]] = []
        for i, (known, proposed) in enumerate(tokens):
            own = [*known, *proposed][:width]
            ids[i, : len(own)] = own
            places += [(i, column) for column in range(len(known) - 1, len(own))]
        scores = self._decoder.logits_after(ids, [i for i, _ in places], [column for _, column in places])
        ends = np.cumsum(np.bincount([i for i, _ in places], minlength=len(tokens)))
        return [scores[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _extend(self, row: Row, proposed: Sequence[int], logits: Iterable[Float[Array, " V"]]) -> int:
        """Append the tokens that plain decoding chooses, up to the first that was not proposed.

        Args:
            logits: one more than proposals, each checked when it is needed: what stands behind the end need not be
                finite. None for a row that is ahead of the pass.

        Returns:
            The number of accepted proposals.
        """
        for place, scores in enumerate(logits):
            token_id = self._chooser.token(row, (), scores)
            if token_id is None:
                row.ended = True
                return place
            if self._observe is not None:
                self._observe(row, token_id, scores)
            row.append(token_id, self._task.stopping)
            accepted = place < len(proposed) and token_id == proposed[place]
            if row.ended or not accepted:
                return place + accepted
        return 0

    def _running(self) -> list[int]:
        return [i for i, row in enumerate(self._rows) if not row.ended]
