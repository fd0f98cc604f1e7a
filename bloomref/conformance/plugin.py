"""Entry point of the pytest plugin. It adds no option and imports nothing, unless the command line names
`bloomref.conformance`."""

import os
import re
import shlex
from typing import Any

import pytest

OURS = re.compile(r"\bbloomref[./\\]conformance\b(?!\.plugin)")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:  # noqa: ARG001
    config: Any = pluginmanager.get_plugin("pytestconfig")
    arguments = [*config.invocation_params.args, *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    if any(OURS.search(str(argument)) for argument in arguments):
        from bloomref.conformance.suite import pytest_session

        pluginmanager.register(pytest_session, pytest_session.__name__)
