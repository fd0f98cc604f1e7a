"""llama.cpp by the low-level interface of llama-cpp-python, from a temporary GGUF file.

Each row of a batch is a separate sequence. llama.cpp has no padding: the adapter passes the real tokens of a row only.
Matrices, keys and values have the dtype of the model.
Flash attention is off, since it accumulates some sums in float16.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.adapters.common import Failed, need, params_of, refuse, versions_of
from bloomref.conformance.adapters.gguf_file import write_gguf
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.errors import Unsupported
from bloomref.params import PROJECTIONS
from bloomref.shapes import Array, Bool, Float, Int

INSTALL = '"llama-cpp-python>=0.3" "gguf>=0.10"'
QKV = "attention.qkv"
GRAPH = {
    "inp_norm": "embedding_norm",
    "attn_norm": "attention.norm",
    "wqkv_b": QKV,
    "kqv_out": "attention.context",
    "ffn_inp": "attention_block",
    "ffn_norm": "mlp.norm",
    "ffn_up_b": "mlp.up",
    "ffn_gelu": "mlp.gelu",
    "ffn_out": "mlp.output",
    "l_out": "mlp_block",
    "result_norm": "final_norm",
    "result_output": "logits",
}
"""Name of a node in llama.cpp's graph -> name of the intermediate (MOD-8)."""
IN_BLOCK = {*GRAPH.values()} - {"embedding_norm", "final_norm", "logits"}
CACHE_TYPES = {"float32": 0, "float16": 1}


class LlamaCpp:
    """llama.cpp in float32 or float16. Its CPU kernels round float32 products further (docs/findings.md).

    Args:
        keys: dtype of the cached keys and values; None: that of the model.
        flash: 1 uses llama.cpp's flash attention kernel, 0 does not, -1 lets llama.cpp choose.
    """

    name = "llama.cpp"
    capabilities = Capabilities(
        dtypes=("float32", "float16"),
        masks=("real", "left", "right", "padding row"),
        features=frozenset(FEATURES) - {"post-layernorm", "no-layers"},
    )

    def __init__(self, keys: str | None = None, flash: int = 0) -> None:
        self.keys, self.flash = keys, flash

    def load(self, config: BloomConfig, weights: Mapping[str, Array], dtype: str) -> "LlamaModel":
        """Write a GGUF file and load it into memory; the file is temporary.

        Raises:
            Unsupported: llama-cpp-python or gguf is not installed, or llama.cpp does not support the model.
        """
        need(self.name, "llama_cpp", "gguf", command=INSTALL)
        refuse(
            self.name,
            a_post_layernorm_residual=config.apply_residual_connection_post_layernorm,
            a_model_without_layers=config.num_layers == 0,
            heads_of_width_1=config.head_dim == 1,  # it ends the process
        )
        cached = CACHE_TYPES[self.keys or dtype]
        options = {"type_k": cached, "type_v": cached, "flash_attn_type": self.flash}
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            write_gguf(file, config, params_of(config, weights), dtype)
            return LlamaModel(config, file, options)

    def versions(self) -> Mapping[str, str]:
        return versions_of("llama-cpp-python", "gguf")


@cache
def library() -> Any:
    """Load llama.cpp's functions, with logging turned off."""
    import llama_cpp

    lib = llama_cpp.llama_cpp
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    lib.kept_alive = quiet
    return lib


@dataclass
class Node:
    """A computed tensor of the graph: the name of the intermediate, and values with one row a token."""

    name: str
    values: Array


@dataclass(eq=False)
class LlamaModel:
    """A loaded model; each row of a batch runs in a new context, which has its own cache."""

    config: BloomConfig
    file: Path
    options: Mapping[str, int]
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        lib = library()
        options = lib.llama_model_default_params()
        options.use_mmap, options.n_gpu_layers = False, 0
        self.model = lib.llama_model_load_from_file(str(self.file).encode(), options)
        if not self.model:
            raise Unsupported(f"llama.cpp: it refuses a model of {self.config.to_dict()}")

    def __del__(self) -> None:
        if getattr(self, "model", None):
            library().llama_model_free(self.model)

    def logits(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T V"]:
        return self.in_pieces(token_ids, is_real, ())

    def hidden(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        nothing = np.zeros((*token_ids.shape, self.config.hidden_dim), np.float32)
        return self.trace(token_ids, is_real).get("final_norm", nothing)

    def in_pieces(
        self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"], cuts: Sequence[int], capacity: int = 0
    ) -> Float[Array, "B T V"]:
        """Logits of calls over a cache of `capacity` positions, rounded up by llama.cpp."""
        out = np.zeros((*token_ids.shape, self.config.vocabulary_size), np.float32)
        for row, (ids, real) in enumerate(zip(token_ids, is_real, strict=True)):
            with Context(self, max(capacity, token_ids.shape[1]), None) as context:
                for start, stop in pairwise((0, *cuts, token_ids.shape[1])):
                    at = np.flatnonzero(real[start:stop]) + start
                    out[row, at] = context.decode(ids[at], int(real[:start].sum()))
        return out

    def trace(self, token_ids: Int[Array, "B T"], is_real: Bool[Array, "B T"]) -> dict[str, Array]:
        """Intermediates that are nodes of llama.cpp's graph (`GRAPH`), read while it computes."""
        tensors: dict[str, Array] = {}
        for row, (ids, real) in enumerate(zip(token_ids, is_real, strict=True)):
            nodes: list[Node] = []
            with Context(self, token_ids.shape[1], nodes) as context:
                context.decode(ids[real], 0)
            for node in nodes:
                shape = (*token_ids.shape, node.values.shape[-1])
                tensors.setdefault(node.name, np.zeros(shape, np.float32))[row, real] = node.values
        for name in [name for name in tensors if name.endswith(QKV)]:
            tensors |= self._split(name.removesuffix("qkv"), tensors.pop(name))
        return tensors

    def _split(self, prefix: str, fused: Float[Array, "B T N"]) -> dict[str, Array]:
        """Split (B, T, C H K) into query, key and value of (B, H, T, K)."""
        parts = fused.reshape(*fused.shape[:2], 3, self.config.num_heads, self.config.head_dim)
        return {f"{prefix}{name}": parts[:, :, c].swapaxes(1, 2) for c, name in enumerate(PROJECTIONS)}


class Context:
    """A context of llama.cpp for one sequence.

    Args:
        model: the model.
        room: capacity of the cache, in positions.
        nodes: a list to which the nodes of the graph are appended, or None.
    """

    def __init__(self, model: LlamaModel, room: int, nodes: list[Node] | None) -> None:
        self.lib, self.size, self.room = library(), model.config.vocabulary_size, max(room, 1)
        options = self.lib.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = self.room
        options.n_threads = options.n_threads_batch = 1
        for name, value in model.options.items():
            setattr(options, name, value)
        if nodes is not None:
            self.callback = self.lib.ggml_backend_sched_eval_callback(_watch(nodes))
            options.cb_eval = self.callback
        self.context = self.lib.llama_init_from_model(model.model, options)
        if not self.context:
            raise Unsupported("llama.cpp: it refuses a context of these options")
        self.batch = self.lib.llama_batch_init(self.room, 0, 1)

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)

    def decode(self, ids: Int[Array, " T"], position: int) -> Float[Array, "T V"]:
        """Decode tokens from a position on, over the cache, and return their logits."""
        if not len(ids):
            return np.zeros((0, self.size), np.float32)
        self.batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self.batch.token[i], self.batch.pos[i] = int(token), position + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0], self.batch.logits[i] = 1, 0, 1
        status = self.lib.llama_decode(self.context, self.batch)
        if status:
            raise Failed(f"llama.cpp: llama_decode returned {status}")
        rows = self.lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, (len(ids), self.size)).copy()


def _watch(nodes: list[Node]) -> Callable[[Any, bool, Any], bool]:
    """Return a callback of the scheduler: it selects the nodes of `GRAPH`, and appends each when it is computed."""
    base = _ggml()

    def watch(tensor: Any, asking: bool, _data: Any) -> bool:
        name = _name(base.ggml_get_name(tensor).decode())
        if not asking and name:
            values = np.empty(base.ggml_nelements(tensor), np.float32)
            base.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
            width = ctypes.c_int64.from_address(tensor + 16).value  # ne[0], behind the type and the buffer
            nodes.append(Node(name, values.reshape(-1, width)))
        return not asking or bool(name)

    return watch


def _name(node: str) -> str:
    """Name of the intermediate of a node, or "": `ffn_inp-3` is `layers.3.attention_block`."""
    base, _, layer = node.partition("-")
    name = GRAPH.get(base, "")
    return f"layers.{layer}.{name}" if name in IN_BLOCK else name


@cache
def _ggml() -> Any:
    """Load ggml, the library below llama.cpp, for the functions that read a tensor."""
    import llama_cpp

    folder = Path(str(llama_cpp.__file__)).parent / "lib"
    (file,) = [
        path for path in folder.iterdir() if path.name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    ]
    base = ctypes.CDLL(str(file))
    base.ggml_get_name.restype, base.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    base.ggml_nelements.restype, base.ggml_nelements.argtypes = ctypes.c_int64, [ctypes.c_void_p]
    base.ggml_backend_tensor_get.restype = None
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return base
