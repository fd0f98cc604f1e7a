"""Documented names of version 0.1.0: all can be imported, and moved ones warn with the new place."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import bloomref
from bloomref import _moved
from bloomref.conformance import implementation
from bloomref.conformance.model import instrumented
from bloomref.runtime import backend

# module -> names, as in the README, specs/ and docs/ of 0.1.0
DOCUMENTED = {
    "bloomref": (
        "BloomBackbone",
        "BloomCausalLM",
        "BloomConfig",
        "BloomTokenizer",
        "InvalidInput",
        "Unsupported",
        "BadWeights",
    ),
    "bloomref.alibi": ("slopes",),
    "bloomref.config": ("BloomConfig",),
    "bloomref.conformance.adapters.backend": ("Backend",),
    "bloomref.conformance.adapters.common": ("params_of",),
    "bloomref.conformance.adapters.gguf_file": ("write_gguf",),
    "bloomref.conformance.adapters.llama_cpp": ("LlamaCpp",),
    "bloomref.conformance.adapters.program": ("Program",),
    "bloomref.conformance.cases": ("Case",),
    "bloomref.conformance.implementation": ("Capabilities", "FEATURES", "Adapter"),
    "bloomref.conformance.lab": ("Lab",),
    "bloomref.conformance.lora": ("Lora",),
    "bloomref.conformance.oracle": ("truth",),
    "bloomref.conformance.properties": ("PROPERTIES",),
    "bloomref.conformance.strategies": ("cases", "configs"),
    "bloomref.conformance.strategies_lora": ("adapted_cases", "adapters"),
    "bloomref.conformance.subject": ("Subject", "named_weights"),
    "bloomref.conformance.vectors.ask": ("check",),
    "bloomref.conformance.vectors.read": ("locate", "read"),
    "bloomref.dtypes": ("accumulation_dtype", "dtype_policy"),
    "bloomref.errors": ("Unsupported",),
    "bloomref.formats": ("peft",),
    "bloomref.formats.peft_config": ("LINEARS",),
    "bloomref.params": ("Params", "count_params", "init_params", "keys"),
    "bloomref.reference": ("model", "trace"),
    "bloomref.reference.ops": ("gelu", "layer_norm", "softmax"),
    "bloomref.reference.vjp": ("loss_and_gradients",),
    "bloomref.runtime": ("registry",),
    "bloomref.runtime.backend": ("API_VERSION", "Memory", "step", "Decodes", "Trains", "Compiles", "TellsMemory"),
    "bloomref.runtime.engine": ("Engine",),
    "bloomref.runtime.inputs": ("token_batch",),
    "bloomref.runtime.options": ("GenerationOptions",),
    "bloomref.training.optimizer": ("AdamW", "clip_by_norm"),
    "bloomref.training.packing": ("Batch",),
    "bloomref.training.settings": ("Settings",),
}
MODULES = {
    ("bloomref.formats", "peft"),
    ("bloomref.reference", "model"),
    ("bloomref.reference", "trace"),
    ("bloomref.runtime", "registry"),
}


@pytest.fixture
def _afresh() -> Iterator[None]:
    """Old module names are imported as if for the first time."""
    before = {name: sys.modules.pop(name) for name in _moved.MOVED if name in sys.modules}
    yield
    for name in _moved.MOVED:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in DOCUMENTED.items() for name in names])
def test_a_documented_name_can_be_imported(module: str, name: str) -> None:
    value = getattr(__import__(module, fromlist=[name]), name)  # as `from module import name`, also for submodules
    assert isinstance(value, ModuleType) is ((module, name) in MODULES)


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize(("old", "new"), _moved.MOVED.items())
def test_an_old_path_gives_the_module_at_its_new_path_and_a_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"^{old} has moved to {new}$"):
        moved = importlib.import_module(old)
    assert moved is importlib.import_module(new)
    assert not (Path(bloomref.__file__).parents[1] / f"{old.replace('.', '/')}.py").exists()


@pytest.mark.usefixtures("_afresh")
def test_objects_are_the_same_under_both_paths() -> None:
    with pytest.warns(DeprecationWarning, match="has moved to bloomref.generation.options"):
        from bloomref.runtime.options import GenerationOptions
    assert GenerationOptions is bloomref.GenerationOptions


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (backend, "step", "Step.at"),
        (backend, "Decodes", "SupportsWholeStep"),
        (backend, "Trains", "SupportsGradients"),
        (backend, "Compiles", "SupportsCompilation"),
        (backend, "TellsMemory", "SupportsMemoryEstimate"),
        (implementation, "Adapter", "Implementation"),
        (instrumented, "Lab", "InstrumentedModel"),
    ],
)
def test_an_old_name_gives_the_object_of_its_new_name_and_a_warning(module: ModuleType, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"{old} is now (called )?{new}$"):
        value = getattr(module, old)
    expected = module
    for part in new.split("."):
        expected = getattr(expected, part)
    assert value == expected


@pytest.mark.parametrize("module", [bloomref, backend, implementation, instrumented])
def test_an_unknown_name_is_an_attribute_error(module: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_an_unknown_module_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module("bloomref.runtime.no_such_module")


def test_there_is_one_finder() -> None:
    _moved.install()
    assert sum(isinstance(finder, _moved.MovedModules) for finder in sys.meta_path) == 1
