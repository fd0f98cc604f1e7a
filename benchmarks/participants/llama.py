"""llama.cpp through the low-level interface of llama-cpp-python, which takes batches of several sequences."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.participants.protocol import Stepwise
from bloomref.conformance.adapters.gguf_file import write_gguf
from bloomref.formats.layouts.checkpoint import open_checkpoint

FILE = "model.gguf"
BATCH = 512


def convert(folder: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(folder / "model")
    write_gguf(folder / FILE, checkpoint.config, checkpoint.params(None), dtype)


class Model(Stepwise):
    """One context for each size of a job, with llama.cpp's default options: its KV cache is float16."""

    def __init__(self, folder: Path, _dtype: str, _name: str, threads: int) -> None:
        import llama_cpp

        self.lib = llama_cpp.llama_cpp
        self._quiet = self.lib.llama_log_callback(lambda *_: None)
        self.lib.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self.lib.llama_backend_init()
        self.threads = threads
        options = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(str(folder / FILE).encode(), options)
        if not self.model:
            raise RuntimeError("llama.cpp could not read the file")
        self.size = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        self.batch = self.lib.llama_batch_init(BATCH, 0, 1)
        self.context, self.room = None, (0, 0)

    def _new_context(self, rows: int, length: int) -> None:
        if self.context:
            self.lib.llama_free(self.context)
        options = self.lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = rows * length, BATCH, BATCH
        options.n_seq_max = rows
        options.n_threads = options.n_threads_batch = self.threads
        self.context, self.room = self.lib.llama_init_from_model(self.model, options), (rows, length)

    def read(self, ids: Any, steps: int) -> Any:
        room = len(ids), -(-(ids.shape[1] + steps) // 256) * 256
        if room != self.room:
            self._new_context(*room)
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.position = 0
        return self.step(ids)

    def step(self, ids: Any) -> Any:
        """Read tokens position by position, so that the last one of every row is in the last batch."""
        rows, length = ids.shape
        positions = max(1, BATCH // rows)
        for start in range(0, length, positions):
            self._decode(ids[:, start : start + positions], start + positions >= length)
        return np.stack([self._row(i - rows) for i in range(rows)])

    def _row(self, i: int) -> Any:
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.size,))

    def _decode(self, ids: Any, last: bool) -> None:
        """Read one batch of tokens from position `self.position` on; `last` requests logits of its last position."""
        batch, (rows, length) = self.batch, ids.shape
        batch.n_tokens = rows * length
        for i, (offset, row) in enumerate(np.ndindex(length, rows)):
            batch.token[i] = ids[row, offset]
            batch.pos[i] = self.position + offset
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row
            batch.logits[i] = last and offset == length - 1
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        self.position += length
