"""Permitted imports between rooms, from one table; modules that `import bloomref` loads, and its cost.

A test shows for each check that it can fail.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tools.structure import PACKAGES, module_name

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Room:
    """Modules that change together.

    Args:
        modules: a module belongs to the room that has the longest prefix of its name.
        imports: rooms that it may import, besides itself. All of them stand above it in ROOMS.
    """

    modules: tuple[str, ...]
    imports: frozenset[str]


def room(modules: str, imports: str = "") -> Room:
    return Room(tuple(modules.split()), frozenset(imports.split()))


VOCABULARY = " ".join(
    f"bloomref.{name}"
    for name in (
        "shapes",
        "errors",
        "validation",
        "argument_kinds",
        "cache_folder",
        "machine_memory",
        "dtypes",
        "config",
        "alibi",
        "params",
        "head_params",
        "wider_dtypes",
    )
)
KIT_CASES = " ".join(
    f"bloomref.conformance.{name}"
    for name in [
        "implementation",
        "representable",
        "lora_cases",
        "cases",
        "tags",
        "fixed_cases",
        "gradient_names",
        "strategies",
        "strategies_lora",
    ]
)
# From the ground up: a room imports only rooms above it in this table, so that the house has one direction.
ROOMS = {
    "vocabulary": room(VOCABULARY),
    "reference": room("bloomref.reference", "vocabulary"),
    "interface": room("bloomref.runtime.backend", "vocabulary"),
    # accelerators never see the reference: parity has to be earned
    "accel": room("accel"),
    "numba_cpu": room("accel.numba_cpu", "vocabulary interface"),
    "cupy_gpu": room("accel.cupy_gpu", "vocabulary interface"),
    "numpy_backend": room("bloomref.runtime.numpy_backend", "vocabulary reference interface"),
    "interface_checks": room("bloomref.runtime.interface_checks", "vocabulary interface"),
    "registry": room(
        "bloomref.runtime.registry bloomref.runtime.first_start",
        "vocabulary interface numpy_backend interface_checks",
    ),
    "inputs": room("bloomref.runtime.inputs", "vocabulary"),
    "engine": room("bloomref.runtime", "vocabulary reference interface interface_checks registry inputs"),
    "trial": room("bloomref.runtime.trial", "vocabulary interface interface_checks registry inputs engine"),
    "generation": room("bloomref.generation", "vocabulary interface inputs engine"),
    # formats: what all files share <- tokenizers, adapters <- models in folders <- pickles, which become such folders
    "formats": room("bloomref.formats", "vocabulary"),
    "tokenizer_formats": room("bloomref.formats.tokenizers", "vocabulary formats"),
    "adapter_formats": room("bloomref.formats.adapters", "vocabulary formats"),
    "layouts": room("bloomref.formats.layouts", "vocabulary formats tokenizer_formats adapter_formats"),
    "pickles": room("bloomref.formats.pickles", "vocabulary formats adapter_formats layouts"),
    "presets": room("bloomref.presets", "vocabulary formats tokenizer_formats adapter_formats layouts"),
    "tokenizer": room(
        "bloomref.tokenizer bloomref.chat_methods bloomref.chat_template bloomref.chat_answers",
        "vocabulary formats tokenizer_formats presets",
    ),
    "lora": room("bloomref.lora", "vocabulary reference formats adapter_formats presets"),
    "backbone": room("bloomref.backbone", "vocabulary interface registry inputs engine layouts presets lora"),
    "training": room("bloomref.training", "vocabulary reference inputs engine formats tokenizer backbone"),
    "text_model": room("bloomref.text_model", "vocabulary layouts tokenizer lora backbone"),
    "causal_lm": room(
        "bloomref.causal_lm bloomref.decodable bloomref.drafts bloomref.many_prompts bloomref.prefix "
        "bloomref.training_methods",
        "vocabulary inputs engine generation formats layouts tokenizer backbone training text_model",
    ),
    "heads": room(
        "bloomref.heads", "vocabulary inputs engine generation formats layouts tokenizer lora backbone text_model"
    ),
    "keras_names": room("bloomref.models", "tokenizer backbone causal_lm"),
    "package": room(
        "bloomref", "keras_names vocabulary generation formats heads lora tokenizer backbone causal_lm old_paths"
    ),
    # the kit: cases <- model <- oracle <- subject <- checks <- properties <- run <- suite, and separate rooms
    "kit_cases": room(KIT_CASES, "vocabulary adapter_formats lora"),
    "kit_model": room("bloomref.conformance.model", "vocabulary reference interface inputs lora kit_cases"),
    "kit_oracle": room("bloomref.conformance.oracle", "vocabulary reference interface backbone kit_cases kit_model"),
    "kit_subject": room("bloomref.conformance.subject", "vocabulary kit_cases kit_oracle"),
    "kit_checks": room(
        "bloomref.conformance.checks", "vocabulary reference interface kit_cases kit_model kit_oracle kit_subject"
    ),
    "kit_mistakes": room(
        "bloomref.conformance.mistakes", "vocabulary reference interface adapter_formats lora kit_cases kit_model"
    ),
    "kit_adapters": room(
        "bloomref.conformance.adapters",
        "vocabulary interface registry inputs engine generation formats adapter_formats layouts lora backbone "
        "causal_lm package kit_cases kit_model",
    ),
    "kit_properties": room("bloomref.conformance.properties", "kit_cases kit_oracle kit_subject kit_checks"),
    "kit_backends": room(
        "bloomref.conformance.backends",
        "vocabulary interface kit_cases kit_oracle kit_subject kit_properties",
    ),
    "kit_run": room(
        "bloomref.conformance.run",
        "vocabulary formats kit_cases kit_subject kit_checks kit_adapters kit_properties",
    ),
    "kit_vectors": room(
        "bloomref.conformance.vectors",
        "vocabulary formats kit_cases kit_oracle kit_subject kit_checks kit_adapters kit_run",
    ),
    "kit_author": room(
        "bloomref.conformance.vectors.author",
        "vocabulary formats adapter_formats layouts backbone causal_lm kit_cases kit_oracle kit_subject "
        "kit_mistakes kit_adapters kit_vectors",
    ),
    "kit_diff": room(
        "bloomref.conformance.diff",
        "vocabulary registry inputs formats adapter_formats backbone kit_cases kit_oracle kit_subject kit_checks "
        "kit_mistakes kit_adapters kit_run kit_vectors",
    ),
    "kit_suite": room(
        "bloomref.conformance.suite bloomref.conformance.plugin",
        "vocabulary package kit_cases kit_oracle kit_subject kit_checks kit_properties kit_backends kit_run "
        "kit_vectors kit_diff",
    ),
    "kit": room("bloomref.conformance"),
    "cli": room(
        "bloomref.cli bloomref.__main__",
        "vocabulary interface interface_checks registry trial generation formats layouts pickles presets tokenizer "
        "lora training causal_lm heads package kit_cases kit_subject kit_run kit_vectors kit_author kit_diff "
        "kit_suite",
    ),
    "tools": room("tools"),
    "old_paths": room("bloomref._moved"),
}
UNRESTRICTED = {"tools", "old_paths"}
"""Programs of a checkout, and the table of old module paths: nothing but the package imports them."""
OURS = re.compile(r"(bloomref|accel|tools)(\.\w+)*")


MODULES = {
    module_name(path.relative_to(ROOT)): path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))
}

PREFIXES = {prefix: name for name, room in ROOMS.items() for prefix in room.modules}


def room_of(module: str) -> str | None:
    """The room with the longest prefix of the module's name;
    a new module directly in `bloomref` needs a separate line.
    """
    name = module
    while name not in PREFIXES and "." in name:
        name = name.rpartition(".")[0]
    return None if name == "bloomref" != module else PREFIXES.get(name)


def imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Our modules that the statements import, also by a string such as import_module's."""
    for node in nodes:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            targets = [node.value] if node.value in MODULES or node.value.startswith("accel.") else []
        else:
            continue
        yield from (name for name in targets if OURS.fullmatch(name))


@dataclass(frozen=True)
class Facts:
    """What the checks below ask of a file, from one syntax tree."""

    targets: set[str]
    """Our modules that it imports, by a statement or a string."""
    stated: set[str]
    """Those of a statement."""
    privileges: list[str]


def facts(source: str) -> Facts:
    nodes = list(ast.walk(ast.parse(source)))
    privileges = [ast.unparse(node) for node in nodes if is_privilege(node)]
    return Facts(set(imports(nodes)), set(imports(statements(nodes))), privileges)


@pytest.fixture(scope="module")
def files() -> dict[str, Facts]:
    """Module -> facts of its file."""
    return {name: facts(path.read_text("utf-8")) for name, path in MODULES.items()}


def violations(module: str, targets: set[str]) -> list[str]:
    own = room_of(module)
    if own is None:
        return [f"{module} is in no room"]
    allowed = {own, *(ROOMS if own in UNRESTRICTED else ROOMS[own].imports)}
    return [f"{module} ({own}) imports {t} ({room_of(t)})" for t in sorted(targets) if room_of(t) not in allowed]


def test_every_room_imports_only_rooms_above_it_in_the_table():
    order = list(ROOMS)
    upward = [(name, t) for name, room in ROOMS.items() for t in room.imports if order.index(t) >= order.index(name)]
    assert upward == [("package", "old_paths")]  # the table of old paths is installed by the package


def test_every_permission_is_used(files):
    """A permission that no import needs would let one in unseen."""
    used = {(room_of(module), room_of(target)) for module, file in files.items() for target in file.targets}
    assert [(name, t) for name, room in ROOMS.items() for t in sorted(room.imports) if (name, t) not in used] == []


def test_imports_follow_the_table(files):
    assert [problem for module, file in files.items() for problem in violations(module, file.targets)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bloomref.config", "import bloomref.reference.ops"),
        ("bloomref.reference.model", "from bloomref.runtime import engine"),
        ("bloomref.reference.model", "def f():\n    from bloomref.backbone import BloomBackbone"),
        ("bloomref.reference.model", "from bloomref.runtime import backend"),
        ("bloomref.runtime.numpy_backend", "from bloomref.runtime.engine import Engine"),
        ("bloomref.formats.layouts.hf", "from bloomref.reference import model"),
        ("bloomref.formats.files", "from bloomref.formats.layouts import hf"),
        ("bloomref.formats.adapters.peft", "from bloomref.formats.layouts import hf"),
        ("bloomref.backbone", "from bloomref.formats.pickles import torch_file"),
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
    assert violations(module, facts(source).targets)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def statements(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    """Every import statement: at the top, in functions, and for type checkers alone."""
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def test_modules_do_not_import_each_other_in_a_circle(files):
    assert cycle({name: file.stated - {name} for name, file in files.items()}) == []


def test_a_circle_is_found_in_functions_too():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    source = "if TYPE_CHECKING:\n    from bloomref import backbone\ndef f():\n    import bloomref.tokenizer"
    assert facts(source).stated == {"bloomref.backbone", "bloomref.tokenizer"}


# --- a reference without privileges ------------------------------------------------------------------------------

NAMES = {"numpy", "numba", "cupy"}
CLASSES = {"NumpyPrepared", "NumpyBackend", "NumbaBackend", "NumbaPrepared", "CupyBackend", "CupyPrepared"}


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name; empty for anything else."""
    return str(getattr(node, "id", getattr(node, "attr", "")))


def is_privilege(node: ast.AST) -> bool:
    """True for a comparison with a backend's name, and for a question for a backend's class."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        return any(name_of(o).endswith("REFERENCE") or getattr(o, "value", None) in NAMES for o in operands)
    if isinstance(node, ast.Call) and name_of(node.func) == "isinstance":
        return bool(CLASSES & {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)})
    return False


def test_nobody_asks_for_a_backend_by_name_or_class(files):
    asked = {module: file.privileges for module, file in files.items() if module.startswith("bloomref")}
    del asked["bloomref.runtime.registry"]
    assert {module: found for module, found in asked.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    ["engine.backend == 'numpy'", "name != registry.REFERENCE", "isinstance(x, NumpyPrepared)", "'cupy' in name"],
)
def test_a_question_for_a_backend_is_found(source):
    assert facts(source).privileges


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
def test_no_public_module_loads_a_framework_or_an_accelerator(name):
    assert loaded(f"import bloomref; bloomref.{name}", NEVER) == set()


def test_a_heavy_import_is_found(tmp_path):
    (tmp_path / "numba.py").write_text("", "utf-8")
    assert loaded("import bloomref, numba", HEAVY, tmp_path) == {"numba"}


def import_seconds(statement: str, runs: int = 5) -> float:
    """CPU time, the least of several fresh interpreters: other load on the machine does not count."""
    code = f"import time; t = time.process_time()\n{statement}\nprint(time.process_time() - t)"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    times = (subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(runs))
    return min(float(result.stdout) for result in times)


def test_import_bloomref_takes_less_than_a_quarter_of_a_second():
    assert import_seconds("import bloomref") < 0.25


def test_a_slow_import_is_found():
    assert import_seconds("import bloomref\nwhile time.process_time() - t < 0.25: pass", runs=1) > 0.25
