"""A program in any language, which reads one JSON request a line and writes one JSON reply a line.

Tensors are exchanged as temporary safetensors files. Clauses: PRG-1 ... PRG-13 (specs/97-program-protocol.md).
"""

import contextlib
import json
import shlex
import shutil
import subprocess
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory, mkdtemp
from threading import Thread
from typing import IO, Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import Failed
from bloomref.conformance.implementation import Capabilities
from bloomref.errors import BadWeights, InvalidInput, Unsupported, describe
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.shapes import Array, Bool, Float, Int

PROTOCOL = 1
METHODS = ("logits", "hidden", "trace", "in_pieces", "trace_in_pieces", "loss_and_gradients", "call", "adapted")
KINDS: dict[str, type[Exception]] = {"InvalidInput": InvalidInput, "Unsupported": Unsupported, "BadWeights": BadWeights}
TAIL = 2000  # characters of standard error that a message quotes
GRACE = 5.0  # seconds until a program that should end is killed


class Program:
    """An implementation that is a program. It starts at once, and again if it dies.

    Args:
        command: command line with the quoting of a shell, run without one: `"./mybloom --threads 1"`.
        timeout: seconds that a request may take; then the program is ended.

    Raises:
        Unsupported: the program cannot be started, or has another version of the protocol.
        Failed: it starts, but violates the protocol.
    """

    def __init__(self, command: str, timeout: float = 120.0) -> None:
        self.process = Process(shlex.split(command), timeout)
        hello = self.process.hello()
        self.name = str(hello.get("name", command))
        self.methods = frozenset(hello.get("methods", ["logits"])) & {*METHODS}
        self.capabilities = _capabilities(hello.get("capabilities", {}))
        self._versions = {str(name): str(value) for name, value in hello.get("versions", {}).items()}

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "ProgramModel":
        """Write the weights, and have the program load them; it does so again after requests for another model."""
        return ProgramModel(self.process, self.methods, config, weights, dtype)

    def versions(self) -> Mapping[str, str]:
        return self._versions

    def close(self) -> None:
        """End the program."""
        self.process.close()


def _capabilities(declared: Mapping[str, Any]) -> Capabilities:
    known = [item.name for item in fields(Capabilities)]
    unknown = set(declared) - {*known}
    if unknown:
        raise Failed(describe("hello: capabilities", f"some of {', '.join(known)}", min(unknown)))
    lists = {name: value for name, value in declared.items() if isinstance(value, list)}
    features = {"features": frozenset(lists.pop("features"))} if "features" in lists else {}
    return Capabilities(**{**declared, **{name: tuple(value) for name, value in lists.items()}, **features})


class ProgramModel:
    """A loaded model; it has the optional methods that the program declares."""

    def __init__(
        self, process: "Process", methods: frozenset[str], config: BloomConfig, weights: Mapping[str, Array], dtype: str
    ) -> None:
        self._process, self._methods = process, methods
        self._folder = scratch(self)
        file = self._folder / "model.safetensors"
        write_safetensors(file, dict(weights))
        self._load = {"request": "load", "dtype": dtype, "weights": str(file), "config": json_config(config)}
        self._current()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(name)
        method: Callable[..., Any] = getattr(self, f"_{name}")
        return method

    def _adapted(self, path: Path) -> "ProgramModel":
        """Load the model again with a copy of the adapter, since the program may read it several times (PRG-13)."""
        copy = self._folder / path.name
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
        self._load["adapter"] = str(copy)
        self._process.loaded = None
        self._current()
        return self

    def _logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return self._one("logits", token_ids, is_real)

    def _hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        return self._one("hidden", token_ids, is_real)

    def _trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> dict[str, Array]:
        return self._ask("trace", {}, token_ids=token_ids, is_real=is_real)

    def _in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> Float[Array, "B T V"]:
        more = {"cuts": [int(cut) for cut in cuts], "capacity": max(int(capacity), token_ids.shape[1])}
        return self._one("in_pieces", token_ids, is_real, more)

    def _trace_in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int
    ) -> dict[str, Array]:
        """Ask for the intermediates of calls over one cache; for a single call too, since that has a cache as well."""
        more = {"cuts": [int(cut) for cut in cuts], "capacity": int(capacity)}
        return self._ask("trace", more, token_ids=token_ids, is_real=is_real)

    def _loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, dict[str, Array]]:
        outputs = self._ask("loss_and_gradients", {}, token_ids=token_ids, is_real=is_real, labels=labels)
        return float(self._pop("loss", outputs).reshape(())), outputs

    def _call(self, token_ids: Any, padding_mask: Any) -> Array:
        """Call the public API with the arguments as NumPy arrays, valid or not."""
        mask = {} if padding_mask is None else {"padding_mask": np.asarray(padding_mask)}
        return self._pop("logits", self._ask("call", {}, token_ids=np.asarray(token_ids), **mask))

    def _one(self, request: str, token_ids: Array, is_real: Array, more: Mapping[str, Any] | None = None) -> Array:
        name = "hidden" if request == "hidden" else "logits"
        return self._pop(name, self._ask(request, more or {}, token_ids=token_ids, is_real=is_real))

    def _pop(self, name: str, outputs: dict[str, Array]) -> Array:
        if name not in outputs:
            raise Failed(describe("outputs", f"a tensor {name!r}", sorted(outputs)))
        return outputs.pop(name)

    def _ask(self, request: str, more: Mapping[str, Any], **inputs: Array) -> dict[str, Array]:
        self._current()
        with TemporaryDirectory(prefix="bloomref_program_") as folder:
            sent, answered = Path(folder) / "inputs.safetensors", Path(folder) / "outputs.safetensors"
            write_safetensors(sent, {name: _transport(name, array) for name, array in inputs.items()})
            self._process.ask({"request": request, "inputs": str(sent), "outputs": str(answered), **more})
            return _read(answered, request)

    def _current(self) -> None:
        """Have the program load this model, unless it loaded this one last."""
        if self._process.loaded is not self:
            self._process.loaded = None
            self._process.ask(self._load)
            self._process.loaded = self


def scratch(owner: object) -> Path:
    """Create a folder that is removed with its owner."""
    folder = mkdtemp(prefix="bloomref_program_")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def json_config(config: BloomConfig) -> dict[str, Any]:
    """Content of config.json, always with the MLP width."""
    return config.to_hf() | {"intermediate_size": config.intermediate_dim}


def _transport(name: str, array: Array) -> Array:
    """Convert integer token ids and labels to int64; other arrays stay as they are."""
    return array.astype(np.int64) if array.dtype.kind in "iu" and name != "padding_mask" else array


def _read(file: Path, request: str) -> dict[str, Array]:
    if not file.exists():
        raise Failed(describe(f"{request}: outputs", "a safetensors file where the request said", "none"))
    opened = SafetensorsFile(file)
    return {name: opened.view(name).copy() for name in opened.entries}


class Process:
    """A running program, and the exchange of lines with it."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        self.command, self.timeout = list(command), timeout
        self.loaded: object = None
        self.popen: subprocess.Popen[str] | None = None
        self._hello: dict[str, Any] | None = None

    def hello(self) -> dict[str, Any]:
        """Start the program if necessary, and return its reply to `hello`."""
        if self.popen is None:
            self._start()
        assert self._hello is not None
        return self._hello

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return the reply (PRG-5).

        Raises:
            InvalidInput, Unsupported, BadWeights: the program refuses with that class.
            Failed: the program reports any other error, dies, times out, or violates the protocol.
        """
        self.hello()
        reply = self._exchange(request)
        if "error" in reply:
            error = reply["error"] if isinstance(reply["error"], dict) else {"message": reply["error"]}
            message = f"{self.command[0]}: {error.get('message', 'an error without a message')}"
            raise KINDS.get(str(error.get("kind")), Failed)(message)
        return reply

    def close(self) -> None:
        if self.popen is not None:
            _end(self.popen)
            self.popen = None

    def _start(self) -> None:
        self.loaded = None
        self._errors = scratch(self) / "stderr"
        try:
            with self._errors.open("wb") as errors:
                self.popen = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                )
        except OSError as error:
            raise Unsupported(f"{self.command[0]}: it cannot be started: {error}") from error
        weakref.finalize(self, _end, self.popen)
        self._lines: Queue[str] = Queue()
        assert self.popen.stdout is not None
        Thread(target=_pump, args=(self.popen.stdout, self._lines), daemon=True).start()
        self._hello = self._exchange({"request": "hello", "protocol": PROTOCOL})
        if self._hello.get("protocol") != PROTOCOL:
            self.close()
            raise Unsupported(describe(f"{self.command[0]}: protocol", str(PROTOCOL), self._hello.get("protocol")))

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self.popen is not None
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(request) + "\n")
            self.popen.stdin.flush()
            line = self._lines.get(timeout=self.timeout)
        except (BrokenPipeError, Empty) as error:
            what = f"no reply within {self.timeout:g} s" if isinstance(error, Empty) else "it died"
            raise self._failure(what, request) from error
        if not line:
            raise self._failure("it died", request)
        return self._parse(line, request)

    def _parse(self, line: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise self._failure(describe("standard output", "one JSON object a line", line.strip()), request)
        return reply

    def _failure(self, what: str, request: Mapping[str, Any]) -> Failed:
        """End the program, whose state is unknown, and return the error to raise."""
        popen, self.popen, self.loaded = self.popen, None, None
        assert popen is not None
        status = popen.poll() if what != "it died" else popen.wait(GRACE)
        _end(popen, grace=0.0)
        tail = self._errors.read_text("utf-8", "replace")[-TAIL:].strip()
        code = f" (status {status})" if status is not None else ""
        errors = f"; its standard error ends:\n{tail}" if tail else "; its standard error is empty"
        return Failed(f"{' '.join(self.command)}: {what}{code} during the request {request['request']!r}{errors}")


def _pump(stream: IO[str], lines: "Queue[str]") -> None:
    """Copy the lines of a stream to a queue; an empty line marks the end."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def _end(popen: "subprocess.Popen[str]", grace: float = GRACE) -> None:
    """Close the input of a program, which asks it to end (PRG-11); after `grace` seconds, kill it."""
    assert popen.stdin is not None
    with contextlib.suppress(OSError):  # the pipe may be closed before buffered data is written
        popen.stdin.close()
    try:
        popen.wait(grace)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
