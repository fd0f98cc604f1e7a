"""A backend that breaks its interface is refused at once, by one sentence with the method and the clause."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bloomref import BadBackend, BloomCausalLM, BloomConfig
from bloomref.dtypes import POLICIES, DTypePolicy
from bloomref.errors import Unsupported
from bloomref.params import Params, init_params
from bloomref.runtime import registry, trial
from bloomref.runtime.backend import API_VERSION, Choice, Memory, Prepared
from bloomref.runtime.engine import Engine
from bloomref.runtime.inputs import TokenBatch
from bloomref.runtime.interface_checks import check_memory
from bloomref.runtime.numpy_backend import NumpyBackend, NumpyPrepared

CONFIG = BloomConfig(vocabulary_size=23, num_layers=1, num_heads=2, hidden_dim=6, intermediate_dim=5)
IDS = np.array([[3, 1, 4]])
BATCH = TokenBatch(IDS, np.ones(IDS.shape, bool))
METHODS = sorted(name for name in vars(Prepared) if not name.startswith("_"))


class Tensor:
    """An array of another library."""


class Changed:
    """The prepared reference with other methods; one that is None is missing."""

    def __init__(self, prepared: NumpyPrepared, methods: dict[str, Any]) -> None:
        self._prepared, self._methods = prepared, methods

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in {*METHODS, *self._methods} or self._methods.get(name, 0) is None:
            raise AttributeError(name)
        method = getattr(self._prepared, name, None)
        return partial(self._methods[name], method) if name in self._methods else method


class Mine(NumpyBackend):
    """The reference with other methods of its prepared model."""

    name = "mine"

    def __init__(self, **methods: Any) -> None:
        self._methods = methods

    def prepare(self, params: Params, config: BloomConfig, policy: DTypePolicy) -> Any:
        return Changed(super().prepare(params, config, policy), self._methods)


def use(backend: NumpyBackend, policy: str = "float32") -> None:
    """Call every method."""
    engine = Engine(init_params(CONFIG, 0), CONFIG, POLICIES[policy], backend)
    engine.logits(engine.hidden(BATCH))
    cache = engine.new_cache(1, 6)
    engine.read(cache, 0, IDS)
    engine.read(cache, 3, IDS[:, :1])
    engine.choose(cache, 4, IDS[:, 0], Choice(), 2)


def cut(method: Any, *arguments: Any) -> Any:
    return method(*arguments)[..., :-1]


STEP = {"step": lambda _, ids, *__: np.zeros((len(ids), 23), np.float32)}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    **{f"no {name}": ({name: None}, f"prepare to return a Prepared with `{name}` .BKD-23.") for name in METHODS},
    "a cache without select": (
        {"new_cache": lambda *_: object()},
        r"new_cache to return a Cache, which has `select` \(BKD-4\), got a object",
    ),
    "a tensor as logits": (
        {"logits": lambda *_: Tensor()},
        r"logits to return a NumPy array \(BKD-13\), got a .*test_bad_backends\.Tensor$",
    ),
    "a tensor on the host": ({"to_host": lambda *_: Tensor()}, r"to_host to return a NumPy array \(BKD-13\)"),
    "float64 on the host": (
        {"to_host": lambda method, x: method(x).astype(float)},
        r"to_host to return float32 \(BKD-13\), got float64",
    ),
    "float16 logits": (
        {"logits": lambda method, *a: method(*a).astype(np.float16)},
        r"logits to return float32 \(BKD-13\), got float16",
    ),
    "a column less on the host": (
        {"to_host": cut},
        r"to_host to return an array of shape \(1, 3, 6\) \(BKD-13\), got \(1, 3, 5\)",
    ),
    "a column less of logits": (
        {"logits": cut},
        r"logits to return an array of shape \(1, 3, 23\) \(BKD-13\), got \(1, 3, 22\)",
    ),
    "all logits instead of the last": (
        {"logits": lambda method, x, _: method(x, False)},
        r"logits to return an array of shape \(B, 1, 23\) \(BKD-13\), got \(1, 3, 23\)",
    ),
    "step with an axis of time": (
        {"step": lambda *_: np.zeros((1, 1, 23), np.float32), "tokens": lambda *_: np.zeros((1, 2), int)},
        r"step to return an array of shape \(1, 23\) \(BKD-13\), got \(1, 1, 23\)",
    ),
    "tokens as a list": (STEP | {"tokens": lambda *_: [[1, 2]]}, r"tokens to return a NumPy array of integers"),
    "tokens as floats": (
        STEP | {"tokens": lambda *_: np.zeros((1, 2))},
        r"tokens to return a NumPy array of integers \(BKD-18\), got float64",
    ),
    "a token too few": (
        STEP | {"tokens": lambda *_: np.zeros((1, 1), int)},
        r"tokens to return an array of shape \(1, 2\) \(BKD-18\), got \(1, 1\)",
    ),
    "a token beyond the vocabulary": (
        STEP | {"tokens": lambda *_: np.array([[1, 23]])},
        r"tokens to return ids in \[0, 23\) \(BKD-18\), got \[1, 23\]",
    ),
}


@pytest.mark.clause("BKD-23")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_prepared_model_is_named(fault: str) -> None:
    methods, message = FAULTS[fault]
    use(Mine())
    with pytest.raises(BadBackend, match=f"^backend 'mine': expected {message}"):
        use(Mine(**methods))


@pytest.mark.clause("BKD-23", "BKD-13")
@pytest.mark.parametrize(
    ("method", "dtype", "wrong"), [("to_host", "bfloat16", "float32"), ("logits", "float32", "bfloat16")]
)
def test_the_dtypes_of_a_16_bit_model(method: str, dtype: str, wrong: str) -> None:
    other = POLICIES[wrong].compute_dtype
    with pytest.raises(
        BadBackend, match=rf"^backend 'mine': expected {method} to return {dtype} \(BKD-13\), got {wrong}"
    ):
        use(Mine(**{method: lambda f, *a: f(*a).astype(other)}), "bfloat16")


@pytest.mark.clause("BKD-23")
def test_prepare_returns_nothing() -> None:
    class Nothing(Mine):
        def prepare(self, *_: Any) -> Any:
            return None

    with pytest.raises(BadBackend, match=r"^backend 'mine': expected prepare to return a Prepared \(BKD-1\), got None"):
        use(Nothing())


@pytest.mark.clause("BKD-23")
def test_a_stub_inherited_from_the_interface_is_a_missing_method() -> None:
    class Half(Prepared):
        def new_cache(self, *_: int) -> Any: ...

    class Backend(Mine):
        def prepare(self, *_: Any) -> Any:
            return Half()

    with pytest.raises(BadBackend, match=r"a Prepared with `embed` \(BKD-23\), got a .*Half, which has none$"):
        use(Backend())


@pytest.mark.clause("BKD-23", "GRD-6")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, gradients: (Tensor(), gradients), "return the loss as a float .BKD-19., got a .*Tensor"),
        (lambda loss, gradients: (loss, list(gradients)), "return a dictionary of gradients .BKD-19., got a list"),
        (lambda loss, gradients: (loss, gradients | {"ln_f.bias": Tensor()}), "return 'ln_f.bias' as a NumPy array of"),
        (
            lambda loss, gradients: (loss, gradients | {"ln_f.bias": np.zeros(6)}),
            r"return 'ln_f.bias' as a NumPy array of float32 and shape \(6,\) .GRD-5., got float64 of shape \(6,\)",
        ),
        (
            lambda loss, gradients: (loss, {"ln_f.bias": gradients["ln_f.bias"]}),
            r"return the trainable keys .GRD-6., got gradients without the key 'h.0.input_layernorm.bias'",
        ),
        (
            lambda loss, gradients: (loss, gradients | {"lm_head.weight": np.zeros((23, 6))}),
            "return the trainable keys .GRD-6., got gradients with a key 'lm_head.weight'",
        ),
    ],
)
def test_gradients(change: Callable[..., Any], message: str) -> None:
    class Training(Mine):
        def loss_and_gradients(self, *arguments: Any) -> Any:
            return change(*super().loss_and_gradients(*arguments))

    engine = Engine(init_params(CONFIG, 0), CONFIG, POLICIES["float32"], Training())
    with pytest.raises(BadBackend, match=f"^backend 'mine': expected loss_and_gradients to {message}"):
        engine.loss_and_gradients(BATCH, None)


@pytest.mark.clause("BKD-23", "BKD-15")
def test_memory() -> None:
    check_memory("mine", Memory(1, 2, 3))
    for wrong in (None, 3, Memory(1, 2, -3), Memory(1, 2.5, 3)):  # type: ignore[arg-type]
        with pytest.raises(BadBackend, match=r"^backend 'mine': expected memory to return .*\(BKD-15\), got "):
            check_memory("mine", wrong)


# --- backends that cannot be loaded ------------------------------------------------------------------------------


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Load the backend `mine` from the source of its module."""

    def from_source(source: str) -> Any:
        info = tmp_path / "mine_package-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-package\nVersion: 1\n", "utf-8")
        (info / "entry_points.txt").write_text("[bloomref.backends]\nmine = mine_package:backend\n", "utf-8")
        (tmp_path / "mine_package.py").write_text(source, "utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine_package", raising=False)
        return registry.load.__wrapped__("mine")

    return from_source


GOOD = """
class Backend:
    name, api_version = "mine", 1
    def unsupported(self, config, policy): ...
    def prepare(self, params, config, policy): ...
def backend():
    return Backend()
"""


@pytest.mark.clause("BKD-23")
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("return Backend()", "Backend()", r"expected its factory to return a Backend \(BKD-23\), got None"),
        ('name, api_version = "mine", 1', "api_version = 1", r"a Backend with `name` \(BKD-23\), got a mine_package.B"),
        ('name, api_version = "mine", 1', "name = 'mine'", r"a Backend with `api_version` \(BKD-23\)"),
        ("def unsupported", "def unsuported", r"a Backend with `unsupported` \(BKD-23\)"),
        ("def prepare", "def prepared", r"a Backend with `prepare` \(BKD-23\)"),
        ('"mine", 1', "3, 1", "expected `name` to be a string .BKD-23., got a int"),
        (
            "return Backend()",
            "return Backend.make()",
            r"mine_package:backend raised AttributeError: .*'make' \(mine_package.py, line 7\)$",
        ),
        (
            "class Backend",
            "import math; math.nope\nclass Backend",
            r"raised AttributeError: .*nope' \(mine_package.py, l",
        ),
        ("def backend", "1 / 0\ndef backend", r"raised ZeroDivisionError: .* \(mine_package.py, line 6\)$"),
    ],
)
def test_a_fault_of_a_backend_is_named(load: Callable[[str], Any], right: str, wrong: str, message: str) -> None:
    assert right in GOOD
    with pytest.raises(BadBackend, match=f"^backend 'mine': .*{message}"):
        load(GOOD.replace(right, wrong))


def test_the_good_backend_loads(load: Callable[[str], Any]) -> None:
    assert load(GOOD).name == "mine"


@pytest.mark.clause("BKD-23", "BKD-6")
@pytest.mark.parametrize("reason", [False, True, "", " ", 0])
def test_a_reason_is_none_or_a_sentence(reason: Any) -> None:
    backend: Any = SimpleNamespace(name="mine", api_version=API_VERSION, unsupported=lambda *_: reason)
    with pytest.raises(BadBackend, match=r"^backend 'mine': expected unsupported to return None or a sentence"):
        registry.reason_of(backend, CONFIG, POLICIES["float32"])
    backend.unsupported = lambda *_: 1 / 0
    with pytest.raises(BadBackend, match=r"^backend 'mine': unsupported raised ZeroDivisionError: .*\(test_bad_ba"):
        registry.reason_of(backend, CONFIG, POLICIES["float32"])
    backend.unsupported = lambda *_: "no device"
    assert registry.reason_of(backend, CONFIG, POLICIES["float32"]) == "no device"


# --- the trial of `bloomref backends` ----------------------------------------------------------------------------


def tried(backend: Any, policy: str = "float32") -> str | None:
    return trial.failure(backend, CONFIG, POLICIES[policy])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_backend_that_works(policy: str) -> None:
    assert tried(NumpyBackend(), policy) is None
    assert tried(Mine(), policy) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_trial_names_the_fault(fault: str) -> None:
    methods, message = FAULTS[fault]
    reason = tried(Mine(**methods))
    assert reason is not None
    assert message.split()[0] in reason
    assert "backend 'mine'" not in reason


def zeros(_: Any, ids: Any, *__: Any) -> Any:
    return np.zeros((len(ids), 23), np.float32)


def mlp_block(*_: Any) -> Any:
    raise IndexError("of mine")


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"logits": lambda f, *a: np.full_like(f(*a), np.nan)}, r"^its logits differ from the reference's by nan"),
        (
            {"final_norm": lambda f, x: 1.1 * f(x)},
            r"^its hidden states differ from the reference's by 0\.\d+; rounding",
        ),
        (
            {"step": zeros, "tokens": lambda *_: IDS[:, :1].repeat(2, axis=0)},
            "^its logits after a step differ from the reference's by",
        ),
        ({"mlp_block": mlp_block}, r"^mlp_block raised IndexError: .* \(test_bad_backends.py, line \d+\)$"),
    ],
)
def test_a_trial_compares_with_the_reference(methods: Any, message: str) -> None:
    reason = tried(Mine(**methods))
    assert reason is not None
    assert re.search(message, reason), reason


def test_a_trial_asks_first_whether_the_model_can_run() -> None:
    class Refusing(Mine):
        def unsupported(self, *_: Any) -> str:
            return "no device"

    assert tried(Refusing()) == "no device"


def test_generation_stops_at_the_fault() -> None:
    """A dtype that nobody noticed before: text came out all the same."""
    lm = BloomCausalLM.from_preset("bloom_tiny_udhr")
    prepared = lm.backbone.engine.prepared
    lm.backbone.engine.prepared = Changed(prepared, {"logits": lambda f, *a: f(*a).astype(np.float16)})
    with pytest.raises(BadBackend, match="logits to return float32"):
        lm.generate("Everyone", max_new_tokens=2)


def test_it_is_neither_unsupported_nor_skipped() -> None:
    assert not issubclass(BadBackend, Unsupported)
