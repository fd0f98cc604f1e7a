"""Backends of other packages: detection, loading on first use, refusals with a reason. The packages are simulated."""

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_lm

from bloomref import BloomBackbone, BloomCausalLM, BloomConfig, InvalidInput
from bloomref.dtypes import POLICIES
from bloomref.errors import Unsupported
from bloomref.runtime import registry
from bloomref.runtime.engine import Engine
from bloomref.runtime.numpy_backend import NumpyPrepared

PLUGINS = Path(__file__).parents[2] / "plugins"
CONFIG = BloomConfig(vocabulary_size=11, num_layers=2, num_heads=3, hidden_dim=12, intermediate_dim=9)
SIZES = {"vocabulary_size": 11, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "intermediate_dim": 9}
FLOAT32 = POLICIES["float32"]
INPUTS = {"token_ids": [[3, 1, 4]], "padding_mask": [[1, 1, 0]]}

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unload the modules that a test has loaded."""
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("fake_", "other_")):
            del sys.modules[name]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an installed package, fake-backend."""
    monkeypatch.syspath_prepend(str(PLUGINS))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Simulate an installed package whose module provides the backend `name`."""

    def pretend(name: str, source: str, package: str = "other-backend", entry: str = "backend") -> None:
        root, module = tmp_path / package, package.replace("-", "_")
        info = root / f"{module}-1.dist-info"
        info.mkdir(parents=True)
        (root / f"{module}.py").write_text(source, "utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[bloomref.backends]\n{name} = {module}:{entry}\n", "utf-8")
        monkeypatch.syspath_prepend(str(root))

    return pretend


def source(name: str, refusal: str | None = None, version: str = "API_VERSION") -> str:
    return f"""
from bloomref.runtime.numpy_backend import NumpyBackend
from bloomref.runtime.backend import API_VERSION

class Backend(NumpyBackend):
    name = {name!r}
    api_version = {version}

    def unsupported(self, config, policy):
        return {refusal!r}

backend = Backend
"""


# --- found, and loaded when needed -------------------------------------------------------------------------------


@pytest.mark.clause("BKD-9")
@pytest.mark.usefixtures("fake")
def test_listed_without_being_imported() -> None:
    assert "fake" in registry.available()
    assert registry.names()[0] == "numpy"
    assert "fake" in registry.names()
    assert "fake_backend" not in sys.modules
    assert registry.load("fake").name == "fake"
    assert "fake_backend" in sys.modules


@pytest.mark.clause("BKD-9")
@pytest.mark.usefixtures("fake")
def test_another_backend_does_not_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    BloomBackbone(**SIZES)(INPUTS)
    monkeypatch.setattr(registry, "entry_points", others_only())
    registry.choose("auto", CONFIG, FLOAT32)
    assert "fake_backend" not in sys.modules


@pytest.mark.usefixtures("fake")
def test_loaded_once() -> None:
    assert registry.load("fake") is registry.load("fake")


def test_every_factory_can_be_called_again() -> None:
    """An entry point must not be shadowed by a module that its first call imports."""
    for name in registry.names():
        if registry.why_unsupported(name, CONFIG, FLOAT32) is None:
            registry.load.cache_clear()  # type: ignore[attr-defined]
            assert registry.load(name).name == name


@pytest.mark.clause("BKD-9")
@pytest.mark.usefixtures("fake")
def test_used_by_name() -> None:
    model, expected = BloomBackbone(**SIZES, backend="fake"), BloomBackbone(**SIZES)
    assert model.engine.backend == "fake"
    assert expected.engine.backend == "numpy"
    assert model(INPUTS).tobytes() == expected(INPUTS).tobytes()
    blocks = ["attention_block", "mlp_block"] * 2
    assert model.engine.prepared.calls == ["new_cache", "embed", *blocks, "final_norm", "to_host"]


@pytest.mark.clause("BKD-9")
@pytest.mark.usefixtures("fake")
def test_used_by_name_with_a_preset(tmp_path: Path) -> None:
    make_lm(CONFIG).save_to_preset(tmp_path)
    lm, expected = BloomCausalLM.from_preset(tmp_path, backend="fake"), BloomCausalLM.from_preset(tmp_path)
    assert lm.backbone.engine.backend == "fake"
    assert expected.backbone.engine.backend == "numpy"
    assert lm.generate([3, 1], max_new_tokens=4) == expected.generate([3, 1], max_new_tokens=4)
    assert lm.score([3, 1, 4]) == expected.score([3, 1, 4])


# --- refused with a reason ---------------------------------------------------------------------------------------


@pytest.mark.clause("BKD-10")
@pytest.mark.usefixtures("fake")
def test_two_packages_of_one_name_are_refused(install: Install) -> None:
    install("fake", source("fake"))
    with pytest.raises(Unsupported, match=r"'fake'.* got (\w+):backend and (?!\1)\w+:backend; uninstall one of them"):
        BloomBackbone(**SIZES, backend="fake")
    assert not {"fake_backend", "other_backend"} & set(sys.modules)


@pytest.mark.clause("BKD-10")
def test_the_name_of_the_reference_is_taken(install: Install) -> None:
    install("numpy", source("numpy"))
    with pytest.raises(Unsupported, match="backend 'numpy': expected one package to provide it"):
        registry.names()


@pytest.mark.usefixtures("fake")
def test_one_package_found_twice_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(PLUGINS)
    monkeypatch.syspath_prepend(str(tmp_path / "link"))
    assert registry.load("fake").name == "fake"


@pytest.mark.clause("BKD-10")
@pytest.mark.parametrize("version", ["0", "API_VERSION + 1", "None", "'1'"])
def test_another_version_of_the_interface_is_refused(install: Install, version: str) -> None:
    install("other", source("other", version=version))
    with pytest.raises(Unsupported, match=r"'other': expected api_version 1, got .*; update its package"):
        BloomBackbone(**SIZES, backend="other")


@pytest.mark.clause("BKD-10")
@pytest.mark.parametrize(
    ("name", "hint"), [("other", "pip install other-backend"), ("numba", r"pip install 'bloomref\[numba\]'")]
)
def test_a_failing_import_says_what_to_install(
    install: Install, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setattr(registry, "entry_points", others_only())
    install(name, "import no_such_package\n")
    with pytest.raises(Unsupported, match=rf"backend '{name}': No module named 'no_such_package'; {hint}$") as caught:
        BloomBackbone(**SIZES, backend=name)
    assert isinstance(caught.value.__cause__, ImportError)


def others_only() -> Callable[..., list[object]]:
    """The entry points of other packages than bloomref itself."""
    real = registry.entry_points
    return lambda group: [point for point in real(group=group) if not point.value.startswith("accel.")]


def test_a_failure_is_not_remembered(install: Install, tmp_path: Path) -> None:
    install("other", "import no_such_package\n")
    with pytest.raises(Unsupported):
        registry.load("other")
    (tmp_path / "other-backend" / "no_such_package.py").write_text("", "utf-8")
    (tmp_path / "other-backend" / "other_backend.py").write_text("import no_such_package\n" + source("other"), "utf-8")
    importlib.invalidate_caches()
    assert registry.load("other").name == "other"
    del sys.modules["no_such_package"]


@pytest.mark.clause("BKD-10")
def test_an_entry_point_that_names_nothing(install: Install) -> None:
    install("other", source("other"), entry="no_such_factory")
    with pytest.raises(Unsupported, match=r"backend 'other': .*no_such_factory.*; pip install other-backend"):
        registry.load("other")


@pytest.mark.clause("BKD-10")
@pytest.mark.parametrize(
    ("name", "hint"), [("fakee", "fake"), ("nunpy", "numpy"), ("atuo", "auto"), ("Fake", "fake"), ("NUMPY", "")]
)
@pytest.mark.usefixtures("fake")
def test_an_unknown_name_is_refused_with_a_suggestion(name: str, hint: str) -> None:
    ending = f"; did you mean {hint}\\?$" if hint else "$"
    with pytest.raises(InvalidInput, match=rf"backend: expected one of numpy, .*fake.*, auto, got '{name}'{ending}"):
        BloomBackbone(**SIZES, backend=name)
    assert "fake_backend" not in sys.modules


@pytest.mark.clause("BKD-10")
@pytest.mark.parametrize("name", ["cupy", "numba"])
def test_our_own_accelerators_are_known_where_they_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(registry, "entry_points", others_only())
    with pytest.raises(Unsupported, match=rf"backend '{name}': it is not installed; pip install 'bloomref\["):
        registry.load(name)


# --- a name with an argument -------------------------------------------------------------------------------------

WITH_ARGUMENT = """
from bloomref.errors import InvalidInput

def backend(device=""):
    if device not in ("", "1", "a:b"):
        raise InvalidInput(f"backend: no device {device!r}")
    made = Backend()
    made.name = f"other at {device!r}"
    return made
"""


@pytest.mark.clause("BKD-16")
def test_what_follows_the_colon_reaches_the_factory(install: Install) -> None:
    install("other", source("other") + WITH_ARGUMENT)
    asked = {"other": "''", "other:": "''", "other:1": "'1'", "other:a:b": "'a:b'"}
    assert {name: registry.choose(name, CONFIG, FLOAT32).name for name in asked} == {
        name: f"other at {device}" for name, device in asked.items()
    }
    assert BloomBackbone(**SIZES, backend="other:1").engine.backend == "other at '1'"
    assert "other:1" not in registry.names()


@pytest.mark.clause("BKD-16")
def test_an_argument_that_is_not_taken_is_refused(install: Install) -> None:
    install("other", source("other") + WITH_ARGUMENT)
    with pytest.raises(InvalidInput, match=r"^backend: no device '2'$"):
        BloomBackbone(**SIZES, backend="other:2")
    install("plain", source("plain"), package="other-plain")
    with pytest.raises(InvalidInput, match=r"^backend: expected plain, which takes no argument, got 'plain:1'$"):
        BloomBackbone(**SIZES, backend="plain:1")
    for name in ("numpy:1", "auto:1", "nobody:1", ":1"):
        with pytest.raises(InvalidInput, match=f"^backend: expected one of numpy, .*, got '{name}'"):
            BloomBackbone(**SIZES, backend=name)


@pytest.mark.clause("BKD-16")
def test_an_argument_for_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", others_only())
    with pytest.raises(Unsupported, match=r"backend 'cupy:1': it is not installed; pip install 'bloomref\["):
        registry.load("cupy:1")


@pytest.mark.parametrize("name", [None, 3, ["numpy"], registry])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InvalidInput, match="backend: expected one of numpy"):
        registry.choose(name, CONFIG, FLOAT32)


# --- nothing falls back silently ---------------------------------------------------------------------------------


@pytest.mark.clause("BKD-6")
@pytest.mark.usefixtures("fake")
def test_a_model_that_it_cannot_run_is_refused_with_its_reason() -> None:
    sizes = SIZES | {"num_layers": 6}
    with pytest.raises(Unsupported, match=r"^backend 'fake': 6 layers are too many; it holds 5$"):
        BloomBackbone(**sizes, backend="fake")
    assert registry.why_unsupported("fake", CONFIG, FLOAT32) is None
    assert (
        registry.why_unsupported("fake", CONFIG.replace(num_layers=6), FLOAT32) == "6 layers are too many; it holds 5"
    )


@pytest.mark.clause("BKD-6")
@pytest.mark.usefixtures("fake")
def test_a_capability_that_a_backend_lacks_is_refused() -> None:
    model = BloomBackbone(**SIZES, dropout=0.5, backend="fake")
    with pytest.raises(Unsupported, match="training: expected a backend with dropout, such as 'numpy', got 'fake'"):
        model(INPUTS, training=True)
    with pytest.raises(Unsupported, match=r"trace: expected a backend .*, such as 'numpy', got 'fake'"):
        model.trace(INPUTS)
    reference = BloomBackbone(**SIZES, dropout=0.5)
    assert reference(INPUTS, training=True, seed=1).tobytes() != reference(INPUTS).tobytes()
    assert reference.trace(INPUTS)


@pytest.mark.clause("BKD-7")
@pytest.mark.parametrize(
    ("works", "expected"),
    [
        ({"cupy": True, "numba": True}, "cupy"),
        ({"cupy": False, "numba": True}, "numba"),
        ({"cupy": True, "numba": False}, "cupy"),
        ({"cupy": False, "numba": False}, "numpy"),
        ({"numba": True}, "numba"),
        ({"cupy": True}, "cupy"),
        ({}, "numpy"),
        ({"aaa": True}, "numpy"),
    ],
    ids=str,
)
def test_auto_takes_the_first_that_runs_the_model(
    install: Install, monkeypatch: pytest.MonkeyPatch, works: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(registry, "entry_points", others_only())
    for name, able in works.items():
        install(name, source(name, None if able else "no device"), package=f"other-{name}")
    model = BloomBackbone(**SIZES, backend="auto")
    assert model.engine.backend == expected
    assert BloomBackbone(**SIZES).engine.backend == "numpy"


@pytest.mark.clause("BKD-7")
def test_auto_skips_what_cannot_be_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", others_only())
    install("cupy", "import no_such_package\n", package="other-cupy")
    install("numba", source("numba", version="0"), package="other-numba")
    assert registry.choose("auto", CONFIG, FLOAT32).name == "numpy"
    assert "no_such_package" in str(registry.why_unsupported("cupy", CONFIG, FLOAT32))
    assert "api_version" in str(registry.why_unsupported("numba", CONFIG, FLOAT32))


@pytest.mark.clause("BKD-8")
@settings(max_examples=40)
@given(config=strategies.configs(), policy=st.sampled_from(list(POLICIES)))
def test_the_reference_refuses_nothing(config: BloomConfig, policy: str) -> None:
    assert registry.why_unsupported("numpy", config, POLICIES[policy]) is None
    case = strategies.Float32Case(config)
    engine = Engine(case.params, config, POLICIES[policy])
    assert isinstance(engine.prepared, NumpyPrepared)
    assert np.isfinite(engine.extend(engine.new_cache(2, 6), 0, case.token_ids).astype(float)).all()


def test_a_mistaken_backend_is_refused_before_the_weights_are_looked_for() -> None:
    with pytest.raises(InvalidInput, match=r"^backend: "):
        BloomBackbone.from_preset("./no/such/folder", backend="nunpy")
