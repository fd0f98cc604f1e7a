"""docs/examples/torch_backend.py conforms, and each of the mistakes planted in it fails by the name of its property."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from backend_package import write_package
from small_models import make_lm
from strategies import Float32Case

pytest.importorskip("torch", reason="torch is not installed")

from bloomref import BloomCausalLM, BloomConfig, InvalidInput
from bloomref.dtypes import floating_dtype
from bloomref.params import LoraFactors, Params
from bloomref.reference import lora, loss, vjp
from bloomref.runtime import registry

FILE = Path(__file__).parents[2] / "docs/examples/torch_backend.py"
CODE = FILE.read_text("utf-8")
FLOAT64 = floating_dtype("float64")
CONFIG = BloomConfig(
    vocabulary_size=23,
    num_layers=2,
    num_heads=3,
    hidden_dim=12,
    intermediate_dim=17,
    attention_dropout=0.2,
    hidden_dropout=0.3,
)


@pytest.fixture
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The backend `torch` of the example, or of changed code."""
    write_package(tmp_path, "torch", "torch_backend", getattr(request, "param", CODE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "load", cache(registry.load.__wrapped__))
    yield
    sys.modules.pop("torch_backend", None)


def adapted(params: Params, rng: np.random.Generator, dropout: float) -> Params:
    """Adapters of all three kinds, two of them on one weight."""

    def factors(kind: str, name: str, a: tuple[int, ...], b: tuple[int, ...], projection: int = 0) -> LoraFactors:
        rate = 0.0 if kind == "embedding" else dropout
        return LoraFactors(kind, name, 0.7, rate, rng.normal(size=a), rng.normal(size=b), projection)  # type: ignore[arg-type]

    v, d, h, k, f = (CONFIG.sizes[letter] for letter in "VDHKF")
    return lora.attach(
        params,
        {
            "word_embeddings.weight": (factors("embedding", "one", (2, v), (d, 2)),),
            "h.0.self_attention.query_key_value.weight": (
                factors("matrix", "one", (3, d), (3 * d, 3)),
                factors("heads", "two", (d, h, 2), (2, k), 2),
            ),
            "h.1.self_attention.dense.weight": (factors("matrix", "one", (1, d), (d, 1)),),
            "h.1.mlp.dense_h_to_4h.weight": (factors("matrix", "one", (2, d), (f, 2)),),
            "h.0.mlp.dense_4h_to_h.weight": (factors("matrix", "one", (2, f), (d, 2)),),
        },
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("is_adapted", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize(
    "form", [{}, {"apply_residual_connection_post_layernorm": True}, {"tie_word_embeddings": False}], ids=str
)
def test_its_gradients_are_the_references(is_adapted: bool, rate: float, form: dict[str, bool]) -> None:
    """With and without adapters, dropout and documents, in float64."""
    config = CONFIG.replace(**form)
    case = Float32Case(config, time=9, kind="left")
    params = case.params.astype(FLOAT64)
    if is_adapted:
        params = adapted(params, np.random.default_rng(0), rate)
    document = np.arange(case.time) // 5 * np.ones((case.batch, 1), int)
    rng = [np.random.default_rng(3) if rate else None for _ in range(2)]
    truth = vjp.loss_and_gradients(params, config, case.token_ids, case.is_real, rng=rng[0], document=document)
    value, gradients = registry.load("torch").loss_and_gradients(  # type: ignore[attr-defined]
        params,
        config,
        case.token_ids,
        loss.targets(case.token_ids, case.is_real, None, document),
        np.where(case.is_real, document, -1),
        lambda _: True,
        rng[1],
    )
    assert value == pytest.approx(truth.loss, rel=1e-13)
    assert gradients.keys() == truth.gradients.keys()
    for key, gradient in truth.gradients.items():
        np.testing.assert_allclose(gradients[key], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max(), err_msg=key)


@pytest.mark.usefixtures("_installed")
def test_it_generates_and_takes_a_device_as_argument() -> None:
    lm = make_lm(CONFIG)
    expected = lm.generate([[1, 2, 3], [4]], max_new_tokens=12, stop_token_ids=None)
    params = lm.backbone.params
    backbone = type(lm.backbone).from_params(CONFIG, params, backend="torch:cpu")
    assert backbone.engine.backend == "torch:cpu"
    assert BloomCausalLM(backbone).generate([[1, 2, 3], [4]], max_new_tokens=12, stop_token_ids=None) == expected
    with pytest.raises(InvalidInput, match="backend: expected a device of torch, got 'nothing'"):
        registry.load("torch:nothing")


# --- the kit ------------------------------------------------------------------------------------------------------


def conform(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code and both outputs of `bloomref conform --backend torch`."""
    command = [sys.executable, "-m", "bloomref", "conform", "--backend", "torch", "--require", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


PLANTED = {
    "step": (
        "return self.logits(self.final_norm(x), True)[:, 0]",
        "return 0 * self.logits(self.final_norm(x), True)[:, 0]",
    ),
    "tokens": ("chosen.append(ids := scores.argmax(-1))", "chosen.append(ids := 0 * scores.argmax(-1) + 2)"),
    "gradients": ("{key: array.cpu().numpy()", "{key: 0 * array.cpu().numpy()"),
    "memory": ("return Memory(count_params(config) * compute,", "return Memory(1,"),
    "rounding": (
        "cast(cast(array, policy.variable_dtype), policy.compute_dtype)",
        "array.astype(np.float32).astype(policy.compute_dtype)",
    ),
}
"""Name of a property -> a line of the example, and the mistake."""


@pytest.mark.slow
def test_it_conforms(tmp_path: Path) -> None:
    write_package(tmp_path, "torch", "torch_backend", CODE)
    code, out, error = conform(tmp_path, "--examples", "4", "--dtype", "float32", "--dtype", "bfloat16")
    assert code == 0, out + error
    for dtype in ("float32", "bfloat16"):
        assert f"torch, {dtype}: conforms" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_fails_by_the_name_of_its_property(tmp_path: Path, name: str) -> None:
    right, wrong = PLANTED[name]
    assert CODE.count(right) == 1
    asked = ("--dtype", "bfloat16", "--only", name, "--examples", "8")
    for code, folder, status in ((CODE, "right", 0), (CODE.replace(right, wrong), "wrong", 1)):
        write_package(tmp_path / folder, "torch", "torch_backend", code)
        done, out, error = conform(tmp_path / folder, *asked)
        assert done == status, out + error
        assert (f"\n{name}: " in out) == bool(status)
