"""Every test here that takes `backend` runs once for each installed backend."""

import pytest
from backend_cases import SMALL

from bloomref.dtypes import dtype_policy
from bloomref.runtime import registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        required = metafunc.config.getoption("--require-backend")
        names = list(dict.fromkeys([*registry.names(), *required]))
        metafunc.parametrize("backend", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that works here; others are skipped with the reason, or fail if they are required."""
    name: str = request.param
    reason = "not installed"
    if name.partition(registry.SEPARATOR)[0] in registry.names():
        reason = registry.why_unsupported(name, SMALL.config, dtype_policy("float32"))
    if reason is None:
        return name
    if name in request.config.getoption("--require-backend"):
        pytest.fail(f"backend {name!r} is required: {reason}")
    return pytest.skip(reason)
