"""Reader of pickles that runs no code of the file.

A pickle is a program for a stack machine: it can call any function that Python can import. This machine has a fixed
list of opcodes, and names come from a table of the caller. An entry of the table is a value or a `Call` of
bloomref; nothing is imported, no attribute is read, and no method of a value from the file is called. Clause: WGT-30.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bloomref.errors import BadWeights, describe

MAX_BYTES = 1 << 24  # the pickle of BLOOM's 850 tensors has 130 kB
MAX_OPCODES = 1_000_000  # bounds the memory: an opcode makes one small object or a string of the file
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Call:
    """Function of bloomref that stands for a name in a pickle.

    It gets the arguments as a tuple, and raises ValueError("expected ..., got ...") to refuse them.
    """

    function: Callable[[tuple[Any, ...]], Any]


@dataclass(eq=False, repr=False)
class Inert:
    """Stand-in for an object of an unknown class.

    Args:
        name: module and name of the class or function.
        arguments: arguments of its constructor.
        state: attributes that the pickle sets.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Rules:
    """Names that a pickle may use.

    Args:
        names: "module.name" -> the value that stands for it.
        persistent: gives the value of a persistent id.
        inert: True: another name becomes an `Inert`; False: it is refused.
    """

    names: Mapping[str, Any]
    persistent: Callable[[Any], Any]
    inert: bool = False


def read_pickle(data: bytes, rules: Rules, file: str) -> tuple[Any, int]:
    """Read one pickle at the start of `data`. Returns its value and its length in bytes.

    The value consists of None, bool, int, float, str, tuple, list, dict and what `rules` give. It may refer to itself.

    Args:
        data: the pickle; what follows it is ignored.
        rules: names and persistent ids.
        file: name of the file in error messages.

    Raises:
        BadWeights: when the pickle is damaged, or uses an opcode or a name that is not permitted.
    """
    machine = _Machine(data, rules, file)
    return machine.run(), machine.position


class _Machine:
    def __init__(self, data: bytes, rules: Rules, file: str) -> None:
        self.data, self.rules, self.file = data, rules, file
        self.position = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self.take(1) != b"\x80" or self.byte() not in (2, 3, 4, 5):
            raise self.refused("a pickle of protocol 2 to 5", "something else")
        for _ in range(MAX_OPCODES):
            opcode = self.byte()
            if opcode == ord("."):
                value = self.pop()
                if self.stack or self.outer:
                    raise self.refused("one value at the end of the pickle", "several")
                return value
            action = _ACTIONS.get(opcode)
            if action is None:
                raise self.refused("the opcodes that tensors need", f"opcode {bytes([opcode])!r}")
            action(self)
        raise self.refused(f"at most {MAX_OPCODES} opcodes", "more")

    def refused(self, expected: str, got: str) -> BadWeights:
        return BadWeights(describe(f"{self.file}: byte {self.position}", expected, got))

    # bytes

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise self.refused("a whole pickle", f"the end of its data at byte {len(self.data)}")
        return self.data[start : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refused("a text in UTF-8", "other bytes") from error

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + _LONGEST_NAME)
        if end < 0:
            raise self.refused(f"a name of at most {_LONGEST_NAME} bytes", "a longer one")
        text = self.text(end - self.position)
        self.position += 1
        return text

    # stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise self.refused("a value on the stack", "an empty one")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.outer:
            raise self.refused("a mark on the stack", "none")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def put(self, index: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refused("an entry of the memo", f"entry {index}, which is empty")
        self.push(self.memo[index])

    # containers

    def append(self, items: list[Any]) -> None:
        target = self.pop()
        self.push(target)
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Inert):
            raise self.refused("a list to append to", type(target).__name__)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        self.push(target)
        if isinstance(target, Inert):
            return
        if type(target) is not dict or len(items) % 2:
            raise self.refused("a dict, keys and values", type(target).__name__)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # the hash of a nested tuple can take exponential time
                raise self.refused("a key that is a text or an integer", type(key).__name__)
            target[key] = value

    # names

    def find(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full in self.rules.names:
            self.push(self.rules.names[full])
        elif self.rules.inert:
            self.push(Inert(full))
        else:
            raise self.refused("only the names of tensors", f"{full!r}, which is not one of them; nothing was run")

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise self.refused("a name that is a text", type(name).__name__)
        self.find(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple:
            raise self.refused("a tuple of arguments", type(arguments).__name__)
        if isinstance(function, Inert):
            self.push(Inert(function.name, arguments))
        elif isinstance(function, Call):
            try:
                self.push(function.function(arguments))
            except ValueError as error:
                raise BadWeights(f"{self.file}: byte {self.position}: {error}") from error
        else:
            raise self.refused("a function of tensors", type(function).__name__)

    def new_object(self) -> None:
        arguments, kind = self.pop(), self.pop()
        if not isinstance(kind, Inert) or type(arguments) is not tuple:
            raise self.refused("no object but tensors and dicts", type(kind).__name__)
        self.push(Inert(kind.name, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        self.push(target)
        if isinstance(target, Inert):
            target.state = state
        elif type(target) is not dict:  # the attribute `_metadata` of a state dict has no meaning here
            raise self.refused("attributes of a dict", type(target).__name__)

    def persistent(self) -> None:
        self.push(self.rules.persistent(self.pop()))


# The opcodes of `torch.save` at protocols 2 to 5 (names as in the module pickletools of Python)
_ACTIONS: dict[int, Callable[[_Machine], Any]] = {
    ord(symbol): action
    for symbol, action in {
        "\x95": lambda m: m.take(8),  # FRAME
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "K": lambda m: m.push(m.byte()),  # BININT1
        "M": lambda m: m.push(m.number("<H")),  # BININT2
        "J": lambda m: m.push(m.number("<i")),  # BININT
        "\x8a": lambda m: m.push(int.from_bytes(m.take(m.byte()), "little", signed=True)),  # LONG1
        "G": lambda m: m.push(m.number(">d")),  # BINFLOAT
        "X": lambda m: m.push(m.text(m.number("<I"))),  # BINUNICODE
        "\x8c": lambda m: m.push(m.text(m.byte())),  # SHORT_BINUNICODE
        ")": lambda m: m.push(()),
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        "(": lambda m: m.mark(),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "q": lambda m: m.put(m.byte()),  # BINPUT
        "r": lambda m: m.put(m.number("<I")),  # LONG_BINPUT
        "\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
        "h": lambda m: m.get(m.byte()),  # BINGET
        "j": lambda m: m.get(m.number("<I")),  # LONG_BINGET
        "a": lambda m: m.append([m.pop()]),
        "e": lambda m: m.append(m.pop_mark()),
        "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        "u": lambda m: m.set_items(m.pop_mark()),
        "c": lambda m: m.find(m.line(), m.line()),  # GLOBAL
        "\x93": lambda m: m.find_on_stack(),  # STACK_GLOBAL
        "R": lambda m: m.reduce(),
        "\x81": lambda m: m.new_object(),  # NEWOBJ
        "b": lambda m: m.build(),
        "Q": lambda m: m.persistent(),  # BINPERSID
    }.items()
}
