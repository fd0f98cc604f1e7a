"""The budget of gradients: the sampled errors are reproducible, and the sampling leaves no trace in the reference."""

import ast
from pathlib import Path

import numpy as np

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Case
from bloomref.conformance.checks import gradients
from bloomref.reference import model

ROOT = Path(__file__).parents[2]
CONFIG = BloomConfig(vocabulary_size=11, num_layers=1, num_heads=3, hidden_dim=6, intermediate_dim=10)
CASE = Case(CONFIG, seed=2, time=5, kind="left")


def draws(between=lambda: None):
    """Two noisy sums from one generator; `between` runs after the first."""
    with gradients.errors_from(np.random.default_rng(1)):
        one = np.ones(4).view(gradients.Noisy)
        first = np.asarray(one + one)
        between()
        return first, np.asarray(one + one)


def test_a_budget_inside_another_one_does_not_disturb_it():
    first, second = draws()
    nested_first, nested_second = draws(lambda: gradients.spread.__wrapped__(CASE))
    assert first.tobytes() == nested_first.tobytes()
    assert second.tobytes() == nested_second.tobytes()
    assert first.tobytes() != second.tobytes()


def test_a_budget_is_the_same_each_time():
    assert gradients.spread.__wrapped__(CASE) == gradients.spread.__wrapped__(CASE)


def test_every_anchor_of_alibi_gives_the_same_gradients():
    for column in (0, 2, CASE.time - 1):
        with gradients.errors_from(np.random.default_rng(0)):
            shifted = gradients._run(CASE, CASE.params, gradients.anchored(column))
        for name, expected in gradients.exact(CASE).items():
            # the bias is a Noisy array, so its errors of 2^-24 spread through the pass
            np.testing.assert_allclose(shifted[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(initial=1e-30))


def test_the_reference_is_not_changed_by_a_budget():
    view = model.view
    gradients.spread.__wrapped__(CASE)
    assert model.view is view


def imports_of(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip


def test_shipped_code_patches_nothing():
    """Adapters of peers patch the peer where it has no other seam; bloomref's own code has seams."""
    patching = {
        path.parent.name
        for path in (ROOT / "bloomref").rglob("*.py")
        if any(name.startswith("unittest") for name in imports_of(path))
    }
    assert patching <= {"adapters"}
