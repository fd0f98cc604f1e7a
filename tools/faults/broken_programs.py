"""Surface: programs under test whose answers are damaged, late or missing, in `diff`, `vectors` and `conform`.

An honest program answers once, and its replies are recorded. A small player repeats them, one of them damaged.
"""

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.random import Generator

from bloomref.errors import BadWeights
from tools.faults.damage import damaged_json, pick
from tools.faults.model_files import damaged_safetensors, read_tensors
from tools.faults.trials import Surface, Trial, command

HONEST = """
import json, shutil, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
from bloomref import BloomCausalLM
from bloomref.conformance.adapters.exact_answers import read_slopes
record = Path(sys.argv[1])
HELLO = {"protocol": 1, "name": "honest", "versions": {"honest": "1"}, "methods": ["logits", "slopes"]}
HELLO["capabilities"] = {"dtypes": ["float32"], "masks": ["real"], "max_time": 99, "repeatable": True}
for number, line in enumerate(sys.stdin):
    request, reply = json.loads(line), {}
    if request["request"] == "hello":
        reply = HELLO
    elif request["request"] == "load":
        folder = record / "model"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(request["weights"], folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(request["config"]))
        model = BloomCausalLM.from_preset(folder)
    elif request["request"] == "logits":
        inputs = load_file(request["inputs"])
        logits = model.logits({"token_ids": inputs["token_ids"], "padding_mask": inputs["is_real"].astype(int)})
        save_file({"logits": np.ascontiguousarray(logits)}, request["outputs"])
        shutil.copyfile(request["outputs"], record / f"{number}.safetensors")
    elif request["request"] == "slopes":
        reply = {"output": read_slopes(request["input"])}
    else:
        reply = {"error": {"kind": "Unsupported", "message": "not here"}}
    (record / f"{number}.json").write_text(json.dumps(reply))
    print(json.dumps(reply), flush=True)
"""
PLAYER = """
import json, os, shutil, sys, time
record = sys.argv[1]
for number, line in enumerate(sys.stdin):
    begin = os.path.join(record, str(number))
    if os.path.exists(begin + ".py"):
        exec(open(begin + ".py").read())
    if os.path.exists(begin + ".safetensors"):
        shutil.copyfile(begin + ".safetensors", json.loads(line)["outputs"])
    if not os.path.exists(begin + ".json"):
        sys.exit(0)
    sys.stdout.buffer.write(open(begin + ".json", "rb").read() + b"\\n")
    sys.stdout.buffer.flush()
"""
_MANNERS = (
    "sys.exit(3)",
    "os.kill(os.getpid(), 9)",
    "time.sleep(60)",
    "os.close(1); time.sleep(60)",
    "os.close(0)",
    "print('loaded', flush=True)",
    "print(flush=True)",
    "sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()",
    "sys.stdout.write('x' * 10**8); sys.stdout.flush()",
    "print('[' * 10**6, flush=True)",
    "print('{\"a\": ' * 900 + '1' + '}' * 900, flush=True)",
    "sys.stderr.write('\\x1b[2J' * 10**5); sys.exit(1)",
    "raise ValueError('planted')",
)
"""Statements that the player runs before a reply."""
_COMMANDS = {
    "diff": [
        "diff",
        "PROGRAM",
        "numpy",
        "--layers",
        "1",
        "--heads",
        "2",
        "--rows",
        "1",
        "--time",
        "4",
        "--mask",
        "real",
    ],
    "vectors": ["vectors", "--program", "PROGRAM", "--folder", "VECTORS"],
    "conform": ["conform", "--program", "PROGRAM", "--only", "repeat", "--case", "plain", "--examples", "1"],
}


def _write(folder: Path) -> None:
    from bloomref.conformance.vectors.read import locate

    (folder / "asked").mkdir(parents=True)
    shutil.copyfile(locate() / "alibi.json", folder / "asked" / "alibi.json")
    for name in ("expected", "models"):
        shutil.copytree(locate() / name, folder / "asked" / name)
    (folder / "honest.py").write_text(HONEST, "utf-8")
    (folder / "player.py").write_text(PLAYER, "utf-8")
    for name in _COMMANDS:
        (folder / name).mkdir()
        _ask(name, [sys.executable, str(folder / "honest.py"), str(folder / name)], folder, 60)


def _ask(name: str, program: list[str], folder: Path, timeout: float) -> str:
    line = shlex.join(program)
    words = {"PROGRAM": f"program:{line}" if name == "diff" else line, "VECTORS": str(folder / "asked")}
    return command([*(words.get(word, word) for word in _COMMANDS[name]), "--timeout", str(timeout)])


def _trial(base: Path, scratch: Path, rng: Generator) -> Trial:
    name = pick(rng, [*_COMMANDS])
    shutil.copytree(base / name, scratch)
    replies = sorted(scratch.glob("*.json"), key=lambda path: int(path.stem))
    reply = pick(rng, replies[:4])
    tensors = reply.with_suffix(".safetensors")
    timeout, way = 10.0, rng.random()
    if way < 0.25:
        manner = pick(rng, _MANNERS)
        timeout = 0.5 if "sleep" in manner else timeout
        reply.with_suffix(".py").write_text(manner, "utf-8")
        what = f"{name}, before reply {reply.stem}: {manner}"
    elif way < 0.6 and tensors.exists():
        tensors.write_bytes(damaged_safetensors(tensors.read_bytes(), rng))
        what = f"{name}, tensors of reply {reply.stem} damaged"
    else:
        content = damaged_json(reply.read_bytes(), rng)
        reply.write_bytes(content)
        what = f"{name}, reply {reply.stem}: {content[:80]!r}"
    player = [sys.executable, "-S", "-I", str(base / "player.py"), str(scratch)]
    names = ("program", "hello", "output", "honest", "logits")
    return Trial(what, lambda: _ask(name, player, base, timeout), lambda text: _judge(name, text, scratch, base), names)


def _judge(name: str, text: str, scratch: Path, base: Path) -> str:
    """A remark if wrong logits are said to agree."""
    for path in scratch.glob("*.safetensors") if name == "diff" and "agree" in text else ():
        try:
            arrays = read_tensors(path)
        except BadWeights as error:
            return f"they agree, although {error}"
        original = read_tensors(base / name / path.name)["logits"].astype(np.float64)
        if not np.allclose(
            arrays["logits"].astype(np.float64), original, rtol=0.01, atol=0.01 * np.abs(original).max()
        ):
            return "they agree, although the logits were changed"
    return ""


PROGRAMS = Surface("program", "programs under test (`--program`, `program:`)", _write, _trial)
SURFACES = (PROGRAMS,)
