"""llama.cpp: a BLOOM whose heads have width 1 ends the process instead of raising an error. Needs bloomref."""

import subprocess
import sys

PROGRAM = """
import sys
from bloomref.conformance.adapters.gguf_file import write_gguf
from bloomref.config import BloomConfig
from bloomref.params import init_params
from llama_cpp import Llama
from pathlib import Path
from tempfile import mkdtemp
file = Path(mkdtemp()) / "model.gguf"
config = BloomConfig(vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=2 * int(sys.argv[1]), intermediate_dim=8)
write_gguf(file, config, init_params(config, 0), "float32")
Llama(str(file), n_ctx=16, flash_attn=False, verbose=False)
"""
for width in (2, 1):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(width)], capture_output=True, text=True, errors="replace")
    said = [line.split("/")[-1] for line in done.stderr.splitlines() if "ASSERT" in line]
    print(f"width {width}: status {done.returncode} {' '.join(said)}")
