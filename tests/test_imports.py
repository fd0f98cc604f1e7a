"""Who may import whom, from one table; and what `import bloomref` loads and costs. Each check is shown to be able to fail."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module belongs to the group with the longest matching name.
GROUPS = {
    "bloomref": "package",
    **{
        f"bloomref.{name}": "vocabulary"
        for name in ("shapes", "errors", "dtypes", "config", "alibi", "params", "cache_folder")
    },
    "bloomref.reference": "reference",
    "bloomref.reference.trace": "trace",
    "bloomref.reference.lora": "lora",
    "bloomref.runtime.numpy_backend": "numpy backend",
    "bloomref.runtime": "runtime",
    "bloomref.runtime.backend": "interface",
    "bloomref.runtime.registry": "backend registry",
    "bloomref.runtime.engine": "engine",
    "bloomref.formats": "formats",
    "bloomref.presets": "presets",
    **{f"bloomref.presets.{name}": "preset maker" for name in ("make_tiny_udhr", "udhr_own_training")},
    **{f"bloomref.{name}": "front door" for name in ("backbone", "causal_lm", "tokenizer")},
    **{f"bloomref.{name}": "front door" for name in ("adapters", "adapter_files", "lora")},
    "bloomref.training": "training",
    "bloomref.conformance": "conformance",
    "tools.spec_tables": "docs",
    "bloomref.cli": "cli",
    "bloomref.__main__": "cli",
    "accel": "accel",
    "accel.numba_cpu": "numba_cpu",
    "accel.cupy_gpu": "cupy_gpu",
}
EVERYTHING = {*GROUPS.values()} - {"docs", "cli", "accel", "numba_cpu", "cupy_gpu"}
MAY_IMPORT = {
    "vocabulary": {"vocabulary"},
    "interface": {"vocabulary"},
    "trace": {"vocabulary"},
    "reference": {"vocabulary", "trace", "reference", "lora"},
    "lora": {"vocabulary", "reference"},  # adapters are objects that callers hold, as they hold weights
    "numpy backend": {"vocabulary", "interface", "trace", "reference"},
    "backend registry": {"vocabulary", "interface", "numpy backend"},
    # dropout is the one thing that the interface does not offer: for it, the engine asks the reference itself
    "engine": {"vocabulary", "interface", "reference", "lora", "numpy backend", "backend registry", "runtime"},
    "runtime": {"vocabulary", "interface", "engine", "runtime"},  # how a backend is to choose is the interface's word
    "formats": {"vocabulary", "formats"},
    "presets": {"vocabulary", "formats", "presets"},
    "preset maker": {"vocabulary", "formats", "presets", "front door", "training", "preset maker"},
    "front door": {"vocabulary", "trace", "backend registry", "engine", "runtime", "formats", "presets", "front door"}
    | {"lora", "training"},
    "training": {"vocabulary", "reference", "lora", "engine", "runtime", "formats", "front door", "training"},
    "package": {"vocabulary", "front door"},
    "conformance": EVERYTHING | {"docs"},
    "docs": {"vocabulary", "presets"},
    "cli": {
        "vocabulary",
        "interface",
        "backend registry",
        "runtime",
        "formats",
        "presets",
        "front door",
        "package",
        "training",
    }
    | {"conformance", "cli"},
    "accel": set(),
    "numba_cpu": {"vocabulary", "interface", "numba_cpu"},  # never the reference: parity must be earned
    "cupy_gpu": {"vocabulary", "interface", "cupy_gpu"},
}
OURS = re.compile(r"(bloomref|accel)(\.\w+)*")


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(p): p for folder in ("bloomref", "accel") for p in sorted((ROOT / folder).rglob("*.py"))}


def group(module: str) -> str | None:
    while module not in GROUPS and "." in module:
        module = module.rpartition(".")[0]
        if module == "bloomref":
            return None  # a new top-level module needs a line of its own in the table
    return GROUPS.get(module)


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Our modules that the statements import, also by a string such as import_module's."""
    for node in nodes:
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else str(node.module) for name in found]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found = [node.value] if node.value in MODULES or node.value.startswith("accel.") else []
        else:
            continue
        yield from (name for name in found if OURS.fullmatch(name))


def violations(module: str, source: str) -> list[str]:
    own = group(module)
    if own is None:
        return [f"{module} is in no group"]
    targets = sorted(set(imports(ast.walk(ast.parse(source)))))
    return [f"{module} ({own}) imports {t} ({group(t)})" for t in targets if group(t) not in MAY_IMPORT[own]]


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_table(module):
    assert violations(module, MODULES[module].read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bloomref.config", "import bloomref.reference.ops"),
        ("bloomref.reference.model", "from bloomref.runtime import engine"),
        ("bloomref.reference.model", "def f():\n    from bloomref.backbone import BloomBackbone"),
        ("bloomref.reference.model", "from bloomref.runtime import backend"),
        ("bloomref.runtime.numpy_backend", "from bloomref.runtime.engine import Engine"),
        ("bloomref.formats.hf", "from bloomref.reference import model"),
        ("bloomref.presets.preset_registry", "from bloomref.runtime.engine import Engine"),
        ("bloomref.runtime.numpy_backend", "from bloomref.runtime import registry"),
        ("bloomref.runtime.backend", "from bloomref.runtime.inputs import TokenBatch"),
        ("bloomref.runtime.registry", "from bloomref.reference import model"),
        ("bloomref.generation.decoder", "from bloomref.reference import model"),
        ("bloomref.generation.scoring", "from bloomref.runtime.numpy_backend import NumpyPrepared"),
        ("bloomref.backbone", "from bloomref.reference import model"),
        ("bloomref.cli.generate", "from bloomref.reference import model"),
        ("bloomref.runtime.engine", "import_module('accel.numba_cpu')"),
        ("bloomref.runtime.registry", "def f():\n    import accel.numba_cpu"),
        ("bloomref.cli.app", "import accel"),
        ("accel.numba_cpu.blocks", "from bloomref.reference.ops import gelu"),
        ("accel.numba_cpu.blocks", "from bloomref.runtime.engine import Engine"),
        ("accel.numba_cpu.blocks", "from accel.cupy_gpu import graph"),
        ("accel.cupy_gpu.graph", "import bloomref.conformance"),
        ("bloomref.brand_new", ""),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert violations(module, source)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_modules_do_not_import_each_other_in_a_circle():
    graph = {name: set(imports(ast.parse(path.read_text("utf-8")).body)) - {name} for name, path in MODULES.items()}
    assert cycle(graph) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


# --- what an import loads, and what it costs ---------------------------------------------------------------------

NEVER = ("numba", "cupy", "accel", "torch", "jax", "keras", "transformers")
HEAVY = (*NEVER, "tokenizers", "huggingface_hub", "safetensors", "h5py", "rich", "typer", "jaxtyping", "beartype")


def loaded(statement: str, modules: tuple[str, ...], *search: Path) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*(m for m in {modules!r} if m in sys.modules))"
    path = os.pathsep.join(map(str, (*search, ROOT)))
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    return set(result.stdout.split())


def test_import_bloomref_loads_nothing_heavy():
    assert loaded("import bloomref", HEAVY) == set()


@pytest.mark.parametrize("name", ["BloomBackbone", "BloomCausalLM", "BloomTokenizer", "BloomConfig"])
def test_no_front_door_loads_a_framework_or_an_accelerator(name):
    assert loaded(f"import bloomref; bloomref.{name}", NEVER) == set()


def test_a_heavy_import_is_found(tmp_path):
    (tmp_path / "numba.py").write_text("", "utf-8")
    assert loaded("import bloomref, numba", HEAVY, tmp_path) == {"numba"}


def import_seconds(statement: str, runs: int = 5) -> float:
    """The best of several fresh interpreters."""
    code = f"import time; t = time.perf_counter()\n{statement}\nprint(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    times = (subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(runs))
    return min(float(result.stdout) for result in times)


def test_import_bloomref_takes_less_than_a_quarter_of_a_second():
    assert import_seconds("import bloomref") < 0.25


def test_a_slow_import_is_found():
    assert import_seconds("import bloomref; time.sleep(0.25)", runs=1) > 0.25
