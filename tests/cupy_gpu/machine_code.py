"""Machine code of sm_70 and later: instructions with their control codes, which say what an instruction waits for.

The control code of an instruction is in the bits 105 to 125 of its 128 bits: stall cycles, the scoreboard that its
result releases, the scoreboard that its operands release, and a mask of the scoreboards that it waits for (Jia et al.
2018, "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking", section 2.1).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        address: Its offset in the kernel.
        text: Its text, with predicate and operands.
        stall: Cycles until the next instruction may be issued.
        writes, reads: Scoreboards (0 to 5) that are released when the result is written, and when the operands are
            read; None if there is none.
        waits: Scoreboards that must be released before the instruction is issued.
    """

    address: int
    text: str
    stall: int
    writes: int | None
    reads: int | None
    waits: frozenset[int]


def instructions(disassembly: str) -> list[Instruction]:
    """Parse the output of `nvdisasm -hex` for one kernel."""
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\* 0x([0-9a-f]{16}) \*/\s+/\* 0x([0-9a-f]{16}) \*/"
    return [
        _decoded(int(address, 16), text.strip(), int(high, 16) >> 41)
        for address, text, _, high in re.findall(pattern, disassembly)
    ]


def _decoded(address: int, text: str, control: int) -> Instruction:
    write, read, mask = control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
    return Instruction(
        address,
        text,
        control & 15,
        None if write == NO_SCOREBOARD else write,
        None if read == NO_SCOREBOARD else read,
        frozenset(i for i in range(6) if mask >> i & 1),
    )


def loops(disassembly: str) -> Iterator[str]:
    """Yield the text between a label and a branch back to it."""
    labels = {label[1]: label.end() for label in re.finditer(r"^\s*\.(L_x_\d+):", disassembly, re.MULTILINE)}
    for branch in re.finditer(r"\bBRA\b.*\(\.(L_x_\d+)\)", disassembly):
        if labels[branch[1]] < branch.start():
            yield disassembly[labels[branch[1]] : branch.start()]


def main_loop(disassembly: str, multiplication: str) -> list[Instruction]:
    """Return the shortest loop that has as many multiplications as any."""
    return instructions(min(loops(disassembly), key=lambda body: (-body.count(multiplication), len(body))))


class Pending:
    """Loads of weights that nothing has waited for yet: when each was issued, by its scoreboard.

    A group of asynchronous copies has a number of its own, and is counted on the scoreboard of its LDGDEPBAR.
    """

    def __init__(self) -> None:
        self._open: list[float] = []
        self._closed: dict[int | None, list[list[float]]] = {}

    def issue(self, code: Instruction, now: float) -> None:
        """Note the loads and the ends of groups of one instruction."""
        if re.search(r"\bLDGSTS\b.*\bLTC128B\b", code.text):
            self._open.append(now)
        elif "LDGDEPBAR" in code.text:
            self._closed.setdefault(code.writes, []).append(self._open)
            self._open = []
        elif re.search(r"\bLDG\.E\.NA\b", code.text):
            self._closed.setdefault(code.writes, []).append([now])

    def wait(self, code: Instruction) -> list[float]:
        """Return when the loads were issued that this instruction waits for."""
        latest = dict.fromkeys(code.waits, 0)
        if barrier := re.search(r"DEPBAR\.LE SB(\d), 0x(\w+)", code.text):
            latest[int(barrier[1])] = int(barrier[2], 16)
        done: list[float] = []
        for scoreboard, count in latest.items():
            groups = self._closed.get(scoreboard, [])
            while len(groups) > count:
                done += groups.pop(0)
        return done


def distances(loop: list[Instruction], multiplication: str, steps: int) -> list[float]:
    """Return how many steps lie between each load of weights and the first wait for it, in the steady state.

    Args:
        loop: A loop that is executed from its first to its last instruction.
        multiplication: Name of the instructions that use the weights. A step has 1 / `steps` of those of the loop.
    """
    of_step = sum(multiplication in code.text for code in loop) / steps
    pending, between, now = Pending(), [], 0.0
    for turn in range(4):
        for code in loop:
            between += [now - issued for issued in pending.wait(code) if issued >= steps and turn > 1]
            pending.issue(code, now)
            now += (multiplication in code.text) / of_step
    return between
