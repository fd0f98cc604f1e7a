"""The token that follows a row: logits processors, then the choice of greedy search or sampling."""

from collections.abc import Sequence

from bloomref.generation.row_scores import Scores
from bloomref.generation.sampling import choose
from bloomref.generation.task import Row, Task
from bloomref.shapes import Array, Float


class Chooser:
    """Chooses as plain decoding does. Its number of a draw belongs to the place of the token in its row (GEN-9)."""

    def __init__(self, task: Task) -> None:
        self._options, self._seeds, self._process = task.options, task.seeds(), task.processors()
        self._sums = task.sums()  # those of plain decoding: another order of sums could change a draw

    def token(self, row: Row, proposed: Sequence[int], logits: Float[Array, " V"]) -> int | None:
        """The token after the row and `proposed` behind it; None if all ids are forbidden.

        Args:
            logits: those after the last of these tokens, -inf for ids that the tokenizer does not have.
        """
        history = [*row.history, *proposed] if proposed else row.history
        drawn = len(history) - row.prompt_length
        plain = logits.copy() if self._process.active else logits  # processors write; the caller reads them once more
        scores = self._process(Scores(plain), history, row.prompt_length)
        return choose(scores, self._options, int(self._seeds[row.index]), drawn, self._sums)
