"""A test that takes `backend` runs once for each installed backend; one that takes `subject`, in each dtype too."""

import pytest

from bloomref.conformance.adapters.installed_backend import TINY, Backend
from bloomref.conformance.implementation import DTYPES
from bloomref.conformance.subject import Subject
from bloomref.dtypes import dtype_policy
from bloomref.runtime import registry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        required = metafunc.config.getoption("--require-backend")
        names = list(dict.fromkeys([*registry.names(), *required]))
        metafunc.parametrize("backend", names, indirect=True, scope="session")
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", DTYPES, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend that works here; others are skipped with the reason, or fail if they are required."""
    name: str = request.param
    reason = "not installed"
    if name.partition(registry.SEPARATOR)[0] in registry.names():
        dtypes = Backend(name).capabilities.dtypes
        reason = registry.why_unsupported(name, TINY, dtype_policy(dtypes[0]))
    if reason is None:
        return name
    if name in request.config.getoption("--require-backend"):
        pytest.fail(f"backend {name!r} is required: {reason}")
    return pytest.skip(reason)


@pytest.fixture(scope="session")
def subject(backend: str, request: pytest.FixtureRequest) -> Subject:
    """The backend in one dtype. A dtype that it does not compute in is skipped."""
    tested = Subject(Backend(backend), request.param)
    reason = tested.unavailable()
    return pytest.skip(reason) if reason else tested
