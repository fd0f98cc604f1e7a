"""A program in any language, which reads one JSON request a line and writes one JSON reply a line.

Tensors are exchanged as safetensors files. Clauses: PRG-1 ... PRG-16 (specs/97-program-protocol.md).
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import Failed
from bloomref.conformance.adapters.process import TIMEOUT, Process
from bloomref.conformance.implementation import OPTIONAL_METHODS, QUESTIONS, WORDS, Capabilities
from bloomref.errors import BadWeights, InvalidInput, describe, invalid, represented
from bloomref.formats.safetensors_io import SafetensorsFile, write_safetensors
from bloomref.runtime.backend import Choice
from bloomref.shapes import Array, Bool, Float, Int
from bloomref.validation import check_known

METHODS = ("logits", *OPTIONAL_METHODS, "load_folder", *QUESTIONS)
"""Words that `methods` of the reply to `hello` may have (PRG-15)."""


class Program:
    """An implementation that is a program. It starts at once, and again if it dies.

    Args:
        command: command line with the quoting of a shell, run without one: `"./mybloom --threads 1"`.
        timeout: seconds that a request may take; then the program is ended.
        keep: folder that keeps every request with its files, and a script that repeats a request; None: nothing is
            kept.

    Raises:
        InvalidInput: the program cannot be started.
        Failed: it starts, but violates the protocol.
    """

    def __init__(self, command: str, timeout: float = TIMEOUT, keep: Path | None = None) -> None:
        self.process = Process(command, timeout, keep)
        hello = self.process.hello()
        self.name = _text("name", hello.get("name", command))
        self.methods = _methods(hello.get("methods", ["logits"]))
        self.capabilities = _capabilities(hello.get("capabilities", {}))
        self._versions = _versions(hello.get("versions", {}))
        self.answers = {name: partial(self._answer, name) for name in QUESTIONS if name in self.methods}
        if "load_folder" in self.methods:
            self.load_folder = self._load_folder

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "ProgramModel":
        """Write the weights, and have the program load them; it does so again after requests for another model."""
        model = ProgramModel(self.process, self.methods)
        file = model.folder / "model.safetensors"
        write_safetensors(file, dict(weights))
        model.load({"request": "load", "dtype": dtype, "weights": str(file), "config": json_config(config)})
        return model

    def _load_folder(self, folder: Path, dtype: str) -> "ProgramModel":
        model = ProgramModel(self.process, self.methods)
        model.load({"request": "load_folder", "dtype": dtype, "folder": str(folder.resolve())})
        return model

    def _answer(self, question: str, arguments: Mapping[str, Any]) -> Any:
        return _output(self.process, question, arguments)

    def versions(self) -> Mapping[str, str]:
        return self._versions

    def close(self) -> None:
        """End the program."""
        self.process.close()


# --- what the reply to hello declares ---------------------------------------------------------------------------------


def _declared(name: str, error: InvalidInput) -> Failed:
    return Failed(f"hello: {name}: {error}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Failed(describe(f"hello: {name}", "a text (PRG-2)", represented(value)))
    return value


def _word(value: object) -> str:
    return value if isinstance(value, str) else represented(value)


def _versions(declared: object) -> dict[str, str]:
    if not isinstance(declared, dict):
        raise Failed(describe("hello: versions", "an object of strings (PRG-2)", represented(declared)))
    return {name: _word(value) for name, value in declared.items()}


def _methods(declared: object) -> frozenset[str]:
    if not isinstance(declared, list):
        raise Failed(describe("hello: methods", "a list of requests (PRG-2)", represented(declared)))
    words = [_word(word) for word in declared]
    try:
        check_known(words, METHODS, "a request of PRG-15")
    except InvalidInput as error:
        raise _declared("methods", error) from error
    return frozenset(words)


def _capabilities(declared: object) -> Capabilities:
    if not isinstance(declared, dict):
        raise Failed(describe("hello: capabilities", "an object (PRG-3)", represented(declared)))
    try:
        check_known(declared, [item.name for item in fields(Capabilities)], "a key of PRG-3")
        return Capabilities(**{name: _value(name, value) for name, value in declared.items()})
    except InvalidInput as error:
        raise Failed(f"hello: {error} (PRG-3)") from error


def _value(name: str, value: Any) -> Any:
    """Convert a value of JSON to that of a `Capabilities`, which checks it."""
    if name not in WORDS or (value is None and name == "gradients"):
        return value
    if not isinstance(value, list):
        raise invalid(f"capabilities: {name}", "a list of words", represented(value))
    words = [_word(word) for word in value]
    return frozenset(words) if name == "features" else tuple(words)


# --- a model ----------------------------------------------------------------------------------------------------------


class ProgramModel:
    """A loaded model; it has the optional methods that the program declares.

    Args:
        methods: the words of the program's `methods`.
    """

    def __init__(self, process: Process, methods: frozenset[str]) -> None:
        self._process, self._methods = process, methods
        self.folder = process.folders.new("load", self)
        """Folder of the files that `load` names."""
        self._requests: list[dict[str, Any]] = []
        """Requests by which the program gets this model: `load`, then perhaps `merge` or `unmerge`."""

    def load(self, request: dict[str, Any]) -> None:
        """Have the program load the model."""
        self._requests = [request]
        self._current()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in {"logits"} | self._methods:
            raise AttributeError(name)
        method: Callable[..., Any] = getattr(self, f"_{name}")
        return method

    def _adapted(self, path: Path) -> "ProgramModel":
        """Load the model again with a copy of the adapter, since the program may read it several times (PRG-13)."""
        copy = self.folder / path.name
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
        self._process.loaded = None
        self.load({**self._requests[0], "adapter": str(copy)})
        return self

    def _merge(self) -> "ProgramModel":
        return self._change("merge")

    def _unmerge(self) -> "ProgramModel":
        return self._change("unmerge")

    def _change(self, request: str) -> "ProgramModel":
        """Merge the adapter or take it out. Repeated after `load`, if another model came between."""
        self._current()
        change = {"request": request}
        self._process.ask(change, self.folder, self._requests)
        self._requests.append(change)
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
        return self._one("in_pieces", token_ids, is_real, _calls(cuts, capacity, token_ids))

    def _trace_in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> dict[str, Array]:
        """Ask for the intermediates of calls over one cache; for a single call too, since that has a cache as well."""
        return self._ask("trace", _calls(cuts, capacity, token_ids), token_ids=token_ids, is_real=is_real)

    def _step(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], start: int, capacity: int
    ) -> Float[Array, "B N V"]:
        return self._one("step", token_ids, is_real, {"start": int(start), "capacity": int(capacity)})

    def _tokens(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], choice: Choice, count: int
    ) -> Int[Array, "B N"]:
        more = {"count": int(count), "choice": json_choice(choice)}
        return self._pop("tokens", self._ask("tokens", more, token_ids=token_ids, is_real=is_real))

    def _loss_and_gradients(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], labels: Int[Array, "B T"]
    ) -> tuple[float, dict[str, Array]]:
        outputs = self._ask("loss_and_gradients", {}, token_ids=token_ids, is_real=is_real, labels=labels)
        loss = self._pop("loss", outputs)
        if loss.size != 1:
            raise Failed(describe("outputs: loss", "one number, of shape () or (1,) (PRG-10)", f"shape {loss.shape}"))
        return float(loss.reshape(())), outputs

    def _call(self, token_ids: Any, padding_mask: Any) -> Array:
        """Call the public API with the arguments as NumPy arrays, valid or not."""
        mask = {} if padding_mask is None else {"padding_mask": np.asarray(padding_mask)}
        return self._pop("logits", self._ask("call", {}, token_ids=np.asarray(token_ids), **mask))

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_length: int, stop_token_ids: Sequence[int] | None
    ) -> list[list[int]]:
        self._current()
        arguments = {"prompts": prompts, "max_length": max_length, "stop_token_ids": stop_token_ids}
        output = _output(self._process, "generate", arguments, self._requests)
        return [[int(token) for token in row] for row in output["rows"]]

    def _one(self, request: str, token_ids: Array, is_real: Array, more: Mapping[str, Any] | None = None) -> Array:
        name = "hidden" if request == "hidden" else "logits"
        return self._pop(name, self._ask(request, more or {}, token_ids=token_ids, is_real=is_real))

    def _pop(self, name: str, outputs: dict[str, Array]) -> Array:
        if name not in outputs:
            raise Failed(describe("outputs", f"a tensor {name!r}", sorted(outputs)))
        return outputs.pop(name)

    def _ask(self, request: str, more: Mapping[str, Any], **inputs: Array) -> dict[str, Array]:
        self._current()
        with self._process.folders.for_one(request) as folder:
            sent, answered = folder / "inputs.safetensors", folder / "outputs.safetensors"
            write_safetensors(sent, {name: _transport(name, array) for name, array in inputs.items()})
            line = {"request": request, "inputs": str(sent), "outputs": str(answered), **more}
            self._process.ask(line, folder, self._requests)
            return _read(answered, request)

    def _current(self) -> None:
        """Have the program load this model, unless it loaded this one last."""
        if self._process.loaded is not self:
            self._process.loaded = None
            for i, request in enumerate(self._requests):
                self._process.ask(request, self.folder, self._requests[:i])
            self._process.loaded = self


def _output(
    process: Process, question: str, arguments: Mapping[str, Any], before: Sequence[Mapping[str, Any]] = ()
) -> Any:
    """Ask a question whose answer is JSON (PRG-14)."""
    with process.folders.for_one(question) as folder:
        reply = process.ask({"request": question, "input": dict(arguments)}, folder, before)
    if "output" not in reply:
        raise Failed(describe(f"{question}: reply", "a key 'output' (PRG-14)", sorted(reply)))
    return reply["output"]


def _calls(cuts: Sequence[int], capacity: int, token_ids: Int[Array, "B T"]) -> dict[str, Any]:
    return {"cuts": [int(cut) for cut in cuts], "capacity": max(int(capacity), token_ids.shape[1])}


def json_config(config: BloomConfig) -> dict[str, Any]:
    """Content of config.json, always with the MLP width."""
    return config.to_hf() | {"intermediate_size": config.intermediate_dim}


def json_choice(choice: Choice) -> dict[str, Any]:
    """A `Choice` as JSON: the forbidden ids and the seeds are lists, null if there are none."""
    forbidden = None if choice.forbidden is None else np.flatnonzero(choice.forbidden).tolist()
    seeds = None if choice.seeds is None else np.asarray(choice.seeds).tolist()
    return {**asdict(choice), "forbidden": forbidden, "seeds": seeds}


def _transport(name: str, array: Array) -> Array:
    """Convert integer token ids and labels to int64; other arrays stay as they are."""
    return array.astype(np.int64) if array.dtype.kind in "iu" and name != "padding_mask" else array


def _read(file: Path, request: str) -> dict[str, Array]:
    if not file.exists():
        raise Failed(describe(f"{request}: outputs", "a safetensors file where the request said", "none"))
    try:
        opened = SafetensorsFile(file)
    except BadWeights as error:
        raise Failed(f"{request}: the program wrote a damaged file: {error}") from error
    return {name: opened.view(name).copy() for name in opened.entries}
